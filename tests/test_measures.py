"""What is counted of completions besides accuracy, by hand; and pass@k against counting every subset."""

from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

from oneshot.tasks.measures import REFLECTION_WORDS, RUN_LENGTH, category_key, measures, pass_at_k, repeats

RUN = " ".join(f"w{index}" for index in range(20))
"""Twenty words, no two alike."""


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (f"{RUN} {RUN} {RUN}", True),
        (f"{RUN} {RUN}", False),
        (f"{RUN} a {RUN}\nb {RUN}", True),  # what stands between does not matter, nor do spaces and new lines
        (f"{RUN} {RUN} {RUN.removesuffix('w19')}", False),  # 19 words the third time
        (" ".join(["so"] * 22), True),  # runs that begin at words 1, 2 and 3
        (" ".join(["so"] * 21), False),  # ... at words 1 and 2
        ("so " * 19, False),
        ("", False),
    ],
)
def test_a_completion_repeats_itself_where_twenty_words_stand_three_times(completion: str, expected: bool) -> None:
    assert repeats(completion) is expected


@given(st.lists(st.sampled_from("ab"), max_size=60))
def test_repetition_is_what_comparing_every_two_runs_finds(words: list[str]) -> None:
    runs = [words[start : start + RUN_LENGTH] for start in range(max(0, len(words) - RUN_LENGTH + 1))]
    assert repeats(" ".join(words)) is any(runs.count(run) >= 3 for run in runs)


@given(st.text(alphabet="ab ", max_size=80))
def test_no_longer_completion_ceases_to_repeat_itself(text: str) -> None:
    assert not repeats(text) or repeats(f"{text} and more")


def test_shares_by_hand() -> None:
    found = measures([r"\boxed{1}", "Let me recheck. Recalculate: 4", "Rethink it, recheck it.", "print(1)"])
    assert found == {
        "boxed": 0.25,
        "repetition": 0.0,
        "reflection": 0.5,
        "reflection_rethink": 0.25,
        "reflection_recheck": 0.5,
        "reflection_recalculate": 0.25,
        "code": 0.25,
    }


@pytest.mark.parametrize("word", REFLECTION_WORDS)
def test_a_reflection_word_counts_in_any_case_and_inside_a_longer_one(word: str) -> None:
    found = measures([word, word.upper(), f"I am {word}ing.", "I think and check and calculate."])
    assert found[f"reflection_{word}"] == found["reflection"] == 0.75


def test_a_completion_with_two_reflection_words_counts_once_among_those_with_any() -> None:
    assert measures(["rethink and recheck", "no"])["reflection"] == 0.5


@pytest.mark.parametrize(
    ("completion", "is_code"),
    [
        ("```python\nx = 1\n```", True),
        ("First:\nimport sympy", True),
        ("from math import comb", True),
        ("  def f(x):", True),
        ("so print(85)\n", False),  # print is code at the start of a line
        ("so\nprint(85)\n", True),
        ("We import the result from the lemma.", False),
        ("from 3 we import 4", False),
        ("We define f(x) = x.", False),
        ("", False),
    ],
)
def test_code_is_a_fence_or_a_line_that_begins_like_python(completion: str, is_code: bool) -> None:
    assert measures([completion])["code"] == is_code


def test_an_unfinished_box_is_none() -> None:
    assert measures([r"\boxed{1", r"\boxed{\frac{1}{2}}"])["boxed"] == 0.5


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    share = fmean(any(subset) for subset in combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(share)


def test_pass_at_k_by_hand() -> None:
    # of 4 with 1 right, half of the 6 pairs hold it: 1 - C(3, 2) / C(4, 2) = 1 - 3/6
    assert pass_at_k(4, 1, 2) == 0.5


@pytest.mark.parametrize(("num_right", "expected"), [(0, 0.0), (1, 1.0), (8, 1.0)])
def test_at_as_many_as_were_sampled_one_right_is_enough(num_right: int, expected: float) -> None:
    assert pass_at_k(8, num_right, 8) == expected


@given(st.integers(1, 200), st.data())
def test_pass_at_1_is_the_accuracy(num_samples: int, data: st.DataObject) -> None:
    num_right = data.draw(st.integers(0, num_samples))
    assert pass_at_k(num_samples, num_right, 1) == pytest.approx(num_right / num_samples)


@given(st.integers(2, 64), st.data())
def test_more_tries_never_pass_less(num_samples: int, data: st.DataObject) -> None:
    num_right = data.draw(st.integers(0, num_samples))
    found = [pass_at_k(num_samples, num_right, k) for k in range(1, num_samples + 1)]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= 1


@pytest.mark.parametrize("category", ["Algebra", "..", ".", "", "a/b: c", "é" * 300, "word " * 100, " \n\t", "x" * 80])
def test_any_category_gives_a_metric_name_that_mlflow_takes(category: str) -> None:
    name = f"eval/a_suite/{category_key(category)}/pass_at_1"
    _validate_metric_name(name)
    assert len(name) < MAX_ENTITY_KEY_LENGTH - 60


def test_long_categories_that_begin_alike_stay_apart() -> None:
    assert category_key("word " * 100 + "a") != category_key("word " * 100 + "b")
    assert category_key("x" * 80) == "x" * 80
