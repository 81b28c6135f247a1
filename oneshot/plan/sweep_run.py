"""A sweep that runs or ran: the pinned sweep, its plan, and the store of its records."""

from dataclasses import dataclass
from pathlib import Path

from oneshot.config.file import SweepFile
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan
from oneshot.store.folder import Folder
from oneshot.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowLocation:
    """Where a sweep's MLflow records are."""

    uri: str
    artifacts: str | None  # artifact root of the embedded database; None if a server decides it
    experiment: str


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

    def mlflow(self) -> MlflowLocation:
        """Return the location of the sweep's MLflow records, as `mlflow_location` does."""
        return mlflow_location(self.sweep, self.store)


def mlflow_location(sweep: SweepFile, store: Store) -> MlflowLocation:
    """Return the tracking server that the file names, or else the sqlite database beside the trials.

    Raises SweepFileError: the storage is remote and no tracking server is named.
    """
    config = sweep.config.mlflow
    experiment = config.experiment or sweep.config.name
    if config.tracking_uri is not None:
        return MlflowLocation(uri=config.tracking_uri, artifacts=None, experiment=experiment)
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
    return MlflowLocation(uri=uri, artifacts=artifacts, experiment=experiment)
