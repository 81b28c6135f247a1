"""Completion -> the answer that it gives: the contents of its last box, or what follows its last phrase or mark.

Both run in time linear in the completion, because no deadline holds in the process that calls them.
"""

import re

_BRACES = re.compile(
    r"(?P<box>\\boxed\s*\{)"
    r"|\\(?=\\boxed\s*\{)"  # `\\boxed{` of a completion with doubled backslashes is a box
    r"|\\."  # an escaped brace, or a line break `\\`, opens and closes nothing
    r"|(?P<open>\{)|(?P<close>\})",
    re.DOTALL,
)
_LENIENT_MARKS = (
    re.compile(r"\\fbox\s*\{([^{}\n]{1,200})\}"),
    re.compile(r"<answer>([^<]{1,200})</answer>"),
    re.compile(r"(?i:answer)[^\n\d*]{0,20}\*{1,2}([^*\n]{1,200})\*{1,2}"),
)


def extract_boxed(text: str) -> str | None:
    """Return the contents of the last complete `\\boxed{...}`, nested braces included; None if there is none.

    Space before the brace is allowed. The last box is the one that begins last.
    """
    best: tuple[int, int] | None = None
    opened: list[int | None] = []  # for each open brace: where a box's contents begin, or None
    for match in _BRACES.finditer(text):
        if match["box"]:
            opened.append(match.end())
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened:
            start = opened.pop()
            if start is not None and (best is None or start > best[0]):
                best = start, match.start()
    return None if best is None else text[best[0] : best[1]]


def extract_marked(text: str) -> str | None:
    """Return the last answer in `\\fbox{}`, in answer tags, or in asterisks after the word answer; None if none is."""
    last: re.Match[str] | None = None
    for pattern in _LENIENT_MARKS:
        for match in pattern.finditer(text):
            if last is None or match.start() > last.start():
                last = match
    return None if last is None else last[1]
