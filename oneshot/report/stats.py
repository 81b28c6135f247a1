"""Numbers of replicates -> means with intervals, on SciPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its two-sided interval; `low` and `high` are None where one replicate says nothing of the spread."""

    mean: float
    low: float | None
    high: float | None
    num: int


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean of replicates with its t interval.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("mean_interval needs at least one value")
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean=mean, low=None, high=None, num=1)
    error = float(stats.sem(values))
    if error == 0.0:
        return Interval(mean=mean, low=mean, high=mean, num=len(values))
    low, high = stats.t.interval(confidence, len(values) - 1, loc=mean, scale=error)
    return Interval(mean=mean, low=float(low), high=float(high), num=len(values))
