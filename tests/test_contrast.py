"""Contrasts over several suites, shares, families, skew, looks and random effects: by hand and by other libraries."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from oneshot.report.constants import Array
from oneshot.report.contrast import clustered, paired_difference, paired_errors, problem_difference, share_of
from oneshot.report.evidence import NoDifference, Skewed
from oneshot.report.looks import bounds, spent_level
from oneshot.report.random_effects import random_effects

RNG = np.random.default_rng(20)

# Several suites.


def test_two_suites_share_their_seeds_and_add_their_problems_by_hand() -> None:
    # suite 1, weight 1/2: rows (1, 0), (1, 1), (0, 0) / 2, means 1/4, 1/2, 0; suite 2: (0, 1), (1, 1), (0, 0) / 2
    first = np.array([[1, 0], [1, 1], [0, 0]], dtype=float) / 2
    second = first[:, ::-1]
    errors = paired_errors(first, second)
    # sums of means 1/2, 1, 0: variance 1/4, by seed 1/12
    assert float(errors.effect) == pytest.approx(1 / 2)
    assert float(errors.seeds) == pytest.approx(math.sqrt(1 / 12))
    # each table: problems' means 1/3, 1/6: MS_P 3 (1/144 + 1/144) = 1/24; MS_S 2 (1/16 + 0 + 1/16) / 2 = 1/8
    # total 3/4 - 6/16 = 3/8, rest 3/8 - 1/4 - 1/24 = 1/12, df 2: MS_E 1/24. So problems add nothing
    assert float(errors.crossed) == pytest.approx(math.sqrt(1 / 12))


@given(st.integers(0, 2**32 - 1))
def test_a_group_weighted_by_problem_is_one_suite_of_all_problems(seed: int) -> None:
    table_SP = np.random.default_rng(seed).integers(-1, 2, (4, 9)).astype(float)
    assume(table_SP.std() > 0)
    parts = paired_difference(table_SP[:, :3] * 3 / 9, table_SP[:, 3:] * 6 / 9)
    whole = paired_difference(table_SP)
    assert parts.effect == pytest.approx(whole.effect)
    assert (parts.num_seeds, parts.num_problems) == (4, 9)
    by_seed, other = parts.evidence[0], whole.evidence[0]
    if parts.error is not None and whole.error is not None and len(parts.evidence) > 1 < len(whole.evidence):
        assert by_seed.interval() == pytest.approx(other.interval())


def test_suites_without_any_difference_have_the_bound_of_each() -> None:
    found = paired_difference(np.zeros((3, 30)), np.zeros((3, 500)), weights=(0.5, 0.5))
    # half of the level each: 1 - 0.0125^(1/30) = 0.135891, 1 - 0.0125^(1/500) = 0.008726
    assert found.high == pytest.approx((0.135891 + 0.008726) / 2, abs=1e-5)
    assert found.p_value(found.high or 0.0) == pytest.approx(0.05, rel=1e-6)
    alone = NoDifference(num_problems=(30,), weights=(1.0,))
    assert alone.interval()[1] == pytest.approx(1 - 0.025 ** (1 / 30))


def test_given_checkpoints_on_two_suites_are_resampled_within_each() -> None:
    small, large = RNG.integers(-1, 2, 40).astype(float), RNG.integers(-1, 2, 400).astype(float)
    found = problem_difference(small / 2, large / 2, num_seeds=1)
    assert found.effect == pytest.approx((small.mean() + large.mean()) / 2)
    expected = math.sqrt((small.var() / 40 + large.var() / 400) / 4)
    assert found.error == pytest.approx(expected, rel=0.03)


# Skew.


def test_the_skewed_interval_is_near_clopper_and_pearson_where_few_problems_change() -> None:
    # 5 of 500: the exact interval is 0.33% to 2.32%; the normal one 0.13% to 1.87%
    table_SP = np.repeat((np.arange(500) < 5).astype(float)[None], 4, axis=0)
    found = paired_difference(table_SP)
    low, high = stats.beta.ppf(0.025, 5, 496), stats.beta.ppf(0.975, 6, 495)
    skewed = found.evidence[2]
    assert skewed.interval() == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert found.high == skewed.interval()[1]


def test_the_skewed_interval_is_near_scipys_bca() -> None:
    values_P = RNG.exponential(size=200) - 0.3
    resampled = stats.bootstrap((values_P,), np.mean, n_resamples=20_000, rng=1).confidence_interval
    skewed = paired_difference(np.repeat(values_P[None], 3, axis=0)).evidence[2]
    assert skewed.interval() == (pytest.approx(resampled.low, abs=0.006), pytest.approx(resampled.high, abs=0.006))


@given(st.floats(-0.3, 0.3), st.floats(1e-9, 0.9), st.integers(5, 400))
def test_the_skewed_p_is_the_level_whose_interval_ends_there(a: float, level: float, df: int) -> None:
    skewed = Skewed(effect=0.2, error=0.05, acceleration=a, df=df)
    for end in skewed.interval(level):
        if math.isfinite(end):
            assert skewed.p_value(end) == pytest.approx(level, rel=1e-5)


def test_even_draws_are_not_widened() -> None:
    chances_P = RNG.uniform(0.13, 0.89, 500)
    table_SP = (RNG.random((5, 500)) < chances_P + 0.05).astype(float) - (RNG.random((5, 500)) < chances_P)
    found = paired_difference(table_SP)
    widest = max(evidence.interval()[1] for evidence in found.evidence[:2])
    assert found.high == widest and "skew" not in found.test
    assert found.carriers is not None and found.carriers > 200


# Families of problems.


def test_copies_of_a_problem_count_once() -> None:
    table_SP = RNG.integers(-1, 2, (5, 12)).astype(float)
    copies = np.repeat(table_SP, 10, axis=1)
    names = [f"p{place // 10}" for place in range(120)]
    found = clustered(copies, names)
    np.testing.assert_allclose(found, table_SP, atol=1e-12)
    assert paired_difference(found).error == pytest.approx(paired_difference(table_SP).error)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_families_keep_the_effect_of_every_seed(seed: int, num_families: int) -> None:
    rng = np.random.default_rng(seed)
    table_SP = rng.normal(size=(4, 11))
    names = [str(name) for name in rng.integers(0, num_families, 11)]
    np.testing.assert_allclose(clustered(table_SP, names).mean(1), table_SP.mean(1), atol=1e-12)


# Shares of a gain.


def test_the_share_is_fiellers_by_its_closed_form() -> None:
    # all problems alike, so that t over seeds alone has a width: the roots of (a - r b)^2 = t^2 s^2(a - r b) / S
    a_S, b_S = np.array([0.30, 0.34, 0.28, 0.33]), np.array([0.35, 0.36, 0.33, 0.37])
    a_SP, b_SP = (np.repeat(each[:, None], 6, axis=1) for each in (a_S, b_S))

    def tables_at(ratio: float) -> list[Array]:
        return [a_SP - ratio * b_SP]

    found = share_of(tables_at, float(a_S.mean() / b_S.mean()))
    t2 = stats.t.ppf(0.975, 3) ** 2 / 4
    covariance = np.cov(a_S, b_S)
    roots = np.roots(
        [
            b_S.mean() ** 2 - t2 * covariance[1, 1],
            -2 * (a_S.mean() * b_S.mean() - t2 * covariance[0, 1]),
            a_S.mean() ** 2 - t2 * covariance[0, 0],
        ]
    )
    assert (found.low, found.high) == (pytest.approx(min(roots), abs=1e-3), pytest.approx(max(roots), abs=1e-3))


def test_a_share_of_a_gain_that_is_hardly_above_0_has_no_end() -> None:
    a_SP = 0.5 + RNG.normal(0, 0.02, (4, 50))
    b_SP = 0.01 + RNG.normal(0, 0.05, (4, 50)) + np.array([[0.04], [-0.05], [0.03], [-0.02]])
    found = share_of(lambda ratio: [a_SP - ratio * b_SP], float(a_SP.mean() / b_SP.mean()))
    assert found.high is None


# Planned looks.


def test_the_bounds_spend_the_level_by_scipys_normal_distribution() -> None:
    # chance of crossing by each look: 1 - P(all |Z| inside), with correlations sqrt(t_i / t_j)
    shares = np.array([0.3, 0.6, 1.0])
    z = [-stats.norm.ppf(p / 2) for p in bounds((3, 6, 10))]
    correlation = np.sqrt(np.minimum.outer(shares, shares) / np.maximum.outer(shares, shares))
    for num in (2, 3):
        normal = stats.multivariate_normal(cov=correlation[:num, :num], maxpts=2_000_000, abseps=1e-7)
        inside = normal.cdf(np.array(z[:num]), lower_limit=-np.array(z[:num]))
        spent = 2 * stats.norm.sf(1.959964 / math.sqrt(shares[num - 1]))
        assert 1 - inside == pytest.approx(spent, abs=2e-5)


def test_the_first_look_spends_what_the_function_says() -> None:
    # alpha(0.3) = 2 - 2 Phi(1.959964 / sqrt(0.3)) = 2 - 2 Phi(3.578388) = 0.000346
    assert bounds((3, 6, 10)) == pytest.approx((0.000346, 0.01126, 0.04563), abs=5e-6)


def test_one_look_is_no_look() -> None:
    assert bounds((10,))[0] == pytest.approx(0.05)
    assert spent_level(0.03, 0, (10,)) == 0.03


def test_looking_at_noise_is_wrong_in_five_of_a_hundred_sweeps() -> None:
    # sums of independent normal seeds, 40,000 designs: error of the share 0.11 points
    sums = RNG.normal(size=(40_000, 10)).cumsum(1)
    p_values = [2 * stats.norm.sf(abs(sums[:, num - 1]) / math.sqrt(num)) for num in (3, 6, 10)]
    crossed = np.any([p < bound for p, bound in zip(p_values, bounds((3, 6, 10)), strict=True)], axis=0)
    assert crossed.mean() == pytest.approx(0.05, abs=0.0045)
    naive = np.any([p < 0.05 for p in p_values], axis=0)
    assert naive.mean() > 0.09


@given(st.floats(1e-6, 0.999), st.integers(0, 2))
def test_a_p_value_at_a_bound_spends_that_level(level: float, look: int) -> None:
    design = (3, 6, 10)
    assert spent_level(bounds(design, level)[look], look, design) == pytest.approx(level, rel=1e-3)


# A sample of models.


def test_random_effects_are_statsmodels() -> None:
    effects, errors = [0.12, 0.3, -0.05, 0.2, 0.1], [0.03, 0.05, 0.02, 0.04, 0.06]
    found = random_effects(effects, errors)
    other = combine_effects(np.array(effects), np.square(errors), method_re="iterated", use_t=True)
    with pytest.warns(match="use_t"):
        rows = other.summary_frame()
    low, high = found.mean.interval()
    assert found.tau**2 == pytest.approx(other.tau2, rel=1e-5)
    assert found.mean.effect == pytest.approx(rows.loc["random effect wls", "eff"], rel=1e-5)
    assert (low, high) == pytest.approx(tuple(rows.loc["random effect wls", ["ci_low", "ci_upp"]]), rel=1e-4)


def test_effects_without_error_are_a_t_test_by_hand() -> None:
    # 0.1, 0.2, 0.3: mean 0.2, tau 0.1, error 0.1 / sqrt(3) = 0.057735, t(0.975, 2) = 4.302653: half 0.248414
    found = random_effects([0.1, 0.2, 0.3], [0.0, 0.0, 0.0])
    assert (found.tau, found.mean.error) == (pytest.approx(0.1), pytest.approx(0.057735, abs=1e-6))
    assert found.mean.interval() == pytest.approx((-0.048414, 0.448414), abs=1e-5)
    # prediction: t(0.975, 1) = 12.7062 times sqrt(0.01 + 0.0033333) = 0.115470: half 1.467187
    assert found.prediction == pytest.approx((0.2 - 1.467187, 0.2 + 1.467187), abs=1e-4)


def test_models_that_agree_better_than_their_errors_allow_get_no_narrower_interval() -> None:
    # equal effects: the spread between models is 0, and the error stays that of the fixed effect, 0.03 / sqrt(3)
    found = random_effects([0.1, 0.1, 0.1], [0.03, 0.03, 0.03])
    assert (found.tau, found.mean.error) == (0.0, pytest.approx(0.03 / math.sqrt(3)))


def test_two_models_are_no_sample() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        random_effects([0.1, 0.2], [0.01, 0.01])
