"""A comparison and the gathered runs -> the spread by which `plan` says what more seeds would show."""

import numpy as np

from oneshot.plan.claims import Comparison
from oneshot.report.constants import MIN_SEEDS
from oneshot.report.measuring import ratio_of, sides_of
from oneshot.report.power import Spread
from oneshot.report.runs import Gathered
from oneshot.report.values import Unknown, tables


def observed_spread(comparison: Comparison, gathered: Gathered) -> Spread | None:
    """Return the spread of a comparison over the seeds that have ended, or None with fewer than three of them."""
    by_seed = []
    for seed in gathered.seeds:
        try:
            pairs = [sides_of(comparison, pair, seed, gathered, failed="leave_out") for pair in comparison.pairs]
        except Unknown:
            continue
        by_seed.append([sides for sides, _ in pairs])
    by_suite = tables(by_seed, ratio=ratio_of(comparison)) if len(by_seed) >= MIN_SEEDS else None
    if by_suite is None or len(by_suite) > 1:
        return None
    (table_SP,) = by_suite.values()
    num_problems = table_SP.shape[1]
    if num_problems < 2:
        return None
    rest = table_SP - table_SP.mean(0) - table_SP.mean(1, keepdims=True) + table_SP.mean()
    rest_variance = float(np.square(rest).sum()) / ((len(table_SP) - 1) * (num_problems - 1))
    of_seeds = float(table_SP.mean(1).var(ddof=1)) - rest_variance / num_problems
    discordance = float(np.square(table_SP).mean())
    return Spread(
        seed_sd=max(0.0, of_seeds) ** 0.5,
        discordance=max(discordance, 1e-6),
        rest_variance=min(rest_variance, discordance),
    )
