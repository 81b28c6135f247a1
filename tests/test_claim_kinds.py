"""Kinds of claims: shares of a gain, groups of suites, a sample of models, two suites, families. Numbers by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from told import ARMS, FROZEN_MS, Counts, Told, claim, gathered, grades, run, told

from oneshot.config.claims import ClaimConfig, GroupConfig
from oneshot.plan.claims import judged_suites
from oneshot.plan.frozen import Rules
from oneshot.report.page import beside_texts
from oneshot.report.random_effects import random_effects
from oneshot.report.runs import Gathered
from oneshot.report.verdicts import JudgedClaim, verdicts

OUTCOME, FORMAT = {"arm": "outcome"}, {"arm": "format"}
TWO = {"small": 2, "large": 6}
"""Problems of two suites."""


def judged(found: Gathered) -> JudgedClaim:
    (one,) = verdicts(found)
    return one


# Shares of a gain. Every problem gains the same, so that only seeds differ: percent of 100 completions.

GAIN_A, GAIN_B = (30, 34, 28, 33), (35, 36, 33, 37)


def gains(of_a: tuple[int, ...] = GAIN_A, of_b: tuple[int, ...] = GAIN_B, *, start: int = 0) -> Counts:
    def counts(cell: Mapping[str, str], seed: int, step: int, suite: str) -> int:
        return start + ((of_a if cell == OUTCOME else of_b)[seed] if step else 0)

    return counts


def share_claim(share: float, **more: Any) -> ClaimConfig:
    return claim(OUTCOME, FORMAT, **{"of": "gain", "expect": {"share_at_least": share}, **more})


def of_share(share: float, counts: Counts | None = None) -> JudgedClaim:
    return judged(told(counts or gains(), share_claim(share), seeds=range(4), samples=100))


def test_a_share_of_a_gain_is_judged_by_what_a_has_beyond_that_share() -> None:
    # a - 0.7 b: 0.055, 0.088, 0.049, 0.071; mean 0.06575
    found = of_share(0.7)
    assert found.effect == pytest.approx(0.06575)
    assert found.p_value == pytest.approx(stats.ttest_1samp([0.055, 0.088, 0.049, 0.071], 0).pvalue)
    assert (found.verdict, found.expect) == ("supported", "a > 0.7 b")


def test_the_share_has_fiellers_interval() -> None:
    # 31.25 of 35.25 points; the roots r of (a - r b)^2 = t(0.975, 3)^2 s^2(a - r b) / 4
    found = of_share(0.7).share
    assert found is not None
    assert found["mean"] == pytest.approx(31.25 / 35.25)
    t2, covariance = stats.t.ppf(0.975, 3) ** 2 / 4, np.cov(GAIN_A, GAIN_B)
    a, b = np.mean(GAIN_A), np.mean(GAIN_B)
    roots = np.roots([b**2 - t2 * covariance[1, 1], -2 * (a * b - t2 * covariance[0, 1]), a**2 - t2 * covariance[0, 0]])
    assert (found["low"], found["high"]) == (pytest.approx(min(roots), abs=1e-3), pytest.approx(max(roots), abs=1e-3))


@pytest.mark.parametrize("share", [0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.2])
def test_the_verdict_is_where_the_shares_interval_is(share: float) -> None:
    found = of_share(share)
    assert found.share is not None
    low, high = found.share["low"], found.share["high"]
    assert found.verdict == ("supported" if low > share else "contradicted" if high < share else "inconclusive")


def test_the_share_stands_beside_the_verdict_in_percent() -> None:
    found = of_share(0.7)
    assert found.share is not None
    low, high = (round(100 * found.share[end]) for end in ("low", "high"))
    assert beside_texts(found) == [f"outcome has 89% [{low}, {high}] of format's gain"]


def test_a_share_of_a_gain_that_may_be_0_has_no_interval_and_says_so() -> None:
    # b gains 3, -1, 2, 0 of 100: mean 1 point, error 0.91
    found = of_share(0.5, gains((2, 3, 1, 2), (3, -1, 2, 0), start=10))
    assert found.share == {"mean": pytest.approx(2.0), "low": None, "high": None}
    assert "the gain of b (+1.0 points) is not clearly above 0, so a share of it says little" in found.notes


def test_of_no_gain_there_is_no_share() -> None:
    found = of_share(0.5, gains((2, 3, 1, 2), (0, 0, 0, 0)))
    assert found.share is None


@pytest.mark.parametrize(("a", "b"), [(50, 40), (10, 30), (70, 30), (60, 90), (30, 30)])
def test_gains_without_any_spread_have_an_exact_share(a: int, b: int) -> None:
    found = of_share(0.1, gains((a,) * 4, (b,) * 4)).share
    assert found is not None
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((a / b,) * 3, abs=2e-4)


def test_a_share_over_a_group_is_of_the_groups_gains() -> None:
    # a 30 and 10 points, b 40 and 20: 20 of 30
    def counts(cell: Mapping[str, str], seed: int, step: int, suite: str) -> int:
        return {"small": 30, "large": 10}[suite] + (0 if cell == OUTCOME else 10) + seed if step else 0

    asked = share_claim(0.5, metric="eval/@both/pass_at_1")
    found = judged(told(counts, asked, sizes=TWO, samples=100, rules=rules()))
    assert found.share is not None
    # seeds add 0, 1, 2 points to both: 21 of 31
    assert found.share["mean"] == pytest.approx(21 / 31)
    assert found.effect == pytest.approx(0.21 - 0.5 * 0.31)


# Groups of suites.


def rules(weight: str = "suite", **more: Any) -> Rules:
    group = GroupConfig.model_validate({"suites": list(TWO), "weight": weight})
    return Rules(groups={"both": group}, **more)


def all_small_and_half_large(cell: Mapping[str, str], seed: int, step: int, suite: str) -> list[int]:
    if cell == FORMAT or not step:
        return [0] * TWO[suite]
    return [1, 1] if suite == "small" else [1, 1, 1, 0, 0, 0]


OF_GROUP = claim(OUTCOME, FORMAT, metric="eval/@both/pass_at_1")


def test_a_group_by_suite_by_hand() -> None:
    # small 1, large 1/2: 3/4. Problems differ in large alone: error^2 = (1/2)^2 x 0.3 / 6 = 0.0125, 5 df:
    # 0.75 -+ 2.570582 x 0.111803
    found = judged(told(all_small_and_half_large, OF_GROUP, sizes=TWO, rules=rules()))
    assert (found.effect, found.num_problems, found.num_seeds) == (0.75, 8, 3)
    assert found.low == pytest.approx(0.75 - 2.570582 * 0.0125**0.5, abs=1e-6)
    assert found.high == 1.0
    assert found.test == "crossed 3 seeds x 8 problems, Satterthwaite df 5.0 in 2 suites"


def test_a_group_by_problem_by_hand() -> None:
    # 5 of 8; error^2 = (6/8)^2 x 0.3 / 6 = 0.028125: 0.625 -+ 2.570582 x 0.167705
    found = judged(told(all_small_and_half_large, OF_GROUP, sizes=TWO, rules=rules("problem")))
    assert (found.effect, found.num_problems) == (0.625, 8)
    assert found.low == pytest.approx(0.625 - 2.570582 * 0.028125**0.5, abs=1e-6)


def test_a_gain_of_a_group_is_the_mean_of_its_suites_gains() -> None:
    asked = claim(OUTCOME, FORMAT, metric="eval/@both/pass_at_1", of="gain")
    found = judged(told(all_small_and_half_large, asked, sizes=TWO, rules=rules()))
    assert (found.effect, found.num_problems) == (0.75, 8)


def test_no_difference_in_any_suite_is_bounded_by_the_suites_weights() -> None:
    # each suite at level 0.025: (1 - 0.0125^(1/2) + 1 - 0.0125^(1/6)) / 2
    found = judged(told(lambda *_: 0, OF_GROUP, sizes=TWO, rules=rules()))
    assert found.high == pytest.approx((1 - 0.0125**0.5 + 1 - 0.0125 ** (1 / 6)) / 2)


def test_a_run_that_lacks_one_suite_of_the_group_is_left_out_and_named() -> None:
    whole = told(all_small_and_half_large, OF_GROUP, sizes=TWO, rules=rules(), seeds=range(4))
    assert isinstance(whole.record, Told)
    tables = {name: table for name, table in whole.record.tables.items() if name != ("outcome seed 1", "large", 8)}
    found = judged(replace(whole, record=Told(tables=tables)))
    assert (found.num_seeds, found.effect) == (3, 0.75)
    assert "left out: seed 1: outcome seed 1 has no eval/large/pass_at_1 at step 8" in found.notes


def test_a_group_that_was_frozen_stays_what_it_was() -> None:
    found = told(all_small_and_half_large, OF_GROUP, sizes=TWO, rules=rules())
    assert judged(replace(found, rules=rules("problem"))).effect == 0.75


def test_a_group_that_nobody_declared_is_unknown_and_breaks_nothing() -> None:
    found = judged(told(all_small_and_half_large, OF_GROUP, sizes=TWO))
    assert (found.effect, found.verdict) == (None, "inconclusive")
    assert found.notes[0] == "left out: seed 0: the sweep has no group @both"


# Between suites.


def test_one_suite_against_another_by_hand() -> None:
    # 1 on small, 1/2 on large: the problems of large alone differ: error^2 = 0.3 / 6 = 0.05, 5 df
    asked = claim(OUTCOME, {"suite": "large"}, metric="eval/small/pass_at_1")
    found = judged(told(all_small_and_half_large, asked, sizes=TWO))
    assert (found.effect, found.num_problems) == (0.5, 8)
    assert found.low == pytest.approx(0.5 - 2.570582 * 0.05**0.5, abs=1e-6)


def test_the_gain_on_one_suite_against_that_on_another() -> None:
    asked = claim(OUTCOME, {"suite": "large"}, metric="eval/small/pass_at_1", of="gain")
    assert judged(told(all_small_and_half_large, asked, sizes=TWO)).effect == 0.5


def test_a_claim_between_a_suite_and_a_group_judges_all_their_suites() -> None:
    asked = claim(OUTCOME, {"suite": "@both"}, metric="eval/arithmetic/pass_at_1")
    assert judged_suites(asked, rules().groups) == ("arithmetic", "small", "large")


# A sample of models.

MODELS = [{"model": model, "arm": arm} for model in ("one", "two", "three") for arm in ("outcome", "format")]
OVER = claim(OUTCOME, FORMAT, over="model")


def by_model(**points: int) -> Counts:
    def counts(cell: Mapping[str, str], seed: int, step: int, suite: str) -> int:
        return points[cell["model"]] if cell["arm"] == "outcome" and step else 0

    return counts


def test_the_mean_over_three_models_by_hand() -> None:
    # 0.1, 0.2, 0.3 at every seed and problem: t over the three, 0.2 -+ 4.302653 x 0.1 / sqrt(3); t = 3.4641, p = 0.0742
    found = judged(told(by_model(one=10, two=20, three=30), OVER, cells=MODELS, samples=100))
    assert found.effect == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(-0.048414, abs=1e-6), pytest.approx(0.448414, abs=1e-6))
    assert found.p_value == pytest.approx(stats.ttest_1samp([0.1, 0.2, 0.3], 0).pvalue)
    assert (found.verdict, found.num_seeds, found.num_problems) == ("inconclusive", 3, 6)
    assert found.test == "random effects over 3 cells of model, Hartung-Knapp"
    # another model: t(0.975, 1) = 12.7062 x sqrt(0.01 + 0.01 / 3)
    assert found.between == {
        "num": 3,
        "tau": pytest.approx(0.1),
        "low": pytest.approx(-1.267187, abs=1e-4),
        "high": pytest.approx(1.667187, abs=1e-4),
    }
    assert beside_texts(found) == ["SD between the 3 cells 10.0; another cell is expected in [-126.7, +166.7]"]


def test_over_models_each_cell_of_for_each_has_its_mean() -> None:
    cells = [{**cell, "example": example} for cell in MODELS for example in ("sum", "product")]
    asked = claim(OUTCOME, FORMAT, over="model", for_each=["example"])
    found = verdicts(told(by_model(one=10, two=20, three=30), asked, cells=cells, samples=100))
    assert [(one.cells, round(one.effect or 0, 9)) for one in found] == [
        ({"example": "sum"}, 0.2),
        ({"example": "product"}, 0.2),
    ]


def test_models_without_an_interval_make_no_mean() -> None:
    found = judged(told(by_model(one=10, two=20, three=30), OVER, cells=MODELS, samples=100, seeds=range(2)))
    assert (found.verdict, found.low, found.p_value, found.num_seeds) == ("inconclusive", None, None, 2)
    assert (found.effect, found.test) == (pytest.approx(0.2), "no interval over model")
    assert found.notes[0] == "over model: needs 3 cells with an interval each, and has 0"


def test_an_exact_effect_beside_others_gets_no_weight_of_its_own() -> None:
    # tau^2 is the variance of the effects, 0.0004: weights 2500, 1 / 0.0029 twice
    found = random_effects([0.5, 0.52, 0.48], [0.0, 0.05, 0.05])
    weights = [1 / 0.0004, 1 / 0.0029, 1 / 0.0029]
    assert found.mean.effect == pytest.approx(0.5)
    assert (found.tau, found.mean.error) == (pytest.approx(0.02), pytest.approx(sum(weights) ** -0.5))


def test_equal_effects_keep_the_errors_that_they_have() -> None:
    # one of the three is exact: sqrt(0 + 0.05^2 + 0.05^2) / 3
    found = random_effects([0.5, 0.5, 0.5], [0.0, 0.05, 0.05])
    assert (found.tau, found.mean.error) == (0.0, pytest.approx(0.0050**0.5 / 3))


# Families and copies.


def test_problems_of_a_family_count_once() -> None:
    # three families of two, all right or all wrong: as three problems, of which one is right
    def with_families(num_right: list[int], families: tuple[str, ...]) -> JudgedClaim:
        runs = [run(cell, seed) for cell in ARMS for seed in range(3)]
        none = grades([0] * len(num_right))
        tables = {
            (one.label, "arithmetic", 8): replace(grades(num_right) if one.cell == OUTCOME else none, families=families)
            for one in runs
        }
        return judged(gathered(runs, [claim(OUTCOME, FORMAT)], tables=tables))

    found = with_families([1, 1, 0, 0, 0, 0], ("x", "x", "y", "y", "z", "z"))
    three = with_families([1, 0, 0], ())
    assert (found.effect, found.low, found.p_value) == (three.effect, three.low, three.p_value)
    assert found.effect == pytest.approx(1 / 3)
    assert found.num_problems == 6
    assert "3 families of 6 problems" in found.test


# The base.


def with_base(asked: ClaimConfig) -> JudgedClaim:
    # boxed 0.2 and 0.4, truncated 0.1 and 0.3, in either arm
    def of_run(cell: Mapping[str, str], seed: int) -> dict[str, Any]:
        number = 0.2 if cell == OUTCOME else 0.4
        return {"measured": {"arithmetic": {0: {"boxed": number, "truncated": number - 0.1}}}}

    return judged(told(gains(), asked, seeds=range(4), samples=100, of_run=of_run))


def test_a_claim_against_the_start_shows_the_base() -> None:
    found = with_base(claim(OUTCOME, {"at": "start"}))
    assert found.base == {"boxed": pytest.approx(0.2), "truncated": pytest.approx(0.1)}
    assert beside_texts(found) == ["at the start 20% boxed, 10% truncated"]


def test_a_gain_shows_the_base_of_both_sides() -> None:
    assert with_base(claim(OUTCOME, FORMAT, of="gain")).base["boxed"] == pytest.approx(0.3)


def test_a_claim_between_ends_has_no_base() -> None:
    assert with_base(claim(OUTCOME, FORMAT)).base == {}


# What is not there.


def test_the_gain_at_the_start_is_0_and_not_the_accuracy() -> None:
    # half is right at the start, and a gains 31.25 points
    asked = claim(OUTCOME, {"at": "start"}, of="gain")
    found = judged(told(gains(start=50), asked, seeds=range(4), samples=100))
    assert found.effect == pytest.approx(0.3125)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_no_value(number: float) -> None:
    def of_run(cell: Mapping[str, str], seed: int) -> dict[str, Any]:
        last = number if (cell, seed) == (OUTCOME, 1) else 0.5
        return {"measured": {"arithmetic": {8: {"truncated": last}}}, "ended_ms": FROZEN_MS + 1}

    asked = claim(OUTCOME, FORMAT, metric="eval/arithmetic/truncated")
    found = judged(told(gains(), asked, seeds=range(4), samples=100, of_run=of_run))
    assert (found.num_seeds, found.effect) == (3, 0.0)
    assert f"left out: seed 1: outcome seed 1 has no eval/arithmetic/truncated at step 8: it is {number}" in found.notes


def test_without_any_seed_or_problem_nothing_is_judged() -> None:
    asked = claim(OUTCOME, FORMAT)
    assert verdicts(gathered([], [])) == []
    none = judged(told(lambda *_: [], asked, sizes={"arithmetic": 0}))
    assert (none.effect, none.verdict) == (None, "inconclusive")


# what failed seeds and losses make alike


def test_a_share_of_a_loss_is_not_supported() -> None:
    # format loses one problem of six at every seed, outcome none: 0 > 0.9 x -1/6, but nobody gained
    def counts(cell: Mapping[str, str], seed: int, step: int, suite: str) -> Sequence[int]:
        return [1, 1, 1, 1, 0, 0] if step and cell["arm"] == "format" else [1, 1, 1, 1, 1, 0]

    asked = claim({"arm": "outcome"}, {"arm": "format"}, of="gain", expect={"share_at_least": 0.9})
    (found,) = verdicts(told(counts, asked))
    assert found.effect == pytest.approx(0.9 / 6)
    assert (found.verdict, found.share) == ("inconclusive", None)
    assert any("is not clearly above 0" in note for note in found.notes)


def test_sides_that_are_alike_because_seeds_failed_are_not_said_to_be() -> None:
    # of ten seeds nine failed: they count as their start, which is the same on both sides; the tenth differs by a half
    def counts(cell: Mapping[str, str], seed: int, step: int, suite: str) -> Sequence[int]:
        return [1, 1, 1, 0, 0, 0] if step and cell["arm"] == "outcome" else [0] * 6

    def of_run(cell: Mapping[str, str], seed: int) -> Mapping[str, Any]:
        return {"state": "failed", "reason": "nan"} if seed else {}

    asked = claim({"arm": "outcome"}, {"arm": "format"}, expect={"within": 0.3})
    (found,) = verdicts(told(counts, asked, seeds=range(10), of_run=of_run))
    assert (found.effect, found.num_seeds) == (pytest.approx(0.05), 10)
    assert found.verdict == "inconclusive"
    if found.low is not None and found.low > -0.3 and found.high is not None and found.high < 0.3:
        assert "not supported without the seeds that failed" in found.notes


def test_a_share_is_told_with_the_names_of_its_sides() -> None:
    def counts(cell: Mapping[str, str], seed: int, step: int, suite: str) -> Sequence[int]:
        if step == 0:
            return [0] * 6
        return [1, 1, 1, 0, 0, 0] if cell["arm"] == "format" else [1, 1, 1, 1, 1, int(seed > 0)]

    asked = claim({"arm": "format"}, {"arm": "outcome"}, of="gain", expect={"share_at_least": 0.5})
    (found,) = verdicts(told(counts, asked))
    assert found.sides == ("format", "outcome")
    assert beside_texts(found)[0].startswith("format has 53%")
    assert beside_texts(found)[0].endswith(" of outcome's gain")
