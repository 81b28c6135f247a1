"""Values of search trials as they arrive -> which trials must stop, and the records to rebuild this state from.

asha: asynchronous successive halving (Li et al. 2018, arxiv.org/abs/1810.05934, algorithm 2), in the form that stops
instead of pausing, with one bracket, as in Ray's `AsyncHyperBandScheduler` (ray/tune/schedulers/async_hyperband.py).
Differences from Ray: a trial is compared with itself included, as in the paper (Ray interpolates a percentile of the
others), so that of three trials at factor 3 only the best continues. A trial that skips a rung has arrived there too
(Ray judges it there later, by a later value). A value that is not a number stops the trial (in Ray it continues).

median: the median stopping rule of Vizier (Golovin et al. 2017, section 3.2.2), as in Ray's `MedianStoppingRule`. Here
means run over all values, as in the paper (Ray's begin at the grace period), and running trials count too.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import count, takewhile
from statistics import fmean, median
from typing import Literal

from oneshot.config.search import EarlyStopConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One arrival at a rung (median: at an evaluation), and the decision."""

    group: str  # trials of different groups are never compared
    key: str  # the trial
    step: int
    rung: int  # asha: the highest rung passed; median: 0
    value: float
    stop: bool
    reason: str  # one line


class EarlyStop:
    """The rule that stops trials. A decision is final: a stopped trial stays stopped."""

    def __init__(self, config: EarlyStopConfig, *, mode: Literal["max", "min"]) -> None:
        sign = 1 if mode == "max" else -1
        self._rule = _Asha(config, sign=sign) if config.kind == "asha" else _Median(config, sign=sign)
        self._stopped: dict[tuple[str, str], Judgement] = {}

    def arrive(self, group: str, key: str, step: int, value: float, *, num_steps: int) -> Judgement | None:
        """Judge a trial's value after `step` of its `num_steps` steps; return None where there is nothing to judge.

        There is nothing to judge if it passed no new rung (asha) or is not past the last judged step (median). The last
        step of a trial is recorded for others, and never stops the trial.
        """
        if (group, key) in self._stopped:
            return self._stopped[group, key]
        verdict = self._rule.judge(group, key, step, value)
        if verdict is None:
            return None
        rung, stop, reason = verdict
        if step >= num_steps:
            stop, reason = False, f"{value:.4g} at the last step"
        reason = f"rung {rung}: {reason}" if rung else f"step {step}: {reason}"
        judgement = Judgement(group=group, key=key, step=step, rung=rung, value=value, stop=stop, reason=reason)
        self.replay(judgement)
        return judgement

    def replay(self, judgement: Judgement) -> None:
        """Record an arrival with its decision."""
        self._rule.put(judgement)
        if judgement.stop:
            self._stopped[judgement.group, judgement.key] = judgement


class _Asha:
    """Of the trials that have reached a rung, the best 1/factor continue; the best one always does."""

    def __init__(self, config: EarlyStopConfig, *, sign: int) -> None:
        self._config, self._sign = config, sign
        self._scores: defaultdict[tuple[str, int], dict[str, float]] = defaultdict(dict)
        """(group, rung) -> trial -> value, larger is better."""

    def judge(self, group: str, key: str, step: int, value: float) -> tuple[int, bool, str] | None:
        """Return the rung, whether to stop, and why."""
        passed = rungs(self._config, below=step + 1)
        if not passed or key in self._scores[group, passed[-1]]:
            return None
        rung = passed[-1]
        own = _score(value, self._sign)
        scores = sorted((*self._scores[group, rung].values(), own), reverse=True)
        if math.isnan(value):
            return rung, True, "the value is not a number"
        if len(scores) == 1:
            return rung, False, f"{value:.4g} is the first to arrive"
        cutoff = scores[max(1, int(len(scores) / self._config.factor)) - 1]
        relation = "is among" if own >= cutoff else "is not among"
        share = f"the best 1/{self._config.factor:g} of {len(scores)} (cutoff {self._sign * cutoff:.4g})"
        return rung, own < cutoff, f"{value:.4g} {relation} {share}"

    def put(self, judgement: Judgement) -> None:
        """Record an arrival, also at the rungs that the trial skipped."""
        score = _score(judgement.value, self._sign)
        for rung in rungs(self._config, below=judgement.rung):
            self._scores[judgement.group, rung].setdefault(judgement.key, score)
        self._scores[judgement.group, judgement.rung][judgement.key] = score


class _Median:
    """A trial stops if its best value is worse than the median of the others' means up to its step."""

    def __init__(self, config: EarlyStopConfig, *, sign: int) -> None:
        self._config, self._sign = config, sign
        self._values: defaultdict[str, dict[str, dict[int, float]]] = defaultdict(dict)
        """group -> trial -> step -> value."""

    def judge(self, group: str, key: str, step: int, value: float) -> tuple[int, bool, str] | None:
        own = self._values[group].get(key, {})
        if own and step <= max(own):
            return None
        if step < self._config.grace_steps:
            return 0, False, f"no trial stops before step {self._config.grace_steps}"
        if math.isnan(value):
            return 0, True, "the value is not a number"
        means = self._means_of_others(group, key, step)
        if len(means) < self._config.min_trials:
            return 0, False, f"{len(means)} other trials have come this far; {self._config.min_trials} are needed"
        best = self._sign * max(_score(seen, self._sign) for seen in (*own.values(), value))
        middle = median(means)
        stop = self._sign * best < self._sign * middle
        relation = "is worse than" if stop else "is not worse than"
        return 0, stop, f"its best, {best:.4g}, {relation} {middle:.4g}, the median of {len(means)} others' means"

    def put(self, judgement: Judgement) -> None:
        """Record a value, also one before the grace period."""
        self._values[judgement.group].setdefault(judgement.key, {})[judgement.step] = judgement.value

    def _means_of_others(self, group: str, key: str, step: int) -> list[float]:
        """Return the means of trials that have come this far and have only finite values."""
        others = [values for other, values in self._values[group].items() if other != key and max(values) >= step]
        upto = [[value for at, value in values.items() if at <= step] for values in others]
        return [fmean(values) for values in upto if values and all(map(math.isfinite, values))]


def rungs(config: EarlyStopConfig, *, below: int) -> list[int]:
    """Return the steps below `below` where asha judges a trial: grace_steps x factor^k, rounded."""
    all_rungs = (round(config.grace_steps * config.factor**power) for power in count())
    return list(dict.fromkeys(takewhile(lambda rung: rung < below, all_rungs)))


def _score(value: float, sign: int) -> float:
    """Return a value where larger is better; NaN is the worst."""
    return -math.inf if math.isnan(value) else sign * value
