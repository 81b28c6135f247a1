"""Answers -> sets of real numbers, their unions, and whether two of them are equal."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from oneshot.tasks.answer_types import Answer, Many, Piece, Region, Value
from oneshot.tasks.evaluation import are_equal, order
from oneshot.tasks.expression import ReadError

Item = TypeVar("Item")


def as_region(answer: Answer) -> Region | None:
    """Return an answer as a set of real numbers, or None if it cannot be one: `(1, 2)` can be an interval."""
    if isinstance(answer, Region):
        return answer
    if isinstance(answer, Many):
        values = [item.node for item in answer.items if isinstance(item, Value)]
        if len(values) != len(answer.items):
            return None
        if answer.kind == "set":
            return Region(tuple(Piece(value, value, False, False) for value in values))
        if answer.kind in ("tuple", "square") and len(values) == 2:
            is_open = answer.kind == "tuple"
            return Region((Piece(values[0], values[1], is_open, is_open),))
    return None


def without(region: Region, removed: Region) -> Region:
    """Return a region without single points inside it. Raises ReadError: they are no points, or are outside."""
    pieces = list(region.pieces)
    for point in removed.pieces:
        if point.low != point.high:
            raise ReadError("an interval is removed")
        cut = []
        for piece in pieces:
            below, above = order(piece.low, point.low), order(point.low, piece.high)
            if below is None or above is None:
                raise ReadError("an end is no number")
            if below == above == -1:
                cut += [
                    Piece(piece.low, point.low, piece.low_open, True),
                    Piece(point.low, piece.high, True, piece.high_open),
                ]
            elif below == 0 or above == 0:
                cut.append(Piece(piece.low, piece.high, piece.low_open or below == 0, piece.high_open or above == 0))
            else:
                cut.append(piece)
        pieces = cut
    return Region(tuple(pieces), region.name)


def union(regions: list[Region]) -> Region:
    """Return all pieces of regions. Raises ReadError: they are of different variables."""
    names = {region.name for region in regions if region.name}
    if len(names) > 1:
        raise ReadError("its parts have different variables")
    return Region(tuple(piece for region in regions for piece in region.pieces), names.pop() if names else "")


def match_regions(answer: Answer, label: Answer) -> bool:
    """Return whether two answers are the same set of real numbers; a variable may be left out."""
    ours, gold = as_region(answer), as_region(label)
    if ours is None or gold is None or (ours.name and gold.name and ours.name != gold.name):
        return False
    ours_pieces, gold_pieces = _merged(ours), _merged(gold)
    if len(ours_pieces) != len(gold_pieces):
        return False
    return are_paired(ours_pieces, gold_pieces, _same_piece)


def are_paired(ours: Sequence[Item], gold: Sequence[Item], same: Callable[[Item, Item], bool]) -> bool:
    """Return whether each item of `gold` has an item of `ours` for itself that is the same, in any order."""
    left = list(ours)
    for item in gold:
        place = next((place for place, one in enumerate(left) if same(one, item)), None)
        if place is None:
            return False
        del left[place]
    return True


def _same_piece(one: Piece, other: Piece) -> bool:
    return (one.low_open, one.high_open) == (other.low_open, other.high_open) and all(
        are_equal(mine, theirs) for mine, theirs in ((one.low, other.low), (one.high, other.high))
    )


def _merged(region: Region) -> list[Piece]:
    """Return a region's pieces, those that touch joined, if all ends are numbers."""
    pieces = list(region.pieces)
    place = 0
    while place < len(pieces):
        for other in range(place + 1, len(pieces)):
            joined = _joined(pieces[place], pieces[other])
            if joined is not None:
                del pieces[other]
                pieces[place] = joined
                place = -1
                break
        place += 1
    return pieces


def _joined(one: Piece, other: Piece) -> Piece | None:
    """Return the union of two pieces if it is one piece."""
    first_low = order(one.low, other.low)
    if first_low is None:
        return None
    if first_low == 1 or (first_low == 0 and one.low_open and not other.low_open):
        one, other = other, one
    meets = order(other.low, one.high)
    if meets is None or meets == 1 or (meets == 0 and other.low_open and one.high_open):
        return None
    ends = order(one.high, other.high)
    if ends is None:
        return None
    last = one if ends == 1 or (ends == 0 and not one.high_open) else other
    return Piece(one.low, last.high, one.low_open, last.high_open)
