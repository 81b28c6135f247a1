"""A training, run step by step inside a Ray worker."""

import json
import os
from collections.abc import Generator
from dataclasses import asdict, replace
from typing import Any

import ray
from pydantic import TypeAdapter
from ray import tune

from oneshot.plan.trainings import Training
from oneshot.store.lease import Holder, Leased
from oneshot.store.store import Store
from oneshot.sweep.cluster.fit import ACCELERATOR
from oneshot.tasks.grading import Grader
from oneshot.training.metrics import StepMetrics
from oneshot.trial.environment import gpu_is_broken
from oneshot.trial.recorder import record

_TRAINING = TypeAdapter(Training)
SHOWN = ("reward/mean", "perf/step_s", "perf/tokens_per_s")
"""Metrics that a report carries for the live table; the others are read from the store."""


def to_tune_config(
    training: Training,
    *,
    storage: str,
    sweep: str,
    claims_digest: str,
    stale_holder: Holder | None,
    watched: tuple[str, ...],
) -> dict[str, Any]:
    """Return what a worker needs to run a training, as plain values."""
    return {
        "key": training.key,
        "storage": storage,
        "sweep": sweep,
        "claims": claims_digest,
        "working_directory": os.getcwd(),
        "data_folder": os.environ.get("ONESHOT_DATA"),
        "stale_holder": json.dumps(None if stale_holder is None else asdict(stale_holder)),
        "shown": [*SHOWN, *watched],
        "resources": training.resources.model_dump(mode="json"),
        "training": json.dumps(_TRAINING.dump_python(replace(training, trials=()), mode="json", by_alias=True)),
    }


def accelerator_of(node_id: str) -> str:
    """Return the type of a node's GPUs in Ray's names, or an empty string."""
    resources = [name for node in ray.nodes() if node["NodeID"] == node_id for name in node["Resources"]]
    return next((name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)), "")


class TrialTrainable(tune.Trainable):
    """A worker that runs one training at a time and keeps its imports and its grader for the next one.

    Reports only say that something happened; the store has the details. A training that fails is recorded there and
    ends here without an error, so that its worker can be reused.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first training."""
        self._node = ray.get_runtime_context().get_node_id()
        self._accelerator = accelerator_of(self._node)
        self._grader: Grader | None = None
        self._steps: Generator[StepMetrics] | None = None
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next training."""
        self._end_steps()
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run one step."""
        if self._steps is None:
            if os.path.isdir(self._config["working_directory"]):
                # Tune changes the working directory; a sweep's paths are relative to where it was started
                os.chdir(self._config["working_directory"])
            if self._config["data_folder"]:
                os.environ["ONESHOT_DATA"] = self._config["data_folder"]
            self._steps = self._begin()
        try:
            step = next(self._steps, None)
        except Leased:
            return {"key": self._config["key"], "leased": True, "done": True}
        if step is None and gpu_is_broken():
            # the result is on record; the next training needs another process
            ray.actor.exit_actor()
        if step is None:
            return {"key": self._config["key"], "done": True}
        shown = {name: step.metrics[name] for name in self._config["shown"] if name in step.metrics}
        return {"key": self._config["key"], "step": step.step, "node": self._node, **shown, "done": False}

    def leave(self) -> None:
        """Save a checkpoint and end this worker, whose node is about to disappear."""
        self.cleanup()
        ray.actor.exit_actor()

    def _begin(self) -> Generator[StepMetrics]:
        training = _TRAINING.validate_python(json.loads(self._config["training"]))
        folder = Store(self._config["storage"]).trial(training.key)
        timeout_s = training.config.reward.timeout_s
        if self._grader is None or self._grader.timeout_s != timeout_s:
            self._close_grader()
            self._grader = Grader(timeout_s=timeout_s)
        stale = json.loads(self._config["stale_holder"])
        return record(
            training,
            folder,
            grader=self._grader,
            origin=self._config["sweep"],
            stale_holder=None if stale is None else Holder(**stale),
            metadata={"node": self._node, "accelerator": self._accelerator, "claims": self._config["claims"]},
        )

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: the store has the checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: the store has the checkpoints."""

    def cleanup(self) -> None:
        """End the current training with a checkpoint, and the grader."""
        self._end_steps()
        self._close_grader()

    def _end_steps(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _close_grader(self) -> None:
        if self._grader is not None:
            self._grader.close()
            self._grader = None
