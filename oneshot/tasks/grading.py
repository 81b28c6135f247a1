"""Completion and answer -> right or not, by two graders, in processes that can be killed.

`strict` looks at the last `\\boxed{}` only; `lenient` takes any answer that can be extracted. Both are math-verify, run
in a pool of child processes: its own time-outs need the main thread (`signal.alarm`), and a sum of a billion terms or
`9^{9^{9^9}}` does not stop for them. What could not be judged before its deadline is None, with the reason, never
a silent False.
"""

import atexit
import contextlib
import json
import queue
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import IO, Literal

from oneshot.errors import TrialError
from oneshot.tasks.problems import extract_boxed

Verdict = bool | None

START_TIMEOUT_S = 120.0
"""For a child to import sympy, on a machine that is busy with other things."""

MAX_REMEMBERED = 200
"""Characters of a question that comes again, as extracted answers do; whole completions would fill the memory."""

_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """Both verdicts: True, False, or None where the grader could not tell (`reason` says why)."""

    strict: Verdict
    lenient: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Question:
    """What a child is asked: is this text's answer equal to that one?"""

    kind: Literal["strict", "lenient", "parses"]
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Reply:
    verdict: Verdict
    reason: str


class Grader:
    """Grades answers in child processes, remembers every distinct question, and outlives hangs.

    A context manager; usable from any thread, and from as many at a time as it has children.
    """

    def __init__(self, *, timeout_s: float = 5.0, num_children: int = 1) -> None:
        self.timeout_s = timeout_s
        self.num_children = num_children
        self._memo: dict[_Question, _Reply] = {}
        self._places: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        self._fill()

    def _fill(self) -> None:
        for _ in range(self.num_children):
            self._places.put(None)  # a child is started when its place is first used

    def __enter__(self) -> "Grader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forget_ungraded(self) -> None:
        """Forgets answers without verdict: a busy machine in one trial must not decide the next one's grades."""
        self._memo = {question: reply for question, reply in self._memo.items() if reply.verdict is not None}

    def close(self) -> None:
        """Ends the children; the next question starts another."""
        for child in [self._places.get() for _ in range(self.num_children)]:
            if child is not None:
                child.kill()
        self._fill()

    def grade_all(self, pairs: Iterable[tuple[str, str]]) -> list["Grade"]:
        """Both verdicts on each (completion, answer), as many at a time as there are children."""
        with ThreadPoolExecutor(max_workers=self.num_children) as threads:
            return list(threads.map(lambda pair: self.grade(*pair), pairs))

    def strict(self, completion: str, answer: str) -> Verdict:
        """Whether the last boxed answer is right."""
        return self._strict(completion, answer).verdict

    def grade(self, completion: str, answer: str) -> Grade:
        """Both verdicts on one completion."""
        strict = self._strict(completion, answer)
        if strict.verdict is not False:
            # right is right for both; and a box that no deadline was enough for would only cost another
            return Grade(strict=strict.verdict, lenient=strict.verdict, reason=strict.reason)
        lenient = self._ask(_Question("lenient", completion, answer))
        return Grade(strict=False, lenient=lenient.verdict, reason=lenient.reason)

    def has_answer(self, completion: str) -> Verdict:
        """Whether a final answer stands in a box and can be parsed, right or wrong (the `format` arm)."""
        boxed = extract_boxed(completion)
        if boxed is None or not boxed.strip():
            return False
        if _WHOLE_NUMBER.fullmatch(boxed.strip()):
            return True
        return self._ask(_Question("parses", boxed, "")).verdict

    def _strict(self, completion: str, answer: str) -> _Reply:
        boxed = extract_boxed(completion)
        if boxed is None:
            return _Reply(False, "")
        given, wanted = boxed.strip(), answer.strip()
        # what math-verify would say anyway, without asking it: equal text, or two whole numbers
        if given == wanted:
            return _Reply(True, "")
        if _WHOLE_NUMBER.fullmatch(given) and _WHOLE_NUMBER.fullmatch(wanted):
            return _Reply(int(given) == int(wanted), "")
        return self._ask(_Question("strict", given, wanted))

    def _ask(self, question: _Question) -> _Reply:
        if question in self._memo:
            return self._memo[question]
        child = self._places.get()
        try:
            if child is None:
                child = _Child(self.timeout_s)
            reply = child.ask(question)
            if reply is None:
                died = child.has_ended()
                child.kill()
                child = None
                reply = _Reply(None, "the grader died" if died else f"no verdict within {self.timeout_s:g} s")
        finally:
            self._places.put(child)
        if len(question.text) <= MAX_REMEMBERED:
            self._memo[question] = reply
        return reply


def grade(completion: str, answer: str) -> Grade:
    """Both verdicts on one completion, by a grader that lives as long as the process."""
    return _shared().grade(completion, answer)


@cache
def _shared() -> Grader:
    grader = Grader()
    atexit.register(grader.close)
    return grader


class _Child:
    """One grading process, spoken to in lines of JSON."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process = subprocess.Popen(
            [sys.executable, "-m", "oneshot.tasks.grading_worker", str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin = self._process.stdin
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        self._stderr: deque[str] = deque(maxlen=20)
        threading.Thread(target=self._stderr.extend, args=(self._process.stderr,), daemon=True).start()
        if not self._next_line(START_TIMEOUT_S):  # it says when it has imported everything
            self.kill()
            raise TrialError(
                "the grading process did not start: " + ("".join(self._stderr).strip() or "no word of why")
            )

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._lines.put(line)
        self._lines.put("")

    def _next_line(self, timeout_s: float) -> str | None:
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def ask(self, question: _Question) -> _Reply | None:
        """The child's reply; None if it gave none in time, and is not to be asked again."""
        try:
            self._stdin.write(json.dumps([question.kind, question.text, question.answer]) + "\n")
            self._stdin.flush()
        except BrokenPipeError:
            return None
        line = self._next_line(self._timeout_s)
        if not line:
            return None
        verdict, reason = json.loads(line)
        return _Reply(verdict, reason)

    def has_ended(self) -> bool:
        """Whether it is gone by itself, as opposed to busy."""
        try:
            self._process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.close()
