"""Effects of a sample of models -> their mean with its interval, and where the effect of another model may lie.

Random effects: the variance tau^2 between models by Paule and Mandel (J. Res. Natl. Bur. Stand. 87, 1982), the interval
of the mean by Hartung and Knapp (Stat. Med. 20, 2001), never narrower than by the models' own errors (the change of
Knapp and Hartung, Stat. Med. 22, 2003). The prediction interval is that of Higgins, Thompson and Spiegelhalter (J. R.
Stat. Soc. A 172, 2009).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from oneshot.plan.leakage import MIN_CELLS
from oneshot.report.constants import LEVEL, Array
from oneshot.report.evidence import StudentT


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomEffects:
    """The mean effect over models, and how much models differ."""

    mean: StudentT
    tau: float  # SD of the true effects between models
    num: int
    prediction: tuple[float, float]  # 95% interval of the effect of another model


def random_effects(effects_K: Sequence[float], errors_K: Sequence[float]) -> RandomEffects:
    """Combine effects of K models, each with its standard error.

    Raises ValueError: fewer than three models.
    """
    num = len(effects_K)
    if num < MIN_CELLS:
        raise ValueError(f"random effects need at least {MIN_CELLS} effects, and there are {num}")
    effects, variances = np.asarray(effects_K, dtype=float), np.square(np.asarray(errors_K, dtype=float))
    tau_square = _between(effects, variances)
    if (variances + tau_square).all():
        weights = 1 / (variances + tau_square)
        mean = float((weights * effects).sum() / weights.sum())
        spread = max(1.0, float((weights * np.square(effects - mean)).sum()) / (num - 1))
        error = float(np.sqrt(spread / weights.sum()))
    else:  # equal effects, one of them exact: all count the same
        mean, error = float(effects.mean()), float(np.sqrt(variances.sum())) / num
    half = float(stats.t.ppf(1 - LEVEL / 2, num - 2) * np.sqrt(tau_square + error**2))
    return RandomEffects(
        mean=StudentT(effect=mean, error=error, df=num - 1),
        tau=float(np.sqrt(tau_square)),
        num=num,
        prediction=(mean - half, mean + half),
    )


def _between(effects: Array, variances: Array) -> float:
    """Return the variance between models at which the weighted squares are what they should be, K - 1.

    An effect without error would have all the weight. The variance is then that of the effects, so that none has.
    """
    sample = float(np.var(effects, ddof=1))
    if sample == 0.0 or not variances.all():
        return sample

    def excess(tau_square: float) -> float:
        weights = 1 / (variances + tau_square)
        mean = (weights * effects).sum() / weights.sum()
        return float((weights * np.square(effects - mean)).sum()) - (len(effects) - 1)

    if excess(0.0) <= 0:
        return 0.0
    # at the sample variance the weighted squares are at most K - 1
    return float(optimize.brentq(excess, 0.0, sample, xtol=1e-15)) if excess(sample) < 0 else sample
