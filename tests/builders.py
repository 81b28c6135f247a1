"""Objects that several tests build: attempts without a lease, sweep runs, MLflow locations."""

from typing import Any

from oneshot.config.file import SweepFile
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan
from oneshot.plan.sweep_run import MlflowLocation, Owner, SweepRun
from oneshot.store.folder import Folder
from oneshot.store.store import Store


def begin_attempt(folder: Folder, metadata: dict[str, Any]) -> int:
    """Records an attempt without a lease; returns its number."""
    attempt = folder.last_attempt() + 1
    folder.write_json(f"attempts/{attempt}.json", metadata)
    return attempt


def sweep_run(sweep: SweepFile, plan: Plan, store: Store) -> SweepRun:
    """A sweep file, planned with nothing pinned unless it is pinned already."""
    return SweepRun.of(PinnedSweep.of(sweep), plan, store)


def located(uri: str, *, experiment: str, artifacts: str | None = None) -> MlflowLocation:
    """A place for MLflow's records."""
    return MlflowLocation(uri=uri, experiment=experiment, artifacts=artifacts, owner=Owner(user="ada", project=""))


def tiny_trial(*, num_steps: int) -> dict[str, Any]:
    """The sections of a trial that takes about a second."""
    return {
        "model": {"path": "tiny:qwen2"},
        "prompt": {"template": "plain", "train_suffix": ""},
        "examples": ["arithmetic:47+38"],
        "rollout": {"num_groups": 2, "group_size": 4, "max_tokens": 24, "temperature": 1.0},
        "train": {"num_steps": num_steps},
    }
