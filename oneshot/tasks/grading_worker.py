"""The grading child: lines `[kind, text, answer]` on stdin -> lines `[verdict, reason]` on stdout.

`grading.Grader` runs `python -m oneshot.tasks.grading_worker DEADLINE_S` and kills it at the deadline. math-verify's
own time-outs are off: they return False, as if the answer had been judged.
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
    """Return one verdict; raise whatever math-verify raises."""
    parsed = _parse(text if kind == "lenient" else f"\\boxed{{{text}}}")
    if kind == "parses":
        return bool(parsed)
    gold = _parse(f"\\boxed{{{answer}}}")
    return bool(verify(gold, parsed, timeout_seconds=None, raise_on_error=True))


MEMORY_BYTES = 4 * 2**30  # memory limit of one child: `9^{9^9}` then raises MemoryError and does not kill the trial


def main() -> None:
    """Answer until stdin ends."""
    deadline_s = float(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process by closing stdin
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print("ready", flush=True)
    for line in sys.stdin:
        kind, text, answer = json.loads(line)
        # without a handler the kernel kills this process even inside C code, in case the parent is gone
        signal.setitimer(signal.ITIMER_REAL, 2 * deadline_s)
        try:
            reply: list[Any] = [judge(kind, text, answer), ""]
        except Exception as error:  # math-verify, sympy and the LaTeX parser raise any type; the parent counts them
            reply = [None, f"{type(error).__name__}: {error}"[:500]]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
