"""How often verdicts are right in sweeps of known truth that break what the intervals assume.

The numbers are shown in docs/statistics.md. Each regime draws tables of seeds x problems and judges them twice. Before:
by the wider of t over seeds and seeds crossed with problems. Now: by the union that is used, with what else protects
from that regime (families, planned looks, failed seeds that count). A note is one that a verdict shows beside its
interval: few problems carry the difference, or one seed is far from the others.

Shapes: R repetitions, S seeds, P problems, F families.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import pytest
from conftest import PROJECT
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit
from simulated import Ends, carriers, chances, drawn, has_far_seed, holds, intervals, is_noted
from told import claim, gathered, grades, run

from oneshot.plan.claims import comparisons
from oneshot.plan.frozen import Rules
from oneshot.report.constants import LEVEL, MIN_SEEDS, Array
from oneshot.report.contrast import FEW_CARRIERS, clustered, paired_difference, share_of
from oneshot.report.looks import bounds
from oneshot.report.measuring import _outlier, measure
from oneshot.report.runs import Grades
from oneshot.report.values import _union
from oneshot.trial.state import TrialState

pytestmark = pytest.mark.slow

NUM_REPETITIONS = 4_000  # a share of 0.93 has a standard error of 0.004
MAX_BATCH = 2_000_000
SEEDS = (3, 5, 10)
LEAST = 0.93
MOST_FALSE = 0.05
ERRORS = 2  # Monte-Carlo standard errors that a share may miss a limit by


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Intervals of a batch of sweeps by both rules, the truth, and which of them have a note."""

    before: Ends
    now: Ends
    truth: float
    is_noted_R: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Shares of all sweeps of one regime."""

    coverage: tuple[float, float]  # before, now
    false: tuple[float, float]  # supported at the truth, of the two directions the one that is worse
    noted: float


Draw = Callable[[np.random.Generator, int, int], Judged]
"""From a generator, a number of repetitions and one of seeds."""


def judged(tables_RSP: Array, truth: float, *, before: Ends | None = None, num_problems: int | None = None) -> Judged:
    found = intervals(tables_RSP)
    noted_R = is_noted(tables_RSP, num_problems=num_problems)
    return Judged(before=before or found.wider, now=found.union, truth=truth, is_noted_R=noted_R)


# --- regimes ---

LOGIT_SD, GAIN_SD = 2.5, 1.0  # of problems' chances at the start, and of their gains, in logits
STANDARD = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)


@cache
def _middle(mean: float, sd: float) -> float:
    """Return the mean logit at which chances with this SD of logits have a mean."""
    low, high = -30.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(middle + sd * STANDARD).mean() < mean else (low, middle)
    return low


def like_aime(rng: np.random.Generator, num: int, num_seeds: int, *, base: float, top: float) -> Judged:
    """30 problems, 8 completions each, most of them too hard before and after."""
    logit_RP = LOGIT_SD * rng.standard_normal((num, 1, 30))
    sd = float(np.hypot(LOGIT_SD, GAIN_SD))
    a_RSP = expit(_middle(top, sd) + logit_RP + GAIN_SD * rng.standard_normal(logit_RP.shape))
    b_RSP = expit(_middle(base, LOGIT_SD) + logit_RP)
    shape = (num, num_seeds, 30)
    differences = rng.binomial(8, np.broadcast_to(a_RSP, shape)) - rng.binomial(8, np.broadcast_to(b_RSP, shape))
    return judged(differences / 8, top - base)


def flips(
    rng: np.random.Generator, num: int, num_seeds: int, *, share: float, num_problems: int, often: float = 1.0
) -> Judged:
    """Some problems turn from wrong to right, at all seeds or at each with a chance; the others never differ."""
    turns_RSP = rng.random((num, 1, num_problems)) < share
    return judged((turns_RSP & (rng.random((num, num_seeds, num_problems)) < often)).astype(float), share * often)


def shifted(
    rng: np.random.Generator, shifts_RS: Array, *, kind: str = "even", effect_sd: float = 0.1, num_problems: int = 500
) -> tuple[Array, float]:
    """Return tables whose seeds move all problems alike by a shift, and the mean difference without one."""
    num, num_seeds = shifts_RS.shape
    a_RP, b_RP, truth = chances(kind, effect_sd, (num, num_problems), rng)
    a_RSP, b_RSP = a_RP[:, None] + shifts_RS[:, :, None], b_RP[:, None]
    return drawn(a_RSP, rng, num_seeds=num_seeds) - drawn(b_RSP, rng, num_seeds=num_seeds), truth


def normal_seeds(rng: np.random.Generator, num: int, num_seeds: int) -> Judged:
    return judged(*shifted(rng, 0.03 * rng.standard_normal((num, num_seeds))))


def heavy_seeds(rng: np.random.Generator, num: int, num_seeds: int) -> Judged:
    # t with 3 degrees of freedom has the variance 3
    return judged(*shifted(rng, 0.03 / 3**0.5 * rng.standard_t(3, (num, num_seeds)).clip(-8, 8)))


def correlated_seeds(rng: np.random.Generator, num: int, num_seeds: int, *, rho: float) -> Judged:
    own, shared = rng.standard_normal((num, num_seeds)), rng.standard_normal((num, 1))
    return judged(*shifted(rng, 0.03 * ((1 - rho) ** 0.5 * own + rho**0.5 * shared)))


COLLAPSE = 0.25


def collapsing(rng: np.random.Generator, num: int, num_seeds: int, *, chance: float) -> Judged:
    """A seed loses 25 points with a chance, and 0 is the mean of all seeds."""
    collapses_RS = rng.random((num, num_seeds)) < chance
    tables_RSP, truth = shifted(rng, COLLAPSE * (chance - collapses_RS))
    return judged(tables_RSP, truth)


def failing(rng: np.random.Generator, num: int, num_seeds: int, *, chance: float) -> Judged:
    """The same, but the trainings that collapse fail, back at their start. Before, they were left out."""
    collapses_RS = np.sort(rng.random((num, num_seeds)) < chance, axis=1)  # seeds are alike, so the order is free
    tables_RSP, truth = shifted(rng, COLLAPSE * (chance - collapses_RS))
    num_left_R = num_seeds - collapses_RS.sum(1)
    low_R, high_R = np.full(num, -np.inf), np.full(num, np.inf)
    for num_left in range(MIN_SEEDS, num_seeds + 1):
        has_so_many_R = num_left_R == num_left
        if has_so_many_R.any():
            low_R[has_so_many_R], high_R[has_so_many_R] = intervals(tables_RSP[has_so_many_R, :num_left]).wider
    return judged(tables_RSP, truth, before=(low_R, high_R))


def in_families(
    rng: np.random.Generator, num: int, num_seeds: int, *, num_families: int, size: int, is_named: bool
) -> Judged:
    """Problems of a family have the same chances. If families are named, they count once."""
    a_RF, b_RF, truth = chances("certain", 0.3, (num, num_families), rng)
    a_RSP, b_RSP = (np.repeat(each[:, None], size, axis=2) for each in (a_RF, b_RF))
    a_RSP = a_RSP + 0.015 * rng.standard_normal((num, num_seeds, 1))
    tables_RSP = drawn(a_RSP, rng, num_seeds=num_seeds) - drawn(b_RSP, rng, num_seeds=num_seeds)
    if not is_named:
        return judged(tables_RSP, truth)
    # families of one size: `clustered` returns their means
    means_RSF = tables_RSP.reshape(num, num_seeds, num_families, size).mean(3)
    return judged(means_RSF, truth, before=intervals(tables_RSP).wider, num_problems=tables_RSP.shape[2])


def other_problems(rng: np.random.Generator, num: int, num_seeds: int) -> Judged:
    """Each side was asked 500 problems of its own. Before, only the seeds' means were compared."""
    a_RP, b_RP, truth = chances("certain", 0.1, (num, 1000), rng)
    a_RSP = a_RP[:, None, :500] + 0.015 * rng.standard_normal((num, num_seeds, 1))
    right_a_RSP, right_b_RSP = (drawn(each, rng, num_seeds=num_seeds) for each in (a_RSP, b_RP[:, None, 500:]))
    tables_RSP = np.array([on_both(*sides) for sides in zip(right_a_RSP, right_b_RSP, strict=True)])
    return judged(tables_RSP, truth, before=intervals(tables_RSP).seeds)


NAMES = [f"p{place}" for place in range(1000)]


def on_both(right_a_SP: Array, right_b_SP: Array) -> Array:
    terms_SC = list(zip(right_a_SP, -right_b_SP, strict=True))
    return _union(terms_SC, [tuple(NAMES[:500]), tuple(NAMES[500:])], NAMES)


def looking(rng: np.random.Generator, num: int, num_seeds: int) -> Judged:
    """Before, somebody looked at each seed from the third on and stopped as they liked; now, at planned looks.

    The interval of all looks is their overlap: a sweep is wrong if the truth is outside at any look.
    """
    tables_RSP, truth = shifted(rng, 0.03 * rng.standard_normal((num, num_seeds)))
    naive = [intervals(tables_RSP[:, :seen]).wider for seen in range(MIN_SEEDS, num_seeds + 1)]
    design = (*(look for look in (3, 6, 10) if look < num_seeds), num_seeds)
    planned = [
        intervals(tables_RSP[:, :seen], level=level).union
        for seen, level in zip(design, bounds(design, LEVEL), strict=True)
    ]
    before, now = ((np.max(lows, axis=0), np.min(highs, axis=0)) for lows, highs in (zip(*naive), zip(*planned)))  # noqa: B905
    return Judged(before=before, now=now, truth=truth, is_noted_R=is_noted(tables_RSP))


def one_problem(rng: np.random.Generator, num: int, num_seeds: int) -> Judged:
    """A suite of one problem, which turns right or wrong at all seeds alike, with 10% each."""
    turn_R = rng.choice([-1.0, 0.0, 1.0], num, p=[0.1, 0.8, 0.1])
    width_R = np.where(turn_R == 0, 1 - (LEVEL / 2), 0.0)  # t over equal seeds has none; no difference: the exact bound
    nothing = paired_difference(np.ones((num_seeds, 1)))
    assert nothing.low is None and nothing.high is None
    everything = np.full(num, np.inf)
    return Judged(
        before=(turn_R - width_R, turn_R + width_R),
        now=(-everything, everything),
        truth=0.0,
        is_noted_R=turn_R != turn_R,
    )


FORMAT_SHARE = 0.5


def format_tables(rng: np.random.Generator, num: int, num_seeds: int) -> tuple[Array, Array]:
    """Return the gains of the format arm and of the outcome arm: 10 and 20 points on average, other ones by problem."""
    start_RSP = rng.uniform(0.15, 0.45, (num, 1, 500))
    chances_by_arm = []
    for gain in (0.1, 0.2):
        gains_RSP = gain + rng.choice([-0.1, 0.2], (num, 1, 500), p=[2 / 3, 1 / 3])
        chances_by_arm.append(start_RSP + gains_RSP + 0.02 * rng.standard_normal((num, num_seeds, 1)))
    at_start = drawn(start_RSP, rng, num_seeds=num_seeds)
    of_format, of_outcome = (drawn(each, rng, num_seeds=num_seeds) - at_start for each in chances_by_arm)
    return of_format, of_outcome


def format_share(rng: np.random.Generator, num: int, num_seeds: int) -> Judged:
    """Before: the jackknife over seeds of a ratio of gains. Now: Fieller, so r is inside if 0 is for a - r b."""
    of_format, of_outcome = format_tables(rng, num, num_seeds)
    low_R, high_R = intervals(of_format - FORMAT_SHARE * of_outcome).union
    # a - r b falls with r: an interval above 0 means that the share is above r
    now = FORMAT_SHARE + low_R, FORMAT_SHARE + high_R
    noted_R = is_noted(of_format - FORMAT_SHARE * of_outcome)
    before = jackknife(of_format.mean(2), of_outcome.mean(2))
    return Judged(before=before, now=now, truth=FORMAT_SHARE, is_noted_R=noted_R)


def jackknife(of_format_RS: Array, of_outcome_RS: Array) -> Ends:
    num_seeds = of_format_RS.shape[1]
    whole_R = of_format_RS.mean(1) / of_outcome_RS.mean(1)
    rest_RS, rest_outcome_RS = (each.sum(1, keepdims=True) - each for each in (of_format_RS, of_outcome_RS))
    pseudo_RS = num_seeds * whole_R[:, None] - (num_seeds - 1) * rest_RS / rest_outcome_RS
    half_R = stats.t.ppf(1 - LEVEL / 2, num_seeds - 1) * stats.sem(pseudo_RS, axis=1)
    return pseudo_RS.mean(1) - half_R, pseudo_RS.mean(1) + half_R


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """A name in the document's table, and how its sweeps are drawn."""

    name: str
    draw: Draw
    is_limit: bool = field(default=False)  # nothing in the data of one sweep shows it


REGIMES = [
    Regime(name="even draws, seed SD 3 points", draw=normal_seeds),
    Regime(name="seeds with heavy tails (t, 3 df)", draw=heavy_seeds),
    Regime(name="30 problems x 8 completions, 3% to 5.4%", draw=partial(like_aime, base=0.03, top=0.054)),
    Regime(name="the same, 4% to 12%", draw=partial(like_aime, base=0.04, top=0.12)),
    Regime(name="1% of 500 problems turn, at all seeds", draw=partial(flips, share=0.01, num_problems=500)),
    Regime(name="1% of 500, at half of the seeds", draw=partial(flips, share=0.01, num_problems=500, often=0.5)),
    Regime(name="2% of 500", draw=partial(flips, share=0.02, num_problems=500)),
    Regime(name="5% of 500", draw=partial(flips, share=0.05, num_problems=500)),
    Regime(name="4% of 100", draw=partial(flips, share=0.04, num_problems=100)),
    Regime(name="12% of 30", draw=partial(flips, share=0.12, num_problems=30)),
    Regime(name="1 of 10 seeds collapses by 25 points", draw=partial(collapsing, chance=0.1), is_limit=True),
    Regime(name="1 of 5 seeds collapses", draw=partial(collapsing, chance=0.2), is_limit=True),
    Regime(name="1 of 10 collapses and fails", draw=partial(failing, chance=0.1), is_limit=True),
    Regime(name="1 of 5 collapses and fails", draw=partial(failing, chance=0.2), is_limit=True),
    Regime(name="seeds correlated by 0.25", draw=partial(correlated_seeds, rho=0.25), is_limit=True),
    Regime(name="seeds correlated by 0.5", draw=partial(correlated_seeds, rho=0.5), is_limit=True),
    Regime(
        name="100 families of 5, without names",
        draw=partial(in_families, num_families=100, size=5, is_named=False),
        is_limit=True,
    ),
    Regime(name="100 families of 5, with names", draw=partial(in_families, num_families=100, size=5, is_named=True)),
    Regime(name="50 problems, 10 copies each", draw=partial(in_families, num_families=50, size=10, is_named=True)),
    Regime(name="sides with other problems", draw=other_problems),
    Regime(name="looks at results from seed 3 on", draw=looking),
    Regime(name="1 problem", draw=one_problem),
    Regime(name="share of a gain", draw=format_share),
]
BY_NAME = {regime.name: regime for regime in REGIMES}


@cache
def rates(name: str, num_seeds: int) -> Rates:
    rng = np.random.default_rng([20261129, *name.encode(), num_seeds])
    batch = MAX_BATCH // (num_seeds * 1000)
    held: list[list[Array]] = []
    for start in range(0, NUM_REPETITIONS, batch):
        found = BY_NAME[name].draw(rng, min(batch, NUM_REPETITIONS - start), num_seeds)
        rules, truth = (found.before, found.now), found.truth
        above = [ends[0] > truth + 1e-12 for ends in rules]
        below = [ends[1] < truth - 1e-12 for ends in rules]
        held.append([*(holds(ends, truth) for ends in rules), *above, *below, found.is_noted_R])
    shares = np.concatenate(held, axis=1).mean(1).tolist()
    return Rates(
        coverage=(shares[0], shares[1]), false=(max(shares[2], shares[4]), max(shares[3], shares[5])), noted=shares[6]
    )


def table() -> list[str]:
    """Return the document's table."""
    lines = []
    for regime in REGIMES:
        cells = [rates(regime.name, num_seeds) for num_seeds in SEEDS]
        columns = [
            [cell.coverage[0] for cell in cells],
            [cell.coverage[1] for cell in cells],
            [cell.false[0] for cell in cells],
            [cell.false[1] for cell in cells],
            [cell.noted for cell in cells],
        ]
        numbers = " | ".join(" / ".join(f"{100 * share:.1f}" for share in column) for column in columns)
        lines.append(f"| {regime.name} | {numbers} |")
    return lines


def margin(share: float) -> float:
    return float(ERRORS * np.sqrt(share * (1 - share) / NUM_REPETITIONS))


@pytest.mark.parametrize("num_seeds", SEEDS)
@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name)
def test_a_verdict_is_right_or_says_that_it_may_not_be(regime: Regime, num_seeds: int) -> None:
    found = rates(regime.name, num_seeds)
    is_told = found.noted > 0.5 or regime.is_limit
    assert is_told or found.coverage[1] >= LEAST - margin(LEAST), found
    assert is_told or found.false[1] <= MOST_FALSE + margin(MOST_FALSE), found


@pytest.mark.parametrize("num_seeds", SEEDS)
@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name)
def test_no_regime_is_worse_than_before(regime: Regime, num_seeds: int) -> None:
    found = rates(regime.name, num_seeds)
    assert found.coverage[1] >= found.coverage[0] - margin(LEAST), found
    assert found.false[1] <= found.false[0] + margin(MOST_FALSE), found


def test_even_draws_are_seldom_noted() -> None:
    assert max(rates(REGIMES[0].name, num_seeds).noted for num_seeds in SEEDS) < 0.05


# --- the rules in arrays against those of one table ---


def some_tables(num_seeds: int) -> list[Array]:
    rng = np.random.default_rng(num_seeds)
    collapsed, _ = shifted(rng, -0.3 * (rng.random((6, num_seeds)) < 0.15))
    few = (rng.random((6, 1, 40)) < 0.08) & (rng.random((6, num_seeds, 40)) < 0.7)
    draws = rng.binomial(8, 0.05, (6, num_seeds, 30)) - rng.binomial(8, 0.03, (6, num_seeds, 30))
    return [collapsed, few.astype(float), draws / 8]


@pytest.mark.parametrize("num_seeds", [3, 4, 10])
@pytest.mark.parametrize("level", [0.05, 0.004, 0.3])
def test_intervals_in_arrays_are_those_of_each_table(num_seeds: int, level: float) -> None:
    for tables_RSP in some_tables(num_seeds):
        found = intervals(tables_RSP, level=level)
        for place, table_SP in enumerate(tables_RSP):
            real = paired_difference(table_SP).at_level(level)
            assert (found.union[0][place], found.union[1][place]) == pytest.approx((real.low, real.high), abs=1e-9)
            ends = [each.interval(level) for each in real.evidence[:2]]
            before = min(low for low, _ in ends), max(high for _, high in ends)
            assert (found.wider[0][place], found.wider[1][place]) == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("num_seeds", [3, 4, 10])
def test_notes_in_arrays_are_those_of_each_table(num_seeds: int) -> None:
    num_far = 0
    for tables_RSP in some_tables(num_seeds):
        real = [paired_difference(table_SP).carriers for table_SP in tables_RSP]
        assert carriers(tables_RSP) == pytest.approx(real)
        is_far = [bool(_outlier(table_SP.mean(1))) for table_SP in tables_RSP]
        assert has_far_seed(tables_RSP).tolist() == is_far
        num_far += sum(is_far)
    assert num_far > 0 or num_seeds == 3


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_families_of_one_size_are_their_means(seed: int, size: int) -> None:
    table_SP = np.random.default_rng(seed).normal(size=(3, 7 * size))
    names = [str(place // size) for place in range(7 * size)]
    np.testing.assert_allclose(clustered(table_SP, names), table_SP.reshape(3, 7, size).mean(2), atol=1e-12)


def test_a_share_is_inside_its_interval_exactly_if_0_is_in_that_of_the_difference() -> None:
    rng = np.random.default_rng(3)
    a_SP, b_SP = (tables[0, :, :80] for tables in format_tables(rng, 1, 5))
    found = share_of(lambda ratio: paired_difference(a_SP - ratio * b_SP), float(a_SP.mean() / b_SP.mean()))
    assert found.low is not None
    ratios = np.array([found.low - 0.01, found.low + 0.01, *([] if found.high is None else [found.high - 0.01])])
    tables_RSP = a_SP[None] - ratios[:, None, None] * b_SP[None]
    assert holds(intervals(tables_RSP).union, 0.0).tolist() == [False, True, True][: len(ratios)]


# --- the same through runs and claims ---

A, B = {"arm": "a"}, {"arm": "b"}


def measured(
    right_a: Array, right_b: Array, *, first_b: int = 0, families: tuple[str, ...] = (), failed: tuple[int, ...] = ()
) -> tuple[Ends, tuple[str, ...]]:
    """Return the interval and the notes of a's last step against b's, [seeds, problems] right; at the start none is."""
    tables: dict[tuple[str, str, int], Grades] = {}
    runs = []
    for cell, right_SP, first in ((A, right_a, 0), (B, right_b, first_b)):
        for seed, right_P in enumerate(right_SP):
            has_failed = cell is A and seed in failed
            state = {"state": TrialState.FAILED, "reason": "loss is nan"} if has_failed else {}
            runs.append(run(cell, seed, measured={"arithmetic": {0: {}, 8: {}}}, **state))
            for step, row_P in ((0, np.zeros_like(right_P)), (8, right_P)):
                made = grades(row_P.astype(int).tolist(), first=first, categories=["x"] * len(row_P))
                tables[runs[-1].label, "arithmetic", step] = Grades(
                    **{name: getattr(made, name) for name in Grades.__slots__ if name != "families"}, families=families
                )
    sweep = gathered(runs, [claim(A, B)], tables=tables, rules=Rules())
    (comparison,) = comparisons(sweep.frozen.claims, sweep.cells)
    found = measure(comparison, sweep, seeds=range(len(right_a)), failed="start")
    assert found.difference is not None and found.difference.low is not None and found.difference.high is not None
    return (np.array([found.difference.low]), np.array([found.difference.high])), found.notes


def verdicts_of(num_seeds: int, num_problems: int, *, chance: float = 0.6) -> tuple[Array, Array]:
    rng = np.random.default_rng([num_seeds, num_problems])
    shape = (num_seeds, num_problems)
    return (rng.random(shape) < chance).astype(float), (rng.random(shape) < 0.3).astype(float)


def assert_same(found: Ends, table_SP: Array) -> None:
    expected = intervals(table_SP[None]).union
    assert (found[0][0], found[1][0]) == pytest.approx((expected[0][0], expected[1][0]), abs=1e-9)


def test_a_training_that_failed_counts_as_its_start() -> None:
    right_a, right_b = verdicts_of(5, 60)
    found, _ = measured(right_a, right_b, failed=(2,))
    right_a[2] = 0.0
    assert_same(found, right_a - right_b)


def test_families_of_problems_count_once() -> None:
    right_a, right_b = verdicts_of(4, 60)
    found, _ = measured(right_a, right_b, families=tuple(f"f{place // 5}" for place in range(60)))
    assert_same(found, (right_a - right_b).reshape(4, 12, 5).mean(2))


def test_sides_with_other_problems_are_one_table_with_both() -> None:
    right_a, right_b = verdicts_of(4, 500)
    found, _ = measured(right_a, right_b, first_b=500)
    assert_same(found, on_both(right_a, right_b))


def test_a_verdict_that_few_problems_carry_says_so() -> None:
    right_b = np.zeros((4, 60))
    right_a = right_b.copy()
    right_a[:, : FEW_CARRIERS - 1] = 1.0
    _, notes = measured(right_a, right_b)
    assert notes == (
        f"about {FEW_CARRIERS - 1} of 60 problems carry the difference, so the interval may be too narrow",
    )
    right_a[:, : FEW_CARRIERS + 1] = 1.0
    assert measured(right_a, right_b)[1] == ()


def test_a_seed_that_is_far_from_the_others_is_named() -> None:
    # effects 0.5, 0.5, 0.5, 0.5 and 0.2: 30 points from the middle one
    right_b = np.zeros((5, 40))
    right_a = np.tile((np.arange(40) < 20).astype(float), (5, 1))
    right_a[4, 8:] = 0.0
    _, notes = measured(right_a, right_b)
    assert notes == ("one of 5 seeds is 30.0 points from the middle one, so the interval may be too narrow",)


def test_the_document_shows_these_numbers() -> None:
    document = (PROJECT / "docs" / "statistics.md").read_text()
    shown = {line.split(" | ")[0]: line for line in document.splitlines() if line.count(" / ") == 10}
    for line in table():
        name = line.split(" | ")[0]
        values, others = (
            [float(cell) for cell in re.findall(r"[\d.]+", row[len(name) :])] for row in (shown[name], line)
        )
        # another NumPy may draw other numbers
        assert values == pytest.approx(others, abs=3), name
    assert len(shown) == len(REGIMES)
