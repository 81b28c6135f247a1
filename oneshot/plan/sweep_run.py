"""A sweep that runs or ran: the pinned sweep, its plan, and the store of its records."""

import getpass
import os
from dataclasses import dataclass
from pathlib import Path

from oneshot.config.file import SweepFile
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan
from oneshot.store.folder import Folder
from oneshot.store.store import Store

USER = "ONESHOT_USER"
"""Environment variable with the user of a sweep that was submitted to a cluster, where the login name is another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who runs a sweep, and what it belongs to; the project may be empty."""

    user: str
    project: str

    def tags(self) -> dict[str, str]:
        """Return MLflow's tags: its own name for the user, which its UI shows, and the project."""
        return {"mlflow.user": self.user, **({"project": self.project} if self.project else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowLocation:
    """Where a sweep's MLflow records are."""

    uri: str
    artifacts: str | None  # artifact root of the embedded database; None if a server decides it
    experiment: str
    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """A pinned sweep, its plan, and the store that holds its records."""

    sweep: PinnedSweep
    plan: Plan
    store: Store
    folder: Folder  # the sweep's own; one object, so that the driver's lease fences every write

    @classmethod
    def of(cls, sweep: PinnedSweep, plan: Plan, store: Store) -> "SweepRun":
        """Return the run of a sweep in its folder of the store."""
        return cls(sweep=sweep, plan=plan, store=store, folder=store.sweep(plan.name))

    @property
    def name(self) -> str:
        """Return the sweep's name."""
        return self.plan.name

    @property
    def owner(self) -> Owner:
        """Return who runs it."""
        return owner_of(self.sweep)

    def mlflow(self) -> MlflowLocation:
        """Return the location of the sweep's MLflow records, as `mlflow_location` does."""
        return mlflow_location(self.sweep, self.store)


def owner_of(sweep: SweepFile) -> Owner:
    """Return the user and project that the file names; the user is else that of the submission, or the login name."""
    config = sweep.config
    return Owner(user=config.user or os.environ.get(USER) or login_name(), project=config.project or "")


def login_name() -> str:
    """Return the login name, or an empty string if this machine has none for the process's user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        return ""


def mlflow_location(sweep: SweepFile, store: Store) -> MlflowLocation:
    """Return the tracking server that the file names, or else the sqlite database beside the trials.

    Raises SweepFileError: the storage is remote and no tracking server is named.
    """
    config = sweep.config.mlflow
    experiment, owner = config.experiment or sweep.config.name, owner_of(sweep)
    if config.tracking_uri is not None:
        return MlflowLocation(uri=config.tracking_uri, artifacts=None, experiment=experiment, owner=owner)
    if not store.is_local:
        raise sweep.source.error(
            ("storage",),
            f"{store.root} is not a local folder, so sqlite cannot be used; set mlflow.tracking_uri to a server",
        )
    root = Path(store.path).resolve()
    if odd := sorted({*str(root)} & {*"%?#"}):
        raise sweep.source.error(
            ("storage",),
            f"{store.root}: MLflow's database cannot be in a path with {' or '.join(odd)}; choose another folder, "
            "or set mlflow.tracking_uri to a server",
        )
    uri, artifacts = f"sqlite:///{root}/mlflow.db", (root / "mlartifacts").as_uri()
    return MlflowLocation(uri=uri, artifacts=artifacts, experiment=experiment, owner=owner)
