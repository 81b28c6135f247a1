"""Intervals, tests and verdicts: numbers worked by hand, laws over all differences, other implementations."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from oneshot.config.claims import ExpectConfig
from oneshot.report.constants import Array
from oneshot.report.contrast import paired_difference, paired_errors, problem_difference, seed_difference
from oneshot.report.decision import holm, judge
from oneshot.report.evidence import Difference
from oneshot.report.stats import CHANGE, SHARE, kendall, mean_interval, wilson

SHARES = st.integers(-16, 16).map(lambda num: num / 16)  # of 16 completions a problem


@st.composite
def tables(draw: st.DrawFn, *, min_seeds: int = 3) -> Array:
    num_seeds, num_problems = draw(st.integers(min_seeds, 5)), draw(st.integers(2, 6))
    rows = st.lists(SHARES, min_size=num_problems, max_size=num_problems)
    return np.array(draw(st.lists(rows, min_size=num_seeds, max_size=num_seeds)))


def bounds(difference: Difference) -> tuple[float, float]:
    assert difference.low is not None and difference.high is not None
    return difference.low, difference.high


def close(one: Difference, other: Difference) -> bool:
    return [one.effect, *bounds(one)] == pytest.approx([other.effect, *bounds(other)], abs=1e-9)


# The mean of replicates.


def test_t_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, standard error 1/sqrt(3) = 0.57735, t(0.975, 2) = 4.302653: 2 -+ 2.484138
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.num) == (2.0, 3)
    assert interval.low == pytest.approx(-0.484138, abs=1e-6)
    assert interval.high == pytest.approx(4.484138, abs=1e-6)


def test_one_replicate_has_a_mean_and_no_interval() -> None:
    interval = mean_interval([0.5])
    assert (interval.mean, interval.low, interval.high, interval.num) == (0.5, None, None, 1)


def test_equal_replicates_show_no_spread_and_have_no_interval() -> None:
    interval = mean_interval([0.1, 0.1, 0.1])
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(0.1), None, None)


def test_an_interval_is_cut_at_the_bounds_of_its_quantity_by_hand() -> None:
    # 0.02, 0.04: mean 0.03, standard error 0.01, t(0.975, 1) = 12.7062: 0.03 -+ 0.127062
    interval = mean_interval([0.02, 0.04], bounds=SHARE)
    assert (interval.mean, interval.low) == (pytest.approx(0.03), 0.0)
    assert interval.high == pytest.approx(0.157062, abs=1e-6)
    gain = mean_interval([0.8, 1.0], bounds=CHANGE)  # 0.9 -+ 1.27062
    assert (gain.low, gain.high) == (pytest.approx(-0.37062, abs=1e-5), 1.0)


def test_a_difference_of_shares_is_cut_at_1() -> None:
    # 0.8, 0.9, 1.0: mean 0.9, standard error 0.057735, t(0.975, 2) = 4.302653: 0.9 -+ 0.248414
    found = seed_difference([0.8, 0.9, 1.0])
    assert bounds(found) == pytest.approx((0.651586, 1.148414), abs=1e-6)
    assert bounds(found.within(CHANGE)) == pytest.approx((0.651586, 1.0), abs=1e-6)
    assert found.within(CHANGE).p_value(0.5) == found.p_value(0.5)


def test_no_replicates_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


# Differences by seed and problem.


def test_where_problems_differ_most_the_crossed_interval_is_the_wider_by_hand() -> None:
    # seeds' means 1/2, 1/2, 3/4 of 7/12; problems' means 1, 1, 1/3, 0
    # seeds: 4 ((1/12)^2 + (1/12)^2 + (1/6)^2) = 1/6, df 2: MS_S 1/12
    # problems: 3 ((5/12)^2 + (5/12)^2 + (1/4)^2 + (7/12)^2) = 9/4, df 3: MS_P 3/4
    # total: 7 - 12 (7/12)^2 = 35/12; rest 35/12 - 1/6 - 9/4 = 1/2, df 6: MS_E 1/12
    # crossed: (1/12 + 3/4 - 1/12) / 12 = 1/16, error 1/4; t over seeds: sqrt(1/12 / 12) = 1/12
    # df: (3/4)^2 / ((1/12)^2 / 2 + (3/4)^2 / 3 + (1/12)^2 / 6) = 0.5625 / 0.19212963 = 2.92771084
    differences_SP = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=float)
    found = paired_difference(differences_SP)
    assert found.effect == pytest.approx(7 / 12)
    assert (found.error, found.df) == (pytest.approx(0.25), pytest.approx(2.92771084))
    # t(0.975, 2.9277), between 4.3027 at 2 and 3.1824 at 3, is 3.2274
    crossed = found.evidence[1]
    assert crossed.interval() == (pytest.approx(7 / 12 - 0.25 * 3.2274, abs=1e-4), pytest.approx(1.3902, abs=1e-4))
    # skew: u = 5/48, 5/48, -1/16, -7/48 of problems' means, sum of squares 3/64, of cubes -0.00108507
    # a = -0.00108507 / (6 (3/64)^1.5) = -0.0178193, error sqrt(3/64 * 4/3) = 1/4, t(0.975, 3) = 3.18244631
    # low: w = -3.2002656, 0.25 w / (1 - 0.0570265)^2 = -0.8997566; high: w = 3.1646270, less than the crossed one's
    assert bounds(found) == (pytest.approx(7 / 12 - 0.8997566, abs=1e-5), pytest.approx(1.3902, abs=1e-4))
    assert found.test.startswith("crossed 3 seeds x 4 problems, Satterthwaite df 2.9, 1.06 times as wide for skew")
    assert (found.num_seeds, found.num_problems) == (3, 4)
    assert float(paired_errors(differences_SP).seeds) == pytest.approx(1 / 12)


def test_where_problems_differ_as_the_rest_does_both_errors_are_the_same_by_hand() -> None:
    # seeds' means 1, 0, 1/2; problems' means 1/3, 2/3; seeds: 2 (1/4 + 0 + 1/4) = 1, df 2: MS_S 1/2
    # problems: 3 (1/36 + 1/36) = 1/6, df 1: MS_P 1/6; total 3 - 6/4 = 3/2; rest 1/3, df 2: MS_E 1/6
    # crossed: (1/2 + 1/6 - 1/6) / 6 = 1/12, the same error as t's, sqrt(1/2 / 6)
    # df: (1/2)^2 / ((1/2)^2 / 2 + (1/6)^2 / 1 + (1/6)^2 / 2) = 0.25 / (1/6) = 1.5, above the least part's 1
    errors = paired_errors(np.array([[1, 1], [0, 0], [0, 1]], dtype=float))
    assert (float(errors.seeds), float(errors.crossed)) == (pytest.approx(12**-0.5), pytest.approx(12**-0.5))
    assert float(errors.crossed_df) == pytest.approx(1.5)


def test_where_problems_differ_less_than_the_rest_t_over_seeds_stands_by_hand() -> None:
    # problems' means 1/3, 1/3: MS_P 0; seeds' means 1/2, 1/2, 0: MS_S 2 (1/36 + 1/36 + 1/9) / 2 = 1/6
    # total 2 - 6/9 = 4/3, rest 4/3 - 1/3 = 1, df 2: MS_E 1/2; crossed: 1/6 + 0 - 1/2 is less than nothing
    found = paired_difference(np.array([[1, 0], [0, 1], [0, 0]], dtype=float))
    assert (found.test, found.df) == ("paired t over 3 seeds", 2)
    # sqrt(1/6 / 6)
    assert found.error == pytest.approx(1 / 6)


def test_degrees_of_freedom_stop_at_the_smallest_parts() -> None:
    # seeds' means all 1/2: MS_S 0; problems' means 1, 1/3, 1/3, 1/3: MS_P 3 (1/4 + 3/36) / 3 = 1/3
    # total 3, rest 3 - 1 = 2, df 6: MS_E 1/3. Nothing is left
    errors = paired_errors(np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]], dtype=float))
    assert (float(errors.seeds), float(errors.crossed)) == (0.0, 0.0)
    # problems' means 1, 2/3, 1/3, 0: MS_P 3 (2/4 + 2/36) / 3 = 5/9, rest 3 - 5/3 = 4/3: MS_E 2/9
    # df: (1/3)^2 / ((5/9)^2 / 3 + (2/9)^2 / 6) = 1.0: fewer than a t over the seeds has
    errors = paired_errors(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], dtype=float))
    assert float(errors.crossed) == pytest.approx(math.sqrt(1 / 3 / 12))
    assert float(errors.crossed_df) == 2.0


@pytest.mark.parametrize(
    ("num", "says"), [(1, "1 seed: fewer than 3, no interval"), (2, "2 seeds: fewer than 3, no interval")]
)
def test_fewer_than_three_seeds_have_an_effect_and_no_interval(num: int, says: str) -> None:
    found = paired_difference(np.tile([0.0, 1.0], (num, 1)))
    assert (found.effect, found.low, found.high, found.error, found.df) == (0.5, None, None, None, None)
    assert (found.test, found.p_value(), found.num_seeds, found.num_problems) == (says, None, num, 2)


def test_no_seeds_or_no_problems_are_errors() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        paired_difference(np.empty((0, 3)))
    with pytest.raises(ValueError, match="at least one problem"):
        paired_difference(np.empty((3, 0)))
    with pytest.raises(ValueError, match="at least one problem"):
        problem_difference(np.empty(0), num_seeds=3)


def test_a_difference_without_any_spread_is_certain() -> None:
    # 0.1 summed twelve times is not 1.2: rounding must not be taken for spread
    found = paired_difference(np.full((3, 4), 0.1))
    assert (found.effect, found.low, found.high, found.error) == (0.1, 0.1, 0.1, 0.0)
    assert (found.p_value(0.1), found.p_value(0.0)) == (1.0, 0.0)


def test_one_problem_at_any_number_of_seeds_has_no_interval() -> None:
    # all seeds agree on it, and it says nothing of other problems
    found = paired_difference(np.ones((5, 1)))
    assert (found.effect, found.low, found.high, found.p_value()) == (1.0, None, None, None)
    assert (found.test, found.num_seeds, found.num_problems) == ("1 problem: no interval", 5, 1)


@given(tables())
def test_over_seeds_it_is_scipys_t_test(differences_SP: Array) -> None:
    column_S = differences_SP[:, 0]
    assume(column_S.std() > 0)
    reference = stats.ttest_1samp(column_S, 0.0)
    interval = reference.confidence_interval()
    found = seed_difference(column_S)
    assert bounds(found) == pytest.approx((interval.low, interval.high))
    assert found.p_value() == pytest.approx(reference.pvalue) and found.num_problems is None


@given(tables())
def test_where_all_problems_are_alike_it_is_scipys_t_test_over_seeds(differences_SP: Array) -> None:
    alike_SP = np.repeat(differences_SP[:, :1], 5, axis=1)
    assume(alike_SP[:, 0].std() > 0)
    reference = stats.ttest_1samp(alike_SP[:, 0], 0.0)
    found = paired_difference(alike_SP)
    # crossed has the same error and no other degrees of freedom: no problem, no residual
    assert found.p_value() == pytest.approx(reference.pvalue)


@given(tables())
def test_where_all_seeds_are_alike_it_is_scipys_t_test_over_problems(differences_SP: Array) -> None:
    alike_SP = np.repeat(differences_SP[:1], 3, axis=0)
    assume(alike_SP.shape[1] > 3 and alike_SP[0].std() > 0)
    reference = stats.ttest_1samp(alike_SP[0], 0.0).confidence_interval()
    found = paired_difference(alike_SP)
    assert found.evidence[1].interval() == pytest.approx((reference.low, reference.high))
    assert found.low is not None and found.low <= reference.low + 1e-9


@given(tables(), SHARES)
def test_a_shift_of_all_differences_shifts_the_interval(differences_SP: Array, shift: float) -> None:
    found = paired_difference(differences_SP)
    low, high = bounds(found)
    shifted = replace(found, effect=found.effect + shift, low=low + shift, high=high + shift)
    assert close(paired_difference(differences_SP + shift), shifted)


@given(tables())
def test_the_other_way_round_the_interval_is_its_mirror(differences_SP: Array) -> None:
    found = paired_difference(differences_SP)
    low, high = bounds(found)
    assert close(paired_difference(-differences_SP), replace(found, effect=-found.effect, low=-high, high=-low))


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_problems_says_nothing(differences_SP: Array, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    other = rng.permutation(rng.permutation(differences_SP, axis=0), axis=1)
    assert close(paired_difference(differences_SP), paired_difference(other))


@given(tables())
def test_the_interval_holds_the_effect_and_the_t_interval_over_seeds(differences_SP: Array) -> None:
    found = paired_difference(differences_SP)
    alone = seed_difference(differences_SP.mean(1))
    (low, high), (inner_low, inner_high) = bounds(found), bounds(alone)
    assert low <= found.effect <= high
    assert low <= inner_low + 1e-9 and inner_high <= high + 1e-9


@given(tables(), st.floats(-2, 2))
def test_p_is_below_0_05_exactly_where_the_interval_leaves_the_bound_out(differences_SP: Array, bound: float) -> None:
    found = paired_difference(differences_SP)
    low, high = bounds(found)
    assume(min(abs(bound - low), abs(bound - high)) > 1e-9)
    p_value = found.p_value(bound)
    assert p_value is not None and (p_value < 0.05) == (not low <= bound <= high)


def test_p_at_the_intervals_end_is_0_05() -> None:
    found = paired_difference(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=float))
    assert [found.p_value(bound) for bound in bounds(found)] == pytest.approx([0.05, 0.05])


def test_p_is_the_largest_of_all_tests_at_every_level() -> None:
    found = paired_difference(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=float))
    for bound in (0.0, -1.0, -100.0):
        each = [one.p_value(bound) for one in found.evidence]
        assert len(each) == 3 and found.p_value(bound) == max(each)


def test_ten_seeds_of_five_thousand_problems_are_one_table() -> None:
    differences_SP = np.random.default_rng(0).integers(-1, 2, (10, 5000)).astype(float)
    assert close(paired_difference(differences_SP), paired_difference(differences_SP[::-1, ::-1]))


# Differences between given checkpoints.


def test_the_bootstrap_is_near_the_normal_interval_where_problems_are_many() -> None:
    # 200 of +1, 100 of -1, 700 of 0: mean 0.1, variance 0.3 - 0.01 = 0.29, error sqrt(0.29 / 1000) = 0.017029
    differences_P = np.repeat([1.0, -1.0, 0.0], [200, 100, 700])
    found = problem_difference(differences_P, num_seeds=2)
    assert found.effect == pytest.approx(0.1)
    assert found.error == pytest.approx(0.017029, rel=0.03)
    assert bounds(found) == (
        pytest.approx(0.1 - 1.96 * 0.017029, abs=0.002),
        pytest.approx(0.1 + 1.96 * 0.017029, abs=0.002),
    )
    assert (found.test, found.num_seeds, found.num_problems, found.df) == (
        "bootstrap over 1000 problems",
        2,
        1000,
        None,
    )
    # 0.066 is 2 errors below: 4.6%
    assert found.p_value(0.0659) == pytest.approx(0.046, abs=0.01)


def test_the_bootstrap_gives_the_same_numbers_each_time() -> None:
    differences_P = np.random.default_rng(3).integers(-1, 2, 50).astype(float)
    one, other = (problem_difference(differences_P, num_seeds=1) for _ in range(2))
    assert one == other and one.p_value(0.1) == other.p_value(0.1)


@settings(max_examples=20, deadline=None)
@given(st.lists(SHARES, min_size=2, max_size=12), st.floats(-1, 1))
def test_the_bootstraps_p_agrees_with_its_interval(values: list[float], bound: float) -> None:
    found = problem_difference(np.array(values), num_seeds=3)
    low, high = bounds(found)
    assert low <= found.effect <= high
    p_value = found.p_value(bound)
    assert p_value is not None and (p_value < 0.05) == (not low <= bound <= high)
    assert bound == found.effect or len(set(values)) == 1 or p_value >= 0.0002


def test_one_discordant_problem_of_many_has_an_interval_that_reaches_nothing() -> None:
    # a resample misses it with probability 0.998^500 = 0.37
    found = problem_difference(np.repeat([1.0, 0.0], [1, 499]), num_seeds=1)
    assert bounds(found)[0] == 0.0


def test_equal_problems_have_an_interval_of_no_width() -> None:
    found = problem_difference(np.full(7, 0.1), num_seeds=1)
    assert (found.effect, found.low, found.high, found.error, found.df) == (0.1, 0.1, 0.1, 0.0, None)
    assert (found.p_value(0.1), found.p_value()) == (1.0, 0.0)


def test_one_problem_has_no_interval() -> None:
    found = problem_difference(np.array([1.0]), num_seeds=3)
    assert (found.effect, found.low, found.p_value(), found.test) == (1.0, None, None, "1 problem: no interval")


# Shares.


def test_wilson_against_the_literature() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29
    literature = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (num_right, num), (low, high) in literature.items():
        interval = wilson(num_right, num)
        assert (interval.mean, interval.num) == (num_right / num, num)
        assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 600).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num))))
def test_wilson_is_statsmodels(counts: tuple[int, int]) -> None:
    interval = wilson(*counts, confidence=0.9)
    low, high = proportion_confint(*counts, alpha=0.1, method="wilson")
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_a_share_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="not less than 1"):
        wilson(0, 0)


# Many claims.


def test_holm_by_hand() -> None:
    # in order 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.5 * 1: 0.04, 0.06, then no smaller: 0.06, 0.5
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])


def test_a_claim_without_p_counts_as_a_test() -> None:
    # 0.02 * 3, 0.03 * 2 and the one that is unknown
    assert holm([0.03, None, 0.02]) == [pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([None]) == [None]
    assert holm([]) == []


@pytest.mark.parametrize("num", [1, 2, 40])
def test_holm_is_statsmodels(num: int) -> None:
    p_values = np.random.default_rng(num).random(num).round(1) ** 4  # some are equal, most are small
    assert holm(list(p_values)) == list(multipletests(p_values, method="holm")[1])


@given(st.lists(st.none() | st.floats(0, 1), max_size=12))
def test_holm_never_makes_a_p_smaller_and_keeps_their_order(p_values: list[float | None]) -> None:
    corrected = holm(p_values)
    assert [one is None for one in corrected] == [p is None for p in p_values]
    pairs = sorted((p, one) for p, one in zip(p_values, corrected, strict=True) if p is not None and one is not None)
    assert all(p <= one <= 1 for p, one in pairs)
    assert [one for _, one in pairs] == sorted(one for _, one in pairs)


# Verdicts.


def difference(low: float, high: float) -> Difference:
    """Three seeds whose t interval is this."""
    mean, half = (low + high) / 2, (high - low) / 2
    # -x, 0, x: error x / sqrt(3), t(0.975, 2) = 4.302653
    spread = half * math.sqrt(3) / 4.302652729911275
    return seed_difference(np.array([mean - spread, mean, mean + spread]))


@pytest.mark.parametrize(
    ("low", "high", "expected", "verdict"),
    [
        (0.03, 0.05, {"greater_by": 0.02}, "supported"),
        (0.01, 0.05, {"greater_by": 0.02}, "inconclusive"),
        (-0.05, 0.01, {"greater_by": 0.02}, "contradicted"),
        (0.01, 0.05, {"greater_by": 0.0}, "supported"),
        (-0.05, -0.03, {"less_by": 0.02}, "supported"),
        (-0.05, -0.01, {"less_by": 0.02}, "inconclusive"),
        (-0.01, 0.05, {"less_by": 0.02}, "contradicted"),
        (-0.01, 0.01, {"within": 0.02}, "supported"),
        (0.01, 0.015, {"within": 0.02}, "supported"),
        (-0.03, 0.01, {"within": 0.02}, "inconclusive"),
        (-0.05, 0.05, {"within": 0.02}, "inconclusive"),
        (0.01, 0.05, {"within": 0.02}, "inconclusive"),
        (0.03, 0.05, {"within": 0.02}, "contradicted"),
        (-0.05, -0.03, {"within": 0.02}, "contradicted"),
    ],
)
def test_the_interval_judges(low: float, high: float, expected: dict[str, float], verdict: str) -> None:
    found, p_value = judge(difference(low, high), ExpectConfig(**expected))
    assert found == verdict
    assert p_value is not None and (p_value < 0.05) == (verdict != "inconclusive")


def test_without_an_interval_nothing_is_judged() -> None:
    for expected in ("greater_by", "less_by", "within"):
        assert judge(seed_difference(np.array([0.5, 0.5])), ExpectConfig(**{expected: 0.1})) == ("inconclusive", None)


def test_the_p_of_a_verdict_is_that_of_its_bound() -> None:
    found = difference(0.0, 0.04)
    assert judge(found, ExpectConfig(greater_by=0.01))[1] == found.p_value(0.01)
    assert judge(found, ExpectConfig(less_by=0.01))[1] == found.p_value(-0.01)
    # inside the larger of both, outside the nearer bound's
    assert judge(found, ExpectConfig(within=0.05))[1] == found.p_value(0.05)
    assert judge(found, ExpectConfig(within=0.01))[1] == found.p_value(0.01)


@given(tables(), st.sampled_from(["greater_by", "less_by", "within"]), st.integers(1, 20))
def test_a_claim_is_judged_where_its_p_is_below_0_05(differences_SP: Array, name: str, twentieths: int) -> None:
    bound = twentieths / 20 + 1e-4  # no interval of sixteenths ends there but by chance
    found = paired_difference(differences_SP)
    assume(all(abs(abs(end) - bound) > 1e-9 for end in bounds(found)))
    verdict, p_value = judge(found, ExpectConfig(**{name: bound}))
    assert p_value is not None and (p_value < 0.05) == (verdict != "inconclusive")


@given(tables(), st.integers(0, 20))
def test_less_is_greater_the_other_way_round(differences_SP: Array, twentieths: int) -> None:
    bound = twentieths / 20 + 1e-4
    one = judge(paired_difference(differences_SP), ExpectConfig(greater_by=bound))
    other = judge(paired_difference(-differences_SP), ExpectConfig(less_by=bound))
    assert one[0] == other[0] and one[1] == pytest.approx(other[1], abs=1e-9)


# Ranks.


def test_kendall_by_hand() -> None:
    # seeds 1 and 2: ab, ac agree, bc not: (2 - 1) / 3; 1 and 3: all three turned: -1; 2 and 3: (1 - 2) / 3
    scores = [{"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": 3.0, "c": 2.0}, {"a": 3.0, "b": 2.0, "c": 1.0}]
    found = kendall(scores)
    assert found is not None
    assert (found.mean, found.low, found.num_pairs) == (pytest.approx(-1 / 3), pytest.approx(-1.0), 3)


def test_kendall_takes_the_names_that_both_seeds_have() -> None:
    # a and b only, in the same order
    found = kendall([{"a": 1.0, "b": 2.0, "x": 0.0}, {"a": 5.0, "b": 6.0, "y": 0.0}])
    assert found is not None and (found.mean, found.num_pairs) == (pytest.approx(1.0), 1)


def test_a_seed_that_ranks_nothing_has_no_pair() -> None:
    ranked = {"a": 1.0, "b": 2.0}
    found = kendall([ranked, ranked, {"a": 1.0, "b": 1.0}, {"a": 1.0}])
    assert found is not None and found.num_pairs == 1
    assert kendall([ranked, {"a": 1.0, "b": 1.0}]) is None
    assert kendall([ranked]) is None
