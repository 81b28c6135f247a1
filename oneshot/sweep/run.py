"""A plan and its store -> every training done once; the driver's side of a sweep.

`run` is also `resume`: what the store has finished is skipped, what it has begun goes on from its checkpoint.
"""

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from oneshot.config.file import Sweep
from oneshot.errors import UserError
from oneshot.plan.claims import cell_key, freeze
from oneshot.plan.plan import Plan
from oneshot.plan.trainings import check_data
from oneshot.store.lease import LAPSE_S, Lease, Leased, Watch, is_here, take
from oneshot.store.store import Folder, Store, now_ms
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.events import Event, Listener
from oneshot.sweep.tracking.thread import TrackingThread
from oneshot.trial.requests import read_stops
from oneshot.trial.state import trial_state

Launch = Callable[[Agenda, TrackingThread], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What became of a sweep's trials."""

    finished: int
    failed: int
    stopped: int
    """By early stopping, or by hand."""
    missing: int
    interrupted: bool
    halted: str
    """Why the sweep ended though trials are missing."""
    num_started: int
    """Attempts that this call began."""
    tracking_error: str


def run(
    sweep: Sweep,
    plan: Plan,
    store: Store,
    *,
    launch: Launch,
    listen: Listener,
    only: Collection[str] | None = None,
) -> tuple[Summary, Plan]:
    """Runs what is missing of a plan, keeps MLflow up to date, and says what became of it, and of the plan by a search.

    `launch` runs an agenda on a cluster and returns whether it was interrupted; it is not called where nothing is
    missing. `only`: of these trainings alone.

    Raises:
        UserError: the storage cannot be written, MLflow cannot live in it, another driver runs the sweep, data are
            missing, or the cluster cannot be used.
    """
    store.check_writable()
    uri, artifacts = mlflow_location(sweep, store)
    folder = store.sweep(plan.name)
    lease = drive(folder, plan.name, listen)
    try:
        return _run(sweep, plan, store, folder, launch, listen, only, uri=uri, artifacts=artifacts)
    finally:
        with contextlib.suppress(OSError):  # cut off from the store: the lease lapses
            lease.release()


def drive(folder: Folder, name: str, listen: Listener) -> Lease:
    """Takes the sweep for this driver; waits for a lease that nobody renews to lapse.

    Raises:
        UserError: another driver runs it.
    """
    watch, start_s = Watch(), time.monotonic()
    first = None
    while True:
        try:
            return take(folder, sweep=name, facts={"started_ms": now_ms()}, stale_holder=watch.lapsed(folder))
        except Leased as leased:
            has_beaten = first is not None and leased.holder != first
            if is_here(leased.holder) or has_beaten or time.monotonic() - start_s > 2 * LAPSE_S:
                who = f"{leased.holder.host}:{leased.holder.pid}"
                raise UserError(
                    f"{name} is being run by {who} (attempt {leased.holder.attempt}): `oneshot status {name}` shows "
                    f"it, `oneshot stop {name}` ends it"
                ) from leased
            if first is None:
                first = leased.holder
                listen(Event(kind="message", text=f"waits {LAPSE_S:.0f} s for a sign of life of {first}"))
            time.sleep(1.0)


def _run(
    sweep: Sweep,
    plan: Plan,
    store: Store,
    folder: Folder,
    launch: Launch,
    listen: Listener,
    only: Collection[str] | None,
    *,
    uri: str,
    artifacts: str | None,
) -> tuple[Summary, Plan]:
    if only is None:
        folder.write("sweep.yaml", sweep.source.text)
        folder.write_json("settings.json", {path: setting.value for path, setting in sweep.overrides.items()})
        folder.write_json("plan.json", plan.to_json())
        steps = {cell_key(trial.cell): trial.config.train.num_steps for trial in plan.grid}
        freeze(folder, sweep.config.claims, seeds=sweep.config.seeds, num_steps=steps)
    tracking = TrackingThread(sweep, plan, store, uri=uri, artifacts=artifacts)
    interrupted, agenda = False, None

    def replanned(fresh: Plan) -> None:
        folder.write_json("plan.json", fresh.to_json())
        tracking.replan(fresh)

    try:
        agenda = Agenda(sweep, plan, store, folder=folder, listen=listen, replanned=replanned, only=only)
        missing = agenda.outstanding()
        check_data([one.config for one in missing] + [trial.config for trial in plan.trials if trial.key is None])
        listen(
            Event(kind="message", text=f"{plan.name}: {len(plan.trials)} trials, {len(missing)} trainings to run now")
        )
        if not agenda.is_idle():
            interrupted = launch(agenda, tracking)
    finally:
        ended = agenda.plan if agenda is not None else plan
        summary = _summary(sweep, ended, store, agenda, interrupted=interrupted)
        status = "FAILED" if summary.failed or summary.missing else "FINISHED"
        tracking.finish("KILLED" if summary.interrupted else status)
    return replace(summary, tracking_error=tracking.error), ended


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


def _summary(sweep: Sweep, plan: Plan, store: Store, agenda: Agenda | None, *, interrupted: bool) -> Summary:
    counts = {"finished": 0, "failed": 0, "stopped": 0, "missing": 0}
    stops = read_stops(store.sweep(plan.name))
    for trial in plan.trials:
        counts[trial_state(trial, store, stops, faults=sweep.config.faults)] += 1
    return Summary(
        **counts,
        interrupted=interrupted,
        halted=agenda.halted if agenda is not None else "",
        num_started=agenda.num_started if agenda is not None else 0,
        tracking_error="",
    )
