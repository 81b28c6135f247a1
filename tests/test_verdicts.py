"""Runs and claims -> verdicts: numbers worked by hand, other implementations, and what is said beside them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import sweep_run
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic import make_store, put_on_record
from told import CATEGORIES, FROZEN_MS, claim, gathered, grades, run
from verbs import oneshot

from oneshot.config.claims import ClaimConfig
from oneshot.plan.frozen import Rules
from oneshot.report.runs import Gathered, gather
from oneshot.report.values import over_problems
from oneshot.report.verdicts import JudgedClaim, verdicts
from oneshot.store.records import Row

ARMS = [{"arm": "outcome"}, {"arm": "format"}]
AGAINST_FORMAT = claim({"arm": "outcome"}, {"arm": "format"})
Counts = Callable[[Mapping[str, str], int, int], Sequence[int]]
"""(cell, seed, step) -> how many completions of each problem are right."""


def told(
    counts: Counts,
    *claims: ClaimConfig,
    cells: Sequence[Mapping[str, str]] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    of_grades: Mapping[str, Any] | None = None,
    of_run: Callable[[Mapping[str, str], int], Mapping[str, Any]] = lambda cell, seed: {},
    **changes: Any,
) -> Gathered:
    runs, tables = [], {}
    for cell in cells:
        for seed in seeds:
            one = run(cell, seed, **of_run(cell, seed))
            runs.append(one)
            for step in {0, one.num_steps}:
                tables[one.label, "arithmetic", step] = grades(counts(cell, seed, step), **(of_grades or {}))
    return gathered(runs, claims, tables=tables, **changes)


def judged(found: Gathered) -> JudgedClaim:
    (one,) = verdicts(found)
    return one


def last(outcome: Sequence[Sequence[int]], control: Sequence[int] = (0, 0, 0, 0, 0, 0)) -> Counts:
    """Nothing is right at the start; at the end the outcome arm has what stands there for its seed."""

    def counts(cell: Mapping[str, str], seed: int, step: int) -> Sequence[int]:
        if step == 0:
            return [0] * len(control)
        return outcome[seed] if cell["arm"] == "outcome" else control

    return counts


def two_way(differences: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Half of both intervals, over seeds and crossed, by an analysis of variance written out."""
    d = np.array(differences, dtype=float)
    num_seeds, num_problems = d.shape
    by_seed, by_problem, mean = d.mean(1), d.mean(0), d.mean()
    ms_s = num_problems * sum((by_seed - mean) ** 2) / (num_seeds - 1)
    ms_p = num_seeds * sum((by_problem - mean) ** 2) / (num_problems - 1)
    rest = d - by_seed[:, None] - by_problem[None, :] + mean
    df_e = (num_seeds - 1) * (num_problems - 1)
    ms_e = (rest**2).sum() / df_e
    seeds = stats.t.ppf(0.975, num_seeds - 1) * by_seed.std(ddof=1) / num_seeds**0.5
    combined = ms_s + ms_p - ms_e
    if combined <= 1e-12:
        return float(seeds), 0.0
    df = combined**2 / (ms_s**2 / (num_seeds - 1) + ms_p**2 / (num_problems - 1) + ms_e**2 / df_e)
    df = max(df, min(num_seeds, num_problems) - 1)
    return float(seeds), float(stats.t.ppf(0.975, df) * (combined / d.size) ** 0.5)


def skewed(differences: Any) -> tuple[float, float]:
    """The ends over problems that are corrected for skew, written out."""
    by_problem = np.asarray(differences, dtype=float).mean(0)
    num, mean = len(by_problem), by_problem.mean()
    influence = (by_problem - mean) / num
    square = float((influence**2).sum())
    if square < 1e-20:
        return mean, mean
    a = float((influence**3).sum()) / (6 * square**1.5)
    ends = []
    for quantile in stats.t.ppf([0.025, 0.975], num - 1):
        w = a + quantile
        ends.append(mean + (square * num / (num - 1)) ** 0.5 * w / (1 - a * w) ** 2)
    return ends[0], ends[1]


# effects and intervals


def test_seeds_that_differ_by_hand() -> None:
    # all six problems at two seeds, none at the third: 1, 1, 0; mean 2/3, error sqrt(1/3)/sqrt(3) = 1/3,
    # t(0.975, 2) = 4.302653: 2/3 -+ 1.434218, cut at 1; against 0 t = 2, two-sided p = 0.183503
    found = judged(told(last([[1] * 6, [1] * 6, [0] * 6]), AGAINST_FORMAT))
    assert found.effect == pytest.approx(2 / 3)
    assert (found.low, found.high) == (pytest.approx(-0.767551, abs=1e-6), 1.0)
    assert found.p_value == pytest.approx(0.183503, abs=1e-6)
    assert (found.verdict, found.num_seeds, found.num_problems) == ("inconclusive", 3, 6)
    assert found.test == "paired t over 3 seeds"


def test_problems_that_differ_make_the_crossed_interval_stand() -> None:
    # the same three of six at every seed: no spread over seeds, MS_P = 3 * 6/5 * 1/4 = 0.9, error^2 = 0.9 / 18 = 0.05,
    # 5 degrees of freedom: 0.5 -+ 2.570582 * 0.223607
    found = judged(told(last([[1, 1, 1, 0, 0, 0]] * 3), AGAINST_FORMAT))
    assert found.effect == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5 - 0.574800, abs=1e-6)
    assert found.test == "crossed 3 seeds x 6 problems, Satterthwaite df 5.0"
    assert found.verdict == "inconclusive"


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=3, max_size=5),
    st.lists(st.integers(0, 1), min_size=6, max_size=6),
)
def test_the_interval_is_the_union_of_three_by_another_implementation(
    outcome: list[list[int]], control: list[int]
) -> None:
    found = judged(told(last(outcome, control), AGAINST_FORMAT, seeds=range(len(outcome))))
    differences = np.array(outcome) - np.array(control)
    assume(differences.any())
    assert found.effect == pytest.approx(differences.mean())
    half = max(two_way(differences))
    low, high = skewed(differences)
    assert found.low == pytest.approx(max(-1.0, min(low, differences.mean() - half)), abs=1e-9)
    assert found.high == pytest.approx(min(1.0, max(high, differences.mean() + half)), abs=1e-9)


def test_the_p_value_is_at_least_that_of_scipys_t_test() -> None:
    # seeds 6, 5 and 4 of 6 against none: the test of t over their means, and a little more for skew over problems
    outcome = [[1] * 6, [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    by_t, crossed = two_way(outcome)
    assert by_t > crossed
    found = judged(told(last(outcome), AGAINST_FORMAT))
    p_value = stats.ttest_1samp([1, 5 / 6, 4 / 6], 0).pvalue
    assert found.p_value is not None and p_value <= found.p_value < 1.2 * p_value
    assert found.verdict == "supported"


# verdicts

SURE = [[1, 1, 1, 0, 0, 0]] * 3
EVEN = [0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("num_right", "expect", "verdict", "p_value"),
    [
        (6, {"greater_by": 0.5}, "supported", 0.0),
        (6, {"greater_by": 1}, "inconclusive", 1.0),  # 1 is not more than 1
        (6, {"less_by": 0}, "contradicted", 0.0),
        (6, {"within": 0.1}, "contradicted", 0.0),
        (6, {"within": 1}, "inconclusive", 1.0),
    ],
)
def test_what_is_the_same_at_all_seeds_and_problems_is_judged_by_its_effect(
    num_right: int, expect: dict[str, float], verdict: str, p_value: float
) -> None:
    outcome = [[1] * num_right + [0] * (6 - num_right)] * 3
    found = judged(told(last(outcome), claim({"arm": "outcome"}, {"arm": "format"}, expect=expect)))
    assert found.effect == found.low == found.high == num_right / 6
    assert (found.verdict, found.p_value) == (verdict, p_value)


@pytest.mark.parametrize(
    ("expect", "verdict"),
    [({"greater_by": 0}, "inconclusive"), ({"greater_by": 0.5}, "contradicted"), ({"within": 0.1}, "inconclusive")],
)
def test_no_difference_on_six_problems_shows_little_of_others(expect: dict[str, float], verdict: str) -> None:
    found = judged(told(last([[0] * 6] * 3), claim({"arm": "outcome"}, {"arm": "format"}, expect=expect)))
    # 1 - 0.025^(1/6) = 0.459258 of problems may be otherwise
    assert (found.low, found.high) == (pytest.approx(-0.459258, abs=1e-6), pytest.approx(0.459258, abs=1e-6))
    assert (found.effect, found.verdict) == (0.0, verdict)
    assert found.test == "no difference on any of 6 problems: exact bound on others"


def test_less_is_the_other_way_round() -> None:
    found = judged(told(last([[1] * 6] * 3), claim({"arm": "format"}, {"arm": "outcome"}, expect={"less_by": 0.5})))
    assert (found.effect, found.verdict, found.expect) == (-1.0, "supported", "a - b < -0.5")


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_fewer_than_three_seeds_have_an_effect_and_no_interval(num_seeds: int) -> None:
    found = judged(told(last([[1] * 6] * num_seeds), AGAINST_FORMAT, seeds=range(num_seeds)))
    assert (found.verdict, found.effect, found.low, found.high, found.p_value, found.p_holm) == (
        "inconclusive",
        1.0,
        None,
        None,
        None,
        None,
    )
    assert (found.num_seeds, found.num_problems) == (num_seeds, 6)
    assert "fewer than 3, no interval" in found.test


def test_a_gain_is_the_change_since_the_start() -> None:
    # outcome 1/6 to 5/6, format 2/6 to 3/6: 4/6 - 1/6
    def counts(cell: Mapping[str, str], seed: int, step: int) -> list[int]:
        num = {("outcome", 0): 1, ("outcome", 8): 5, ("format", 0): 2, ("format", 8): 3}[cell["arm"], step]
        return [1] * num + [0] * (6 - num)

    asked = claim({"arm": "outcome"}, {"arm": "format"}, of="gain")
    found = judged(told(counts, asked))
    assert found.effect == pytest.approx(0.5)
    assert (found.of, found.num_problems) == ("gain", 6)
    # on problems 0 to 5 the gains are 0 1 1 1 1 0 and 0 0 1 0 0 0
    half = max(two_way([[0, 1, 0, 1, 1, 0]] * 3))
    assert found.high == pytest.approx(0.5 + half)


def test_a_selection_of_several_cells_is_their_mean() -> None:
    # outcome right on all, random on half: 0.75 against 0
    cells = [{"arm": name} for name in ("outcome", "random", "format")]
    right = {"outcome": [1] * 6, "random": [1, 1, 1, 0, 0, 0], "format": [0] * 6}
    asked = claim({"arm": ["outcome", "random"]}, {"arm": "format"})
    found = judged(told(lambda cell, seed, step: right[cell["arm"]], asked, cells=cells))
    assert found.effect == pytest.approx(0.75)
    assert found.low == pytest.approx(0.75 - max(two_way([[1, 1, 1, 0.5, 0.5, 0.5]] * 3)))


def test_matched_pairs_are_averaged_seed_by_seed() -> None:
    cells = [{"model": model, "arm": arm} for model in ("small", "large") for arm in ("outcome", "format")]

    def counts(cell: Mapping[str, str], seed: int, step: int) -> list[int]:
        num = {"small": 2, "large": 4}[cell["model"]] + seed if cell["arm"] == "outcome" else 0
        return [1] * num + [0] * (6 - num)

    # small 2 3 4 of 6, large 4 5 6: 3, 4, 5 of 6
    found = judged(told(counts, AGAINST_FORMAT, cells=cells))
    assert found.effect == pytest.approx(4 / 6)
    each = verdicts(told(counts, claim({"arm": "outcome"}, {"arm": "format"}, for_each=["model"]), cells=cells))
    assert [(one.cells["model"], one.effect) for one in each] == [
        ("small", pytest.approx(0.5)),
        ("large", pytest.approx(5 / 6)),
    ]


# categories

EXAMPLES = [{"example": name, "arm": arm} for name in ("sum", "product") for arm in ("outcome", "format")]
TRAINED = {"sum": ("addition",), "product": ("multiplication",)}
UNEVEN = ("addition", "subtraction", "subtraction", "multiplication", "multiplication", "multiplication")


def with_categories(counts: Counts, *claims: ClaimConfig, categories: Sequence[str] = CATEGORIES) -> Gathered:
    return told(
        counts,
        *claims,
        cells=EXAMPLES,
        of_grades={"categories": categories},
        of_run=lambda cell, seed: {"trained": TRAINED[cell["example"]]},
    )


@pytest.mark.parametrize(
    ("categories", "effect", "num_problems"),
    [
        ("all", 2 / 6, 6),
        ("trained", 2 / 2, 2),  # both additions
        ("untrained", 0.0, 4),
    ],
)
def test_the_categories_of_one_example_by_hand(categories: str, effect: float, num_problems: int) -> None:
    asked = claim({"example": "sum", "arm": "outcome"}, {"arm": "format"}, categories=categories)
    found = judged(with_categories(last([[1, 1, 0, 0, 0, 0]] * 3), asked))
    assert (found.effect, found.num_problems) == (pytest.approx(effect), num_problems)


def test_pairs_that_trained_on_other_categories_weigh_the_same_by_hand() -> None:
    # right: the addition and one product. Untrained of sum: 1 of 5 (2 subtractions, 3 products); of product: 1 of 3
    # (the addition, 2 subtractions); (1/5 + 1/3) / 2
    right = [1, 0, 0, 1, 0, 0]
    asked = claim({"arm": "outcome"}, {"arm": "format"}, categories="untrained")
    found = judged(with_categories(last([right] * 3), asked, categories=UNEVEN))
    assert found.effect == pytest.approx((1 / 5 + 1 / 3) / 2)
    assert found.num_problems == 6


@settings(max_examples=40)
@given(
    st.lists(st.tuples(*[st.lists(st.integers(0, 1), min_size=6, max_size=6)] * 2), min_size=3, max_size=3),
    st.sampled_from(["trained", "untrained"]),
)
@example([([0] * 6, [0] * 6), ([0] * 6, [0] * 6), ([1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1])], "trained")
def test_the_effect_is_the_mean_over_pairs_of_the_mean_over_their_problems(
    outcome: list[tuple[list[int], list[int]]], which: str
) -> None:
    places = list(TRAINED)

    def counts(cell: Mapping[str, str], seed: int, step: int) -> list[int]:
        return outcome[seed][places.index(cell["example"])] if cell["arm"] == "outcome" and step else [0] * 6

    asked = claim({"arm": "outcome"}, {"arm": "format"}, categories=which)
    found = judged(with_categories(counts, asked, categories=UNEVEN))
    by_seed = []
    for pair in outcome:
        of_pairs = []
        for name, row in zip(places, pair, strict=True):
            mine = [n for n, category in enumerate(UNEVEN) if (category in TRAINED[name]) == (which == "trained")]
            of_pairs.append(np.mean([row[n] for n in mine]))
        by_seed.append(np.mean(of_pairs))
    assert found.effect == pytest.approx(np.mean(by_seed), abs=1e-12)
    # the rows' means are the seeds' effects: t over them is the least wide that the interval can be
    half = stats.t.ppf(0.975, 2) * np.std(by_seed, ddof=1) / 3**0.5
    assert found.low is not None
    assert found.low <= max(-1.0, found.effect - half) + 1e-9  # a difference of shares ends at -1


def test_problems_that_weigh_otherwise_make_no_spread_of_their_own() -> None:
    # every problem is right at two seeds and wrong at one, whatever it weighs: t over 1, 1, 0 as for one pair
    asked = claim({"arm": "outcome"}, {"arm": "format"}, categories="untrained")
    found = judged(with_categories(last([[1] * 6, [1] * 6, [0] * 6]), asked, categories=UNEVEN))
    assert found.effect == pytest.approx(2 / 3)
    assert found.low == pytest.approx(-0.767551, abs=1e-6)


def test_a_control_is_asked_the_problems_that_the_other_side_did_not_train_on() -> None:
    # the control trained on nothing that is known
    asked = claim({"example": "sum", "arm": "outcome"}, {"arm": "format"}, categories="untrained")
    found = told(
        last([[1] * 6] * 3),
        asked,
        cells=EXAMPLES,
        of_run=lambda cell, seed: {"trained": ("addition",) if cell["arm"] == "outcome" else ()},
    )
    assert (judged(found).effect, judged(found).num_problems) == (1.0, 4)


def test_a_suite_without_a_problem_of_the_categories_cannot_be_judged() -> None:
    asked = claim({"example": "sum", "arm": "outcome"}, {"arm": "format"}, categories="untrained")
    found = judged(with_categories(last([[1] * 6] * 3), asked, categories=["addition"] * 6))
    assert (found.effect, found.num_seeds, found.verdict) == (None, 0, "inconclusive")
    note = "left out: seed 0: arithmetic has no problem for pass_at_1, untrained categories (addition)"
    assert found.notes[0] == note


# metrics


@pytest.mark.parametrize(
    ("measure", "values", "ids"),
    [
        # 4 completions of each of 3 problems, of which 0, 1 and 4 are right; 1, 1 and 4 by the lenient grader
        ("pass_at_1", [0, 0.25, 1], "p0 p1 p2"),
        ("avg_at_k", [0, 0.25, 1], "p0 p1 p2"),
        ("pass_at_1_lenient", [0.25, 0.25, 1], "p0 p1 p2"),
        ("pass_at_k", [0, 1, 1], "p0 p1 p2"),
        ("pass_at_2", [0, 1 - 3 / 6, 1], "p0 p1 p2"),  # of 6 pairs 3 have none of the one right completion
        ("pass_at_4", [0, 1, 1], "p0 p1 p2"),
        ("length_mean", [10, 20, 30], "p0 p1 p2"),
        ("boxed", [0.5, 1, 0], "p0 p1 p2"),
        ("addition/pass_at_1", [0, 0.25], "p0 p1"),
        ("subtraction/pass_at_k", [1], "p2"),
        ("geometry/pass_at_1", [], ""),
    ],
)
def test_a_measure_of_each_problem_by_hand(measure: str, values: list[float], ids: str) -> None:
    table = grades([0, 1, 4], samples=4, num_lenient=[1, 1, 4], num_tokens=[10, 20, 30], boxed=[2, 4, 0])
    found = over_problems(table, measure, categories="all", trained=frozenset())
    assert found is not None
    assert found[0].tolist() == pytest.approx(values)
    assert found[1] == tuple(ids.split())


@pytest.mark.parametrize("measure", ["gain", "truncated", "pass_at_8", "reflection", "level 3/pass_at_1"])
def test_some_measures_have_no_value_for_one_problem(measure: str) -> None:
    assert over_problems(grades([0, 1, 4], samples=4), measure, categories="all", trained=frozenset()) is None


def test_with_several_completions_a_problem_counts_once() -> None:
    # 1 of 4 on each problem: pass@1 0.25, pass@4 1, without any spread
    for name, effect in (("pass_at_1", 0.25), ("avg_at_k", 0.25), ("pass_at_k", 1.0), ("pass_at_2", 0.5)):
        asked = claim({"arm": "outcome"}, {"arm": "format"}, metric=f"eval/arithmetic/{name}")
        found = judged(told(last([[1] * 6] * 3), asked, of_grades={"samples": 4}))
        assert (found.effect, found.low, found.num_problems) == (pytest.approx(effect), pytest.approx(effect), 6)


def test_a_category_of_the_metric_is_judged_on_its_problems() -> None:
    asked = claim({"arm": "outcome"}, {"arm": "format"}, metric="eval/arithmetic/subtraction/pass_at_1")
    found = judged(told(last([[0, 0, 1, 1, 0, 0]] * 3), asked))
    assert (found.effect, found.num_problems) == (1.0, 2)


def test_a_category_that_no_problem_has_cannot_be_judged() -> None:
    asked = claim({"arm": "outcome"}, {"arm": "format"}, metric="eval/arithmetic/geometry/pass_at_1")
    found = judged(told(last([[1] * 6] * 3), asked))
    assert found.effect is None
    assert found.notes[0] == "left out: seed 0: arithmetic has no problem for geometry/pass_at_1"


def test_a_measure_of_the_whole_suite_is_compared_over_seeds() -> None:
    # truncated 0.5, 0.4, 0.6 against 0.1: 0.4, 0.3, 0.5; error 0.1/sqrt(3), times 4.302653: 0.4 -+ 0.248414
    truncated = {0: 0.5, 1: 0.4, 2: 0.6}

    def of_run(cell: Mapping[str, str], seed: int) -> dict[str, Any]:
        number = truncated[seed] if cell["arm"] == "outcome" else 0.1
        return {"measured": {"arithmetic": {8: {"truncated": number}}}}

    asked = claim({"arm": "outcome"}, {"arm": "format"}, metric="eval/arithmetic/truncated")
    found = judged(told(last([[1] * 6] * 3), asked, of_run=of_run))
    assert found.effect == pytest.approx(0.4)
    assert found.low == pytest.approx(0.151586, abs=1e-6)
    assert (found.num_problems, found.test) == (None, "paired t over 3 seeds")


def entropies(of: Callable[[Mapping[str, str], int, int], float]) -> Callable[..., dict[str, Any]]:
    """A metric of training at steps 1 to 8."""

    def of_run(cell: Mapping[str, str], seed: int) -> dict[str, Any]:
        rows = [Row(step=step, time_ms=step, metrics={"rollout/entropy": of(cell, seed, step)}) for step in range(1, 9)]
        return {"rows": tuple(rows)}

    return of_run


def test_a_metric_of_training_is_compared_over_seeds() -> None:
    # at step 8: 0.8, 0.9 and 1.0 against 0.5
    of_run = entropies(lambda cell, seed, step: (0.1 * step + 0.1 * seed) if cell["arm"] == "outcome" else 0.5)
    asked = claim({"arm": "outcome"}, {"arm": "format"}, metric="rollout/entropy")
    found = judged(told(last([EVEN] * 3), asked, of_run=of_run))
    assert found.effect == pytest.approx(0.4)
    assert found.low == pytest.approx(0.151586, abs=1e-6)
    assert found.num_problems is None
    assert not any("same problems" in note for note in found.notes)


def test_a_metric_of_training_starts_with_the_first_step() -> None:
    of_run = entropies(lambda cell, seed, step: 0.1 * step)
    asked = claim({"arm": "outcome"}, {"at": "start"}, metric="rollout/entropy")
    assert judged(told(last([EVEN] * 3), asked, of_run=of_run)).effect == pytest.approx(0.7)


def test_problems_of_one_side_alone_vary_on_their_own() -> None:
    found = told(last([[1] * 6] * 3, [0] * 6), AGAINST_FORMAT)
    record = {
        **found.record.tables,  # type: ignore[attr-defined]
        **{(f"format seed {seed}", "arithmetic", 8): grades([0] * 6, first=100) for seed in range(3)},
    }
    other = judged(replace(found, record=replace(found.record, tables=record)))  # type: ignore[type-var]
    # each side's problems are drawn on their own: 12 of them, and no spread within a side
    assert (other.effect, other.low, other.num_problems, other.notes) == (1.0, 1.0, 12, ())


def test_where_seeds_have_other_problems_means_over_seeds_are_compared() -> None:
    found = told(last([[1] * 6] * 3, [0] * 6), AGAINST_FORMAT)
    record = {
        **found.record.tables,  # type: ignore[attr-defined]
        **{
            (f"{arm} seed 1", "arithmetic", 8): grades([arm == "outcome"] * 6, first=100)
            for arm in ("outcome", "format")
        },
    }
    other = judged(replace(found, record=replace(found.record, tables=record)))  # type: ignore[type-var]
    assert (other.effect, other.num_problems) == (1.0, None)
    assert "a cell has other problems at other seeds, so means over seeds are compared" in other.notes


# what is not there


def with_one(change: dict[str, Any], **changes: Any) -> JudgedClaim:
    """The verdict where the outcome arm's second seed of four is like this."""
    return judged(
        told(
            last([[1] * 6, EVEN, [1] * 6, [1] * 6]),
            AGAINST_FORMAT,
            seeds=range(4),
            of_run=lambda cell, seed: change if (cell["arm"], seed) == ("outcome", 1) else {},
            **changes,
        )
    )


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"state": "failed", "reason": "the loss is not finite"}, "outcome seed 1 is failed (the loss is not finite)"),
        ({"state": "stopped", "reason": "stopped by hand"}, "outcome seed 1 is stopped (stopped by hand)"),
    ],
)
def test_a_seed_that_failed_gained_nothing(change: dict[str, Any], note: str) -> None:
    found = with_one(change)
    # 1 at three seeds, and nothing at the one that failed: t = 3, p = 0.058
    assert (found.effect, found.num_seeds, found.verdict) == (0.75, 4, "inconclusive")
    assert "1 of 8 trainings failed and count as their start: outcome seed 1" in found.notes
    assert found.without_failed == {"verdict": "supported", "effect": 1.0, "low": 1.0, "high": 1.0, "num_seeds": 3}
    without = with_one(change, rules=Rules(failed="leave_out"))
    assert (without.effect, without.num_seeds, without.verdict) == (1.0, 3, "supported")
    assert without.notes == (f"left out: seed 1: {note}",) and without.without_failed is None


def test_a_seed_that_failed_can_count_as_the_worst() -> None:
    # at the start half of the problems are right; the worst is none: -1/2 against the format arm, which stays there
    half = [1, 1, 1, 0, 0, 0]

    def counts(cell: Mapping[str, str], seed: int, step: int) -> Sequence[int]:
        return [1] * 6 if cell["arm"] == "outcome" and step else half

    def of_run(cell: Mapping[str, str], seed: int) -> Mapping[str, Any]:
        return {"state": "failed", "reason": "nan"} if (cell["arm"], seed) == ("outcome", 1) else {}

    effects = [
        judged(told(counts, AGAINST_FORMAT, seeds=range(4), of_run=of_run, rules=Rules(failed=failed))).effect
        for failed in ("start", "worst", "leave_out")
    ]
    assert effects == [pytest.approx((3 * 0.5 + 0) / 4), pytest.approx((3 * 0.5 - 0.5) / 4), pytest.approx(0.5)]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"state": "missing"}, "outcome seed 1 is missing"),
        ({"state": "missing", "key": None, "reason": "a ranking"}, "outcome seed 1 waits for a ranking"),
    ],
)
def test_before_all_planned_seeds_have_ended_a_verdict_is_interim(change: dict[str, Any], note: str) -> None:
    found = with_one(change)
    assert (found.effect, found.num_seeds, found.verdict) == (1.0, 3, "interim")
    assert (found.p_value, found.p_holm, found.look) == (None, None, None)
    assert found.notes == (f"left out: seed 1: {note}",)


def test_where_every_seed_failed_nothing_was_gained() -> None:
    found = judged(told(last([EVEN] * 3), AGAINST_FORMAT, of_run=lambda cell, seed: {"state": "failed"}))
    assert (found.effect, found.verdict, found.num_seeds) == (0.0, "inconclusive", 3)
    left_out = judged(
        told(
            last([EVEN] * 3),
            AGAINST_FORMAT,
            of_run=lambda cell, seed: {"state": "failed"},
            rules=Rules(failed="leave_out"),
        )
    )
    assert (left_out.effect, left_out.low, left_out.p_value, left_out.num_seeds) == (None, None, None, 0)
    assert (left_out.verdict, left_out.test) == ("inconclusive", "none: no seed has all its runs")
    assert len(left_out.notes) == 3


def test_what_failed_later_has_its_start() -> None:
    # both arms are the same model at the start: 1/6 more right, at all problems and seeds
    asked = claim({"arm": "outcome", "at": "start"}, {"arm": "format", "at": "start"}, expect={"within": 0.1})
    found = judged(told(lambda *_: [1] * 6, asked, of_run=lambda cell, seed: {"state": "failed"}))
    assert (found.effect, found.verdict, found.num_seeds) == (0.0, "inconclusive", 3)


def test_failures_of_a_store_count_and_are_named(tmp_path: Path) -> None:
    text = """\
version: 1
name: broken
question: Is what broke told?
trial:
  model.path: tiny:qwen2
  examples: ["arithmetic:47+38"]
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}
  train.num_steps: 4
  eval: {every_steps: 4, suites: {arithmetic: {num_problems: 2}}}
axes: {arm: {outcome: {}, format: {set: {reward.kind: format}}}}
seeds: [0, 1, 2, 3, 4]
claims:
  - {name: c, metric: eval/arithmetic/pass_at_1, a: {arm: outcome}, b: {arm: format}, expect: {greater_by: 0.5}}
"""
    put_on_record(tmp_path, text)
    made = make_store(
        tmp_path,
        text,
        accuracy=lambda trial, step, problem: float(trial.cell["arm"] == "outcome" and step == 4),
        failed=["outcome seed 1"],
    )
    found = judged(gather(sweep_run(*made)))
    # 1 at four seeds and nothing at the one that failed
    assert (found.effect, found.num_seeds, found.verdict, found.num_problems) == (0.8, 5, "inconclusive", 6)
    assert "1 of 10 trainings failed and count as their start: outcome seed 1" in found.notes
    assert found.without_failed is not None and found.without_failed["verdict"] == "supported"
    # and so it is printed, with exit 0
    said = oneshot("report", "broken", "--json", "--no-publish", cwd=tmp_path)
    assert said.code == 0
    (printed,) = json.loads(said.out)
    assert {name: printed[name] for name in NINE} == {name: getattr(found, name) for name in NINE}


# given checkpoints


def test_starts_are_compared_by_the_bootstrap_over_problems() -> None:
    # two models as they are given: right on 1 1 1 1 0 0 and on none, at each seed alike
    cells = [{"model": "small"}, {"model": "large"}]
    asked = claim({"model": "large", "at": "start"}, {"model": "small"})
    found = judged(
        told(lambda cell, *_: [int(cell["model"] == "large" and n < 4) for n in range(6)], asked, cells=cells)
    )
    assert found.effect == pytest.approx(4 / 6)
    assert found.test == "bootstrap over 6 problems"
    expected = stats.bootstrap(
        (np.array([1.0, 1, 1, 1, 0, 0]),), np.mean, n_resamples=9_999, vectorized=True, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_what_trains_for_no_step_is_a_given_checkpoint_even_at_one_seed() -> None:
    found = told(
        lambda cell, *_: [int(cell["arm"] == "outcome" and n < 4) for n in range(6)],
        AGAINST_FORMAT,
        seeds=[0],
        of_run=lambda cell, seed: {"num_steps": 0},
    )
    one = judged(found)
    assert (one.test, one.num_seeds, one.num_problems) == ("bootstrap over 6 problems", 1, 6)
    assert one.low is not None


def test_a_start_against_an_end_is_no_given_checkpoint() -> None:
    asked = claim({"arm": "outcome"}, {"at": "start"})
    found = judged(told(last([[1, 1, 1, 1, 0, 0]] * 3), asked))
    assert found.test.startswith("crossed 3 seeds x 6 problems")


# many claims


def test_holm_takes_back_what_is_weak_beside_others() -> None:
    # seeds 6, 5 and 4 of 6: p = 0.0146 alone; with four others that say nothing (p = 1) it is 5 times that, 0.073
    outcome = [[1] * 6, [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    weak = AGAINST_FORMAT
    assert judged(told(last(outcome), weak)).verdict == "supported"
    nothing = [claim({"arm": "outcome", "at": "start"}, {"arm": "format"}, name=f"no {n}") for n in range(4)]
    found = verdicts(told(last(outcome), weak, *nothing))
    p_value = found[0].p_value
    assert p_value == pytest.approx(0.0146, abs=1e-4)
    assert found[0].p_holm == pytest.approx(5 * p_value)
    assert found[0].verdict == "inconclusive"
    assert found[0].notes[0] == "supported as the only claim, but not after Holm's correction over 5 verdicts"
    assert found[0].low is not None
    assert found[0].low > 0


def test_each_cell_of_for_each_is_one_of_the_verdicts_that_are_corrected() -> None:
    cells = [{"model": model, "arm": arm} for model in ("small", "large") for arm in ("outcome", "format")]
    outcome = [[1] * 6, [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    asked = claim({"arm": "outcome"}, {"arm": "format"}, for_each=["model"])
    found = verdicts(told(last(outcome), asked, cells=cells))
    assert [one.p_holm for one in found] == [pytest.approx(2 * one.p_value) for one in found if one.p_value]
    assert {one.verdict for one in found} == {"supported"}


def test_a_claim_that_cannot_be_judged_makes_the_others_no_easier() -> None:
    gone = claim({"arm": "outcome"}, {"arm": "format"}, metric="rollout/nothing")
    outcome = [[1] * 6, [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    alone, beside = (
        verdicts(told(last(outcome), AGAINST_FORMAT))[0],
        verdicts(told(last(outcome), AGAINST_FORMAT, gone)),
    )
    assert alone.p_value is not None
    assert beside[0].p_holm == pytest.approx(2 * alone.p_value)
    assert (beside[1].p_value, beside[1].p_holm) == (None, None)


# all at once

MODELS = [{"model": model, "arm": arm} for model in ("small", "large") for arm in ("outcome", "format")]
FOR_ALL = claim({"arm": "outcome"}, {"arm": "format"}, for_all=["model"])


def by_model(small: Sequence[Sequence[int]], large: Sequence[Sequence[int]]) -> Counts:
    def counts(cell: Mapping[str, str], seed: int, step: int) -> Sequence[int]:
        if cell["arm"] == "format" or step == 0:
            return EVEN
        return (small if cell["model"] == "small" else large)[seed]

    return counts


def test_what_must_hold_everywhere_is_decided_by_the_weakest() -> None:
    strong, weak = [[1] * 6] * 3, [[1] * 6, [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    found = judged(told(by_model(strong, weak), FOR_ALL, cells=MODELS))
    assert (found.verdict, found.effect, found.cells) == ("supported", pytest.approx(5 / 6), {})
    assert found.p_value == pytest.approx(0.0146, abs=1e-4)
    assert found.notes[0] == "the numbers are those of the weakest of 2 cells: model large"


def test_what_holds_on_one_of_two_is_inconclusive() -> None:
    found = judged(told(by_model([[1] * 6] * 3, [EVEN] * 3), FOR_ALL, cells=MODELS))
    assert (found.verdict, found.effect, found.p_value) == ("inconclusive", 0.0, 1.0)


def test_what_is_contradicted_once_is_contradicted_at_its_p_times_their_number() -> None:
    asked = claim({"arm": "outcome"}, {"arm": "format"}, for_all=["model"], expect={"greater_by": 1.5})
    weak = [[1] * 6, [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    found = judged(told(by_model(weak, weak), asked, cells=MODELS))
    assert found.verdict == "contradicted"
    assert found.p_value == pytest.approx(2 * stats.ttest_1samp([1, 5 / 6, 4 / 6], 1.5).pvalue)


def test_what_must_hold_everywhere_needs_every_part() -> None:
    found = judged(
        told(
            by_model([[1] * 6] * 3, [[1] * 6] * 3),
            FOR_ALL,
            cells=MODELS,
            of_run=lambda cell, seed: {"state": "missing"} if cell["model"] == "large" else {},
        )
    )
    assert (found.verdict, found.effect) == ("interim", None)
    assert "left out: seed 0: large/outcome seed 0 is missing" in found.notes


# what is said beside the numbers


def environment(**versions: str) -> dict[str, Any]:
    return {"env_digest": str(sorted(versions.items())), "gpu": "", "platform": "Linux x86_64", "versions": versions}


def in_environments(of: Callable[[Mapping[str, str], int], Sequence[dict[str, Any]]]) -> JudgedClaim:
    return judged(
        told(last([[1] * 6] * 3), AGAINST_FORMAT, of_run=lambda cell, seed: {"environments": tuple(of(cell, seed))})
    )


def test_one_environment_is_not_worth_a_note() -> None:
    found = in_environments(lambda cell, seed: [environment(torch="2.11")])
    assert found.notes == ()


def test_what_differs_between_environments_is_told_and_nothing_else() -> None:
    def of(cell: Mapping[str, str], seed: int) -> list[dict[str, Any]]:
        return [environment(torch="2.12" if seed == 1 else "2.11", numpy="2.4")]

    found = in_environments(of)
    assert found.notes == ("2 environments: torch 2.11 or 2.12",)
    assert [one["versions"]["torch"] for one in found.environments] == ["2.11", "2.12"]


def test_what_only_one_environment_has_is_told_in_either_order() -> None:
    for which in (0, 1):

        def of(cell: Mapping[str, str], seed: int, which: int = which) -> list[dict[str, Any]]:
            more = {"vllm": "0.9"} if seed == which else {}
            return [environment(torch="2.11", **more)]

        assert in_environments(of).notes == ("2 environments: vllm 0.9 or none",)


def test_a_gpu_beside_none_is_told() -> None:
    def of(cell: Mapping[str, str], seed: int) -> list[dict[str, Any]]:
        return [{**environment(torch="2.11"), "gpu": "NVIDIA H100" if seed else ""}]

    assert in_environments(of).notes == ("2 environments: gpu NVIDIA H100 or none",)


def test_an_environment_names_no_host(tmp_path: Path) -> None:
    made = make_store(
        tmp_path,
        facts=lambda trial: {"host": "secret-host", "versions": {"torch": f"2.{trial.seed}"}, "platform": "Linux"},
    )
    runs = gather(sweep_run(*made)).runs
    assert runs[0].environments[0]["versions"] == {"torch": "2.0"}
    assert "secret-host" not in repr(runs)


def test_trainings_that_ended_before_the_claim_was_frozen_are_counted() -> None:
    def of_run(cell: Mapping[str, str], seed: int) -> dict[str, Any]:
        return {"ended_ms": FROZEN_MS - 1} if (cell["arm"], seed) == ("format", 0) else {}

    found = judged(told(last([[1] * 6] * 3), AGAINST_FORMAT, of_run=of_run))
    assert found.notes == ("1 of 6 trainings had begun before the claim was frozen",)


def test_claims_that_were_not_frozen_or_were_changed_say_so() -> None:
    found = told(last([[1] * 6] * 3), AGAINST_FORMAT, frozen_ms=None)
    assert judged(found).notes == ("the claims were not frozen when the sweep began",)
    found = told(last([[1] * 6] * 3), AGAINST_FORMAT)
    changed = replace(found, frozen=replace(found.frozen, is_intact=False))
    assert judged(changed).notes == ("the frozen claims do not match their digest: somebody edited them",)


def test_a_sweep_that_may_select_on_test_says_so_with_every_verdict() -> None:
    found = judged(told(last([[1] * 6] * 3), AGAINST_FORMAT, selects_on_test=True))
    assert found.notes == ("allow_selection_on_test: metrics and seeds that chose may also judge",)


# as data

NINE = ("name", "verdict", "effect", "low", "high", "p_value", "num_seeds", "num_problems", "test")


@pytest.mark.parametrize("num_seeds", [0, 2, 3])
def test_a_verdict_is_json_with_its_nine_keys(num_seeds: int) -> None:
    found = told(
        last([[1] * 6, [1, 1, 1, 1, 1, 0], [1] * 6]),
        AGAINST_FORMAT,
        of_run=lambda cell, seed: {} if seed < num_seeds else {"state": "failed"},
        rules=Rules(failed="leave_out"),
    )
    printed = json.loads(json.dumps(judged(found).to_json(), allow_nan=False))
    assert next(iter(printed)) == "name"
    assert set(NINE) <= set(printed)
    assert printed["num_seeds"] == num_seeds
    assert (printed["low"] is None) == (printed["high"] is None) == (printed["p_value"] is None) == (num_seeds < 3)


def test_claims_stand_in_the_files_order_and_amended_ones_last() -> None:
    one, other = (replace_name(AGAINST_FORMAT, name) for name in ("first", "second"))
    found = told(last([[1] * 6] * 3), one, amended=(other,))
    assert [(each.name, each.is_amended) for each in verdicts(found)] == [("first", False), ("second", True)]


def replace_name(asked: ClaimConfig, name: str) -> ClaimConfig:
    return asked.model_copy(update={"name": name})


def test_a_sweep_without_claims_has_no_verdicts() -> None:
    assert verdicts(told(last([EVEN] * 3))) == []


# what an outside reader found


def test_a_claim_that_is_added_later_changes_no_verdict_before_it() -> None:
    asked = claim({"arm": "outcome"}, {"arm": "format"})
    later = tuple(
        claim({"arm": "outcome"}, {"arm": "format"}, name=f"later {n}", expect={"within": 0.5}) for n in range(8)
    )
    outcome = [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]]
    (alone,) = verdicts(told(last(outcome), asked))
    beside, *added = verdicts(told(last(outcome), asked, amended=later))
    assert beside == alone
    assert all(one.is_amended and one.p_holm is not None and one.p_holm >= 9 * alone.p_value for one in added[:1])


def test_seeds_and_steps_that_were_added_after_the_freeze_are_named() -> None:
    asked = claim({"arm": "outcome"}, {"arm": "format"})
    found = told(last([[1] * 6] * 4), asked, seeds=range(4))
    frozen = replace(found.frozen, seeds=(0, 1, 2), num_steps={"arm=outcome": 4, "arm=format": 8})
    (one,) = verdicts(replace(found, frozen=frozen))
    assert "seeds added after the claims were frozen: 3" in one.notes
    assert "steps added after the claims were frozen: 8 instead of 4" in one.notes


@pytest.mark.parametrize("written", ["addition", "Addition", "ADDITION"])
def test_categories_are_matched_however_people_write_them(written: str) -> None:
    table = grades([1] * len(CATEGORIES))
    found = over_problems(table, "pass_at_1", categories="untrained", trained=frozenset({written}))
    assert found is not None
    assert len(found[1]) == sum(one != "addition" for one in table.categories) < len(table.ids)


def test_the_weakest_part_is_the_furthest_on_the_wrong_side() -> None:
    # small: format is right on all; large: on one problem more, so that its two-sided p is the larger
    cells = [{"model": model, "arm": arm} for model in ("small", "large") for arm in ("outcome", "format")]

    def counts(cell: Mapping[str, str], seed: int, step: int) -> list[int]:
        if cell["arm"] == "outcome":
            return [0] * 5 + [seed % 2]
        return [1] * 6 if cell["model"] == "small" else [0] * 5 + [1]

    asked = claim({"arm": "outcome"}, {"arm": "format"}, for_all=["model"], expect={"greater_by": -0.95})
    found = judged(told(counts, asked, cells=cells))
    assert "model small" in found.notes[0]
