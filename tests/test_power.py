"""Power against numbers of the literature, simulated sweeps that are judged, and its own inverse."""

from itertools import product

import numpy as np
import pytest
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import intervals
from statsmodels.stats.power import TTestPower

from oneshot.report.contrast import paired_difference, problem_difference
from oneshot.report.power import DRAWS, Noise, detectable, power, seeds_needed


def noise(
    num_seeds: int | None = 5, num_problems: int | None = 500, *, seed_sd: float = 0.02, discordance: float = 0.2
) -> Noise:
    return Noise(num_seeds=num_seeds, num_problems=num_problems, seed_sd=seed_sd, discordance=discordance)


OVER_SEEDS = {"num_problems": None, "seed_sd": 1.0, "discordance": 0.0}
EXACT = 4 * 0.5 / DRAWS**0.5  # four standard errors of a share of the draws: it is compared at many settings


def test_power_of_a_t_test_as_in_the_textbook() -> None:
    # the textbook's one group of 34 at d = 0.5, two-sided 0.05: G*Power gives 0.8078
    assert power(0.5, Noise(num_seeds=34, **OVER_SEEDS)) == pytest.approx(0.8078, abs=EXACT)


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 40), st.floats(0.3, 3.0))
def test_power_over_seeds_alone_is_statsmodels(num_seeds: int, effect: float) -> None:
    found = power(effect, Noise(num_seeds=num_seeds, **OVER_SEEDS))
    # which counts only the tail on the effect's side, as ours does, where it is asked one-sided at half the level
    reference = TTestPower().power(effect, num_seeds, 0.025, alternative="larger")
    assert found == pytest.approx(reference, abs=1.5 * EXACT)  # the largest of many examples


def test_among_seven_verdicts_the_level_is_a_seventh() -> None:
    found = power(2.0, Noise(num_seeds=5, **OVER_SEEDS), num_verdicts=7)
    reference = TTestPower().power(2.0, 5, 0.025 / 7, alternative="larger")
    assert found == pytest.approx(reference, abs=EXACT)


def simulated(effect: float, *, num_seeds: int, within: float | None = None) -> float:
    """The share of 400 sweeps with normal differences that the interval decides."""
    rng = np.random.default_rng(12)
    decided = []
    for _ in range(400):
        # problems differ the same way at each seed, by an SD that 20% discordance leaves; seeds add two points
        same_P = effect + rng.normal(0.0, (0.2 - effect**2) ** 0.5, 500)
        found = paired_difference(same_P + rng.normal(0.0, 0.02, (num_seeds, 1)))
        assert found.low is not None and found.high is not None
        decided.append(found.low > 0 if within is None else -within < found.low and found.high < within)
    return float(np.mean(decided))


@pytest.mark.parametrize(("effect", "num_seeds"), [(0.06, 5), (0.06, 10), (0.08, 3)])
def test_power_is_that_of_sweeps_that_are_judged(effect: float, num_seeds: int) -> None:
    # 400 sweeps: the standard error of a share is at most 2.5 points
    assert power(effect, noise(num_seeds)) == pytest.approx(simulated(effect, num_seeds=num_seeds), abs=0.075)


def test_power_to_show_that_two_are_alike_is_that_of_sweeps_that_are_judged() -> None:
    found = power(0.0, noise(10), within=0.08)
    assert found == pytest.approx(simulated(0.0, num_seeds=10, within=0.08), abs=0.075)


def test_cells_that_differ_by_an_effect_differ_on_as_many_problems() -> None:
    given_less = power(0.3, noise(3, 100, discordance=0.1))
    assert given_less == power(0.3, noise(3, 100, discordance=0.3))


def test_power_is_the_same_for_both_signs() -> None:
    assert power(0.05, noise()) == power(-0.05, noise())


def test_no_effect_is_found_above_zero_once_in_forty() -> None:
    assert power(0.0, noise(10)) == pytest.approx(0.025, abs=0.008)


def test_an_effect_without_any_noise_is_found() -> None:
    silent = noise(3, None, seed_sd=0.0, discordance=0.0)
    assert (power(0.01, silent), power(0.0, silent), detectable(silent)) == (1.0, 0.0, 0.001)


def test_below_three_seeds_there_is_no_power() -> None:
    assert power(0.5, noise(2)) is None
    assert detectable(noise(2)) is None


def test_what_no_effect_can_reach_is_not_detectable() -> None:
    assert detectable(Noise(num_seeds=3, **OVER_SEEDS)) is None


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 10), st.none() | st.integers(10, 5000), st.floats(0.001, 0.1), st.floats(0.0, 1.0))
def test_detectable_is_the_least_effect_with_that_power(
    num_seeds: int, num_problems: int | None, seed_sd: float, discordance: float
) -> None:
    varied = noise(num_seeds, num_problems, seed_sd=seed_sd, discordance=discordance)
    found = detectable(varied)
    if found is None:
        assert (power(0.999, varied) or 0.0) < 0.8
    else:
        assert (power(found, varied) or 0.0) >= 0.8 > (power(found - 0.001, varied) or 0.0)


def test_more_seeds_and_more_problems_find_less() -> None:
    def least(num_seeds: int, num_problems: int) -> float:
        found = detectable(noise(num_seeds, num_problems))
        assert found is not None
        return found

    assert least(10, 500) < least(5, 500) < least(3, 500)
    assert least(5, 5000) < least(5, 500) < least(5, 30)


def test_the_seeds_needed_are_the_fewest_with_that_power() -> None:
    found = seeds_needed(0.08, noise(3), num_verdicts=7)
    assert found is not None and found > 3
    assert (power(0.08, noise(found), num_verdicts=7) or 0.0) >= 0.8
    assert (power(0.08, noise(found - 1), num_verdicts=7) or 0.0) < 0.8


def test_no_number_of_seeds_makes_up_for_few_problems() -> None:
    # 500 problems, 20% discordance: the problems' part alone has an error of 2 points
    assert seeds_needed(0.0, noise(), within=0.02) is None
    assert seeds_needed(0.02, noise()) is None


def test_what_is_chance_at_each_seed_is_averaged_out() -> None:
    drawn = Noise(num_seeds=10, num_problems=500, seed_sd=0.01, discordance=0.3, rest_variance=0.28)
    fixed = Noise(num_seeds=10, num_problems=500, seed_sd=0.01, discordance=0.3)
    assert (power(0.03, drawn) or 0.0) > 2 * (power(0.03, fixed) or 0.0)


def test_given_checkpoints_have_all_of_the_chance_in_their_difference() -> None:
    # 500 problems, 30% of them differ, 12% the wrong way round: whatever part of it is chance, it was drawn once
    given_ones = Noise(num_seeds=None, num_problems=500, seed_sd=0.0, discordance=0.3, rest_variance=0.15)
    rng = np.random.default_rng(4)
    decided = []
    for _ in range(200):
        found = problem_difference(rng.choice([1.0, 0.0, -1.0], 500, p=[0.18, 0.7, 0.12]), num_seeds=1)
        assert found.low is not None
        decided.append(found.low > 0)
    # 200 sweeps: the standard error of a share is at most 3.5 points
    assert power(0.06, given_ones) == pytest.approx(np.mean(decided), abs=0.105)


def test_the_interval_over_problems_counts_where_chance_is_most_of_what_varies() -> None:
    # three seeds without a spread of their own: sometimes t over seeds and the crossed interval are both narrow
    # by luck. With no effect that alone would decide 2 in 100 sweeps, and the union decides fewer than 1
    noisy = Noise(num_seeds=3, num_problems=500, seed_sd=0.0, discordance=0.3, rest_variance=0.3)
    tables_RSP = np.random.default_rng(5).normal(0.0, 0.3**0.5, (4_000, 3, 500))
    low_R, _ = intervals(tables_RSP).union
    # 4,000 draws on both sides: the standard error of the difference of two shares of 0.01 is 0.2 points
    assert power(0.0, noisy) == pytest.approx((low_R > 0).mean(), abs=0.006)
    assert (power(0.0, noisy) or 0.0) < 0.012


def test_the_document_shows_what_is_computed() -> None:
    document = (PROJECT / "docs" / "statistics.md").read_text()

    def spread(num_seeds: int, num_problems: int, seed_sd: float = 0.02) -> Noise:
        settings = {"seed_sd": seed_sd, "discordance": 0.3, "rest_variance": 0.15}
        return Noise(num_seeds=num_seeds, num_problems=num_problems, **settings)

    for num_seeds, num_problems in ((3, 500), (5, 500), (10, 500), (10, 1547), (10, 30)):
        effects = [detectable(spread(num_seeds, num_problems, sd)) for sd in (0.01, 0.02, 0.03)]
        effects.append(detectable(spread(num_seeds, num_problems), num_verdicts=7))
        numbers = " | ".join(f"{100 * (effect or np.nan):.1f}" for effect in effects)
        assert f"| {num_seeds} seeds, {num_problems} problems | {numbers} |\n" in document
    for num_problems, (num_verdicts, among) in product((500, 1547), ((1, "one verdict"), (7, "first of 7"))):
        seeds = [
            seeds_needed(effect, spread(3, num_problems), num_verdicts=num_verdicts)
            for effect in (0.04, 0.06, 0.08, 0.1)
        ]
        numbers = " | ".join("none" if num is None else str(num) for num in seeds)
        assert f"| {num_problems} problems, {among} | {numbers} |\n" in document
