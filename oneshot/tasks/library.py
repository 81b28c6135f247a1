"""Canonical spellings that only math-verify can read, such as sums and integrals -> whether they are equal."""

import re
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

_LIBRARY = re.compile(
    r"\\(?:sum|prod|(?:i|o)?int|lim|frac|sqrt|infty|begin|end|cdot|times|pi|to|d|partial|det|log|ln|sin|cos|tan|exp"
    r"|left|right|rightarrow|binom|[{}|\\]|alpha|beta|theta|lambda|mu|sigma|phi|omega)(?![A-Za-z])"
)
_NEEDS_LIBRARY = re.compile(r"\\(?:sum|prod|(?:i|o)?int|lim|begin|partial|det)(?![A-Za-z])")


def needs_library(spelling: str) -> bool:
    """Return whether a spelling has a command that only math-verify reads."""
    return _NEEDS_LIBRARY.search(spelling) is not None


def parse_by_library(spelling: str) -> list[Any]:
    """Return math-verify's reading of a spelling, or nothing if it has commands that math-verify would leave out."""
    if "\\" in _LIBRARY.sub("", spelling) or '"' in spelling:
        return []
    parsed: list[Any] = parse(
        rf"\boxed{{{spelling}}}",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
        parsing_timeout=None,  # type: ignore[arg-type]  # math-verify accepts None (no alarm), its annotation does not
        raise_on_error=True,
    )
    return parsed


def equal_by_library(spelling: str, label: str) -> bool:
    """Return whether math-verify finds two spellings equal; both must be read as a whole."""
    gold, parsed = parse_by_library(label), parse_by_library(spelling)
    if not gold or not parsed:
        return False
    return bool(
        verify(gold, parsed, float_rounding=15, numeric_precision=50, timeout_seconds=None, raise_on_error=True)
    )
