"""A training and its result -> where it stands; a trial and its training's record -> what the trial sees of it."""

from typing import Literal

from oneshot.plan import Trial
from oneshot.store import Result, Row, TrialFolder
from oneshot.tasks.benchmarks import due_evaluations, load_suites
from oneshot.trainings import Training

Standing = Literal["finished", "failed", "missing"]


def trial_standing(trial: Trial, result: Result | None) -> Standing:
    """Whether the record has the steps and evaluations that a trial asks for.

    What is on record is not taken back by a later attempt, for a longer request, that failed.
    """
    if result is None:
        return "missing"
    enough = result.steps_done >= trial.config.train.num_steps
    if enough and due_evaluations(trial.config) <= result.evaluations:
        return "finished"
    return "failed" if result.outcome == "failed" else "missing"


def standing(training: Training, folder: TrialFolder) -> Standing:
    """Whether the record serves every trial that shares the training."""
    result = folder.result()
    found = {trial_standing(trial, result) for trial in training.trials}
    if found == {"finished"}:
        return "finished"
    # an attempt has begun since the failure: it goes on
    return "failed" if "failed" in found and folder.current_result() is not None else "missing"


def view(trial: Trial, folder: TrialFolder) -> list[Row]:
    """What one trial sees of its training's rows: its own steps, and its own evaluations under its own names.

    Evaluations are found by the digest of what they ask: another trial may have called the same suite otherwise.
    """
    due = due_evaluations(trial.config)
    names = [(suite.name, suite.digest) for suite in load_suites(trial.config)]
    rows = []
    for row in folder.rows():
        if row.step > trial.config.train.num_steps:
            break
        metrics = {name: value for name, value in row.metrics.items() if not name.startswith("eval/")}
        for name, digest in names:
            evaluation = folder.evaluation(digest, row.step) if (digest, row.step) in due else None
            if evaluation is not None:
                metrics |= {f"eval/{name}/{key}": value for key, value in evaluation["metrics"].items()}
        rows.append(Row(step=row.step, time_ms=row.time_ms, metrics=metrics))
    return rows
