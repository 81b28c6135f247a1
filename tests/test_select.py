"""Orders of examples: the released one, each score against its formula, who is chosen; files that are no history."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot.errors import DataError, UserError
from oneshot.plan.rank_rules import History, Ranked, choose, rank, ranking_digest, read_history, set_order
from oneshot.tasks.examples import aliases

ACCURACIES = st.sampled_from([index / 8 for index in range(9)])


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Of 1 to 8 rows, each with visits of its own number."""
    rows = draw(st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True))
    visits = st.lists(ACCURACIES, min_size=1, max_size=6)
    return {f"s:{row}": draw(visits) for row in sorted(rows)}


def order(history: History, by: str, *, seed: int = 0, band: tuple[float, float] = (0.0, 1.0)) -> list[str]:
    return [one.example for one in rank([history], by=by, seed=seed, band=band)]


@pytest.fixture
def released(shared: Path) -> History:
    """500 steps on dsr_sub, as released: 44 visits or more of each row."""
    return read_history(shared / "data" / "acc_step_500.json", of="dsr_sub")


# historical variance


def test_the_released_history_gives_the_papers_order(released: History) -> None:
    first = [124, 267, 531, 931, 212, 25, 568, 131, 649, 724, 875, 925, 682, 100, 291, 50, 870]
    ranked = rank([released], by="historical_variance")
    assert len(ranked) == 1209
    assert [one.index for one in ranked[:17]] == first


def test_every_rank_and_deviation_that_the_paper_gives_is_found(released: History) -> None:
    ranked = rank([released], by="historical_variance")
    places = {one.example: (place, one.std) for place, one in enumerate(ranked, start=1)}
    for alias in aliases().values():
        place, std = places[str(alias["row"])]
        assert std == pytest.approx(alias["std"], abs=6e-5)
        # ranks from 1106 are ties at 0
        assert place == alias["rank"] or (alias.get("tie") and place > 1105 and std == 0)


def test_the_deviation_is_numpys(released: History) -> None:
    for one in rank([released], by="historical_variance"):
        assert one.std == pytest.approx(float(np.std(released[one.example])), abs=1e-12)
        assert one.mean == pytest.approx(float(np.mean(released[one.example])))
        assert one.num_visits == len(released[one.example])


def test_ties_go_by_row(released: History) -> None:
    ranked = rank([released], by="historical_variance")
    still = [one.index for one in ranked if one.score == 0]
    assert len(still) == 104
    assert still == sorted(index for index in still if index is not None)
    # pi_14 and pi_15
    assert ranked[13].score == ranked[14].score
    assert [one.index for one in ranked[13:15]] == [100, 291]


def test_variance_by_hand() -> None:
    # 0, 1: mean 1/2, variance 1/4; 0, 0, 1: mean 1/3, variance 2/9; 1, 1: 0
    ranked = rank([{"s:0": [1.0, 1.0], "s:1": [0.0, 0.0, 1.0], "s:2": [0.0, 1.0]}], by="historical_variance")
    assert [(one.example, one.score) for one in ranked] == [("s:2", 0.25), ("s:1", pytest.approx(2 / 9)), ("s:0", 0.0)]


@given(histories(), st.randoms(use_true_random=False))
def test_the_order_of_visits_does_not_matter_to_the_variance(history: History, rng: random.Random) -> None:
    shuffled = {example: list(values) for example, values in history.items()}
    for values in shuffled.values():
        rng.shuffle(values)
    assert order(shuffled, "historical_variance") == order(history, "historical_variance")


def test_of_several_seeds_the_mean_score_counts() -> None:
    # s:0: variances 1/4 and 0, mean 1/8; s:1: 3/16 and 3/16, mean 3/16
    first = {"s:0": [0.0, 1.0], "s:1": [0.0, 0.0, 0.0, 1.0]}
    second = {"s:0": [1.0, 1.0], "s:1": [1.0, 1.0, 1.0, 0.0]}
    assert order(first, "historical_variance") == ["s:0", "s:1"]
    ranked = rank([first, second], by="historical_variance")
    assert [(one.example, one.score, one.num_visits) for one in ranked] == [("s:1", 0.1875, 8), ("s:0", 0.125, 4)]


def test_a_ranking_of_nothing_or_of_different_examples_is_refused() -> None:
    for nothing in ([], [{}]):
        with pytest.raises(UserError, match="the history is empty; a ranking needs at least one example"):
            rank(nothing, by="historical_variance")
    with pytest.raises(UserError, match="of different examples"):
        rank([{"s:0": [1.0]}, {"s:1": [1.0]}], by="historical_variance")


# the other orders


def lim(history: History) -> dict[str, float]:
    """LIMR's formula, over the visits that every example has: 1 - sum (r - avg)^2 / sum (1 - avg)^2."""
    num_visits = min(len(values) for values in history.values())
    table = np.array([values[:num_visits] for values in history.values()])
    average = table.mean(axis=0)
    scale = ((1 - average) ** 2).sum()
    scores = 1 - ((table - average) ** 2).sum(axis=1) / (scale or 1.0)
    return dict(zip(history, scores.tolist(), strict=True))


def test_alignment_is_limrs_formula_on_the_released_history(released: History) -> None:
    expected = lim(released)
    ranked = rank([released], by="lim")
    assert {one.example: one.score for one in ranked} == pytest.approx(expected)
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)


@given(histories())
def test_alignment_is_limrs_formula(history: History) -> None:
    assert {one.example: one.score for one in rank([history], by="lim")} == pytest.approx(lim(history))


def test_alignment_by_hand() -> None:
    # averages 0.5 and 0.5, so the scale is 0.5; s:1 is the average itself: 1; the others are 0.5 away at each: 0
    history = {"s:0": [0.0, 1.0], "s:1": [0.5, 0.5], "s:2": [1.0, 0.0]}
    assert [(one.example, one.score) for one in rank([history], by="lim")] == [("s:1", 1), ("s:0", 0), ("s:2", 0)]


def test_pass_rates_are_those_of_the_first_visit_within_the_band_nearest_to_its_middle_first() -> None:
    history = {"s:0": [0.0, 0.5], "s:1": [0.25, 1.0], "s:2": [0.5, 0.0], "s:3": [0.75, 0.0], "s:4": [1.0, 0.5]}
    # the middle of 0.25 to 1 is 0.625: 0.5 and 0.75 are as near, then 0.25 and 1
    assert order(history, "pass_rate", band=(0.25, 1.0)) == ["s:2", "s:3", "s:1", "s:4"]


@given(histories(), ACCURACIES, ACCURACIES)
def test_a_band_leaves_out_what_is_outside_it_and_nothing_else(history: History, one: float, other: float) -> None:
    low, high = sorted((one, other))
    inside = {example for example, values in history.items() if low <= values[0] <= high}
    assert set(order(history, "pass_rate", band=(low, high))) == inside


def test_a_random_order_is_its_seeds_and_of_every_example(released: History) -> None:
    first, again, other = (order(released, "random", seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert set(first) == set(released)


# disagreement at the first visit


def test_the_variance_of_a_pass_rate_is_p_times_1_minus_p_at_the_first_visit() -> None:
    # p = 1/4, 1/2, 1 and 3/4; later visits do not count, and equal scores stay in the order of the set
    history = {"s:1": [0.25, 0.5], "s:2": [0.5, 1.0], "s:3": [1.0, 0.5], "s:4": [0.75, 0.5]}
    ranked = rank([history], by="pass_rate_variance")
    assert [(one.example, one.score) for one in ranked] == [
        ("s:2", 0.25),
        ("s:1", 0.1875),
        ("s:4", 0.1875),
        ("s:3", 0.0),
    ]


def test_entropies_of_answers_rank_by_their_mean_over_seeds_and_ties_stay_in_order() -> None:
    histories = [{"s:1": [0.5, 1.0], "s:2": [0.0], "s:3": [0.5]}] * 2
    entropies = [{"s:1": 0.5, "s:2": 0.5, "s:3": 1.5}, {"s:1": 0.5, "s:2": 0.5, "s:3": 0.0}]
    ranked = rank(histories, by="answer_entropy", entropies=entropies)
    # the mean of 1.5 and 0 is 0.75; the other columns stay those of accuracies
    assert [(one.example, one.score) for one in ranked] == [("s:3", 0.75), ("s:1", 0.5), ("s:2", 0.5)]
    assert [(one.mean, one.num_visits) for one in ranked] == [(0.5, 2), (0.75, 4), (0.0, 2)]


@pytest.mark.parametrize("entropies", [[], [{"s:1": 0.5}], [{}]])
def test_a_history_without_entropies_of_answers_says_to_collect_it_again(entropies: list[dict[str, float]]) -> None:
    with pytest.raises(UserError, match=r"no entropies of answers .* such as s:[12];.* again, in a new storage"):
        rank([{"s:1": [0.5], "s:2": [0.5]}], by="answer_entropy", entropies=entropies)


@given(histories(), st.sampled_from(["historical_variance", "lim", "pass_rate", "pass_rate_variance", "random"]))
def test_scores_never_rise_down_a_ranking_and_examples_stand_once(history: History, by: str) -> None:
    ranked = rank([history], by=by)
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    assert sorted(one.example for one in ranked) == sorted(history)


# who is chosen


def ranking(count: int) -> list[Ranked]:
    # variances fall with the row: the visits of row n are one 1 and n + 1 zeros
    return rank([{f"s:{row}": [1.0] + [0.0] * (row + 1) for row in range(count)}], by="historical_variance")


def test_top_bottom_and_random_ones_are_named_by_their_place() -> None:
    chosen = choose(ranking(10), top=2, bottom=2, random_=2, seed=0)
    assert list(chosen) == ["1", "2", "last1", "last2", "random1", "random2"]
    assert [chosen[name].index for name in ("1", "2", "last1", "last2")] == [0, 1, 9, 8]
    assert {chosen[name].index for name in ("random1", "random2")} <= set(range(2, 8))


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 9))
def test_no_example_is_chosen_twice(top: int, bottom: int, random_: int, seed: int) -> None:
    chosen = choose(ranking(12), top=top, bottom=bottom, random_=random_, seed=seed)
    assert len({one.example for one in chosen.values()}) == len(chosen) == top + bottom + random_
    assert choose(ranking(12), top=top, bottom=bottom, random_=random_, seed=seed) == chosen


def test_another_seed_draws_others_from_between() -> None:
    drawn = {choose(ranking(40), top=1, bottom=1, random_=1, seed=seed)["random1"].example for seed in range(10)}
    assert len(drawn) > 3


def test_more_than_there_are_is_refused() -> None:
    assert len(choose(ranking(3), top=1, bottom=1, random_=1, seed=0)) == 3
    with pytest.raises(UserError, match="4 examples wanted, but the ranking has 3"):
        choose(ranking(3), top=2, bottom=1, random_=1, seed=0)


def test_a_digest_is_of_order_and_scores() -> None:
    assert ranking_digest(ranking(5)) == ranking_digest(ranking(5))
    assert len({ranking_digest(of) for of in (ranking(5), ranking(6), ranking(5)[::-1])}) == 3


def test_only_a_row_has_an_index() -> None:
    ranked = rank([{"arithmetic:47+38": [1.0], "dsr_sub:7": [1.0]}], by="random")
    assert {one.example: one.index for one in ranked} == {"arithmetic:47+38": None, "dsr_sub:7": 7}


def test_examples_are_sorted_by_set_and_row_not_by_spelling() -> None:
    assert sorted(["b:2", "a:10", "a:9"], key=set_order) == ["a:9", "a:10", "b:2"]


# files


def write(folder: Path, text: str) -> Path:
    path = folder / "history.json"
    path.write_text(text)
    return path


def test_rows_of_a_file_are_rows_of_its_set_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"10": [1], "9": [0, 0.5], "math500:3": [0.25]}))
    history = read_history(path, of="dsr_sub")
    assert list(history.items()) == [("dsr_sub:9", [0.0, 0.5]), ("dsr_sub:10", [1.0]), ("math500:3", [0.25])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"history.json:1: not JSON"),
        ('{"1": [0.5]\n"2": [0.5]}', r"history.json:2: not JSON"),
        ("[]", r"not a history; write an object such as \{\"124\""),
        ("{}", r"not a history; write an object"),
        ('{"124": 0.5}', r"124: must be a list of accuracies from 0 to 1, one for each visit"),
        ('{"124": []}', r"124: must be a list of accuracies"),
        ('{"124": [0.5, "1"]}', r"124: must be a list of accuracies"),
        ('{"124": [true]}', r"124: must be a list of accuracies"),
        ('{"124": [0.5, 1.5]}', r"124: must be a list of accuracies from 0 to 1"),
        ('{"124": [-0.1]}', r"124: must be a list of accuracies from 0 to 1"),
        ('{"124": [NaN]}', r"124: must be a list of accuracies"),
        ('{"pi_1": [0.5]}', r"'pi_1' is not a row; write a row number or set:row"),
    ],
)
def test_what_is_no_history_gets_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_history(write(tmp_path, text), of="dsr_sub")


def test_a_history_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.json: cannot be read: No such file"):
        read_history(tmp_path / "gone.json", of="dsr_sub")
