"""An answer and a label, in any spelling -> whether they are equal: our own grader, with math-verify behind it.

Both are read as a whole and by type. The label decides where a convention is needed: a unit, a percent sign or a base
may be left out; a list may be in any order, and a pair may not. What only math-verify can read, such as sums and
integrals, is left to it.
"""

import json
import re
from collections.abc import Iterator

from oneshot.tasks.answer_types import Many, Opaque, Region, Text, Value
from oneshot.tasks.evaluation import are_equal
from oneshot.tasks.library import equal_by_library, needs_library, parse_by_library
from oneshot.tasks.matching import matches
from oneshot.tasks.normalise import normalise, trim, words_of
from oneshot.tasks.reading import read

_JOINED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_CHOICE = re.compile(r"(?:\\text\s*\{\s*)?\(?([A-H])\)?(?:[.:]|\))\s*\}?\s*(\S.*)", re.DOTALL)


def equal(text: str, label: str) -> bool:
    """Return whether an answer is equal to a label.

    Raises what math-verify raises, where only it can compare them.
    """
    answers, labels = list(_spellings(text, is_label=False)), list(_spellings(label, is_label=True))
    if not answers or not labels:
        return not answers and not labels
    if text.strip() == label.strip() or set(answers) & set(labels):
        return not _divides_by_zero(answers[0])
    if any(_equal_texts(spelling, gold) for gold in labels for spelling in answers):
        return True
    if any(needs_library(spelling) for spelling in (answers[0], labels[0])):
        return equal_by_library(answers[0], labels[0])
    return False


def parses(text: str) -> bool:
    """Return whether a box has an answer that can be read: an expression, or words."""
    spelling = normalise(text)
    if not spelling:
        return False
    return not isinstance(read(spelling), Opaque) or bool(parse_by_library(spelling))


def _spellings(text: str, *, is_label: bool) -> Iterator[str]:
    """Yield the canonical spellings that a text can mean: `100,200` is a number, or a list."""
    spelling = normalise(_without_wrapping(text) if is_label else text)
    if not spelling:
        return
    for one in (spelling, *_choice(spelling)):
        yield one
        joined = _JOINED.sub(lambda match: match[0].replace(",", ""), one)
        is_enclosed = re.match(r"\(|\[|\\\{", one) is not None
        if joined != one and (not is_enclosed or ", " in one):
            yield joined


def _without_wrapping(label: str) -> str:
    """Return a label without what data sets wrap around it: `#### 42`, `["42"]`."""
    label = re.sub(r"^\s*#{2,}\s*", "", label)
    if label.startswith('["') and label.endswith('"]'):
        try:
            return ", ".join(json.loads(label))
        except (ValueError, TypeError):
            return label
    return label


def _choice(spelling: str) -> Iterator[str]:
    """Yield the letter and the answer of `C. 1-i`."""
    match = _CHOICE.fullmatch(spelling)
    if match is not None:
        yield match[1]
        yield trim(match[2])


def _divides_by_zero(spelling: str) -> bool:
    answer = read(spelling)
    return isinstance(answer, Value) and not are_equal(answer.node, answer.node)


def _equal_texts(spelling: str, label: str) -> bool:
    answer, gold = read(spelling), read(label)
    if _has_vectors(label) != _has_vectors(spelling):
        answer, gold = read(_plain_vectors(spelling)), read(_plain_vectors(label))
    if isinstance(answer, Text) or isinstance(gold, Text):
        if isinstance(answer, Region | Many) or isinstance(gold, Region | Many):
            return False
        return words_of(spelling) == words_of(label)
    return matches(answer, gold)


def _has_vectors(spelling: str) -> bool:
    return r"\vec{" in spelling


def _plain_vectors(spelling: str) -> str:
    return re.sub(r"\\vec\{([^{}]*)\}", r"\1", spelling)
