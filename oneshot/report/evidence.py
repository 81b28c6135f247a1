"""Tests of one difference -> `Difference`: its effect, the widest of their intervals, the largest of their p-values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scipy import optimize, stats

from oneshot.report.constants import LEVEL
from oneshot.report.stats import within

NUM_RESAMPLES = 9_999
RESOLUTION = 2 / (NUM_RESAMPLES + 1)  # smallest level that so many resamples can tell


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentT:
    """A normal mean, its standard error, and the degrees of freedom of that error."""

    effect: float
    error: float
    df: float

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the effect -+ t(1 - level / 2, df) errors."""
        half = float(stats.t.ppf(1 - level / 2, self.df)) * self.error
        return self.effect - half, self.effect + half

    def p_value(self, bound: float) -> float:
        """Return both tails beyond `bound`. If the error is 0, return 1 for the effect itself and else 0."""
        if self.error == 0.0:
            return float(bound == self.effect)
        return float(2 * stats.t.sf(abs(self.effect - bound) / self.error, self.df))


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDifference:
    """No difference on any problem at any seed. It does not show that there is none on other problems.

    If P problems show no difference, at most a share q = 1 - (level / 2)^(1 / P) of all problems has one (Clopper and
    Pearson 1934). The mean difference of shares is then between -q and q. With H suites each has level / H, and the
    bounds add up by the suites' weights.
    """

    num_problems: tuple[int, ...]  # of each suite
    weights: tuple[float, ...]  # of each suite in the effect

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the interval at a level."""
        tail = level / 2 / len(self.num_problems)
        shares = (1 - tail ** (1 / num) for num in self.num_problems)
        bound = sum(weight * share for weight, share in zip(self.weights, shares, strict=True))
        return -bound, bound

    def p_value(self, bound: float) -> float:
        """Return the level whose interval ends at `bound`; 1 for no difference."""
        if abs(bound) <= self.interval(1.0)[1]:
            return 1.0
        if abs(bound) >= sum(self.weights):
            return 0.0
        if self.weights == (1.0,):
            return float(2 * (1 - abs(bound)) ** self.num_problems[0])
        logarithm = optimize.brentq(lambda x: self.interval(math.exp(x))[1] - abs(bound), -700.0, 0.0)
        return math.exp(logarithm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skewed:
    """A mean over problems whose distribution is skewed: the ABC interval (DiCiccio and Efron, Biometrika 79, 1992).

    ABC is what the BCa bootstrap tends to, without resamples: the same at every run and for every order of problems,
    and at any level. For a mean its two corrections are one number, the acceleration a = sum u^3 / (6 (sum u^2)^1.5) of
    the problems' contributions u, and an end is effect + error w / (1 - a w)^2 with w = a -+ quantile. Where we differ:
    the quantile is that of t, which matters for suites of 30 problems.
    """

    effect: float
    error: float
    acceleration: float
    df: float

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the interval at a level. An end is infinite if the correction has none so far out."""
        half = float(stats.t.ppf(1 - level / 2, self.df))
        low, high = self._end(self.acceleration - half), self._end(self.acceleration + half)
        return low, high

    def _end(self, distance: float) -> float:
        shift = self.acceleration * distance
        if abs(shift) >= 1:
            return math.copysign(math.inf, distance)
        return self.effect + self.error * distance / (1 - shift) ** 2

    def p_value(self, bound: float) -> float:
        """Return the level whose interval ends at `bound`, or else the level from which an end is infinite."""
        ratio, a = (bound - self.effect) / self.error, self.acceleration
        root = 1 + 4 * a * ratio
        if root < 0:
            return float(2 * stats.t.sf(abs(1 / a) + abs(a), self.df))
        # the root of ratio = w / (1 - a w)^2 that is `ratio` itself if a is 0, written without a difference
        distance = 2 * ratio / (1 + 2 * a * ratio + math.sqrt(root))
        return float(2 * stats.t.sf(abs(distance - a), self.df))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """The intervals of a resampled mean at any level in (0, 1)."""

    interval_at: Callable[[float], tuple[float, float]]

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return quantiles of the resampled means, corrected for bias and skew; at least at the level they resolve."""
        return self.interval_at(max(level, RESOLUTION))

    def p_value(self, bound: float) -> float:
        """Return the smallest level whose interval excludes `bound`, by bisection to 0.5%; at least 2 in 10,000."""
        in_level, out_level = (RESOLUTION, LEVEL) if self._leaves_out(bound, LEVEL) else (LEVEL, 1.0)
        while out_level - in_level > 0.005 * out_level:
            level = (in_level + out_level) / 2
            if self._leaves_out(bound, level):
                out_level = level
            else:
                in_level = level
        return (in_level + out_level) / 2

    def _leaves_out(self, bound: float, level: float) -> bool:
        low, high = self.interval_at(level)
        return not low <= bound <= high


Evidence = StudentT | NoDifference | Skewed | Bootstrap
"""The source of an interval, and of p-values that are below a level exactly for the bounds outside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A mean paired difference, with its interval if the replicates allow one."""

    effect: float
    low: float | None = None
    high: float | None = None
    num_seeds: int
    num_problems: int | None = None  # None if the metric is not counted over problems
    test: str
    error: float | None = None
    df: float | None = None  # None if there is no interval, or the bootstrap made it
    carriers: float | None = None  # number of problems that the difference rests on, (sum |d|)^2 / sum d^2
    evidence: tuple[Evidence, ...] = field(default=(), repr=False, compare=False)
    bounds: tuple[float, float] = field(default=(-math.inf, math.inf), repr=False, compare=False)

    @classmethod
    def of(cls, evidence: Sequence[Evidence], **fields: Any) -> "Difference":
        """Return a difference with the widest of the intervals, and with p-values of all evidence."""
        return cls(evidence=tuple(evidence), **fields).at_level(LEVEL)

    def at_level(self, level: float) -> "Difference":
        """Return the difference with its interval at another level: 0.05 gives that of 95%."""
        if not self.evidence:
            return self
        lows, highs = zip(*(each.interval(level) for each in self.evidence), strict=True)
        low, high = within((min(lows), max(highs)), self.bounds)
        return replace(self, low=low, high=high)

    def within(self, bounds: tuple[float, float]) -> "Difference":
        """Return the difference with its intervals cut at the bounds of the quantity."""
        return replace(self, bounds=bounds).at_level(LEVEL)

    def numbers(self) -> dict[str, Any]:
        """Return what a report says about it: the effect, its interval, the replicates and the test.

        An end that is infinite is None, since JSON and figures have no such number.
        """
        names = ("effect", "low", "high", "num_seeds", "num_problems", "test")
        numbers = {name: getattr(self, name) for name in names}
        return {name: None if number in (-math.inf, math.inf) else number for name, number in numbers.items()}

    def p_value(self, bound: float = 0.0) -> float | None:
        """Return the two-sided p-value of a true difference of `bound`: below 0.05 exactly if outside the interval.

        With several tests it is the largest p-value, as the interval is the widest. None if there is no interval.
        """
        return max((each.p_value(bound) for each in self.evidence), default=None)
