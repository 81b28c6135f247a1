"""A training -> what is done for it: GRPO, or a script. Whoever records it knows no more than this."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from oneshot.plan.trainings import Training
from oneshot.tasks.grading import Grader
from oneshot.training.launcher import Processes
from oneshot.training.metrics import StepMetrics
from oneshot.trial.scripted import ScriptedTrainer


class Trainer(Protocol):
    """A trial that is under way."""

    @property
    def step(self) -> int:
        """Steps that it has behind it."""
        ...

    def can_continue(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is enough to go on from."""
        ...

    def set_baseline(self, baseline: Mapping[str, float]) -> None:
        """Takes accuracies at the start from the record."""
        ...

    def load(self, checkpoint: Path) -> None:
        """Goes to where a checkpoint was saved."""
        ...

    def save(self, folder: Path, *, with_optimizer: bool) -> None:
        """Writes a checkpoint into an empty folder."""
        ...

    def train(self) -> Iterator[StepMetrics]:
        """The steps that are left."""
        ...

    def evaluate(self, checkpoint: Path | None, *, done: Collection[tuple[str, int]]) -> Iterator[StepMetrics]:
        """Evaluations at start and end that are not done yet, with kept weights."""
        ...

    def close(self) -> None:
        """Gives back what outlives an object: processes."""
        ...


def make_ready(training: Training) -> None:
    """Imports what a training computes with here: torch takes seconds, and a script or a child's parent needs none."""
    if training.config.script is None and training.resources.processes == 1:
        import oneshot.training.trainer  # noqa: F401


def begin(training: Training, *, grader: Grader, attempt: int, halvings: int) -> Trainer:
    """Loads what the training needs, at step 0.

    Raises:
        UserError: a model, example or suite is not as it should be.
    """
    if training.config.script is not None:
        return ScriptedTrainer(training.config, seed=training.seed, attempt=attempt)
    resources = training.resources
    if resources.processes > 1:
        return Processes(
            training.config,
            seed=training.seed,
            resources=resources,
            grader_timeout_s=grader.timeout_s,
            halvings=halvings,
        )
    from oneshot.training.trainer import GrpoTrainer

    return GrpoTrainer(training.config, seed=training.seed, resources=resources, grader=grader, halvings=halvings)
