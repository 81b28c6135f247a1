"""A plan and its store -> every training done once; the driver's side of a sweep.

`run` is also `resume`: what the store has finished is skipped, what it has begun goes on from its checkpoint.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oneshot.plan import Plan
from oneshot.standing import standing, trial_standing
from oneshot.store import Store
from oneshot.sweep.background import TrackingThread
from oneshot.sweep.events import Event, Listener
from oneshot.sweepfile import Sweep
from oneshot.trainings import Training, trainings

Launch = Callable[[Sequence[Training], TrackingThread], bool]


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


def outstanding(plan: Plan, store: Store) -> list[Training]:
    """The trainings that are neither finished nor failed, in the plan's order."""
    return [t for t in trainings(plan.trials) if standing(t, store.trial(t.key)) == "missing"]


def run(
    sweep: Sweep,
    plan: Plan,
    store: Store,
    *,
    missing: Sequence[Training],
    launch: Launch | None,
    listen: Listener,
) -> Summary:
    """Runs trainings that are `outstanding`, keeps MLflow up to date, and says what became of the plan.

    `launch` runs trainings on a cluster and returns whether it was interrupted; it may be None where nothing is
    outstanding, so that a sweep that is done starts no Ray.

    Raises:
        UserError: the storage cannot be written, MLflow cannot live in it, or the cluster cannot be used.
    """
    store.check_writable()
    uri, artifacts = mlflow_location(sweep, store)
    folder = store.sweep(plan.name)
    folder.write("sweep.yaml", sweep.source.text)
    folder.write_json("plan.json", plan.to_json())
    listen(Event(kind="message", text=f"{plan.name}: {len(plan.trials)} trials, {len(missing)} trainings to run"))
    tracking = TrackingThread(sweep, plan, store, uri=uri, artifacts=artifacts)
    interrupted = False
    try:
        if missing:
            assert launch is not None, "trainings are outstanding, and nothing to run them with"
            interrupted = launch(missing, tracking)
    finally:
        summary = _summary(plan, store, interrupted=interrupted, num_started=len(missing))
        ended = "FAILED" if summary.failed or summary.missing else "FINISHED"
        tracking.finish("KILLED" if summary.interrupted else ended)
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


def _summary(plan: Plan, store: Store, *, interrupted: bool, num_started: int) -> Summary:
    counts = {"finished": 0, "failed": 0, "missing": 0}
    for training in trainings(plan.trials):
        folder = store.trial(training.key)
        for trial in training.trials:
            found = trial_standing(trial, folder.result())
            counts["missing" if found == "failed" and folder.current_result() is None else found] += 1
    return Summary(**counts, interrupted=interrupted, num_started=num_started, tracking_error="")
