"""The graders: what they accept, and that hostile answers neither hang nor count as wrong."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from oneshot.config.reward import RewardConfig
from oneshot.errors import TrialError
from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.grading import Grade, Grader, grade
from oneshot.tasks.rewards import judge, rewards


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{85}", "85"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{", None),
        ("85", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_complete_box_counts(text: str, boxed: str | None) -> None:
    assert extract_boxed(text) == boxed


# rows of the released grader's table (One-Shot-RLVR, pi_1) on which math-verify agrees
@pytest.mark.parametrize("given", ["12.8", "12.80", "64/5", r"\frac{64}{5}", r"12.8 \text{ miles per hour}"])
def test_equal_answers_are_right(grader: Grader, given: str) -> None:
    assert grader.grade(rf"So \boxed{{{given}}}", "12.8") == Grade(strict=True, lenient=True)


# the released training grader's table (One-Shot-RLVR, deepscaler.py); here strict says ...
RELEASED_ACCEPTS = {
    "12.8": ["12.8", "12.80", "64/5", r"\frac{64}{5}", r"12\frac45", r"12.8 \text{ miles per hour}", "V=12.8"],
    "4/3": ["4/3", r"\dfrac43", r"m=\frac43"],
}
RELEASED_REJECTS = {"12.8": ["12.7", "12.70", "13", "12.8 miles per hour", r"8\sqrt[3]{4}"], "4/3": ["1.333"]}
WE_ACCEPT_TOO = {"12.8": [r"V \approx 12.8"], "4/3": ["8/6"]}
"""An approximation sign before the right number, and a fraction that is not in lowest terms, are right answers."""


def cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(answer, given) for answer, those in table.items() for given in those]


@pytest.mark.parametrize(("answer", "given"), cases(RELEASED_ACCEPTS))
def test_what_the_released_grader_accepts_is_right(grader: Grader, answer: str, given: str) -> None:
    assert grader.grade(rf"So \boxed{{{given}}}", answer).strict is True


@pytest.mark.parametrize(("answer", "given"), cases(RELEASED_REJECTS))
def test_what_the_released_grader_rejects_is_wrong(grader: Grader, answer: str, given: str) -> None:
    assert grader.grade(rf"So \boxed{{{given}}}", answer).strict is False


@pytest.mark.parametrize(("answer", "given"), cases(WE_ACCEPT_TOO))
def test_what_we_accept_beyond_the_released_grader(grader: Grader, answer: str, given: str) -> None:
    assert grader.grade(rf"So \boxed{{{given}}}", answer).strict is True


def test_a_box_without_braces_is_no_box_but_an_answer(grader: Grader) -> None:
    assert grader.grade(r"So \boxed 12.8", "12.8") == Grade(strict=False, lenient=True)


@pytest.mark.slow
def test_every_gold_solution_of_math500_is_right(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "data" / "benchmarks" / "math500.jsonl").read_text().splitlines()]
    boxed = [(row["solution"], row["answer"]) for row in rows if extract_boxed(row["solution"]) == row["answer"]]
    assert len(boxed) > 450
    with Grader(num_children=2) as pool:
        wrong = [
            answer for (_, answer), g in zip(boxed, pool.grade_all(boxed), strict=True) if not (g.strict and g.lenient)
        ]
    assert wrong == []


def test_answers_are_graded_side_by_side_and_in_order() -> None:
    pairs = [(rf"\boxed{{\frac{{{2 * n}}}{{2}}}}", str(n % 5)) for n in range(20)]
    with Grader(num_children=3) as pool:
        assert [one.strict for one in pool.grade_all(pairs)] == [n < 5 for n in range(20)]


def test_the_module_grades_without_a_grader_at_hand() -> None:
    assert grade(r"\boxed{\frac{170}{2}}", "85") == Grade(strict=True, lenient=True)


@pytest.mark.parametrize("given", ["12.7", "12.70", "13", r"8\sqrt[3]{4}"])
def test_near_answers_are_wrong(grader: Grader, given: str) -> None:
    assert grader.grade(rf"So \boxed{{{given}}}", "12.8").strict is False


def test_an_answer_in_words_is_right_for_the_lenient_grader_only(grader: Grader) -> None:
    assert grader.grade("47+30=77. 77+8=85. So it is 85.", "85") == Grade(strict=False, lenient=True)
    assert grader.grade("I do not know.", "85") == Grade(strict=False, lenient=False)


def test_the_box_wins_over_what_stands_before_it(grader: Grader) -> None:
    assert grader.grade(r"It is 85. \boxed{84}", "85").strict is False


def test_grading_works_off_the_main_thread() -> None:
    found: list[Grade] = []

    def work() -> None:
        with Grader() as grader:
            found.append(grader.grade(r"\boxed{\frac{170}{2}}", "85"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [Grade(strict=True, lenient=True)]


def test_hostile_answers_are_ungraded_within_their_deadline_and_the_next_is_graded() -> None:
    with Grader(timeout_s=1.0) as grader:
        grader.grade(r"\boxed{\frac{2}{2}}", "1")  # the child is up
        for hostile in (r"9^{9^{9^9}}", r"\sum_{k=1}^{10^9} \frac{1}{k}"):
            start_s = time.monotonic()
            grade = grader.grade(rf"\boxed{{{hostile}}}", "85")
            assert grade.strict is None
            assert grade.lenient is None
            assert grade.reason in ("no verdict within 1 s", "TooLargeError: a power has too many digits")
            assert time.monotonic() - start_s < 60
        assert grader.grade(r"\boxed{\frac{170}{2}}", "85").strict is True


def test_a_child_that_dies_leaves_that_answer_ungraded_and_is_replaced() -> None:
    with Grader(timeout_s=5.0) as grader:
        grader.grade(r"\boxed{\frac{2}{2}}", "1")
        child = grader._slots.queue[0]
        assert child is not None
        os.kill(child._process.pid, signal.SIGKILL)
        child._process.wait()
        assert grader.grade(r"\boxed{\frac{4}{2}}", "2").strict is None
        assert grader.grade(r"\boxed{\frac{6}{2}}", "3").strict is True


def paid(texts: list[str], config: RewardConfig, grader: Grader, *, answer: str = "85") -> list[bool | None]:
    keys = [(0, 0, row) for row in range(len(texts))]
    return rewards([judge(text, answer, config, grader) for text in texts], config, grader, keys=keys).values


def test_the_outcome_arm_pays_the_boxed_answer(grader: Grader) -> None:
    texts = [r"\boxed{85}", r"\boxed{84}", "So it is 85.", ""]
    assert paid(texts, RewardConfig(), grader) == [True, False, False, False]


def test_the_format_arm_pays_any_boxed_answer_and_nothing_else(grader: Grader) -> None:
    texts = [r"\boxed{85}", r"\boxed{84}", r"\boxed{\frac{1}{2}}", r"\boxed{}", r"\boxed{ }", "So it is 85.", ""]
    arm = RewardConfig(kind="format")
    assert paid(texts, arm, grader) == [True, True, True, False, False, False, False]


def test_an_ungraded_completion_has_no_reward_never_a_silent_zero() -> None:
    with Grader(timeout_s=1.0) as grader:
        grader.grade(r"\boxed{\frac{2}{2}}", "1")
        assert paid([r"\boxed{9^{9^{9^9}}}"], RewardConfig(), grader) == [None]


def test_a_grader_that_cannot_start_says_why_and_is_no_time_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('broken here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Grader() as grader, pytest.raises(TrialError, match=r"(?s)did not start: .*broken here"):
        grader.grade(r"\boxed{\frac{1}{2}}", "1/2")


def test_an_answer_without_verdict_is_asked_again_in_the_next_trial() -> None:
    with Grader(timeout_s=1.0) as grader:
        grader.grade(r"\boxed{\frac{2}{2}}", "1")
        assert grader.grade(r"\boxed{9^{9^{9^9}}}", "85").strict is None
        num_known = len(grader._cache)
        grader.forget_ungraded()
        assert len(grader._cache) == num_known - 1


def test_a_short_answer_is_remembered_and_a_long_completion_is_not() -> None:
    with Grader() as grader:
        grader.grade(r"\boxed{\frac{2}{4}}", "0.25")
        known = len(grader._cache)
        grader.grade("word " * 100 + r"\boxed{\frac{2}{4}}", "0.25")
        assert len(grader._cache) == known
