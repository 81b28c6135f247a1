"""The grading child: lines `[kind, text, answer]` on stdin -> lines `[verdict, reason]` on stdout.

With the kind `call`, the text has a function's arguments, and the answer names it. A kind may also be a foreign grader.

`grading.Grader` runs this module with a deadline in seconds, and kills it at the deadline. math-verify's own time-outs
are off: they return False, as if the answer had been judged.
"""

import json
import logging
import resource
import signal
import sys
from typing import Any

from oneshot.tasks.equality import equal, parses
from oneshot.tasks.foreign import is_call, load
from oneshot.tasks.lenient import lenient_equal
from oneshot.tasks.released import released_equal


def judge(kind: str, text: str, answer: str) -> bool | None:
    """Return one verdict; raise whatever math-verify or a foreign grader raises."""
    if is_call(kind):
        return _judged(kind, text, answer)
    if kind == "parses":
        return parses(text)
    if kind == "released":
        return released_equal(text, answer)
    return lenient_equal(text, answer) if kind == "lenient" else equal(text, answer)


def _judged(function: str, completion: str, answer: str) -> bool | None:
    """Return the verdict of a foreign grader. Raises TypeError: it is none."""
    verdict = load(function)(completion, answer)
    if verdict is None or isinstance(verdict, bool):
        return verdict
    raise TypeError(f"{function} returned {verdict!r:.80}, not True, False or None")


def answered(kind: str, text: str, answer: str) -> Any:
    """Return the reply to one line; raise whatever goes wrong."""
    if kind == "call":
        return call(answer, json.loads(text))
    if kind == "load":
        return callable(load(answer))
    return judge(kind, text, answer)


def call(function: str, arguments: dict[str, Any]) -> Any:
    """Return what a function of a foreign module returns; raise whatever it raises."""
    return load(function)(**arguments)


MEMORY_BYTES = 4 * 2**30  # memory limit of one child: `9^{9^9}` then raises MemoryError and does not kill the trial


def main() -> None:
    """Answer until stdin ends."""
    logging.disable(logging.WARNING)  # math-verify warns at each call that its time-outs are off
    deadline_s = float(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process by closing stdin
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # what foreign code prints is no reply
    replies, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=replies, flush=True)
    for question in sys.stdin:
        kind, text, answer = json.loads(question)
        # without a handler the kernel kills this process even inside C code, in case the parent is gone
        signal.setitimer(signal.ITIMER_REAL, 2 * deadline_s)
        try:
            line = json.dumps([answered(kind, text, answer), ""])
        except Exception as error:  # math-verify, sympy and the LaTeX parser raise any type; the parent counts them
            line = json.dumps([None, f"{type(error).__name__}: {error}"[:500]])
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(line, file=replies, flush=True)


if __name__ == "__main__":
    main()
