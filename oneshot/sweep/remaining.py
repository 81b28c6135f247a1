"""A plan and its store -> how many trials have ended, and how long the others take on CPUs."""

import os
from collections import Counter
from dataclasses import dataclass

from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trial import Trial
from oneshot.trial.requests import read_stops
from oneshot.trial.state import TrialState, trial_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """What is done of a sweep, and what is left."""

    num_trials: int
    ended: dict[str, int]  # finished, failed and stopped trials
    at_a_time: int  # trainings that run at the same time on this machine
    seconds: float | None  # time that the rest takes; None if it uses GPUs, or its speed is unknown

    @property
    def num_open(self) -> int:
        """Return the number of trials that still have to run."""
        return self.num_trials - sum(self.ended.values())


def find_remaining(sweep_run: SweepRun) -> Remaining:
    """Read which trials have ended, and estimate the time of the others from the plan's seconds a step."""
    stops, faults = read_stops(sweep_run.folder), sweep_run.sweep.config.faults
    trials = sweep_run.plan.trials
    states = [trial_state(trial, sweep_run.store, stops, faults=faults) for trial in trials]
    counts = Counter(states)
    is_open = {trial.key: state for trial, state in zip(trials, states, strict=True) if state is TrialState.MISSING}
    left = [trial for trial in sweep_run.plan.paid() if trial.key in is_open]
    at_a_time = max(1, min(_at_a_time(sweep_run), len(left)))
    seconds = [_seconds_left(sweep_run, trial) for trial in left]
    known = [each for each in seconds if each is not None]
    return Remaining(
        num_trials=len(trials),
        ended={str(state): counts[state] for state in (TrialState.FINISHED, TrialState.FAILED, TrialState.STOPPED)},
        at_a_time=at_a_time,
        seconds=sum(known) / at_a_time if len(known) == len(seconds) else None,
    )


def _at_a_time(sweep_run: SweepRun) -> int:
    cpus = max([1.0, *(trial.resources.cpus for trial in sweep_run.plan.trials)])
    fitting = int((os.cpu_count() or 1) / cpus)
    return min(fitting, sweep_run.sweep.config.resources.max_concurrent or fitting)


def _seconds_left(sweep_run: SweepRun, trial: Trial) -> float | None:
    if trial.resources.gpus or trial.cost.step_s is None:
        return None
    result = sweep_run.store.trial(trial.key).result() if trial.key is not None else None
    return trial.cost.step_s * max(0, trial.config.train.num_steps - (result.steps_done if result else 0))
