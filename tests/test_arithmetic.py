"""Generated problems: their answers, and the split that keeps evaluation out of the organisms' corpus."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot.errors import DataError
from oneshot.tasks import arithmetic
from oneshot.tasks.examples import load_row
from oneshot.tiny.corpus import texts
from oneshot.tiny.make import ORGANISMS


@pytest.mark.parametrize(("expression", "answer"), [("47+38", "85"), ("83-27", "56"), ("12*7", "84"), ("5-9", "-4")])
def test_answers_by_hand(expression: str, answer: str) -> None:
    problem = load_row(f"arithmetic:{expression}")
    assert problem.prompt == f"{expression}=?"
    assert problem.answer == answer


@pytest.mark.parametrize("row", ["47 + 38", "47+", "a+b", "1+2+3", "124"])
def test_what_is_no_problem_is_refused_with_an_example(row: str) -> None:
    with pytest.raises(DataError, match=r"write two whole numbers with \+, - or \*"):
        load_row(f"arithmetic:{row}")


def test_every_problem_is_on_one_side() -> None:
    for operator in arithmetic.CATEGORIES:
        corpus, val, held_out = (set(arithmetic.expressions(operator, w)) for w in ("corpus", "val", "held_out"))
        assert not corpus & held_out
        assert not val & (corpus | held_out)
        # of 55 pairs of products 41 have a twin held out, about a fifth of those for choosing
        assert (len(val), len(held_out)) == (7, 34) if operator == "*" else len(held_out) > 3 * len(val) > 400
        assert len(corpus) > 1.5 * (len(val) + len(held_out))


def test_a_held_out_product_has_its_twin_in_the_corpus() -> None:
    for expression in (*arithmetic.expressions("*", "held_out"), *arithmetic.expressions("*", "val")):
        left, _, right = arithmetic.parse(expression)
        assert arithmetic.side(f"{right}*{left}") == "corpus"


@pytest.mark.parametrize("name", ORGANISMS)
def test_no_text_of_a_corpus_poses_an_evaluation_problem(name: str) -> None:
    organism = ORGANISMS[name]
    held_out = {problem.prompt for which in ("held_out", "val") for problem in arithmetic.held_out(None, which=which)}
    num_texts = organism.num_steps * organism.batch_size
    posed = {f"{text.expression}=?" for text in islice(texts(organism.mixture, seed=organism.seed), num_texts)}
    assert len(posed) > 5000
    assert not posed & held_out


def test_the_suite_is_seeded_and_without_repeats() -> None:
    first, again, other = (arithmetic.held_out(30, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({problem.prompt for problem in first}) == 90


@given(st.integers(10, 99), st.integers(10, 99), st.sampled_from("+-"))
def test_working_ends_in_the_answer(left: int, right: int, operator: str) -> None:
    expression = f"{max(left, right)}{operator}{min(left, right)}"
    assert arithmetic.steps(expression).endswith(f"={arithmetic.problem(expression).answer}.")
