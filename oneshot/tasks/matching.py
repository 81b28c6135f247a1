"""Two answers that were read by type -> whether they are equal; types that cannot be equal are not compared.

The label decides where a convention is needed: a unit, a percent sign or a base may be left out; a list may be in any
order, and a tuple may not.
"""

import re
import struct
from collections.abc import Sequence
from fractions import Fraction

from oneshot.tasks.answer_types import (
    Answer,
    Approximate,
    Assigned,
    Digits,
    Many,
    Matrix,
    Opaque,
    Ratio,
    Region,
    Relation,
    Text,
    Value,
)
from oneshot.tasks.evaluation import are_equal, are_proportional, order
from oneshot.tasks.expression import Node
from oneshot.tasks.normalise import words_of
from oneshot.tasks.regions import are_paired, match_regions

_FLOAT_DIGITS = 15
"""A label with so many digits after its point was printed from a float."""
_ROUNDED_DIGITS = 6
"""A label with so many decimals is taken as rounded where the answer is no numeral."""


def matches(answer: Answer, label: Answer) -> bool:
    """Return whether two answers are equal; types that cannot be equal are not compared."""
    if isinstance(label, Approximate):
        return matches(answer, label.answer) or matches(answer, label.approximation)
    if isinstance(answer, Approximate):
        return _is_near(answer) and (matches(answer.answer, label) or matches(answer.approximation, label))
    for one, other in ((answer, label), (label, answer)):
        if isinstance(one, Text) and isinstance(other, Value | Opaque):
            return words_of(other.text) == one.words
    if isinstance(answer, Assigned) or isinstance(label, Assigned):
        return _match_names(answer, label)
    if isinstance(answer, Value) and isinstance(label, Value):
        return _match_values(answer, label)
    if isinstance(answer, Relation) or isinstance(label, Relation):
        ours, gold = _as_relation(answer), _as_relation(label)
        return ours is not None and gold is not None and _match_relations(ours, gold)
    if isinstance(answer, Region) or isinstance(label, Region):
        return match_regions(answer, label)
    if isinstance(answer, Many) or isinstance(label, Many):
        return _match_many(answer, label)
    if isinstance(answer, Digits) or isinstance(label, Digits):
        return _match_digits(answer, label)
    if isinstance(answer, Ratio) or isinstance(label, Ratio):
        return _match_ratios(answer, label)
    if isinstance(answer, Matrix) and isinstance(label, Matrix):
        return [len(row) for row in answer.rows] == [len(row) for row in label.rows] and all(
            matches(one, other)
            for row, gold in zip(answer.rows, label.rows, strict=True)
            for one, other in zip(row, gold, strict=True)
        )
    return answer == label and isinstance(answer, Opaque | Text)


def _is_near(answer: Approximate) -> bool:
    """Return whether an approximation is near: within a twentieth of the exact number."""
    exact, near = answer.answer, answer.approximation
    if not isinstance(exact, Value) or not isinstance(near, Value):
        return True
    low, high = (Node("mul", (near.node, Node("num", value=Fraction(part, 20)))) for part in (19, 21))
    signs = {order(low, exact.node), order(high, exact.node)}
    return signs == {-1, 1} or 0 in signs


def _match_values(answer: Value, label: Value) -> bool:
    if answer.unit and label.unit and answer.unit != label.unit:
        return False
    if _numbers_match(answer, label, answer.node):
        return True
    if answer.percent == label.percent:
        return False
    hundredth = Node("num", value=Fraction(1, 100))
    if label.percent:
        return are_equal(answer.node, Node("mul", (label.node, hundredth)))
    return _numbers_match(answer, label, Node("mul", (answer.node, hundredth)))


def _numbers_match(answer: Value, label: Value, node: Node) -> bool:
    if are_equal(node, label.node):
        return True
    decimals = label.text.partition(".")[2]
    if not decimals.isdecimal() or label.node.kind not in ("num", "neg"):
        return answer.node.kind in ("num", "neg") and _is_printed_float(answer.text, label.text)
    if answer.node.kind in ("num", "neg"):
        return _is_printed_float(label.text, answer.text) or _is_printed_float(answer.text, label.text)
    return len(decimals) >= _ROUNDED_DIGITS and _rounds_to(node, label.node, len(decimals))


def _is_printed_float(printed: str, text: str) -> bool:
    """Return whether a numeral is how a float of 32 or 64 bits prints, which was made of another numeral."""
    if len(printed.partition(".")[2]) < _FLOAT_DIGITS or re.fullmatch(r"-?\d*\.?\d+", text) is None:
        return False
    narrow = struct.unpack("f", struct.pack("f", float(text)))[0] if abs(float(text)) < 1e38 else 0.0
    return float(printed) == narrow or abs(float(printed) - float(text)) <= 4e-16 * abs(float(text))


def _rounds_to(node: Node, label: Node, num_decimals: int) -> bool:
    half = Fraction(1, 2 * 10**num_decimals)
    low, high = (Node("add", (label, Node("num", value=shift))) for shift in (-half, half))
    significant = abs(label.value or label.parts[0].value if label.parts else label.value) >= half * 10**_ROUNDED_DIGITS
    return significant and order(low, node) in (-1, 0) and order(node, high) in (-1, 0)


def _match_names(answer: Answer, label: Answer) -> bool:
    if isinstance(answer, Assigned) and isinstance(label, Assigned):
        if answer.name == label.name and matches(answer.answer, label.answer):
            return True
        return (
            answer.relation is not None
            and label.relation is not None
            and _match_relations(answer.relation, label.relation)
        )
    named, other = (answer, label) if isinstance(answer, Assigned) else (label, answer)
    assert isinstance(named, Assigned)
    if isinstance(other, Relation):
        return named.relation is not None and _match_relations(named.relation, other)
    if isinstance(named.answer, Value) and isinstance(other, Many) and len(other.items) != 1:
        return False
    return matches(named.answer, other) if named is answer else matches(other, named.answer)


def _match_many(answer: Answer, label: Answer) -> bool:
    ours, gold = (_distinct(one) if isinstance(one, Many) else (one,) for one in (answer, label))
    kinds = {one.kind for one in (answer, label) if isinstance(one, Many)}
    if len(ours) != len(gold) or isinstance(answer, Opaque) or isinstance(label, Opaque):
        return False
    if len(ours) == 1:
        return not (kinds & {"tuple"}) and matches(ours[0], gold[0])
    if kinds in ({"set"}, {"list"}, {"set", "list"}):
        if any(_is_dots(item) for item in gold):
            return _in_order(ours, gold)
        return are_paired(ours, gold, matches)
    if kinds == {"list", "square"} or "set" in kinds or (kinds == {"tuple", "square"} and len(gold) == 2):
        return False
    return _in_order([_unnamed(item) for item in ours], [_unnamed(item) for item in gold])


def _unnamed(item: Answer) -> Answer:
    return item.answer if isinstance(item, Assigned) else item


def _is_dots(item: Answer) -> bool:
    return isinstance(item, Value) and item.node == Node("sym", name="ldots")


def _distinct(many: Many) -> tuple[Answer, ...]:
    """Return the elements of a list or set once each; a tuple's elements stay."""
    if many.kind not in ("list", "set") or any(_is_dots(item) for item in many.items):
        return many.items
    kept: list[Answer] = []
    for item in many.items:
        if not any(matches(item, other) for other in kept):
            kept.append(item)
    return tuple(kept)


def _in_order(ours: Sequence[Answer], gold: Sequence[Answer]) -> bool:
    return all(matches(one, other) for one, other in zip(ours, gold, strict=True))


def _as_relation(answer: Answer) -> Relation | None:
    """Return an inequality as a relation, also where it was read as a half-line of its variable."""
    if isinstance(answer, Relation):
        return answer
    if not isinstance(answer, Region) or len(answer.pieces) != 1 or len(answer.name) != 1:
        return None
    piece, variable, end = answer.pieces[0], Node("sym", name=answer.name), Node("inf")
    if piece.high == end:
        return Relation(">" if piece.low_open else "ge", variable, piece.low)
    if piece.low == Node("neg", (end,)):
        return Relation("<" if piece.high_open else "le", variable, piece.high)
    return None


def _match_digits(answer: Answer, label: Answer) -> bool:
    if isinstance(answer, Digits) and isinstance(label, Digits):
        return answer == label
    digits, other = (answer, label) if isinstance(answer, Digits) else (label, answer)
    assert isinstance(digits, Digits)
    return isinstance(other, Value) and other.text.upper().lstrip("0") == digits.digits


def _match_ratios(answer: Answer, label: Answer) -> bool:
    if isinstance(answer, Ratio) and isinstance(label, Ratio):
        if answer.half or label.half:
            return _match_times(answer, label)
        pairs = zip(answer.parts, label.parts, strict=False)
        scaled = [(Node("mul", (one, label.parts[0])), Node("mul", (other, answer.parts[0]))) for one, other in pairs]
        return len(answer.parts) == len(label.parts) and all(are_equal(one, other) for one, other in scaled)
    ratio, other = (answer, label) if isinstance(answer, Ratio) else (label, answer)
    assert isinstance(ratio, Ratio)
    if not isinstance(other, Value) or len(ratio.parts) != 2 or ratio.half:
        return False
    return are_equal(Node("div", ratio.parts), other.node)


def _match_times(answer: Ratio, label: Ratio) -> bool:
    """Return whether two times are equal; one may leave out am or pm, or count 24 hours."""
    if answer.half and label.half:
        return answer == label
    halved, other = (answer, label) if answer.half else (label, answer)
    if len(other.parts) != 2 or any(part.kind != "num" for part in other.parts):
        return False
    late = Node("num", value=halved.parts[0].value % 12 + 12)
    return other.parts == halved.parts or (halved.half == "pm" and other.parts == (late, halved.parts[1]))


def _match_relations(answer: Relation, label: Relation) -> bool:
    flipped = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
    difference, gold = (Node("add", (one.left, Node("neg", (one.right,)))) for one in (answer, label))
    if answer.op == label.op:
        return are_proportional(difference, gold, positive=answer.op in flipped)
    return flipped.get(answer.op) == label.op and are_proportional(Node("neg", (difference,)), gold, positive=True)
