"""A canonical spelling -> its parts between separators that stand outside all brackets."""

import re
from collections.abc import Iterator

_BRACKET = re.compile(
    r"\\begin\s*\{[^{}]*\}|\\end\s*\{[^{}]*\}|\\l(?:floor|ceil|angle)|\\r(?:floor|ceil|angle)|\\?[{}\[\]()]|\\."
)


def depths(text: str) -> list[int]:
    """Return the number of brackets around each character; a closing bracket counts as inside.

    Half-open intervals are brackets too, so any closing bracket closes any opening one. Below 0 is a stray bracket.
    """
    result, depth, end = [], 0, 0
    for match in _BRACKET.finditer(text):
        token = match[0]
        result += [depth] * (match.start() - end)
        is_open = token[-1] in "{[(" or token.startswith((r"\begin", r"\lf", r"\lc", r"\la"))
        is_close = not is_open and (token[-1] in "}])" or token.startswith((r"\end", r"\rf", r"\rc", r"\ra")))
        if token.startswith(r"\end"):
            is_open, is_close = False, True
        depth += is_open
        result += [depth] * len(token)
        depth -= is_close
        end = match.end()
    return result + [depth] * (len(text) - end)


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Return the parts between a separator's matches outside all brackets, without space around them."""
    inside = depths(text)
    parts, end = [], 0
    for match in separator.finditer(text):
        if inside[match.start()] == 0:
            parts.append(text[end : match.start()].strip())
            end = match.end()
    return [*parts, text[end:].strip()]


def separators(text: str, separator: re.Pattern[str]) -> Iterator[str]:
    """Yield the separator's matches outside all brackets."""
    inside = depths(text)
    return (match[0].strip() for match in separator.finditer(text) if inside[match.start()] == 0)


def enclosed(text: str) -> tuple[str, str, str] | None:
    """Return (opening bracket, inner text, closing bracket) if one pair of brackets is around all of a text."""
    match = re.match(r"\\?[{\[(]", text)
    last = re.search(r"\\?[}\])]$", text)
    if match is None or last is None or match.end() > last.start():
        return None
    if any(depth < 1 for depth in depths(text)):
        return None
    return match[0], text[match.end() : last.start()].strip(), last[0]
