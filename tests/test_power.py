"""Power against numbers of the literature, a seeded simulation, and its own inverse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.power import TTestPower

from oneshot.report.contrast import paired_difference, seed_difference
from oneshot.report.power import detectable, power


def test_power_of_a_t_test_as_in_the_textbook() -> None:
    # the textbook's one group of 34 at d = 0.5, two-sided 0.05: G*Power gives 0.8078
    found = power(0.5, num_seeds=34, num_problems=None, seed_sd=1.0, discordance=0.0)
    assert found == pytest.approx(0.8078, abs=1e-4)


@given(st.integers(3, 40), st.floats(0.3, 3.0))
def test_power_over_seeds_alone_is_statsmodels(num_seeds: int, effect: float) -> None:
    found = power(effect, num_seeds=num_seeds, num_problems=None, seed_sd=1.0, discordance=0.0)
    # which counts only the tail on the effect's side, as ours does, where it is asked one-sided at half the level
    reference = TTestPower().power(effect, num_seeds, 0.025, alternative="larger")
    assert found == pytest.approx(reference, abs=1e-9)


def test_the_problems_part_by_hand() -> None:
    # error^2: 0.02^2 / 4 + (0.21 - 0.1^2) / 500 = 0.0001 + 0.0004 = 0.0005, as seeds alone of variance 4 * 0.0005 have
    both = power(0.1, num_seeds=4, num_problems=500, seed_sd=0.02, discordance=0.21)
    assert both == pytest.approx(power(0.1, num_seeds=4, num_problems=None, seed_sd=0.002**0.5, discordance=0.0))


def test_cells_that_differ_by_an_effect_differ_on_as_many_problems() -> None:
    given_less = power(0.3, num_seeds=3, num_problems=100, seed_sd=0.02, discordance=0.1)
    assert given_less == power(0.3, num_seeds=3, num_problems=100, seed_sd=0.02, discordance=0.3)


def test_power_is_the_same_for_both_signs() -> None:
    one, other = (power(sign * 0.05, num_seeds=5, num_problems=500, seed_sd=0.02, discordance=0.2) for sign in (1, -1))
    assert one == other


def test_no_effect_is_found_above_zero_once_in_forty() -> None:
    assert power(0.0, num_seeds=5, num_problems=500, seed_sd=0.02, discordance=0.2) == pytest.approx(0.025)


def test_an_effect_without_any_noise_is_found() -> None:
    assert power(0.01, num_seeds=3, num_problems=None, seed_sd=0.0, discordance=0.0) == 1.0
    assert power(0.0, num_seeds=3, num_problems=None, seed_sd=0.0, discordance=0.0) == 0.0
    assert detectable(num_seeds=3, num_problems=None, seed_sd=0.0, discordance=0.0) == 0.00001


@pytest.mark.parametrize("num_seeds", [3, 5, 6, 7, 8, 10, 30])
def test_power_far_out_is_one(num_seeds: int) -> None:
    # SciPy's noncentral t is NaN at some of these
    for errors in (36, 37, 38, 45, 60, 1000):
        assert (
            power(float(errors), num_seeds=num_seeds, num_problems=None, seed_sd=num_seeds**0.5, discordance=0.0) == 1.0
        )


def test_below_three_seeds_there_is_no_power() -> None:
    assert power(0.5, num_seeds=2, num_problems=500, seed_sd=0.02, discordance=0.2) is None
    assert detectable(num_seeds=2, num_problems=500, seed_sd=0.02, discordance=0.2) is None


def test_what_no_effect_can_reach_is_not_detectable() -> None:
    assert detectable(num_seeds=3, num_problems=None, seed_sd=1.0, discordance=0.0) is None


@settings(deadline=None)
@given(
    st.integers(3, 10),
    st.none() | st.integers(10, 5000),
    st.floats(0.001, 0.1),
    st.floats(0.0, 1.0),
    st.floats(0.3, 0.95),
)
def test_detectable_is_the_least_effect_with_that_power(
    num_seeds: int, num_problems: int | None, seed_sd: float, discordance: float, wanted: float
) -> None:
    noise = {"num_seeds": num_seeds, "num_problems": num_problems, "seed_sd": seed_sd, "discordance": discordance}
    found = detectable(**noise, power=wanted)
    if found is None:
        assert power(0.9999, **noise) < wanted
    else:
        assert power(found, **noise) >= wanted > power(found - 0.00001, **noise)


def test_more_seeds_and_more_problems_find_less() -> None:
    def least(num_seeds: int, num_problems: int) -> float:
        found = detectable(num_seeds=num_seeds, num_problems=num_problems, seed_sd=0.02, discordance=0.2)
        assert found is not None
        return found

    assert least(10, 500) < least(5, 500) < least(3, 500)
    assert least(5, 5000) < least(5, 500) < least(5, 30)


def test_power_agrees_with_simulated_sweeps_where_seeds_are_what_varies() -> None:
    # 5 seeds' differences Normal(0.05, 0.04): 2,000 of them, the standard error of a share is 1.1 points
    rng = np.random.default_rng(11)
    lows = [seed_difference(rng.normal(0.05, 0.04, 5)).low for _ in range(2_000)]
    found = np.mean([low is not None and low > 0 for low in lows])
    assert power(0.05, num_seeds=5, num_problems=None, seed_sd=0.04, discordance=0.0) == pytest.approx(found, abs=0.03)


def test_power_with_problems_promises_less_than_sweeps_keep() -> None:
    # on 500 problems the cells differ the same way in each seed on 20%, by 0.06 in the mean, and 5 seeds add 2 points
    rng = np.random.default_rng(12)
    kept = []
    for _ in range(500):
        same_P = rng.choice([1.0, -1.0, 0.0], 500, p=[0.13, 0.07, 0.8])
        low = paired_difference(same_P + rng.normal(0.0, 0.02, (5, 1))).low
        kept.append(low is not None and low > 0)
    promised = power(0.06, num_seeds=5, num_problems=500, seed_sd=0.02, discordance=0.2)
    # t with 4 degrees of freedom in place of about 10: never more than what is kept, and not by half less
    assert promised is not None and 0.5 * np.mean(kept) < promised < np.mean(kept) + 0.05
