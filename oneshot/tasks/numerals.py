"""A canonical spelling -> a number in another base, or a time of day."""

import re

from oneshot.tasks.answer_types import Digits, Ratio
from oneshot.tasks.expression import number

_NUMBER_WORDS = ("",) * 2 + (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
)  # fmt: skip
_BASE = re.compile(r"([0-9][0-9A-Fa-f]*(?:\.[0-9A-Fa-f]+)?)_\{?\s*(?:\\text\{)?\s*(\d+|[a-z]+)\s*\}?\}?")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})\s*(?:\\text\{\s*)?([ap])\.?\s?m\.?\}?", re.IGNORECASE)


def clock(text: str) -> Ratio | None:
    """Return the time that a text like `3:45 p.m.` means, or None."""
    match = _CLOCK.fullmatch(text)
    return None if match is None else Ratio((number(int(match[1])), number(int(match[2]))), match[3].lower() + "m")


def digits(text: str) -> Digits | None:
    """Return the number that a text like `101_2` or `2B_{twelve}` means, or None."""
    match = _BASE.fullmatch(text)
    if match is None:
        return None
    base = int(match[2]) if match[2].isdecimal() else _NUMBER_WORDS.index(match[2]) if match[2] in _NUMBER_WORDS else 0
    return Digits(match[1].upper().lstrip("0") or "0", base) if base > 1 else None
