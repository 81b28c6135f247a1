"""The grading child: lines `[kind, text, answer]` on stdin -> lines `[verdict, reason]` on stdout.

Run as `python -m oneshot.tasks.grading_worker DEADLINE_S` by `grading.Grader`, which kills at the deadline.
math-verify's own time-outs are off: they return False, and would make a question that nobody answered look answered.
"""

import json
import resource
import signal
import sys
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify


def _parse(text: str) -> list[Any]:
    parsed: list[Any] = parse(
        text,
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()],
        parsing_timeout=None,  # type: ignore[arg-type]  # math-verify accepts None (no alarm), its annotation does not
        raise_on_error=True,
    )
    return parsed


def judge(kind: str, text: str, answer: str) -> bool:
    """One verdict; raises whatever math-verify raises."""
    found = _parse(text if kind == "lenient" else f"\\boxed{{{text}}}")
    if kind == "parses":
        return bool(found)
    gold = _parse(f"\\boxed{{{answer}}}")
    return bool(verify(gold, found, timeout_seconds=None, raise_on_error=True))


MEMORY_BYTES = 4 * 2**30
"""Of one child: `9^{9^9}` is a MemoryError then, and not the end of the trial beside it."""


def main() -> None:
    """Answers until stdin ends."""
    deadline_s = float(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us by closing stdin
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print("ready", flush=True)
    for line in sys.stdin:
        kind, text, answer = json.loads(line)
        # no handler: the kernel ends us, even deep in C, should the parent be gone and nobody else do it
        signal.setitimer(signal.ITIMER_REAL, 2 * deadline_s)
        try:
            reply: list[Any] = [judge(kind, text, answer), ""]
        except Exception as error:  # math-verify, sympy and the LaTeX parser raise anything; the parent counts it
            reply = [None, f"{type(error).__name__}: {error}"[:500]]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
