"""The graders: what they accept, and that hostile answers neither hang nor count as wrong."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from oneshot.config import RewardConfig
from oneshot.errors import TrialError
from oneshot.tasks.grading import Grade, Grader, extract_boxed
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
            assert grade.reason == "no verdict within 1 s"
            assert time.monotonic() - start_s < 60
        assert grader.grade(r"\boxed{\frac{170}{2}}", "85").strict is True


def test_a_child_that_dies_leaves_that_answer_ungraded_and_is_replaced() -> None:
    with Grader(timeout_s=5.0) as grader:
        grader.grade(r"\boxed{\frac{2}{2}}", "1")
        child = grader._places.queue[0]
        assert child is not None
        os.kill(child._process.pid, signal.SIGKILL)
        child._process.wait()
        assert grader.grade(r"\boxed{\frac{4}{2}}", "2").strict is None
        assert grader.grade(r"\boxed{\frac{6}{2}}", "3").strict is True


def paid(texts: list[str], config: RewardConfig, grader: Grader, *, answer: str = "85") -> list[bool | None]:
    keys = [(0, 0, row) for row in range(len(texts))]
    return rewards([judge(text, answer, config, grader) for text in texts], config, grader, keys=keys)


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
        num_known = len(grader._memo)
        grader.forget_ungraded()
        assert len(grader._memo) == num_known - 1
