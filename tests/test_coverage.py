"""How often the interval of a paired difference holds the truth, over sweeps of known truth.

The numbers are shown in docs/statistics.md.

Both cells' verdicts are Bernoulli draws on each seed and problem, as an evaluation sees them. Problems are drawn again
in each repetition: the truth is the mean effect over all problems there could be, and over all seeds. A seed moves the
chances of one cell on all problems alike, by Normal(0, seed SD).

`even`: a problem's chances lie anywhere between 0.13 and 0.89, so that most of what is seen is the draw. `certain`:
they are 0.1 or 0.9, and training turns some of them round, so that most of it stays from seed to seed. Both are 3.3 of
the largest seed SDs or more away from 0 and 1: next to nothing is clipped, and the truth is exact.
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import pytest
from conftest import PROJECT
from scipy import stats

from oneshot.report.constants import Array
from oneshot.report.contrast import half_width, paired_errors

pytestmark = pytest.mark.slow

NUM_REPETITIONS = 4_000  # a share of 0.95 has a standard error of 0.0034
MAX_BATCH = 1_000_000
EVEN_RANGE = 0.3675  # of chances around their middle
TURN = 0.8  # from 0.1 to 0.9
SETTINGS = list(product((3, 5, 10), (0.1, 0.3), (0.0, 0.015, 0.03)))  # seeds, SD of the effect over problems, seed SD
KINDS = [("even", 500), ("certain", 500), ("even", 30), ("certain", 30)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Shares of repetitions whose interval holds the truth, by the rule and by what it could have been."""

    wider: float
    seeds: float
    crossed: float
    problems: float


def chances(
    kind: str, effect_sd: float, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[Array, Array, float]:
    """Chances of a and b on each repetition's problems, and the truth."""
    if kind == "certain":
        b_RP = rng.choice([0.1, 0.9], shape)
        is_turned_RP = rng.random(shape) < (effect_sd / TURN) ** 2
        return np.where(is_turned_RP, 1 - b_RP, b_RP), b_RP, 0.0
    # the difference of two uniforms of this half width has the SD wanted
    half = effect_sd * math.sqrt(1.5)
    shared_RP = rng.uniform(half - EVEN_RANGE, EVEN_RANGE - half, shape)
    a_RP, b_RP = (shared_RP + rng.uniform(-half, half, shape) for _ in range(2))
    return 0.52 + a_RP, 0.5 + b_RP, 0.02


@cache
def coverage(kind: str, num_problems: int, num_seeds: int, effect_sd: float, seed_sd: float) -> Coverage:
    name = [len(kind), num_problems, num_seeds, round(1000 * effect_sd), round(1000 * seed_sd)]
    rng = np.random.default_rng([20261123, *name])
    batch = MAX_BATCH // (num_seeds * num_problems)
    held = []
    for start in range(0, NUM_REPETITIONS, batch):
        num = min(batch, NUM_REPETITIONS - start)
        a_RP, b_RP, truth = chances(kind, effect_sd, (num, num_problems), rng)
        a_RSP = a_RP[:, None] + seed_sd * rng.standard_normal((num, num_seeds, 1))
        is_right_a, is_right_b = (
            rng.random((num, num_seeds, num_problems), dtype=np.float32) < chance for chance in (a_RSP, b_RP[:, None])
        )
        differences_RSP = is_right_a.astype(float) - is_right_b
        errors = paired_errors(differences_RSP)
        by_seeds = half_width(errors.seeds, num_seeds - 1)
        by_crossed = half_width(errors.crossed, errors.crossed_df)
        by_problems = half_width(stats.sem(differences_RSP.mean(1), axis=-1), num_problems - 1)
        away = np.abs(errors.effect - truth) - 1e-12
        held.append([away <= half for half in (np.maximum(by_seeds, by_crossed), by_seeds, by_crossed, by_problems)])
    wider, seeds, crossed, problems = np.concatenate(held, axis=1).mean(1).tolist()
    return Coverage(wider=wider, seeds=seeds, crossed=crossed, problems=problems)


def table() -> list[str]:
    """The document's table."""
    lines = []
    for setting in SETTINGS:
        even, certain, few, few_certain = (coverage(*kind, *setting) for kind in KINDS)
        shares = [even.wider, even.seeds, even.crossed, even.problems]
        shares += [certain.wider, certain.seeds, certain.crossed, certain.problems, few.wider, few_certain.wider]
        num_seeds, effect_sd, seed_sd = setting
        numbers = " | ".join(f"{100 * share:.1f}" for share in shares)
        lines.append(f"| {num_seeds} | {effect_sd} | {100 * seed_sd:.1f} | {numbers} |")
    return lines


@pytest.mark.parametrize(("kind", "num_problems"), KINDS)
@pytest.mark.parametrize(("num_seeds", "effect_sd", "seed_sd"), SETTINGS)
def test_the_interval_holds_the_truth_92_to_98_times_in_100(
    kind: str, num_problems: int, num_seeds: int, effect_sd: float, seed_sd: float
) -> None:
    found = coverage(kind, num_problems, num_seeds, effect_sd, seed_sd)
    assert 0.92 <= found.wider <= 0.98, found


def test_t_over_seeds_alone_holds_it_too_seldom_where_problems_differ() -> None:
    # it has the seeds' spread alone, which is the smaller part the more seeds there are
    assert coverage("even", 500, 3, 0.3, 0.0).seeds < 0.94
    assert coverage("even", 500, 10, 0.3, 0.0).seeds < 0.80
    assert coverage("certain", 500, 10, 0.3, 0.0).seeds < 0.70


def test_problems_alone_hold_it_too_seldom_where_seeds_differ() -> None:
    assert coverage("even", 500, 3, 0.1, 0.03).problems < 0.88
    assert coverage("certain", 500, 3, 0.1, 0.03).problems < 0.85
    assert coverage("certain", 500, 3, 0.1, 0.0).problems > 0.93


def test_the_document_shows_these_numbers() -> None:
    document = (PROJECT / "docs" / "statistics.md").read_text()
    shown = [line for line in document.splitlines() if re.match(r"\| \d+ \| 0\.\d \|", line)]
    # another NumPy may draw other numbers
    for line, other in zip(shown, table(), strict=True):
        values, others = ([float(cell) for cell in row.strip("| ").split("|")] for row in (line, other))
        assert values == pytest.approx(others, abs=1.5)
