"""A file that a user wrote -> its text; a text -> the control character that no user means to write."""

import re
from pathlib import Path

from oneshot.errors import UserError

_ESCAPES = {
    "\a": ("a bell", "a"),
    "\b": ("a backspace", "b"),
    "\t": ("a tab", "t"),
    "\n": ("a line break", "n"),
    "\v": ("a vertical tab", "v"),
    "\f": ("a form feed", "f"),
    "\r": ("a carriage return", "r"),
    "\x1b": ("an escape character", "e"),
}
_STRAY = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
    # what is left of commands such as \times, \right and \neq once their first letter has become an escape
    r"|\t(?=imes\b|heta\b|ext\w*\{|frac\{|riangle\b|au\b|ilde\{)"
    r"|\r(?=ight|angle\b|floor\b|ceil\b|ho\b)"
    r"|\n(?=eq\b|abla\b|otin\b)"
)


def read_text(path: Path, *, error: type[UserError]) -> str:
    """Return a file's UTF-8 text without its byte order mark.

    Raises `error`: the file cannot be read, or is not UTF-8; names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror}") from reason
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        line = content.count(b"\n", 0, reason.start) + 1
        raise error(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from reason


def stray_character(text: str) -> str:
    """Return what a text contains that nobody means to write: `a form feed in place of \\frac`; "" if nothing."""
    match = _STRAY.search(text)
    if match is None:
        return ""
    if match[0] not in _ESCAPES:
        return f"the control character U+{ord(match[0]):04X}"
    name, letter = _ESCAPES[match[0]]
    rest = re.match(r"[A-Za-z]*", text[match.end() :])
    return f"{name} in place of \\{letter}{rest[0] if rest else ''}"
