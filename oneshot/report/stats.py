"""Numbers of replicates -> means, differences and shares with intervals, on SciPy.

Shapes: S seeds, P problems. docs/statistics.md says which interval is used where, and why.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]

LEVEL = 0.05  # of every interval and test below
MIN_SEEDS = 3  # with two seeds the t interval is 12.7 errors to each side, too wide to show anything
NUM_RESAMPLES = 9_999
ROUNDING = 1e-12  # an error smaller than this, relative to the largest difference, counts as zero
MAX_BATCH = 1_000_000  # resampled differences held in memory at a time
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


def wilson(num_right: int, num: int, *, confidence: float = 0.95) -> Interval:
    """Return the share of right completions with its score interval (Wilson, JASA 22, 1927).

    `num` counts problems. Several completions of one problem are not independent, so they count as one.

    Raises ValueError: no completions, or `num_right` above `num`.
    """
    ends = stats.binomtest(num_right, num).proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(mean=num_right / num, low=float(ends.low), high=float(ends.high), num=num)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentT:
    """A normal mean, its standard error, and the degrees of freedom of that error."""

    effect: float
    error: float
    df: float

    def interval(self) -> tuple[float, float]:
        """Return the effect -+ t(0.975, df) errors."""
        half = float(half_width(self.error, self.df))
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
    Pearson 1934). The mean difference of shares is then between -q and q.
    """

    num_problems: int

    def interval(self) -> tuple[float, float]:
        """Return the 95% interval."""
        share = 1 - (LEVEL / 2) ** (1 / self.num_problems)
        return -share, share

    def p_value(self, bound: float) -> float:
        """Return the level whose interval ends at `bound`; 1 for no difference."""
        return min(1.0, 2 * max(0.0, 1 - abs(bound)) ** self.num_problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """The intervals of a resampled mean at any level in (0, 1)."""

    interval_at: Callable[[float], tuple[float, float]]

    def interval(self) -> tuple[float, float]:
        """Return quantiles of the resampled means, corrected for bias and skew."""
        return self.interval_at(LEVEL)

    def p_value(self, bound: float) -> float:
        """Return the smallest level whose interval excludes `bound`, by bisection to 0.5%; at least 2 in 10,000."""
        in_level, out_level = (2 / (NUM_RESAMPLES + 1), LEVEL) if self._leaves_out(bound, LEVEL) else (LEVEL, 1.0)
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


Evidence = StudentT | NoDifference | Bootstrap
"""The source of an interval, and of p-values that are below 0.05 exactly for the bounds outside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A mean paired difference, with its 95% interval if the replicates allow one."""

    effect: float
    low: float | None = None
    high: float | None = None
    num_seeds: int
    num_problems: int | None = None  # None if the metric is not counted over problems
    test: str
    error: float | None = None
    df: float | None = None  # None if there is no interval, or the bootstrap made it
    evidence: tuple[Evidence, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def of(cls, used: Evidence, *others: Evidence, **fields: Any) -> "Difference":
        """Return a difference with the interval of `used`, and with p-values of all evidence."""
        low, high = used.interval()
        return cls(low=low, high=high, evidence=(used, *others), **fields)

    def within(self, bounds: tuple[float, float]) -> "Difference":
        """Return the difference with its interval cut at the bounds of the quantity."""
        if self.low is None or self.high is None:
            return self
        low, high = within((self.low, self.high), bounds)
        return replace(self, low=low, high=high)

    def numbers(self) -> dict[str, Any]:
        """Return what a report says about it: the effect, its interval, the replicates and the test."""
        names = ("effect", "low", "high", "num_seeds", "num_problems", "test")
        return {name: getattr(self, name) for name in names}

    def p_value(self, bound: float = 0.0) -> float | None:
        """Return the two-sided p-value of a true difference of `bound`: below 0.05 exactly if outside the interval.

        With several tests it is the largest p-value, as the interval is the widest. None if there is no interval.
        """
        return max((each.p_value(bound) for each in self.evidence), default=None)


def paired_difference(differences_SP: Array) -> Difference:
    """Return the mean difference between two cells, from one difference for each seed and problem.

    The interval is the wider of two: t over the seeds' means, and that of seeds crossed with problems
    (`paired_errors`). The first ignores the spread over problems, and the second has few degrees of freedom;
    docs/statistics.md has their coverage.

    Raises ValueError: no seeds or no problems.
    """
    num_seeds, num_problems = differences_SP.shape
    if not num_problems:
        raise ValueError("paired_difference needs at least one problem")
    if num_seeds < MIN_SEEDS or num_problems == 1:
        return replace(seed_difference(differences_SP.mean(1)), num_problems=num_problems)
    errors = paired_errors(differences_SP)
    effect = float(errors.effect)
    if not differences_SP.any():
        return _no_difference(num_seeds=num_seeds, num_problems=num_problems)
    seeds = StudentT(effect=effect, error=float(errors.seeds), df=num_seeds - 1)
    crossed = StudentT(effect=effect, error=float(errors.crossed), df=float(errors.crossed_df))
    by_crossed = f"crossed {num_seeds} seeds x {num_problems} problems, Satterthwaite df {crossed.df:.1f}"
    if crossed.interval()[1] > seeds.interval()[1]:
        return _by_t(crossed, seeds, num_seeds=num_seeds, num_problems=num_problems, test=by_crossed)
    return _by_t(
        seeds, crossed, num_seeds=num_seeds, num_problems=num_problems, test=f"paired t over {num_seeds} seeds"
    )


def seed_difference(differences_S: Sequence[float] | Array) -> Difference:
    """Return the mean of the seeds' differences with its t interval, for a metric not counted over problems.

    Raises ValueError: no seeds.
    """
    num_seeds = len(differences_S)
    if not num_seeds:
        raise ValueError("seed_difference needs at least one seed")
    effect, centred_S = _centred(np.asarray(differences_S), axis=(-1,))
    if num_seeds < MIN_SEEDS:
        seeds = "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
        test = f"{seeds}: fewer than {MIN_SEEDS}, no interval"
        return Difference(effect=float(effect), num_seeds=num_seeds, test=test)
    error = _without_rounding(centred_S.std(ddof=1) / np.sqrt(num_seeds), np.asarray(differences_S), axis=(-1,))
    used = StudentT(effect=float(effect), error=float(error), df=num_seeds - 1)
    return _by_t(used, num_seeds=num_seeds, test=f"paired t over {num_seeds} seeds")


def problem_difference(differences_P: Array, *, num_seeds: int) -> Difference:
    """Return the mean over problems of a difference between fixed checkpoints, with its bootstrap interval.

    `differences_P` are means over `num_seeds` checkpoints. The result does not extend to other trainings. The resamples
    are the same each time, and their interval is BCa (Efron, JASA 82, 1987).

    Raises ValueError: no problems.
    """
    num_problems = len(differences_P)
    if not num_problems:
        raise ValueError("problem_difference needs at least one problem")
    effect, centred_P = _centred(differences_P, axis=(-1,))
    if num_problems == 1:
        return Difference(effect=float(effect), num_seeds=num_seeds, num_problems=1, test="1 problem: no interval")
    test = f"bootstrap over {num_problems} problems"
    if not _without_rounding(centred_P.std(), differences_P, axis=(-1,)):
        if not differences_P.any():
            return _no_difference(num_seeds=num_seeds, num_problems=num_problems)
        same = StudentT(effect=float(effect), error=0.0, df=np.inf)
        return replace(_by_t(same, num_seeds=num_seeds, num_problems=num_problems, test=test), df=None)
    run = partial(stats.bootstrap, (differences_P,), np.mean, vectorized=True, batch=max(1, MAX_BATCH // num_problems))
    resampled = run(n_resamples=NUM_RESAMPLES, rng=np.random.default_rng(0))

    def interval_at(level: float) -> tuple[float, float]:
        low, high = run(n_resamples=0, bootstrap_result=resampled, confidence_level=1 - level).confidence_interval
        return float(low), float(high)

    return Difference.of(
        Bootstrap(interval_at=interval_at),
        effect=float(effect),
        num_seeds=num_seeds,
        num_problems=num_problems,
        test=test,
        error=float(resampled.standard_error),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedErrors:
    """Means of S x P differences and their two standard errors, each with the leading shape of the differences."""

    effect: Array
    seeds: Array  # with S - 1 degrees of freedom
    crossed: Array
    crossed_df: Array


def paired_errors(differences_SP: Array) -> PairedErrors:
    """Return standard errors over seeds, and over seeds crossed with problems. Shape [..., S, P], both at least 2.

    The model is the two-way random layout without replication (Brennan, Generalizability Theory, 2001, ch. 2), with
    degrees of freedom by Satterthwaite, Biometrics Bulletin 2 (1946). Where we differ: for a sum of squares these are
    never fewer than those of its smallest part. Here the residual is subtracted, so they can come near 0, and intervals
    become 10^150 points wide. We keep that lower bound.
    """
    num_seeds, num_problems = differences_SP.shape[-2:]
    num = num_seeds * num_problems
    residual_df = (num_seeds - 1) * (num_problems - 1)
    effect, centred_SP = _centred(differences_SP, axis=(-2, -1))
    seed_square = num_problems * centred_SP.mean(-1).var(-1, ddof=1)
    problem_square = num_seeds * centred_SP.mean(-2).var(-1, ddof=1)
    total = np.square(centred_SP).sum((-2, -1))
    rest = total - (num_seeds - 1) * seed_square - (num_problems - 1) * problem_square
    residual_square = np.maximum(rest, 0.0) / residual_df

    combined = seed_square + problem_square - residual_square
    combined = np.where(combined > ROUNDING * (seed_square + problem_square), combined, 0.0)
    spread = (
        seed_square**2 / (num_seeds - 1) + problem_square**2 / (num_problems - 1) + residual_square**2 / residual_df
    )
    df = np.divide(combined**2, spread, out=np.zeros_like(spread), where=spread > 0)
    return PairedErrors(
        effect=effect,
        seeds=_without_rounding(np.sqrt(seed_square / num), differences_SP, axis=(-2, -1)),
        crossed=_without_rounding(np.sqrt(combined / num), differences_SP, axis=(-2, -1)),
        crossed_df=np.maximum(df, min(num_seeds, num_problems) - 1),
    )


def half_width(error: float | Array, df: float | Array) -> Array:
    """Return half the width of the 95% interval of t."""
    return np.asarray(stats.t.ppf(1 - LEVEL / 2, df) * error)


def _centred(differences: Array, *, axis: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the mean and the differences around it. They are taken from the first, so that equal ones give exact 0."""
    first = differences[..., :1] if axis == (-1,) else differences[..., :1, :1]
    rest = differences - first
    offset = rest.mean(axis, keepdims=True)
    return np.squeeze(first + offset, axis), rest - offset


def _without_rounding(error: Array, differences: Array, *, axis: tuple[int, ...]) -> Array:
    """Replace an error by 0 where it is no larger than the rounding error of equal differences."""
    return np.where(error > ROUNDING * np.abs(differences).max(axis), error, 0.0)


def _by_t(used: StudentT, *others: StudentT, **fields: Any) -> Difference:
    return Difference.of(used, *others, effect=used.effect, error=used.error, df=used.df, **fields)


def _no_difference(*, num_seeds: int, num_problems: int) -> Difference:
    test = f"no difference on any of {num_problems} problems: exact bound on others"
    evidence = NoDifference(num_problems=num_problems)
    return Difference.of(evidence, effect=0.0, num_seeds=num_seeds, num_problems=num_problems, test=test)


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
