"""A sweep's folder and its trials' -> where it stands, for whoever asks and sees the store."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from oneshot.plan.plan import Trial
from oneshot.plan.recorded import begun_sweep
from oneshot.store.lease import LAPSE_S, Holder, holder, is_gone, is_here
from oneshot.store.store import Row, Store, TrialFolder, now_ms
from oneshot.trial.requests import read_stops
from oneshot.trial.state import trial_state

State = Literal["finished", "failed", "stopped", "running", "pending"]
STATES: tuple[State, ...] = ("finished", "failed", "stopped", "running", "pending")
RATE_STEPS = 10
"""Steps that a rate is taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStatus:
    """Where one trial stands."""

    label: str
    cell: dict[str, str]
    seed: int
    phase: str
    key: str | None
    state: State
    step: int
    num_steps: int
    steps_per_s: float | None
    eta_s: float | None
    attempts: int
    reason: str
    """What it failed of last, why it was stopped, or what it waits for."""
    where: str
    """Host and process of a running one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStatus:
    """Where a sweep stands."""

    name: str
    phase: Literal["search", "grid", "done"]
    driver: str | None
    """Host and process of the driver, if one is alive."""
    num_trials: int
    counts: dict[str, int]
    last_error: str
    trials: list[TrialStatus] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What `status --json` prints: the counts stand at the top, too."""
        return {**asdict(self), **self.counts}


def is_alive(found: Holder | None) -> bool:
    """Whether a holder seems to live, at one look: its process does, or its last beat is not long ago.

    Machines' clocks are compared here, which is good enough to look at; whoever takes a lease over waits instead.
    """
    if found is None or is_gone(found):
        return False
    return is_here(found) or now_ms() - found.time_ms < 2000 * LAPSE_S


def sweep_status(store: Store, name: str) -> SweepStatus:
    """Where a sweep stands.

    Raises:
        UserError: the store has no such sweep.
    """
    sweep, plan = begun_sweep(store, name)
    folder = store.sweep(name)
    stops = read_stops(folder)
    trials = []
    for trial in plan.trials:
        state = trial_state(trial, store, stops, faults=sweep.config.faults)
        of_one = store.trial(trial.key) if trial.key is not None else None
        found = holder(of_one) if of_one is not None and state == "missing" else None
        shown: State = ("running" if is_alive(found) else "pending") if state == "missing" else state
        reason = stops.reason(trial) or "" if state == "stopped" else trial.waits_for or ""
        trials.append(_trial_status(trial, of_one, shown, reason, found))
    counts = Counter(one.state for one in trials)
    driver = holder(folder)
    return SweepStatus(
        name=name,
        phase=_phase(trials),
        driver=str(driver) if is_alive(driver) else None,
        num_trials=len(trials),
        counts={state: counts[state] for state in STATES},
        last_error=next((one.reason for one in reversed(trials) if one.state == "failed"), ""),
        trials=trials,
    )


def _phase(trials: list[TrialStatus]) -> Literal["search", "grid", "done"]:
    open_ = {one.phase for one in trials if one.state in ("running", "pending")}
    if not open_:
        return "done"
    return "search" if "search" in open_ else "grid"


def _trial_status(
    trial: Trial, folder: TrialFolder | None, state: State, reason: str, found: Holder | None
) -> TrialStatus:
    num_steps = trial.config.train.num_steps
    result = folder.result() if folder is not None else None
    rows = folder.rows() if folder is not None and state != "finished" else []
    step = num_steps if state == "finished" else min(num_steps, rows[-1].step if rows else 0)
    rate = _rate(rows) if state == "running" else None
    if result is not None and result.outcome == "failed" and state != "finished":
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
        where=str(found) if state == "running" and found is not None else "",
    )


def _rate(rows: list[Row]) -> float | None:
    """Steps a second over the last few: their median, so that an evaluation or a restart does not count."""
    last = rows[-RATE_STEPS - 1 :]
    gaps = [(b.time_ms - a.time_ms) / 1000 / max(1, b.step - a.step) for a, b in pairwise(last)]
    step_s = median(gaps) if gaps else 0.0
    return 1 / step_s if step_s > 0 else None
