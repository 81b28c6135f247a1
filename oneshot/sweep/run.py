"""A sweep run -> every training done once: the driver's side of a sweep.

`run` is also `resume`: finished trainings are skipped, begun ones resume from their checkpoint.
"""

import contextlib
import shlex
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from oneshot.errors import UserError
from oneshot.models.engines import has_vllm
from oneshot.plan.cells import expand, read_axes
from oneshot.plan.frozen import Planned, freeze
from oneshot.plan.loader import DATA, ENGINES
from oneshot.plan.plan import Plan
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trainings import Training, check_data, data_digests
from oneshot.store.folder import now_ms
from oneshot.store.lease import LAPSE_S, Lease, Leased, Watch, is_here, take
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.events import Event, Listener
from oneshot.sweep.tracking.thread import TrackingThread
from oneshot.trial.requests import read_stops
from oneshot.trial.state import TrialState, trial_state

Launch = Callable[[Agenda, TrackingThread], bool]  # runs an agenda on a cluster; returns whether it was interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The state of a sweep's trials when its driver ends."""

    finished: int
    failed: int
    stopped: int  # by early stopping, by hand, or because a look decided the claims
    missing: int
    interrupted: bool
    halted: str  # why the sweep ended although trials are missing
    num_started: int  # attempts that this driver began
    tracking_error: str
    decided: str = ""  # at which look the claims were decided, and what that saved


def run(
    sweep_run: SweepRun, *, launch: Launch, listen: Listener, only: Collection[str] | None = None
) -> tuple[Summary, SweepRun]:
    """Run the missing trainings and keep MLflow up to date; return a summary, and the run with its final plan.

    `launch` is not called when nothing is missing. `only` limits the run to these training keys.

    Raises UserError: the storage cannot be written, the MLflow location cannot be used, another driver runs the sweep,
    data are missing, or the cluster cannot be used.
    """
    sweep_run.store.check_writable()
    sweep_run.mlflow()  # refuses a location that cannot be used
    lease = drive(sweep_run, listen)
    try:
        return _run(sweep_run, launch, listen, only)
    finally:
        with contextlib.suppress(OSError):  # without the store, the lease lapses by itself
            lease.release()


def drive(sweep_run: SweepRun, listen: Listener) -> Lease:
    """Take the sweep's lease for this driver, waiting for a lease that nobody renews to lapse.

    Raises UserError: another driver runs the sweep.
    """
    folder, name = sweep_run.folder, sweep_run.name
    watch, start_s = Watch(), time.monotonic()
    first_holder = None
    while True:
        try:
            return take(folder, sweep=name, metadata={"started_ms": now_ms()}, stale_holder=watch.lapsed(folder))
        except Leased as leased:
            has_beaten = first_holder is not None and leased.holder != first_holder
            if is_here(leased.holder) or has_beaten or time.monotonic() - start_s > 2 * LAPSE_S:
                host = f"{leased.holder.host}:{leased.holder.pid}"
                place = shlex.join([name, "--storage", sweep_run.store.root])
                raise UserError(
                    f"{name} is already running on {host} (attempt {leased.holder.attempt}); "
                    f"watch it with `oneshot status {place}`, or end it with `oneshot stop {place}`"
                ) from leased
            if first_holder is None:
                first_holder = leased.holder
                listen(Event(kind="message", text=f"waiting up to {LAPSE_S:.0f} s to see whether {first_holder} lives"))
            time.sleep(1.0)


def _run(
    sweep_run: SweepRun, launch: Launch, listen: Listener, only: Collection[str] | None
) -> tuple[Summary, SweepRun]:
    folder, plan = sweep_run.folder, sweep_run.plan
    if only is None:
        _record_start(sweep_run)
    tracking: TrackingThread | None = None

    def replanned(fresh: Plan) -> None:
        folder.write_json("plan.json", fresh.to_json())
        if tracking is not None:
            tracking.replan(fresh)

    agenda = Agenda(sweep_run, listen=listen, replanned=replanned, only=only)
    missing = agenda.outstanding()
    unkeyed = [trial.config for trial in plan.trials if trial.key is None]
    # before MLflow hears of this run: without data there is nothing to tell
    configs = [training.config for training in missing] + unkeyed
    check_data(configs)
    check_lengths(sweep_run, missing)
    if only is None:  # the data are here, so that the record covers them
        freeze(folder, Planned.of(sweep_run.sweep.config, plan))
    text = f"{plan.name}: {len(plan.trials)} trials, {len(missing)} trainings to run"
    listen(Event(kind="message", text=text, num_left=len(missing)))
    tracking = TrackingThread(replace(sweep_run, plan=agenda.plan))
    interrupted = False
    try:
        if not agenda.is_idle():
            interrupted = launch(agenda, tracking)
    finally:
        ended = replace(sweep_run, plan=agenda.plan)
        summary = _summary(ended, agenda, interrupted=interrupted)
        status = "FAILED" if summary.failed or summary.missing else "FINISHED"
        tracking.finish("KILLED" if summary.interrupted else status)
    return replace(summary, tracking_error=tracking.error), ended


def check_lengths(sweep_run: SweepRun, missing: Sequence[Training]) -> None:
    """Encode what SFT trainings learn, before anything runs.

    Raises SweepFileError: a solution does not fit; names the place that set the length, or the examples.
    """
    trained = [training for training in missing if training.config.train.method == "sft"]
    if not trained:
        return
    from oneshot.training.demonstrations import check_length  # imports torch, which other sweeps' drivers lack

    sweep = sweep_run.sweep
    cells = {tuple(cell.names.items()): cell for cell in expand(sweep, read_axes(sweep))}
    checked = set()
    for training in trained:
        parts = training.config.model_dump_json(include={"model", "prompt", "examples", "train"})
        if parts in checked:
            continue
        checked.add(parts)
        try:
            check_length(training.config)
        except UserError as error:
            cell = cells.get(tuple(training.trials[0].cell.items()))
            if cell is None:
                raise
            path = "train.max_length" if "train.max_length" in cell.places else "examples"
            raise sweep.source.error(cell.place(path), f"{error} (in cell {cell.label})") from error


def _record_start(sweep_run: SweepRun) -> None:
    """Record the file, the `--set` values and the plan before any trial begins."""
    sweep, plan, folder = sweep_run.sweep, sweep_run.plan, sweep_run.folder
    if sweep.has_vllm is None and any(trial.resources.gpus for trial in plan.trials):
        folder.write_json(ENGINES, {"vllm": has_vllm()})
    folder.write("sweep.yaml", sweep.source.text)
    folder.write_json("settings.json", sweep.override_values())
    folder.write_json("plan.json", plan.to_json())
    # with these, the sweep can be read where its data are not
    folder.write_json(DATA, data_digests(trial.config for trial in plan.trials))


def _summary(sweep_run: SweepRun, agenda: Agenda, *, interrupted: bool) -> Summary:
    stops, faults = read_stops(sweep_run.folder), sweep_run.sweep.config.faults
    counts = Counter(trial_state(trial, sweep_run.store, stops, faults=faults) for trial in sweep_run.plan.trials)
    return Summary(
        finished=counts[TrialState.FINISHED],
        failed=counts[TrialState.FAILED],
        stopped=counts[TrialState.STOPPED],
        missing=counts[TrialState.MISSING],
        interrupted=interrupted,
        halted=agenda.halted,
        num_started=agenda.num_started,
        tracking_error="",
        decided=agenda.decided,
    )
