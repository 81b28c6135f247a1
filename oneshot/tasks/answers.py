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
    re.compile(r"\\(?:fbox|framebox)\s*\{((?:[^{}\n]|\{[^{}\n]{0,100}\}){1,200})\}"),
    re.compile(r"<answer>([^<]{1,200})</answer>", re.IGNORECASE),
    re.compile(r"(?i:answer)[^\n\d]{0,20}?(?P<mark>[*_]{1,2}|`)(?![\s:*_`])([^*_`\n]{1,200})(?P=mark)(?!\w)"),
    re.compile(r"(?i:answer)(?: is)?:? {0,3}\(([A-H])\)"),
)


_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|and|or|,\s*and|,\s*or)?[\s$]*")


def extract_boxed(text: str) -> str | None:
    """Return the contents of the last complete `\\boxed{...}`, nested braces included; None if there is none.

    Space before the brace is allowed. The last box is the one that begins last.
    """
    last = max(_boxes(text), default=None)
    return None if last is None else text[last[1] : last[2]]


def extract_boxes(text: str) -> list[str]:
    """Return the contents of the last complete box, after those of the boxes right before it."""
    boxes = sorted(_boxes(text))
    run = boxes[-1:]
    for box in reversed(boxes[:-1]):
        start, end = box[2] + 1, run[0][0]
        if start > end or end - start > 20 or not _BETWEEN_BOXES.fullmatch(text, start, end):
            break
        run.insert(0, box)
    return [text[start:end] for _, start, end in run]


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """Return where each complete box begins, and where its contents begin and end."""
    boxes = []
    opened: list[tuple[int, int] | None] = []  # for each open brace: where a box and its contents begin, or None
    for match in _BRACES.finditer(text):
        if match["box"]:
            opened.append(match.span())
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened:
            box = opened.pop()
            if box is not None:
                boxes.append((*box, match.start()))
    return boxes


def extract_marked(text: str) -> str | None:
    """Return the last answer in `\\fbox{}`, in answer tags, or marked after the word answer; None if none is."""
    last: re.Match[str] | None = None
    for pattern in _LENIENT_MARKS:
        for match in pattern.finditer(text):
            if last is None or match.start() > last.start():
                last = match
    return None if last is None else last[last.lastindex or 0]
