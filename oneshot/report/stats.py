"""Numbers of replicates -> means and shares with intervals, and how alike seeds rank, on SciPy.

docs/statistics.md says which interval is used where, and why. Differences between cells are in contrast.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from statistics import fmean

import numpy as np
from scipy import stats

ROUNDING = 1e-12  # an error smaller than this, relative to the largest difference, counts as zero
UNBOUNDED, SHARE, CHANGE = (-math.inf, math.inf), (0.0, 1.0), (-1.0, 1.0)
"""Bounds of a quantity: any number, a share, and the difference of two shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its two-sided interval. `low` and `high` are None if the replicates show no spread."""

    mean: float
    low: float | None
    high: float | None
    num: int


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, bounds: tuple[float, float] = UNBOUNDED
) -> Interval:
    """Return the mean of replicates with its t interval, cut at the quantity's bounds.

    A single replicate, or replicates that are all equal, have no interval. Raises ValueError: no values.
    """
    if not values:
        raise ValueError("mean_interval needs at least one value")
    mean = fmean(values)
    if max(values) - min(values) <= ROUNDING * max(map(abs, values)):
        return Interval(mean=mean, low=None, high=None, num=len(values))
    half = _quantile(len(values) - 1, confidence) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    low, high = within((mean - half, mean + half), bounds)
    return Interval(mean=mean, low=low, high=high, num=len(values))


def within(ends: tuple[float, float], bounds: tuple[float, float]) -> tuple[float, float]:
    """Return an interval's ends, cut at the bounds of the quantity. A true value is never outside them."""
    return max(ends[0], bounds[0]), min(ends[1], bounds[1])


@cache
def _quantile(df: int, confidence: float) -> float:
    """Return the two-sided quantile of t. Cached, because it is slow and every step of every cell needs it."""
    return float(stats.t.ppf((1 + confidence) / 2, df))


@cache
def wilson(num_right: int, num: int, *, confidence: float = 0.95) -> Interval:
    """Return the share of right completions with its score interval (Wilson, JASA 22, 1927).

    `num` counts problems. Several completions of one problem are not independent, so they count as one.

    Raises ValueError: no completions, or `num_right` above `num`.
    """
    ends = stats.binomtest(num_right, num).proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(mean=num_right / num, low=float(ends.low), high=float(ends.high), num=num)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStability:
    """How similarly seeds rank the same names: Kendall's tau-b over pairs of seeds."""

    mean: float
    low: float  # of the least similar pair
    num_pairs: int


def kendall(scores_by_seed: Sequence[Mapping[str, float]]) -> RankStability | None:
    """Return tau-b (Kendall 1945) over pairs of seeds, on the names that both have.

    A pair in which one seed gives all names the same score is left out. None if no pair is left.
    """
    taus = []
    for scores_a, scores_b in combinations(scores_by_seed, 2):
        names = sorted(scores_a.keys() & scores_b.keys())
        a, b = ([scores[name] for name in names] for scores in (scores_a, scores_b))
        if len(set(a)) > 1 and len(set(b)) > 1:
            taus.append(float(stats.kendalltau(a, b).statistic))
    return RankStability(mean=fmean(taus), low=min(taus), num_pairs=len(taus)) if taus else None
