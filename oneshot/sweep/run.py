"""A plan and its store -> every training done once; the driver's side of a sweep.

`run` is also `resume`: what the store has finished is skipped, what it has begun goes on from its checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oneshot.plan import Plan, Training, trainings
from oneshot.standing import standing
from oneshot.store import Store
from oneshot.sweep.background import TrackingThread
from oneshot.sweep.events import Event, Listener
from oneshot.sweep.tuner import run_on_ray
from oneshot.sweepfile import Sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What became of a sweep's trials."""

    finished: int
    failed: int
    missing: int
    interrupted: bool
    num_started: int
    """Trainings that this call started."""
    tracking_error: str


def run(sweep: Sweep, plan: Plan, *, storage: str, address: str | None, listen: Listener) -> Summary:
    """Runs what is missing, keeps MLflow up to date, and says what became of it.

    Raises:
        UserError: the storage cannot be written, MLflow cannot live in it, or no cluster is at `address`.
    """
    store = Store(storage)
    store.check_writable()
    uri, artifacts = mlflow_location(sweep, store)
    folder = store.sweep(plan.name)
    folder.write("sweep.yaml", sweep.source.text)
    folder.write_json("plan.json", plan.to_json())
    every = trainings(plan.trials)
    missing = [training for training in every if standing(training, store.trial(training.key).result()) == "missing"]
    listen(Event(kind="message", text=f"{plan.name}: {len(plan.trials)} trials, {len(missing)} trainings to run"))
    tracking = TrackingThread(sweep, plan, store, uri=uri, artifacts=artifacts)
    interrupted = False
    try:
        if missing:
            interrupted = run_on_ray(sweep, plan, store, missing, address=address, tracking=tracking, listen=listen)
    finally:
        summary = _summary(every, store, interrupted=interrupted, num_started=len(missing))
        ended = "FAILED" if summary.failed or summary.missing else "FINISHED"
        status = "KILLED" if summary.interrupted else ended
        tracking.finish(status)
    return replace(summary, tracking_error=tracking.error)


def mlflow_location(sweep: Sweep, store: Store) -> tuple[str, str | None]:
    """Tracking URI and artifact root: the file's own, or sqlite beside the trials.

    Raises:
        UserError: the storage is remote, and no tracking server is named.
    """
    if sweep.config.mlflow.tracking_uri is not None:
        return sweep.config.mlflow.tracking_uri, None
    if not store.is_local:
        raise sweep.source.error(
            ("storage",),
            f"{store.root} is no local folder, where sqlite could live; set mlflow.tracking_uri to a server",
        )
    root = Path(store.path).resolve()
    return f"sqlite:///{root}/mlflow.db", (root / "mlartifacts").as_uri()


def _summary(every: Sequence[Training], store: Store, *, interrupted: bool, num_started: int) -> Summary:
    states = {training.key: standing(training, store.trial(training.key).result()) for training in every}
    counts = {"finished": 0, "failed": 0, "missing": 0}
    for training in every:
        counts[states[training.key]] += len(training.trials)
    return Summary(**counts, interrupted=interrupted, num_started=num_started, tracking_error="")
