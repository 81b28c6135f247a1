"""Our grader on pairs of answer and label, by kind, and the laws that hold for all of them."""

import json
import string
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot.tasks import sets
from oneshot.tasks.answers import extract_boxed, extract_boxes
from oneshot.tasks.equality import equal
from oneshot.tasks.grading import Grader
from oneshot.tasks.labels import label_warnings, unsatisfiable
from oneshot.tasks.lenient import lenient_equal
from oneshot.tasks.problems import Problem
from oneshot.tasks.released import released_equal

PAIRS = Path(__file__).parent / "cases" / "grading.txt"


def pairs() -> list[tuple[str, str, str, bool]]:
    kind, rows = "", []
    for line in PAIRS.read_text(encoding="utf-8").split("\n"):
        if line.startswith("## "):
            kind = line[3:]
        elif line and not line.startswith("# "):
            is_right = " | " in line
            answer, label = line.rsplit(" | " if is_right else " ! ", 1)
            rows.append((kind, answer, label, is_right))
    return rows


@pytest.mark.parametrize(("kind", "answer", "label", "is_right"), pairs())
def test_an_answer_is_right_if_a_mathematician_says_so(kind: str, answer: str, label: str, is_right: bool) -> None:
    assert equal(answer, label) is is_right, kind


@pytest.mark.parametrize(("kind", "answer", "label", "is_right"), pairs())
def test_a_box_holds_what_is_equal_to_itself(kind: str, answer: str, label: str, is_right: bool) -> None:
    divides_by_zero = label == r"\frac{5}{0}"
    assert equal(label, label) is not divides_by_zero, kind


@pytest.mark.parametrize(("kind", "answer", "label", "is_right"), pairs())
def test_dollars_spaces_and_left_and_right_never_change_a_verdict(
    kind: str, answer: str, label: str, is_right: bool
) -> None:
    if (
        answer.startswith(("$", r"\("))
        or answer.endswith("\\")
        or any(word in answer for word in ("text", "brace", r"\{"))
    ):
        return
    sized = answer.replace("(", r"\left(").replace(")", r"\right)")
    balanced = answer.count("(") == answer.count(")")
    for spelling in (
        f"${answer}$",
        f" {answer} ",
        rf"{answer}\,",
        rf"\displaystyle {answer}",
        sized if balanced else answer,
    ):
        assert equal(spelling, label) is is_right, spelling


@pytest.mark.parametrize("which", ["wrong", "right"])
def test_the_cases_of_reported_errors_are_graded_right(shared: Path, grader: Grader, which: str) -> None:
    path = shared / "cases" / f"grading_{which}_today.jsonl"
    if not path.is_file():
        pytest.skip("the reported cases are not on this machine")
    rows = [json.loads(line) for line in path.read_text().split("\n") if line.strip()]
    grades = [grader.grade(row["completion"], row["answer"]) for row in rows]
    failures = [
        (row["completion"], row["answer"])
        for row, grade in zip(rows, grades, strict=True)
        if any(row[name] not in (None, getattr(grade, name)) for name in ("strict", "lenient"))
    ]
    assert failures == []


@given(st.integers(-(10**30), 10**30))
def test_a_whole_number_is_equal_to_itself_and_to_no_neighbour(number: int) -> None:
    assert equal(str(number), str(number))
    assert equal(f"{number:,}", str(number))
    assert equal(f"{number:,}".replace(",", "{,}"), str(number))
    assert not equal(str(number + 1), str(number))


@given(st.integers(0, 10**9), st.integers(1, 13), st.integers(1, 9))
def test_a_decimal_with_another_last_digit_is_wrong(whole: int, num_zeros: int, digit: int) -> None:
    label = f"{whole}.{'0' * num_zeros}{digit}"
    other = f"{whole}.{'0' * num_zeros}{digit % 9 + 1}"
    assert equal(label, label)
    assert equal(label + "0", label)
    assert not equal(other, label)
    assert not equal(str(whole), label)


@given(st.integers(-500, 500), st.integers(1, 500), st.integers(1, 20))
def test_a_fraction_is_equal_to_every_spelling_of_its_value(upper: int, lower: int, factor: int) -> None:
    label = rf"\frac{{{upper}}}{{{lower}}}"
    assert equal(rf"\frac{{{upper * factor}}}{{{lower * factor}}}", label)
    assert equal(f"{upper}/{lower}", label)
    assert equal(label, str(Fraction(upper, lower)))
    assert not equal(rf"\frac{{{upper + 1}}}{{{lower}}}", label)
    assert not equal(rf"\frac{{{upper}}}{{{lower}}}+10^{{-30}}", label)


EXPRESSIONS = st.recursive(
    st.sampled_from(["x", "y", "2", "3", r"\pi", r"\sqrt{2}", "n"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}+{pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: rf"{pair[0]} \cdot {pair[1]}"),
        st.tuples(inner, inner).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=60)
@given(EXPRESSIONS, EXPRESSIONS)
def test_equality_of_expressions_is_reflexive_and_symmetric(one: str, other: str) -> None:
    assert equal(one, one)
    assert equal(one, other) is equal(other, one)
    assert equal(f"{one}+{other}", f"{other}+{one}")
    assert not equal(f"{one}+10^{{-25}}", one)


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), st.randoms())
def test_a_list_may_be_in_any_order_and_a_tuple_may_not(numbers: list[int], random) -> None:  # type: ignore[no-untyped-def]  # Hypothesis' own random
    shuffled = random.sample(numbers, len(numbers))
    listed, label = (", ".join(map(str, order)) for order in (shuffled, numbers))
    assert equal(listed, label)
    assert equal(rf"\{{{listed}\}}", label)
    assert equal(f"({listed})", f"({label})") is (shuffled == numbers)
    assert not equal(", ".join(map(str, numbers[1:])), label)


@given(st.text(alphabet=string.printable, max_size=40))
@settings(deadline=None, max_examples=200)
def test_no_text_breaks_the_reader(text: str) -> None:
    assert equal(text, "5") in (True, False)
    assert equal("5", text) in (True, False)


SYSTEM = r"\left\{\begin{array}{l}x=1\\y=2\end{array}\right."


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed {42}", "42"),
        ("\\boxed\n{42}", "42"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (rf"\boxed{{9}} then \boxed{{{SYSTEM}}}", SYSTEM),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"} \boxed{5} {", "5"),
        (r"\\boxed{42}", "42"),
    ],
)
def test_a_box_is_what_latex_sees(text: str, boxed: str) -> None:
    assert extract_boxed(text) == boxed


@pytest.mark.parametrize("text", ["\\boxed{" * 200_000, "\\boxed{" * 100_000 + "5" + "}" * 100_000, "\\" * 300_000])
def test_extraction_is_linear_in_the_completion(text: str) -> None:
    # as many steps as characters; a quadratic scan would take hours, and the test would reach its time limit
    assert extract_boxed(text) in (None, "5")


def test_boxes_side_by_side_are_a_list_for_the_lenient_grader() -> None:
    assert extract_boxes(r"So $\boxed{1}$ and $\boxed{2}$.") == ["1", "2"]
    assert lenient_equal(r"So $\boxed{1}$ and $\boxed{2}$.", "1, 2")
    assert extract_boxes(r"First \boxed{1}. So the answer is \boxed{2}") == ["2"]


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        (r"Hence \fbox{42}", True),
        (r"Hence \fbox{41}", False),
        ("<answer>42</answer>", True),
        ("The answer is **42**.", True),
        ("The answer is *41*.", False),
        ("**Answer**: **42**", True),
        ("The answer is __42__", True),
        ("The answer is `42`", True),
        ("Answer: 42", True),
        ("It is 42.", True),
        (r"It is 42. \boxed{41}", False),
    ],
)
def test_the_lenient_grader_reads_marked_answers(text: str, is_right: bool) -> None:
    assert lenient_equal(text, "42") is is_right


@pytest.mark.parametrize(
    ("answer", "label", "is_right"),
    [
        ("12.8", "12.8", True),
        ("12.801", "12.8", True),  # a difference of 8e-5 of the value
        ("12.81", "12.8", False),
        ("25", "0.25", True),  # a percentage
        (r"25\%", "0.25", True),
        ("0.33334", r"\frac13", True),
        ("0.33", r"\frac13", False),
        ("(0.5, 1)", r"(\frac{1}{2}, 1)", True),
        ("(1, 2)", "(2, 1)", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True),
        ("x=5", "5", True),
        ("2x+2y=4", "4x+4y=8", False),  # equations are compared by the difference of their sides, not up to a factor
        ("x+y=2", "2-x-y=0", True),
        ("(x-1)(x+1)", "x^2-1", True),
        ("1604_9", "1604_8", True),  # Python reads both as numbers, which differ by less than 1e-4 of their value
        ("The answer is (B)", "B", True),
        (r"5\text{ cm}", "5", True),
        ("", "5", False),
    ],
)
def test_the_released_rules_are_more_tolerant(answer: str, label: str, is_right: bool) -> None:
    assert released_equal(rf"So \boxed{{{answer}}}", label) is is_right


def test_both_graders_are_asked_only_if_they_are_named(grader: Grader) -> None:
    ours = grader.grade(r"\boxed{0.33334}", r"\frac13")
    both = grader.grade(r"\boxed{0.33334}", r"\frac13", graders=("strict", "released"))
    assert (ours.strict, ours.released) == (False, None)
    assert (both.strict, both.released) == (False, True)


@pytest.mark.parametrize("name", ["dsr_sub", "math500", "aime24", "aime25", "amc23"])
def test_every_label_of_a_built_in_set_is_right_for_itself(
    shared: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("ONESHOT_DATA", str(shared / "data"))
    wrong = [problem.id for problem in sets.load(name) if not equal(problem.answer, problem.answer)]
    assert wrong == []


def test_labels_that_nothing_satisfies_are_named() -> None:
    labels = ["5", "", "nan", r"\frac{1}{2", r"22\frac{1}{2}}", "none of these", r"\{1,2\}"]
    assert [bool(unsatisfiable(label)) for label in labels] == [False, True, True, True, False, False, False]
    problems = [Problem(id=f"s:{row}", prompt="p", answer="") for row in range(7)]
    warnings = label_warnings("s", problems)
    assert warnings[0] == "s:0: the label '' is empty: no answer is right for it"
    assert warnings[-1] == "s: 2 more labels that no answer can satisfy"


def test_files_of_the_working_directory_are_not_run_by_the_grader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "token", "json", "select"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'a').write({name!r})\n")
    (tmp_path / "oneshot").mkdir()
    (tmp_path / "oneshot" / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    with Grader() as grader:
        assert grader.grade(r"\boxed{\frac{2}{4}}", "0.5").strict is True
    assert not (tmp_path / "marker").exists()
    assert "oneshot.tasks.grading_worker" not in sys.modules
