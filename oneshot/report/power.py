"""Seeds, problems and their noise -> what difference between two cells a sweep can find, before it runs."""

from bisect import bisect_left
from functools import partial
from math import sqrt

LEVEL = 0.05  # of the two-sided test
MIN_SEEDS = 3
STEPS = 100_000  # effects are sought in thousandths of a point of accuracy
CLEAR = 30.0  # in errors: beyond it power is 1 to nine digits, and SciPy's tails underflow to NaN


def power(
    effect: float, *, num_seeds: int, num_problems: int | None, seed_sd: float, discordance: float
) -> float | None:
    """Chance that the t interval over seeds lies on the side of zero on which `effect` does; None below three seeds.

    The error of a difference is sqrt(seed_sd^2 / S + (discordance - effect^2) / P): `seed_sd` is what training leaves
    to chance in one seed's difference of accuracies; `discordance` the share of problems on which one cell is right and
    the other wrong, at least `effect`, whose part no seed makes smaller. Without `num_problems` only seeds count.
    """
    if num_seeds < MIN_SEEDS:
        return None
    return _power(abs(effect), num_seeds=num_seeds, num_problems=num_problems, seed_sd=seed_sd, discordance=discordance)


def detectable(
    *, num_seeds: int, num_problems: int | None, seed_sd: float, discordance: float, power: float = 0.8
) -> float | None:
    """The least effect that is found with this power, rounded up to a thousandth of a point.

    None below three seeds, and where no effect below 1 is found as often.
    """
    if num_seeds < MIN_SEEDS:
        return None
    chance = partial(_power, num_seeds=num_seeds, num_problems=num_problems, seed_sd=seed_sd, discordance=discordance)
    step = bisect_left(range(STEPS), power, key=lambda step: chance(step / STEPS))
    return step / STEPS if step < STEPS else None


def _power(effect: float, *, num_seeds: int, num_problems: int | None, seed_sd: float, discordance: float) -> float:
    # a quarter of a second, for the few plans with claims
    from scipy.special import nctdtr, stdtrit

    by_seed = seed_sd**2 / num_seeds
    by_problem = (max(discordance, effect) - effect**2) / num_problems if num_problems else 0.0
    error = sqrt(by_seed + by_problem)
    if error == 0.0:
        return float(effect > 0)
    df = num_seeds - 1
    return float(1 - nctdtr(df, min(effect / error, CLEAR), stdtrit(df, 1 - LEVEL / 2)))
