"""Planned looks at a sweep -> the p-value that decides at each, so that looking early costs no false verdicts.

The level is spent over the looks by the O'Brien-Fleming type of Lan and DeMets (Biometrika 70, 1983), two-sided:
alpha(t) = 2 - 2 Phi(z / sqrt(t)) after a share t of the seeds. Early looks need much smaller p-values, the last one
nearly the whole level. The bounds come from the joint normal distribution of the looks' statistics (Armitage, McPherson
and Rowe, J. R. Stat. Soc. A 132, 1969).
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from math import sqrt

import numpy as np
from scipy import optimize
from scipy.special import ndtr, ndtri

from oneshot.report.constants import LEVEL, Array

NODES = 200  # of the quadrature over the statistic at one look
FARTHEST = 37.0  # the largest bound: its p-value is the smallest that a float can hold
WEIGHTLESS = 8.5  # statistics beyond this have no weight beside the others in double precision
LEAST = 1e-12  # smallest level that is told apart from 0


@cache
def _quadrature() -> tuple[Array, Array]:
    """Return the nodes between -1 and 1 and their weights. Cached, because every level that is tried needs them."""
    points_N, weights_N = np.polynomial.legendre.leggauss(NODES)
    return points_N, weights_N


@lru_cache(maxsize=4096)
def bounds(looks: tuple[int, ...], level: float = LEVEL) -> tuple[float, ...]:
    """Return, for each look, the two-sided p-value below which it decides. `looks` are numbers of seeds, rising."""
    points_N, weights_N = _quadrature()
    decides: list[float] = []
    density_N, nodes_N, spent, before = np.array([1.0]), np.array([0.0]), 0.0, 0.0
    for share in (num / looks[-1] for num in looks):
        to_spend = 2 * float(ndtr(ndtri(level / 2) / sqrt(share))) - spent
        step, root = sqrt(share - before), sqrt(share)
        bound = _bound(to_spend, partial(_crossed, density_N=density_N, nodes_N=nodes_N, root=root, step=step))
        decides.append(2 * float(ndtr(-bound)))
        widest = min(bound, WEIGHTLESS) * root
        inside_N = points_N * widest
        density_N = _next_density(density_N, nodes_N, inside_N, step) * weights_N * widest
        nodes_N, spent, before = inside_N, spent + to_spend, share
    return tuple(decides)


def _bound(to_spend: float, crossed: Callable[[float], float]) -> float:
    """Return the bound that a statistic crosses for the first time with a probability."""
    if to_spend <= crossed(FARTHEST):
        return FARTHEST
    return float(optimize.brentq(lambda bound: crossed(bound) - to_spend, 0.0, FARTHEST))


def _crossed(bound: float, *, density_N: Array, nodes_N: Array, root: float, step: float) -> float:
    """Return the probability that a statistic, inside all bounds so far, is beyond this one at the next look."""
    above, below = (ndtr((sign * nodes_N - bound * root) / step) for sign in (1, -1))
    return float((density_N * (above + below)).sum())


def _next_density(density_N: Array, nodes_N: Array, inside_N: Array, step: float) -> Array:
    """Return the density at the next look of a statistic that crossed no bound so far."""
    distance_NN = (inside_N[:, None] - nodes_N[None, :]) / step
    return np.asarray((np.exp(-(distance_NN**2) / 2) * density_N).sum(1) / (step * sqrt(2 * np.pi)))


def spent_level(p_value: float, look: int, looks: Sequence[int]) -> float:
    """Return the smallest level at which a p-value decides at a look, counted from 0: its p-value for the whole design.

    The smallest over the looks so far is the sequential p-value (Liu and Anderson, J. Am. Stat. Assoc. 103, 2008), to
    which Holm's correction applies (Maurer and Bretz, Stat. Biopharm. Res. 5, 2013). With a single look it is the
    p-value itself.
    """
    design = tuple(looks)
    if len(design) == 1 or p_value >= 1.0:
        return p_value
    most = 1.0 - 1e-9
    if bounds(design, most)[look] <= p_value:
        return 1.0
    if bounds(design, LEAST)[look] >= p_value:
        return LEAST

    def too_much(logarithm: float) -> float:
        return bounds(design, float(np.exp(logarithm)))[look] - p_value

    return float(np.exp(optimize.brentq(too_much, np.log(LEAST), np.log(most), xtol=1e-6)))
