"""Completion and answer -> right or wrong, by graders in processes that can be killed.

Our own grader (equality.py) gives two verdicts: `strict` reads only the last `\\boxed{}`, `lenient` any answer that
can be extracted. `released` is the released evaluation's grader (released.py), and others are functions of packages.
They run in a pool of child processes: nothing else stops a sum of a billion terms or `9^{9^{9^9}}`. If a grader cannot
judge before its deadline, the verdict is None with a reason, never False.
"""

import atexit
import contextlib
import json
import queue
import re
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from typing import IO, Any

from oneshot.children import command
from oneshot.config.evaluation import GRADERS, GraderName
from oneshot.errors import TrialError
from oneshot.tasks import foreign
from oneshot.tasks.answers import extract_boxed

Verdict = bool | None

START_TIMEOUT_S = 120.0  # time for a child to import sympy on a busy machine

MAX_CACHED_CHARACTERS = 200
"""Longest text whose reply is cached: extracted answers repeat, and whole completions would fill the memory."""

_NUMERAL = re.compile(r"[+-]?\d{1,40}(?:\.\d{1,14})?")  # more decimals may be those of a printed float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """The verdicts: True, False, or None if the grader could not judge (`reason` says why)."""

    strict: Verdict
    lenient: Verdict
    reason: str = ""
    released: Verdict = None  # also if the released grader was not asked
    others: Mapping[str, Verdict] = field(default_factory=dict)  # of graders that are not ours, by name


@dataclass(frozen=True, slots=True)
class _Question:
    """A request to a child: is the answer in `text` equal to `answer`?"""

    kind: str  # strict, lenient, parses, released, or the function of another grader
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Reply:
    verdict: Any  # a verdict, or what a function returned
    reason: str


class Grader:
    """A pool of grading processes with a cache of their verdicts, which survives hangs.

    It is a context manager. Any thread may use it, and as many at a time as it has children.
    """

    def __init__(self, *, timeout_s: float = 5.0, num_children: int = 1) -> None:
        self.timeout_s = timeout_s
        self.num_children = num_children
        self._cache: dict[_Question, _Reply] = {}
        self._slots: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        self._fill()

    def _fill(self) -> None:
        for _ in range(self.num_children):
            self._slots.put(None)  # a child starts when its slot is first used

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget_ungraded(self) -> None:
        """Forget replies without a verdict: a busy machine in one trial must not decide the next trial's grades."""
        self._cache = {question: reply for question, reply in self._cache.items() if reply.verdict is not None}

    def close(self) -> None:
        """Kill the children; the next question starts a new one."""
        for child in [self._slots.get() for _ in range(self.num_children)]:
            if child is not None:
                child.kill()
        self._fill()

    def grade_all(
        self, pairs: Iterable[tuple[str, str]], *, graders: Sequence[GraderName] = ("strict",)
    ) -> list["Grade"]:
        """Return the verdicts on each (completion, answer), using all children in parallel."""
        with ThreadPoolExecutor(max_workers=self.num_children) as threads:
            return list(threads.map(lambda pair: self.grade(*pair, graders=graders), pairs))

    def strict(self, completion: str, answer: str) -> Verdict:
        """Return whether the last boxed answer is right."""
        verdict: Verdict = self._strict(completion, answer).verdict
        return verdict

    def verdict(self, name: GraderName, completion: str, answer: str) -> Verdict:
        """Return whether a completion is right by one grader."""
        verdict: Verdict = self._by(name, completion, answer).verdict
        return verdict

    def _by(self, name: GraderName, completion: str, answer: str) -> _Reply:
        if name == "strict":
            return self._strict(completion, answer)
        if name == "released":
            return self._released(completion, answer)
        return self._ask(_Question(grader_call(name), completion, answer))

    def grade(self, completion: str, answer: str, *, graders: Sequence[GraderName] = ("strict",)) -> Grade:
        """Return the verdicts on one completion: ours, and those of the other graders that are named."""
        grade = self._ours(completion, answer)
        for name in (name for name in graders if name != "strict"):
            reply = self._by(name, completion, answer)
            grade = replace(grade, reason=grade.reason or reply.reason)
            if name == "released":
                grade = replace(grade, released=reply.verdict)
            else:
                grade = replace(grade, others={**grade.others, name: reply.verdict})
        return grade

    def _ours(self, completion: str, answer: str) -> Grade:
        strict = self._strict(completion, answer)
        if strict.verdict is not False:
            # right for `strict` is right for both; a text that reached its deadline would only reach it again
            return Grade(strict=strict.verdict, lenient=strict.verdict, reason=strict.reason)
        lenient = self._ask(_Question("lenient", completion, answer))
        return Grade(strict=False, lenient=lenient.verdict, reason=lenient.reason)

    def has_answer(self, completion: str) -> Verdict:
        """Return whether a boxed answer can be parsed, right or wrong (the `format` arm)."""
        boxed = extract_boxed(completion)
        if boxed is None or not boxed.strip():
            return False
        if _NUMERAL.fullmatch(boxed.strip()):
            return True
        verdict: Verdict = self._ask(_Question("parses", boxed, "")).verdict
        return verdict

    def _strict(self, completion: str, answer: str) -> _Reply:
        boxed = extract_boxed(completion)
        if boxed is None:
            return _Reply(False, "")
        text, answer = boxed.strip(), answer.strip()
        # equal texts and plain numerals need no child, whose verdict would be the same
        if text == answer:
            return _Reply(True, "")
        if _NUMERAL.fullmatch(text) and _NUMERAL.fullmatch(answer):
            return _Reply(Fraction(text) == Fraction(answer), "")
        return self._ask(_Question("strict", text, answer))

    def _released(self, completion: str, answer: str) -> _Reply:
        boxed = extract_boxed(completion)
        if boxed is None:
            return self._ask(_Question("released", completion, answer))
        if boxed.strip() and boxed.strip() == answer.strip():
            return _Reply(True, "")
        return self._ask(_Question("released", f"\\boxed{{{boxed}}}", answer))

    def call(self, function: str, arguments: Mapping[str, Any]) -> tuple[Any, str]:
        """Return what `package.module:name` returns for the arguments, as JSON has it, and why not if it fails.

        It runs in a grading process, with its deadline and memory bound.
        """
        reply = self._exchange(["call", json.dumps(arguments), function])
        return reply.verdict, reply.reason

    def cannot_load(self, function: str) -> str:
        """Return why a function cannot be imported in a grading process, or an empty text."""
        return self._exchange(["load", "", function]).reason

    def _ask(self, question: _Question) -> _Reply:
        if question in self._cache:
            return self._cache[question]
        reply = self._exchange([question.kind, question.text, question.answer])
        if len(question.text) <= MAX_CACHED_CHARACTERS:
            self._cache[question] = reply
        return reply

    def _exchange(self, line: Sequence[str]) -> _Reply:
        """Have one child answer; a child that gives no answer in time is killed."""
        child = self._slots.get()
        try:
            if child is None:
                child = _Child(self.timeout_s)
            reply = child.ask(line)
            if reply is None:
                died = child.has_ended()
                child.kill()
                child = None
                reply = _Reply(None, "the grader died" if died else f"no verdict within {self.timeout_s:g} s")
        finally:
            self._slots.put(child)
        return reply


def grader_call(name: GraderName) -> str:
    """Return the function of a grader that is not ours. Raises DataError: there is no such grader."""
    return foreign.resolve(name, "graders", built_in=GRADERS)


def grade(completion: str, answer: str) -> Grade:
    """Return both verdicts on one completion, by a grader that lives as long as this process."""
    return _shared().grade(completion, answer)


@cache
def _shared() -> Grader:
    grader = Grader()
    atexit.register(grader.close)
    return grader


class _Child:
    """One grading process, which reads and writes lines of JSON."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process = subprocess.Popen(
            command("oneshot.tasks.grading_worker", str(timeout_s)),
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
        if not self._next_line(START_TIMEOUT_S):  # the child writes a line once its imports are done
            self.kill()
            raise TrialError(
                "the grading process did not start: " + ("".join(self._stderr).strip() or "it gave no reason")
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

    def ask(self, line: Sequence[str]) -> _Reply | None:
        """Return the child's reply, or None if it gave none in time; such a child must not be used again."""
        try:
            self._stdin.write(json.dumps(list(line)) + "\n")
            self._stdin.flush()
        except BrokenPipeError:
            return None
        answer = self._next_line(self._timeout_s)
        if not answer:
            return None
        verdict, reason = json.loads(answer)
        return _Reply(verdict, reason)

    def has_ended(self) -> bool:
        """Return whether the process has ended by itself, as opposed to being busy."""
        try:
            self._process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Kill the process and close its streams."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.close()
