"""A training -> the trainer that runs it: GRPO in one or several processes, or a script."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from oneshot.plan.trainings import Training
from oneshot.tasks.grading import Grader
from oneshot.training.launcher import Processes
from oneshot.training.metrics import StepMetrics
from oneshot.trial.scripted import ScriptedTrainer


class Trainer(Protocol):
    """A running trial, as the recorder sees it."""

    @property
    def step(self) -> int:
        """Return the number of steps done."""

    def set_baseline(self, baseline: Mapping[str, float]) -> None:
        """Set the recorded accuracies at the start, by suite name."""

    def load(self, checkpoint: Path) -> None:
        """Load a checkpoint."""

    def save(self, folder: Path, *, with_optimizer: bool) -> None:
        """Write a checkpoint into an empty folder."""

    def train(self) -> Iterator[StepMetrics]:
        """Run the remaining steps."""

    def evaluate(self, checkpoint: Path | None, *, done: Collection[tuple[str, int]]) -> Iterator[StepMetrics]:
        """Run the evaluations at start and end that are not in `done`, with a checkpoint's weights."""

    def close(self) -> None:
        """End the trainer's processes, if it has any."""


def make_ready(training: Training) -> None:
    """Import the trainer if it runs in this process: torch takes seconds, and other trainers do not need it here."""
    if training.config.script is None and training.resources.processes == 1:
        import oneshot.training.trainer  # noqa: F401


def begin(training: Training, *, grader: Grader, attempt: int, halvings: int) -> Trainer:
    """Load what the training needs, at step 0. Raises UserError: a model, example or suite cannot be used."""
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
