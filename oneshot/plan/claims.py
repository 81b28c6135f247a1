"""A claim and the grid's cells -> the comparisons that the claim makes.

A claim compares two selections of cells, each at a step. An axis that `b` leaves out is as in `a`: cells are matched on
the axes that `b` does not name. A comparison is a list of matched pairs, and gives one verdict. `for_each` makes one
comparison for every cell of an axis. The comparisons of `for_all` are parts of one verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oneshot.config.claims import ClaimConfig, GroupConfig
from oneshot.config.paths import SettingError, Where
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, nearest
from oneshot.plan.cells import matches
from oneshot.tasks.examples import identify, load_row
from oneshot.tasks.measures import measure_of, suite_of

AT = ("start", "last", "best", "saturation")
Names = Mapping[str, str]  # axis -> cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two matched groups of cells. The mean over `b` is subtracted from the mean over `a`, seed by seed."""

    a: tuple[Names, ...]
    b: tuple[Names, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One comparison of a claim, which gives a verdict or a part of one."""

    claim: ClaimConfig
    number: int  # index of the claim in its list, from 0
    cells: dict[str, str]  # cells on the axes of `for_each`
    part: dict[str, str]
    """Cells on the axes of `for_all` and `over`. The parts with one claim and one `cells` make one verdict."""
    metric_b: str  # the claim's metric, or that of the suite that `b` names
    at_a: str
    at_b: str
    pairs: tuple[Pair, ...]


def comparisons(claims: Sequence[ClaimConfig], cells: Sequence[Names]) -> list[Comparison]:
    """Return every comparison of every claim, in order; `cells` are the grid's.

    Raises SettingError: a claim selects cells that do not exist, compares a selection with itself, or leaves a cell
    without a partner; names its place under `claims`.
    """
    return [
        comparison for number, claim in enumerate(claims) for comparison in _comparisons(claim, number, cells=cells)
    ]


def _comparisons(claim: ClaimConfig, number: int, *, cells: Sequence[Names]) -> list[Comparison]:
    where: Where = ("claims", number)
    names_by_axis = {axis: list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (cells[0] if cells else ())}
    each = _split_axes(claim, where, names_by_axis)
    if "suite" in claim.a:
        raise SettingError((*where, "a", "suite"), "`a` has the suite of `metric`; name the other suite in `b`")
    at_a, own_a = _side(claim.a, names_by_axis, (*where, "a"))
    selection_b = {axis: selector for axis, selector in claim.b.items() if axis != "suite"}
    at_b, own_b = _side(selection_b, names_by_axis, (*where, "b"), at=at_a)
    metric_b = _metric_of_b(claim, where)
    chosen_a, chosen_b = {**names_by_axis, **own_a}, {**names_by_axis, **own_a, **own_b}
    all_a = [cell for cell in cells if all(cell[axis] in chosen_a[axis] for axis in cell)]
    if not all_a:
        raise SettingError((*where, "a"), "selects no cell of the grid; change its cells")
    made = []
    for group in dict.fromkeys(tuple(cell[axis] for axis in each) for cell in all_a):
        named = dict(zip(each, group, strict=True))
        kept = {axis: [name] for axis, name in named.items() if axis not in own_b}
        chosen = {**chosen_b, **kept}
        side_a = [cell for cell in all_a if all(cell[axis] == name for axis, name in named.items())]
        side_b = [cell for cell in cells if all(cell[axis] in chosen[axis] for axis in cell)]
        if not side_b:
            raise SettingError(
                (*where, "b"), f"selects no cell of the grid to compare {_label(side_a[0])} with; change its cells"
            )
        if at_a == at_b and side_a == side_b and metric_b == claim.metric:
            which = f" for {_label(named)}" if named else ""
            raise SettingError(
                (*where, "b"), f"selects the same cells as `a`{which}; name another cell, or another step with `at`"
            )
        free = [axis for axis in names_by_axis if axis not in {*own_b, *each}]
        made.append(
            Comparison(
                claim=claim,
                number=number,
                cells={axis: named[axis] for axis in claim.for_each},
                part={axis: named[axis] for axis in each if axis not in claim.for_each},
                metric_b=metric_b,
                at_a=at_a,
                at_b=at_b,
                pairs=tuple(_pairs(side_a, side_b, free=free, where=where)),
            )
        )
    return made


def _split_axes(claim: ClaimConfig, where: Where, names_by_axis: Mapping[str, list[str]]) -> list[str]:
    """Return the axes each cell of which has a comparison of its own: those of `for_each`, `for_all` and `over`."""
    for key, axes in (("for_each", claim.for_each), ("for_all", claim.for_all)):
        for place, axis in enumerate(axes):
            if axis not in names_by_axis:
                raise SettingError((*where, key, place), f"unknown axis{nearest(axis, list(names_by_axis))}")
            if key == "for_all" and axis in claim.for_each:
                raise SettingError((*where, key, place), f"{axis} is also in for_each; keep only one of them")
    if claim.over is None:
        return [*claim.for_each, *claim.for_all]
    if claim.over not in names_by_axis:
        raise SettingError((*where, "over"), f"unknown axis{nearest(claim.over, list(names_by_axis))}")
    if claim.over in claim.b:
        why = f"`b` names {claim.over}, so that all its cells have one control and are no sample; compare them within"
        raise SettingError((*where, "over"), f"{why} {claim.over}, or use for_each")
    if claim.over in claim.for_each or claim.for_all:
        other = "for_all" if claim.for_all else "for_each"
        raise SettingError(
            (*where, "over"), f"`over` gives one verdict on a mean, and {other} others; keep one of them"
        )
    return [*claim.for_each, claim.over]


def _metric_of_b(claim: ClaimConfig, where: Where) -> str:
    """Return the metric of `b`: that of the claim, on the suite that `b` names if it names one."""
    if (suite := claim.b.get("suite")) is None:
        return claim.metric
    if suite_of(claim.metric) is None:
        raise SettingError((*where, "b", "suite"), f"{claim.metric} is a metric of training, which has no suite")
    return f"eval/{suite}/{measure_of(claim.metric)}"


def _side(
    selection: Mapping[str, Any], names_by_axis: Mapping[str, list[str]], where: Where, *, at: str = "last"
) -> tuple[str, dict[str, list[str]]]:
    """Return the step of one side, and the cells of each axis that it names."""
    own: dict[str, list[str]] = {}
    for axis, selector in selection.items():
        place = (*where, axis)
        if axis == "at":
            if selector not in AT:
                raise SettingError(place, f"{selector!r} is not a step{nearest(str(selector), AT)}")
            at = selector
        elif axis not in names_by_axis:
            raise SettingError(place, f"unknown axis{nearest(axis, [*names_by_axis, 'at'])}")
        else:
            own[axis] = matches(selector, names_by_axis[axis], place)
    return at, own


def _pairs(side_a: Sequence[Names], side_b: Sequence[Names], *, free: Sequence[str], where: Where) -> list[Pair]:
    """Return the pairs of cells of both sides that agree on the free axes."""
    by_a, by_b = ({}, {})  # type: tuple[dict[tuple[str, ...], list[Names]], dict[tuple[str, ...], list[Names]]]
    for side, by_match in ((side_a, by_a), (side_b, by_b)):
        for cell in side:
            by_match.setdefault(tuple(cell[axis] for axis in free), []).append(cell)
    for cells_by_match, partners, name, other in ((by_a, by_b, "a", "b"), (by_b, by_a, "b", "a")):
        for match, cells in cells_by_match.items():
            if match not in partners:
                raise SettingError(
                    (*where, name),
                    f"{_label(cells[0])} has no partner in `{other}`, which has no cell with "
                    f"{_label(dict(zip(free, match, strict=True)))}; name its axis in `b`, or add the cell",
                )
    return [Pair(a=tuple(cells), b=tuple(by_b[match])) for match, cells in by_a.items()]


def _label(cell: Names) -> str:
    return " ".join(f"{axis}={name}" for axis, name in cell.items())


def trained_categories(labels: Mapping[str, str], config: TrialConfig) -> frozenset[str]:
    """Return the categories that a trial trains on: its label `category`, or else those of its examples, if known."""
    if "category" in labels:
        return frozenset(filter(None, (name.strip() for name in labels["category"].split(","))))
    categories = set()
    for name in identify(config.examples).ids:
        try:
            categories.add(load_row(name.partition("=")[0]).category)
        except DataError:  # the data are not on this machine
            return frozenset()
    return frozenset(filter(None, categories))


def judged_suites(claim: ClaimConfig, groups: Mapping[str, GroupConfig]) -> tuple[str, ...]:
    """Return the suites whose problems a claim judges: those of its metric or its group, and that of `b`'s own suite.

    A training metric has none.
    """
    if (suite := suite_of(claim.metric)) is None:
        return ()
    names = [suite, *([claim.b["suite"]] if isinstance(claim.b.get("suite"), str) else [])]
    found = [groups.get(name[1:]) if name.startswith("@") else None for name in names]
    judged = [[name] if group is None else group.suites for name, group in zip(names, found, strict=True)]
    return tuple(dict.fromkeys(suite for suites in judged for suite in suites))


def cell_key(cell: Names) -> str:
    """Return a cell's name in the record of the claims."""
    return _label(cell) or "the only cell"
