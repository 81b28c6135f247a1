"""Problems -> the labels that no completion can satisfy, so that they can be named before a trial runs."""

from collections.abc import Sequence

from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.normalise import normalise
from oneshot.tasks.problems import Problem

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
    more = len(warnings) - NUM_SHOWN
    return warnings[:NUM_SHOWN] + ([f"{source}: {more} more labels that no answer can satisfy"] if more > 0 else [])
