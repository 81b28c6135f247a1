"""The types of answers: what a spelling can mean.

A spelling that fits no type, as a whole, is `Opaque`: it is equal to the same spelling only, or is left to math-verify.
"""

from dataclasses import dataclass
from typing import Literal

from oneshot.tasks.expression import Node


@dataclass(frozen=True, slots=True)
class Opaque:
    """A spelling without a type."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """Words."""

    words: str


@dataclass(frozen=True, slots=True)
class Value:
    """An expression, with its unit and whether a percent sign follows it."""

    node: Node
    unit: str = ""
    percent: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class Digits:
    """A numeral with the base that it is written in."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two or more expressions with colons between them; `half` is am or pm if it is a time."""

    parts: tuple[Node, ...]
    half: str = ""


@dataclass(frozen=True, slots=True)
class Many:
    """Several answers: without brackets, in `{}`, or in order in `()` or `[]`; `union` joins them by "or"."""

    items: tuple["Answer", ...]
    kind: Literal["list", "set", "tuple", "square"]


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval of real numbers; a single point has equal ends."""

    low: Node
    high: Node
    low_open: bool
    high_open: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A set of real numbers: intervals and points, of the variable `name` if one is written."""

    pieces: tuple[Piece, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A named answer: `x = 5`, `f(x) = x^2`, `(x, y) = (1, 2)`."""

    name: str
    answer: "Answer"
    relation: "Relation | None" = None


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or inequality between expressions: `left op right`."""

    op: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Approximate:
    """An exact answer, and an approximation of it: `\\sqrt{2} \\approx 1.41`."""

    answer: "Answer"
    approximation: "Answer"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of answers."""

    rows: tuple[tuple["Answer", ...], ...]


Answer = Opaque | Text | Value | Digits | Ratio | Many | Region | Assigned | Relation | Approximate | Matrix

REALS = Region((Piece(Node("neg", (Node("inf"),)), Node("inf"), True, True),))
