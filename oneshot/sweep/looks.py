"""A sweep's looks -> which trainings may run now, and which seeds are not needed once a look has decided the claims.

With `seeds: {planned: 10, stop: decided}` and `looks: [3, 6, 10]` the first three seeds run first. When all of their
trainings have ended, the claims are judged; the next seeds run only if a claim that counts is still undecided. Nothing
is kept here between two drivers: each judges again from the store.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from oneshot.plan.plan import Plan
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trainings import Training
from oneshot.report.runs import gather
from oneshot.report.verdicts import decided_at
from oneshot.trial.requests import DECIDED

Decide = Callable[[SweepRun], int | None]
"""A sweep run -> the number of the look, from 1, at which every claim that counts was decided; None so far."""


def decide(sweep_run: SweepRun) -> int | None:
    """Judge the claims with what the store has."""
    return decided_at(gather(sweep_run))


class Looks:
    """The looks of a sweep that stops once its claims are decided. Other sweeps have none, and all may run."""

    def __init__(self, sweep_run: SweepRun, *, decide: Decide = decide, applies: bool = True) -> None:
        config = sweep_run.sweep.config
        self.current = 1
        self._sweep_run, self._decide = sweep_run, decide
        self._sizes = config.looks if config.stops_when_decided and applies else []
        self._look_by_seed = {
            seed: next(number for number, size in enumerate(self._sizes, 1) if place < size)
            for place, seed in enumerate(config.planned_seeds if self._sizes else ())
        }

    @property
    def are_left(self) -> bool:
        """Return whether trainings of a later look wait for the judgement of the current one."""
        return self.current < len(self._sizes)

    def may_run(self, training: Training) -> bool:
        """Return whether a training belongs to the looks so far, as trainings of the search do."""
        looks = [self._look_by_seed.get(t.seed, 1) if t.phase == "grid" else 1 for t in training.trials]
        return not self._sizes or min(looks, default=1) <= self.current

    def judge(self, plan: Plan) -> dict[str, str]:
        """Judge the claims at the current look. Return why each later seed is not needed; empty if it goes on."""
        decided = self._decide(replace(self._sweep_run, plan=plan))
        if decided is None:
            self.current += 1
            return {}
        reason = f"{DECIDED} {decided} of {len(self._sizes)}"
        return {str(seed): reason for seed, look in self._look_by_seed.items() if look > decided}

    def summary(self, reason: str, stopped: Sequence[Training], plan: Plan) -> str:
        """Return what a decision saved, by the plan's estimate of the trainings that will not run."""
        costs = {trial.key: trial.cost.gpu_hours for trial in plan.paid()}
        hours = sum(costs.get(training.key) or 0.0 for training in stopped)
        num_trials = sum(len(training.trials) for training in stopped)
        trials = f"{num_trials} trial{'' if num_trials == 1 else 's'}"
        saved = f"about {hours:.{1 if hours < 10 else 0}f} GPU-hours ({trials})" if hours else trials
        which = "primary claims" if any(claim.primary for claim in self._sweep_run.sweep.config.claims) else "claims"
        return f"{reason.replace('decided', 'stopped')}: all {which} are decided; saved {saved}"
