"""Problems -> warnings before a trial runs: labels that no completion can satisfy, repeated and damaged problems."""

from collections.abc import Sequence

from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.normalise import normalise
from oneshot.tasks.problems import Problem
from oneshot.tasks.sets import KNOWN
from oneshot.text import stray_character

NUM_SHOWN = 5
_MISSING = frozenset(("nan", "none", "null", "n/a", "<na>"))


def unsatisfiable(label: str) -> str:
    """Return why no completion can satisfy a label, or "" if one can."""
    if not label.strip():
        return "is empty"
    if label.strip().casefold() in _MISSING and label.strip() != "None":
        return "is a missing value"
    boxed = extract_boxed(f"\\boxed{{{label}}}")
    if boxed is None or (boxed.strip() != label.strip() and normalise(boxed) != normalise(label)):
        return "has a brace that nothing closes, so that no box can hold it"
    return ""


def label_warnings(source: str, problems: Sequence[Problem]) -> list[str]:
    """Return a warning for each label that no completion can satisfy: the first few, and how many more."""
    warnings = [
        f"{problem.id or source}: the label {problem.answer!r} {reason}: no answer is right for it"
        for problem in problems
        if (reason := unsatisfiable(problem.answer))
    ]
    return _first(warnings, f"{source}: {{}} more labels that no answer can satisfy")


def row_warnings(source: str, problems: Sequence[Problem]) -> list[str]:
    """Return a warning for each problem that an earlier one repeats, and for each text with a control character.

    Rows of known sets are left out, as nobody edits them.
    """
    repeats, damaged = [], []
    first: dict[str, Problem] = {}
    for problem in (each for each in problems if each.id.rpartition(":")[0] not in KNOWN):
        earlier = first.setdefault(problem.prompt, problem)
        if earlier is not problem:
            also = "" if earlier.answer == problem.answer else f", with the label {earlier.answer!r} there"
            repeats.append(f"{problem.id or source}: repeats the problem of {earlier.id or source}{also}; keep one")
        if stray := stray_character(problem.prompt) or stray_character(problem.answer):
            damaged.append(f"{problem.id or source}: contains {stray}; correct its text")
    return [
        *_first(repeats, f"{source}: {{}} more repeated problems"),
        *_first(damaged, f"{source}: {{}} more rows with control characters"),
    ]


def _first(warnings: Sequence[str], rest: str) -> list[str]:
    """Return the first warnings, and a line with the number of the others."""
    more = len(warnings) - NUM_SHOWN
    return [*warnings[:NUM_SHOWN], *([rest.format(more)] if more > 0 else [])]
