"""A training and its result -> where it stands: finished, failed or missing."""

from typing import Literal

from oneshot.plan import Training, due_evaluations
from oneshot.store import Result

Standing = Literal["finished", "failed", "missing"]


def standing(training: Training, result: Result | None) -> Standing:
    """Whether a training's record serves every trial that shares it."""
    if result is None:
        return "missing"
    if result.outcome == "failed":
        return "failed"
    wanted = set().union(*(due_evaluations(trial.config) for trial in training.trials))
    num_steps = max(trial.config.train.num_steps for trial in training.trials)
    return "finished" if result.steps_done >= num_steps and wanted <= result.evaluations else "missing"
