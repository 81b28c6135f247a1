"""Many tables of seeds x problems at once -> the intervals and notes that one table has in `oneshot.report`.

The rules here are those of contrast.py and measuring.py in arrays, because one table at a time takes a millisecond.
test_regimes.py compares them with the real functions.

Shapes: R repetitions, S seeds, P problems.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from oneshot.report.constants import LEVEL, Array
from oneshot.report.contrast import FEW_CARRIERS, paired_errors
from oneshot.report.measuring import FAR, FAR_POINTS, MIN_FOR_OUTLIER, NORMAL

Ends = tuple[Array, Array]
"""The lower and the upper ends of intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """The intervals of each repetition's table."""

    seeds: Ends
    crossed: Ends
    problems: Ends  # corrected for skew
    wider: Ends  # of seeds and crossed, with the exact bound if no problem differs: the rule before
    union: Ends  # of all three: the rule now


def intervals(tables_RSP: Array, *, level: float = LEVEL) -> Intervals:
    """Return the intervals of `paired_difference` for each repetition."""
    num_seeds, num_problems = tables_RSP.shape[1:]
    errors = paired_errors(tables_RSP)
    effect_R = errors.effect
    seeds = _around(effect_R, _quantile(level, num_seeds - 1) * errors.seeds)
    crossed = _around(effect_R, _quantile(level, errors.crossed_df) * errors.crossed)
    problems = skewed(tables_RSP.mean(1), level=level)
    bound = 1 - (level / 2) ** (1 / num_problems)
    is_empty_R = ~tables_RSP.any((1, 2))
    wider = _or_bound(_widest(seeds, crossed), bound, is_empty_R)
    union = _or_bound(_widest(seeds, crossed, problems), bound, is_empty_R)
    return Intervals(seeds=seeds, crossed=crossed, problems=problems, wider=wider, union=union)


def skewed(means_RP: Array, *, level: float = LEVEL) -> Ends:
    """Return the ABC intervals of means over problems (`Skewed`); without a width if no problem differs."""
    num = means_RP.shape[1]
    effect_R = means_RP.mean(1)
    shares_RP = (means_RP - effect_R[:, None]) / num
    squares_R = np.square(shares_RP).sum(1)
    squares_R = np.where(squares_R > 1e-24, squares_R, 0.0)
    error_R = np.sqrt(squares_R * num / (num - 1))
    cubes_R = (shares_RP**3).sum(1)
    acceleration_R = np.divide(cubes_R, 6 * squares_R**1.5, out=np.zeros_like(squares_R), where=squares_R > 0)
    half = float(_quantile(level, num - 1))
    low_R, high_R = (_skewed_end(effect_R, error_R, acceleration_R, quantile) for quantile in (-half, half))
    return low_R, high_R


def _skewed_end(effect_R: Array, error_R: Array, acceleration_R: Array, quantile: float) -> Array:
    distance_R = acceleration_R + quantile
    shift_R = acceleration_R * distance_R
    with np.errstate(divide="ignore"):
        end_R = effect_R + error_R * distance_R / (1 - shift_R) ** 2
    return np.where(np.abs(shift_R) >= 1, np.copysign(np.inf, distance_R), end_R)


def _quantile(level: float, df: Array | float) -> Array:
    return np.asarray(stats.t.ppf(1 - level / 2, df))


def _around(effect_R: Array, half_R: Array) -> Ends:
    return effect_R - half_R, effect_R + half_R


def _widest(*ends: Ends) -> Ends:
    lows, highs = zip(*ends, strict=True)
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


def _or_bound(ends: Ends, bound: float, is_empty_R: Array) -> Ends:
    return np.where(is_empty_R, -bound, ends[0]), np.where(is_empty_R, bound, ends[1])


def holds(ends: Ends, truth: float) -> Array:
    """Return whether each interval holds the truth."""
    return (ends[0] <= truth + 1e-12) & (truth - 1e-12 <= ends[1])


def carriers(tables_RSP: Array) -> Array:
    """Return how many problems each difference rests on."""
    means_RP = tables_RSP.mean(1)
    squares_R = np.square(means_RP).sum(1)
    return np.divide(np.abs(means_RP).sum(1) ** 2, squares_R, out=np.zeros_like(squares_R), where=squares_R > 0)


def has_far_seed(tables_RSP: Array) -> Array:
    """Return whether one seed of each repetition is far from the others."""
    effects_RS = tables_RSP.mean(2)
    if effects_RS.shape[1] < MIN_FOR_OUTLIER:
        return np.zeros(len(effects_RS), dtype=bool)
    distances_RS = np.abs(effects_RS - np.median(effects_RS, axis=1, keepdims=True))
    typical_R = NORMAL * np.median(distances_RS, axis=1)
    return np.asarray(distances_RS.max(1) > np.maximum(FAR * typical_R, FAR_POINTS))


def is_noted(tables_RSP: Array, *, num_problems: int | None = None) -> Array:
    """Return whether each verdict has a note that its interval may be too narrow."""
    num = tables_RSP.shape[2] if num_problems is None else num_problems
    few_R = (carriers(tables_RSP) < FEW_CARRIERS) & (num > FEW_CARRIERS)
    return np.asarray(few_R | has_far_seed(tables_RSP))


EVEN_RANGE = 0.3675  # of chances around their middle
TURN = 0.8  # from 0.1 to 0.9


def chances(
    kind: str, effect_sd: float, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[Array, Array, float]:
    """Return the chances of a and b on each repetition's problems, and the mean difference of all problems.

    `even`: a problem's chances lie anywhere between 0.13 and 0.89, so that most of what is seen is the draw. `certain`:
    they are 0.1 or 0.9, and training turns some of them round, so that most of it stays from seed to seed.
    """
    if kind == "certain":
        b_RP = rng.choice([0.1, 0.9], shape)
        is_turned_RP = rng.random(shape) < (effect_sd / TURN) ** 2
        return np.where(is_turned_RP, 1 - b_RP, b_RP), b_RP, 0.0
    # the difference of two uniforms of this half width has the SD wanted
    half = effect_sd * math.sqrt(1.5)
    shared_RP = rng.uniform(half - EVEN_RANGE, EVEN_RANGE - half, shape)
    a_RP, b_RP = (shared_RP + rng.uniform(-half, half, shape) for _ in range(2))
    return 0.52 + a_RP, 0.5 + b_RP, 0.02


def drawn(chances_RSP: Array, rng: np.random.Generator, *, num_seeds: int) -> Array:
    """Return verdicts, 1 or 0, one on each seed and problem. Shape [R, S, P]; the chances may have one seed alone."""
    shape = (len(chances_RSP), num_seeds, chances_RSP.shape[2])
    return (rng.random(shape, dtype=np.float32) < chances_RSP).astype(float)
