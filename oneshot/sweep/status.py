"""A sweep's folder and the records of its trials -> the state of each trial, for anybody who sees the store."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from oneshot.plan.loader import begun_sweep
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trial import Trial
from oneshot.store.folder import now_ms
from oneshot.store.lease import LAPSE_S, Holder, holder, is_gone, is_here
from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.trial.requests import Stops, read_stops
from oneshot.trial.state import SHOWN_STATES, TrialState, trial_state

Phase = Literal["search", "grid", "done"]
RATE_STEPS = 10  # steps that a rate is measured over


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStatus:
    """The state of one trial."""

    label: str
    cell: dict[str, str]
    seed: int
    phase: str
    key: str | None
    state: TrialState
    step: int
    num_steps: int
    steps_per_s: float | None
    eta_s: float | None
    attempts: int
    reason: str  # why it last failed, why it was stopped, or what it waits for
    where: str  # host and process of a running trial


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStatus:
    """The state of a sweep."""

    name: str
    phase: Phase
    driver: str | None  # host and process of the driver, if it is alive
    num_trials: int
    counts: dict[str, int]
    last_error: str
    trials: list[TrialStatus] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what `status --json` prints: the counts appear at the top level too."""
        return {**asdict(self), **self.counts}


def is_alive(last_holder: Holder | None) -> bool:
    """Return whether a holder's process lives, or its last heartbeat is recent.

    This compares clocks of two machines, which is good enough for display. Taking a lease over waits instead.
    """
    if last_holder is None or is_gone(last_holder):
        return False
    return is_here(last_holder) or now_ms() - last_holder.time_ms < 2000 * LAPSE_S


def sweep_status(store: Store, name: str) -> SweepStatus:
    """Return the state of a sweep. Raises UserError: the store has no such sweep."""
    sweep_run = begun_sweep(store, name)
    stops = read_stops(sweep_run.folder)
    trials = [_trial_status(sweep_run, trial, stops) for trial in sweep_run.plan.trials]
    counts = Counter(trial.state for trial in trials)
    driver = holder(sweep_run.folder)
    return SweepStatus(
        name=name,
        phase=_phase(trials),
        driver=str(driver) if is_alive(driver) else None,
        num_trials=len(trials),
        counts={str(state): counts[state] for state in SHOWN_STATES},
        last_error=next((trial.reason for trial in reversed(trials) if trial.state is TrialState.FAILED), ""),
        trials=trials,
    )


def _phase(trials: list[TrialStatus]) -> Phase:
    phases = {trial.phase for trial in trials if trial.state in (TrialState.RUNNING, TrialState.PENDING)}
    if not phases:
        return "done"
    return "search" if "search" in phases else "grid"


def _trial_status(sweep_run: SweepRun, trial: Trial, stops: Stops) -> TrialStatus:
    store = sweep_run.store
    state = trial_state(trial, store, stops, faults=sweep_run.sweep.config.faults)
    folder = store.trial(trial.key) if trial.key is not None else None
    last_holder = None
    if state is TrialState.MISSING:
        last_holder = holder(folder) if folder is not None else None
        state = TrialState.RUNNING if is_alive(last_holder) else TrialState.PENDING
    reason = stops.reason(trial) or "" if state is TrialState.STOPPED else trial.waits_for or ""
    num_steps = trial.config.train.num_steps
    result = folder.result() if folder is not None else None
    rows = folder.rows() if folder is not None and state is not TrialState.FINISHED else []
    step = num_steps if state is TrialState.FINISHED else min(num_steps, rows[-1].step if rows else 0)
    rate = _rate(rows) if state is TrialState.RUNNING else None
    if result is not None and result.outcome == "failed" and state is not TrialState.FINISHED:
        reason = result.reason
    return TrialStatus(
        label=trial.label,
        cell=trial.cell,
        seed=trial.seed,
        phase=trial.phase,
        key=trial.key,
        state=state,
        step=step,
        num_steps=num_steps,
        steps_per_s=rate,
        eta_s=(num_steps - step) / rate if rate else None,
        attempts=folder.last_attempt() if folder is not None else 0,
        reason=reason,
        where=str(last_holder) if state is TrialState.RUNNING and last_holder is not None else "",
    )


def _rate(rows: list[Row]) -> float | None:
    """Return the median steps a second over the last few, so that an evaluation or a restart does not count."""
    last = rows[-RATE_STEPS - 1 :]
    gaps = [(b.time_ms - a.time_ms) / 1000 / max(1, b.step - a.step) for a, b in pairwise(last)]
    step_s = median(gaps) if gaps else 0.0
    return 1 / step_s if step_s > 0 else None
