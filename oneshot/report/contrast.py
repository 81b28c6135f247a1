"""Tables of seeds x problems, one for each suite -> the mean difference with its interval.

Every question of a claim is a contrast: weights over cells, steps and suites. A difference of cells has weights 1 and
-1, a gain of gains 1, -1, -1, 1, a share r of a gain 1 and -r, a group of suites the weights of its suites. The weights
are in the tables already, so that an effect is the sum of the tables' means, and seeds are the same in all tables.

Shapes: S seeds, P problems. docs/statistics.md says which interval is used where, and why.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy import optimize, stats

from oneshot.report.constants import LEVEL, MIN_SEEDS, Array
from oneshot.report.evidence import NUM_RESAMPLES, Bootstrap, Difference, Evidence, NoDifference, Skewed, StudentT
from oneshot.report.stats import ROUNDING, Interval

MAX_BATCH = 1_000_000  # resampled differences held in memory at a time
# If fewer problems than these carry a difference, every interval can be too narrow. With 30 problems x 8 completions at
# an accuracy of 3% the union covers 90 to 95 of 100, and 8 notes 84 to 86 of those (6: 51 to 54); of even draws none.
FEW_CARRIERS = 8
WIDER = 1.005  # a union wider than the t interval by this factor is said to be so
MAX_SHARE = 100.0  # a share above this, of a gain that is hardly above 0, has no end


def paired_difference(*tables_SP: Array, weights: Sequence[float] = ()) -> Difference:
    """Return the mean difference between trained cells: the sum of the tables' means, one table for each suite.

    The tables contain the suites' weights. `weights` repeats them for the bound where no problem differs; absent: 1.

    The interval is the union of three: t over the seeds' means; seeds crossed with problems (`paired_errors`); and one
    over the problems' means that is corrected for skew (`Skewed`), which reaches further where few problems carry the
    difference. The first ignores the spread over problems, the second takes it for normal, the third ignores seeds;
    docs/statistics.md has their coverage.

    Raises ValueError: no seeds or no problems.
    """
    num_seeds, num_problems = len(tables_SP[0]), sum(table_SP.shape[1] for table_SP in tables_SP)
    if not num_problems:
        raise ValueError("paired_difference needs at least one problem")
    counts = {"num_seeds": num_seeds, "num_problems": num_problems}
    by_seed = seed_difference(sum(table_SP.mean(1) for table_SP in tables_SP))
    if num_seeds < MIN_SEEDS:
        return replace(by_seed, num_problems=num_problems)
    if any(table_SP.shape[1] == 1 for table_SP in tables_SP):
        return replace(
            by_seed, low=None, high=None, evidence=(), test="1 problem: no interval", num_problems=num_problems
        )
    if not any(table_SP.any() for table_SP in tables_SP):
        return _no_difference(tables_SP, weights, **counts)
    errors = paired_errors(*tables_SP)
    effect = float(errors.effect)
    seeds = StudentT(effect=effect, error=float(errors.seeds), df=num_seeds - 1)
    crossed = StudentT(effect=effect, error=float(errors.crossed), df=float(errors.crossed_df))
    wider, test = seeds, f"paired t over {num_seeds} seeds"
    if crossed.interval()[1] > seeds.interval()[1]:
        wider = crossed
        test = f"crossed {num_seeds} seeds x {num_problems} problems, Satterthwaite df {crossed.df:.1f}"
    evidence: list[Evidence] = [seeds, crossed]
    means_P = [table_SP.mean(0) for table_SP in tables_SP]
    if (skewed := _skewed(means_P, effect)) is not None:
        evidence.append(skewed)
        if (ratio := _ratio_of_widths(wider.interval(), skewed.interval())) > WIDER:
            test += f", {ratio:.2f} times as wide for skew over problems"
    carriers = _carriers(means_P)
    return Difference.of(
        evidence, effect=effect, test=test, error=wider.error, df=wider.df, carriers=carriers, **counts
    )


def _ratio_of_widths(ends: tuple[float, float], others: tuple[float, float]) -> float:
    width = ends[1] - ends[0]
    return (max(ends[1], others[1]) - min(ends[0], others[0])) / width if width > 0 else 1.0


def _skewed(tables_P: Sequence[Array], effect: float) -> Skewed | None:
    """Return the interval over problems that is corrected for skew; None if no table's problems differ."""
    centred = [_centred(table_P, axis=(-1,))[1] for table_P in tables_P]
    if not any(
        _without_rounding(each_P.std(), table, axis=(-1,)) for each_P, table in zip(centred, tables_P, strict=True)
    ):
        return None
    contributions = [each_P / len(each_P) for each_P in centred]
    squares = [float(np.square(each_P).sum()) for each_P in contributions]
    sizes = [len(each_P) for each_P in centred]
    return Skewed(
        effect=effect,
        error=float(np.sqrt(sum(square * size / (size - 1) for square, size in zip(squares, sizes, strict=True)))),
        acceleration=float(sum((each_P**3).sum() for each_P in contributions)) / (6 * sum(squares) ** 1.5),
        df=sum(sizes) - len(sizes),
    )


def _carriers(tables_P: Sequence[Array]) -> float:
    """Return how many problems the difference rests on: (sum |d|)^2 / sum d^2; all of them if each counts the same."""
    every_P = np.concatenate([table_P / len(table_P) for table_P in tables_P])
    squares = float(np.square(every_P).sum())
    return float(np.abs(every_P).sum() ** 2 / squares) if squares else 0.0


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
    test = f"paired t over {num_seeds} seeds"
    return Difference.of([used], effect=used.effect, error=used.error, df=used.df, num_seeds=num_seeds, test=test)


def problem_difference(*tables_P: Array, num_seeds: int, weights: Sequence[float] = ()) -> Difference:
    """Return the mean over problems of a difference between fixed checkpoints, with its bootstrap interval.

    A table has the means over `num_seeds` checkpoints of one suite's problems; the effect is the sum of the tables'
    means. The result does not extend to other trainings. The resamples are the same each time, and their interval is
    BCa (Efron, JASA 82, 1987).

    Raises ValueError: no problems.
    """
    num_problems = sum(len(table_P) for table_P in tables_P)
    if not num_problems:
        raise ValueError("problem_difference needs at least one problem")
    counts = {"num_seeds": num_seeds, "num_problems": num_problems}
    effect = float(sum(_centred(table_P, axis=(-1,))[0] for table_P in tables_P))
    if any(len(table_P) == 1 for table_P in tables_P):
        return Difference(effect=effect, test="1 problem: no interval", num_seeds=num_seeds, num_problems=num_problems)
    test = f"bootstrap over {num_problems} problems"
    resampled = _bootstrap(tables_P)
    if resampled is not None:
        evidence, error = resampled
        return Difference.of([evidence], effect=effect, test=test, error=error, carriers=_carriers(tables_P), **counts)
    if not any(table_P.any() for table_P in tables_P):
        return _no_difference(tables_P, weights, **counts)
    return Difference.of([StudentT(effect=effect, error=0.0, df=np.inf)], effect=effect, test=test, error=0.0, **counts)


def _bootstrap(tables_P: Sequence[Array]) -> tuple[Bootstrap, float] | None:
    """Return the BCa intervals of the sum of means and its standard error; None if no table's problems differ."""
    if not any(_without_rounding(_centred(table_P, axis=(-1,))[1].std(), table_P, axis=(-1,)) for table_P in tables_P):
        return None
    num_problems = sum(len(table_P) for table_P in tables_P)
    run = partial(stats.bootstrap, tables_P, _sum_of_means, vectorized=True, batch=max(1, MAX_BATCH // num_problems))
    resampled = run(n_resamples=NUM_RESAMPLES, rng=np.random.default_rng(0))

    def interval_at(level: float) -> tuple[float, float]:
        low, high = run(n_resamples=0, bootstrap_result=resampled, confidence_level=1 - level).confidence_interval
        return float(low), float(high)

    return Bootstrap(interval_at=interval_at), float(resampled.standard_error)


def _sum_of_means(*tables: Array, axis: int) -> Array:
    return np.asarray(sum(table.mean(axis) for table in tables))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedErrors:
    """Sums of the tables' means and their two standard errors, each with the leading shape of the tables."""

    effect: Array
    seeds: Array  # with S - 1 degrees of freedom
    crossed: Array
    crossed_df: Array


def paired_errors(*tables_SP: Array) -> PairedErrors:
    """Return standard errors over seeds, and over seeds crossed with problems. Shapes [..., S, P], both at least 2.

    For one table the model is the two-way random layout without replication (Brennan, Generalizability Theory, 2001,
    ch. 2), with degrees of freedom by Satterthwaite, Biometrics Bulletin 2 (1946). Seeds are crossed with the problems
    of all tables, and problems are drawn within each: the seeds' part is that of the summed means, and each table adds
    (MS_P - MS_E) / (S P).

    Where we differ: for a sum of squares the degrees of freedom are never fewer than those of its smallest part. Here
    the residual is subtracted, so they can come near 0, and intervals become 10^150 points wide. We keep that lower
    bound.
    """
    num_seeds = tables_SP[0].shape[-2]
    parts = [_centred(table_SP, axis=(-2, -1)) for table_SP in tables_SP]
    effect = np.asarray(sum(mean for mean, _ in parts))
    sums_S = np.asarray(sum(centred_SP.mean(-1) for _, centred_SP in parts))
    by_seed = sums_S.var(-1, ddof=1) / num_seeds
    combined, positive = by_seed, by_seed
    spread = by_seed**2 / (num_seeds - 1)
    for (_, centred_SP), table_SP in zip(parts, tables_SP, strict=True):
        problems, rest = _problem_squares(centred_SP)
        num_problems = table_SP.shape[-1]
        combined, positive = combined + problems - rest, positive + problems
        spread = spread + problems**2 / (num_problems - 1) + rest**2 / ((num_seeds - 1) * (num_problems - 1))
    combined = np.where(combined > ROUNDING * positive, combined, 0.0)
    df = np.divide(combined**2, spread, out=np.zeros_like(spread), where=spread > 0)
    fewest = min(num_seeds, *(table_SP.shape[-1] for table_SP in tables_SP)) - 1
    return PairedErrors(
        effect=effect,
        seeds=_without_rounding(np.sqrt(by_seed), *tables_SP, axis=(-2, -1)),
        crossed=_without_rounding(np.sqrt(combined), *tables_SP, axis=(-2, -1)),
        crossed_df=np.maximum(df, fewest),
    )


def _problem_squares(centred_SP: Array) -> tuple[Array, Array]:
    """Return the mean squares of a table's problems and of its residual, both divided by S P."""
    num_seeds, num_problems = centred_SP.shape[-2:]
    num = num_seeds * num_problems
    seed_square = num_problems * centred_SP.mean(-1).var(-1, ddof=1)
    problem_square = num_seeds * centred_SP.mean(-2).var(-1, ddof=1)
    rest = np.square(centred_SP).sum((-2, -1)) - (num_seeds - 1) * seed_square - (num_problems - 1) * problem_square
    residual_square = np.maximum(rest, 0.0) / ((num_seeds - 1) * (num_problems - 1))
    return problem_square / num, residual_square / num


def half_width(error: float | Array, df: float | Array) -> Array:
    """Return half the width of the 95% interval of t."""
    return np.asarray(stats.t.ppf(1 - LEVEL / 2, df) * error)


def _centred(differences: Array, *, axis: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the mean and the differences around it. They are taken from the first, so that equal ones give exact 0."""
    first = differences[..., :1] if axis == (-1,) else differences[..., :1, :1]
    rest = differences - first
    offset = rest.mean(axis, keepdims=True)
    return np.squeeze(first + offset, axis), rest - offset


def _without_rounding(error: Array, *differences: Array, axis: tuple[int, ...]) -> Array:
    """Replace an error by 0 where it is no larger than the rounding error of equal differences."""
    largest = sum(np.abs(each).max(axis) for each in differences)
    return np.where(error > ROUNDING * largest, error, 0.0)


def _no_difference(
    tables: Sequence[Array], weights: Sequence[float], *, num_seeds: int, num_problems: int
) -> Difference:
    test = f"no difference on any of {num_problems} problems: exact bound on others"
    sizes = tuple(table.shape[-1] for table in tables)
    evidence = NoDifference(num_problems=sizes, weights=tuple(weights) or (1.0,) * len(sizes))
    return Difference.of(
        [evidence], effect=0.0, num_seeds=num_seeds, num_problems=num_problems, test=test, carriers=0.0
    )


def share_of(difference_at: Callable[[float], Difference], share: float) -> Interval:
    """Return a share a / b with its interval by Fieller (J. R. Stat. Soc. B 16, 1954).

    `difference_at(r)` is the difference a - r b, which has an interval for every r, and `share` is the r with effect 0.
    The share's interval holds every r at which that difference does not exclude 0, so that it agrees with the verdict
    on a - r b. An end is None if it is further than MAX_SHARE, as it is when b is not clearly above 0.
    """

    def ends(ratio: float) -> tuple[float, float]:
        difference = difference_at(ratio)
        assert difference.low is not None and difference.high is not None, "the caller has an interval of b"
        return difference.low, difference.high

    low = _crossing(lambda ratio: ends(ratio)[0], share, towards=-1)
    high = _crossing(lambda ratio: ends(ratio)[1], share, towards=1)
    return Interval(mean=share, low=low, high=high, num=difference_at(share).num_seeds)


def _crossing(end: Callable[[float], float], share: float, *, towards: int) -> float | None:
    """Return the ratio, on one side of the share, at which an end of the interval is 0."""
    if end(share) * -towards >= 0:  # the gains are proportional at every seed and problem
        return share
    step = 0.25
    while step <= MAX_SHARE:
        far = share + towards * step
        if end(far) * -towards > 0:
            return float(optimize.brentq(end, min(share, far), max(share, far), xtol=1e-4))
        step *= 2
    return None


def clustered(differences_SP: Array, families: Sequence[str]) -> Array:
    """Return one column for each family of problems, so that those that belong together count once. Shape [S, F].

    A column is the family's sum of deviations from the mean m, scaled to keep the mean of each row: families of unequal
    size alone add no spread.
    """
    places = {name: place for place, name in enumerate(dict.fromkeys(families))}
    if len(places) == len(families):
        return differences_SP
    mean = differences_SP.mean()
    sums_SF = np.zeros((len(differences_SP), len(places)))
    for column_S, name in zip((differences_SP - mean).T, families, strict=True):
        sums_SF[:, places[name]] += column_S
    return np.asarray(mean + sums_SF * (len(places) / len(families)))
