"""A claim and the grid's cells -> the comparisons that it stands for; and claims, frozen as a sweep begins.

A claim compares two selections of cells, each after a step. In `b`, an axis that is left out is as in `a`: cells are
matched on the axes that `b` does not name; a comparison is a list of matched pairs, and one verdict. `for_each` makes
one of every cell of an axis; those of `for_all` are parts of one verdict.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from oneshot.config.paths import SettingError, Where
from oneshot.config.sweep import ClaimConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, UserError, nearest
from oneshot.plan.cells import matches
from oneshot.store.folder import Folder, now_ms
from oneshot.tasks.examples import identify, load_row

AT = ("start", "last", "best", "saturation")
FILE = "claims.json"
Names = Mapping[str, str]
"""Axis -> cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What is subtracted from what: the mean over cells `b` from the mean over cells `a`, seed by seed."""

    a: tuple[Names, ...]
    b: tuple[Names, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One verdict to be, or a part of one."""

    claim: ClaimConfig
    number: int
    """Of the claim in its list, from 0."""
    cells: dict[str, str]
    """Of the axes of `for_each`."""
    part: dict[str, str]
    """Of the axes of `for_all`: parts of one claim and `cells` make one verdict."""
    at_a: str
    at_b: str
    pairs: tuple[Pair, ...]


def comparisons(claims: Sequence[ClaimConfig], cells: Sequence[Names]) -> list[Comparison]:
    """Every comparison of every claim, in order; `cells` are the grid's.

    Raises:
        SettingError: a claim selects what is not there, compares a selection with itself, or leaves a cell without a
            partner; names its place under `claims`.
    """
    return [
        comparison for number, claim in enumerate(claims) for comparison in _comparisons(claim, number, cells=cells)
    ]


def _comparisons(claim: ClaimConfig, number: int, *, cells: Sequence[Names]) -> list[Comparison]:
    where: Where = ("claims", number)
    known: dict[str, list[str]] = {}
    for cell in cells:
        for axis, name in cell.items():
            known.setdefault(axis, [])
            if name not in known[axis]:
                known[axis].append(name)
    for key, axes in (("for_each", claim.for_each), ("for_all", claim.for_all)):
        for place, axis in enumerate(axes):
            if axis not in known:
                raise SettingError((*where, key, place), f"unknown axis{nearest(axis, list(known))}")
            if key == "for_all" and axis in claim.for_each:
                raise SettingError((*where, key, place), f"{axis} is in for_each already; name it once")
    each = [*claim.for_each, *claim.for_all]
    at_a, own_a = _side(claim.a, known, (*where, "a"))
    at_b, own_b = _side(claim.b, known, (*where, "b"), at=at_a)
    chosen_a, chosen_b = {**known, **own_a}, {**known, **own_a, **own_b}
    side_a = [cell for cell in cells if all(cell[axis] in chosen_a[axis] for axis in cell)]
    if not side_a:
        raise SettingError((*where, "a"), "selects no cell of the grid")
    found = []
    for group in dict.fromkeys(tuple(cell[axis] for axis in each) for cell in side_a):
        named = dict(zip(each, group, strict=True))
        kept = {axis: [name] for axis, name in named.items() if axis not in own_b}
        chosen = {**chosen_b, **kept}
        mine = [cell for cell in side_a if all(cell[axis] == name for axis, name in named.items())]
        other = [cell for cell in cells if all(cell[axis] in chosen[axis] for axis in cell)]
        if not other:
            raise SettingError((*where, "b"), f"selects no cell of the grid to compare {_label(mine[0])} with")
        if at_a == at_b and mine == other:
            which = f", where {_label(named)}" if named else ""
            raise SettingError(
                (*where, "b"), f"selects what `a` does{which}: name another cell, or another step by `at`"
            )
        free = [axis for axis in known if axis not in {*own_b, *each}]
        found.append(
            Comparison(
                claim=claim,
                number=number,
                cells={axis: named[axis] for axis in claim.for_each},
                part={axis: named[axis] for axis in claim.for_all},
                at_a=at_a,
                at_b=at_b,
                pairs=tuple(_pairs(mine, other, free=free, where=where)),
            )
        )
    return found


def _side(
    selection: Mapping[str, Any], known: Mapping[str, list[str]], where: Where, *, at: str = "last"
) -> tuple[str, dict[str, list[str]]]:
    """The step of one side, and the cells of each axis that it names."""
    own: dict[str, list[str]] = {}
    for axis, selector in selection.items():
        place = (*where, axis)
        if axis == "at":
            if selector not in AT:
                raise SettingError(place, f"{selector!r} is no step{nearest(str(selector), AT)}")
            at = selector
        elif axis not in known:
            raise SettingError(place, f"unknown axis{nearest(axis, [*known, 'at'])}")
        else:
            own[axis] = matches(selector, known[axis], place)
    return at, own


def _pairs(side_a: Sequence[Names], side_b: Sequence[Names], *, free: Sequence[str], where: Where) -> list[Pair]:
    """Cells of both sides that agree on the axes that are free."""
    by_a, by_b = ({}, {})  # type: tuple[dict[tuple[str, ...], list[Names]], dict[tuple[str, ...], list[Names]]]
    for side, found in ((side_a, by_a), (side_b, by_b)):
        for cell in side:
            found.setdefault(tuple(cell[axis] for axis in free), []).append(cell)
    for mine, others, name, other in ((by_a, by_b, "a", "b"), (by_b, by_a, "b", "a")):
        for match, cells in mine.items():
            if match not in others:
                raise SettingError(
                    (*where, name),
                    f"{_label(cells[0])} has no partner in `{other}`, which has no cell with "
                    f"{_label(dict(zip(free, match, strict=True)))}; name its axis in `b`, or add the cell",
                )
    return [Pair(a=tuple(cells), b=tuple(by_b[match])) for match, cells in by_a.items()]


def _label(cell: Names) -> str:
    return " ".join(f"{axis}={name}" for axis, name in cell.items())


def trained_categories(labels: Mapping[str, str], config: TrialConfig) -> frozenset[str]:
    """What a trial trains on, by its cell's label `category`, else as its examples say; empty where neither does."""
    if "category" in labels:
        return frozenset(filter(None, (name.strip() for name in labels["category"].split(","))))
    found = set()
    for name in identify(config.examples).ids:
        try:
            found.add(load_row(name.partition("=")[0]).category)
        except DataError:  # data that are not at hand: only a label could say it
            return frozenset()
    return frozenset(filter(None, found))


# --- frozen as the sweep begins ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """The claims that a sweep began with."""

    claims: tuple[ClaimConfig, ...]
    digest: str
    """sha256 (hex) of their canonical JSON."""
    frozen_ms: int | None
    """By the driver's clock, before any trial began; None where nothing was frozen."""
    is_intact: bool
    """Whether the file still has the digest that it says."""
    written: tuple[dict[str, Any], ...]
    """As they stand in the record, word for word."""
    seeds: tuple[int, ...] = ()
    """Of the sweep as it began; none where that is not on record."""
    num_steps: Mapping[str, int] = field(default_factory=dict)
    """Steps of each cell as it began, by `cell_key`."""

    @property
    def frozen_at(self) -> str | None:
        """As people write it, in UTC."""
        if self.frozen_ms is None:
            return None
        return datetime.fromtimestamp(self.frozen_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def claims_digest(claims: Sequence[ClaimConfig]) -> str:
    """sha256 (hex) of claims in canonical JSON: the same under any order of keys and way to write a number."""
    return sha256(_canonical(_as_json(claims)).encode()).hexdigest()


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _as_json(claims: Sequence[ClaimConfig]) -> list[dict[str, Any]]:
    return [claim.model_dump(mode="json") for claim in claims]


def cell_key(cell: Names) -> str:
    """A cell's name in the record."""
    return _label(cell) or "the only cell"


def freeze(
    folder: Folder,
    claims: Sequence[ClaimConfig],
    *,
    seeds: Sequence[int] = (),
    num_steps: Mapping[str, int] | None = None,
) -> Frozen:
    """Puts claims on record as a sweep begins, with the time, and with how much it was to run by then.

    What is on record already stays.
    """
    record = _record(claims, frozen_ms=now_ms(), seeds=tuple(seeds), num_steps=num_steps or {})
    folder.create(FILE, json.dumps(record_of(record), indent=2, sort_keys=True))
    return frozen(folder, claims)


def frozen(folder: Folder, claims: Sequence[ClaimConfig]) -> Frozen:
    """The claims on record; `claims` themselves, without a time, where none are."""
    try:
        fields = folder.read_json(FILE)
        if fields is not None:
            return thaw(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.path}/{FILE}: not what was frozen: {type(error).__name__}; restore it") from error
    return _record(claims, frozen_ms=None)


def _record(claims: Sequence[ClaimConfig], *, frozen_ms: int | None, **began: Any) -> Frozen:
    return Frozen(
        claims=tuple(claims),
        digest=claims_digest(claims),
        frozen_ms=frozen_ms,
        is_intact=True,
        written=tuple(_as_json(claims)),
        **began,
    )


def thaw(fields: Mapping[str, Any]) -> Frozen:
    """What `freeze` wrote."""
    digest = sha256(_canonical(fields["claims"]).encode()).hexdigest()
    return Frozen(
        claims=tuple(ClaimConfig.model_validate(claim) for claim in fields["claims"]),
        digest=fields["digest"],
        frozen_ms=fields["frozen_ms"],
        is_intact=digest == fields["digest"],
        written=tuple(fields["claims"]),
        seeds=tuple(fields.get("seeds", ())),
        num_steps=dict(fields.get("num_steps", {})),
    )


def record_of(record: Frozen) -> dict[str, Any]:
    """As `thaw` reads it."""
    return {
        "claims": record.written,
        "digest": record.digest,
        "frozen_ms": record.frozen_ms,
        "seeds": record.seeds,
        "num_steps": dict(record.num_steps),
    }
