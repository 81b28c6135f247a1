"""A sweep's `search` -> its studies: what each searches, on which cells, and what it has asked and found so far.

No Optuna here: points are asked in `sweep/study.py`. What was asked and what won is kept in the sweep's folder, and is
read back at every start; what a point is worth is read from its trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from oneshot.cells import Axes, Cell, matches, resolve, study_name
from oneshot.settings import Setting, SettingError, Where, flatten
from oneshot.store import Folder
from oneshot.sweepconfig import RangeConfig, SearchConfig
from oneshot.sweepfile import Sweep, Winner

FOLDER = "search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One cell of the `per` axes, with the cells that it is tuned on."""

    name: str
    """`model=a,arm=outcome`, or `all`."""
    group: dict[str, str]
    space: dict[str, RangeConfig]
    cells: tuple[Cell, ...]
    """Without a point's settings."""


def read_studies(sweep: Sweep, axes: Axes, grid: Sequence[Cell]) -> list[Study]:
    """The studies that the grid's cells wait for; without a grid, one for every cell of the `per` axes.

    Raises:
        SettingError: the search asks for what cannot be; names its place.
    """
    search = sweep.config.search
    if search is None:
        return []
    _check(search, axes)
    wanted = [cell.names for cell in grid]
    if not grid:
        wanted = [dict(zip(search.per, names, strict=True)) for names in product(*(axes[axis] for axis in search.per))]
    groups = {study_name(names, search.per): {axis: names[axis] for axis in search.per} for names in wanted}
    found = [_study(sweep, search, axes, name, group) for name, group in groups.items()]
    return [study for study in found if study.space]


def _check(search: SearchConfig, axes: Axes) -> None:
    for place, axis in enumerate(search.per):
        if axis not in axes:
            raise SettingError(("search", "per", place), f"unknown axis {axis!r}; there is {', '.join(axes) or 'none'}")
    for axis in search.on:
        if axis not in axes:
            raise SettingError(("search", "on", axis), f"unknown axis {axis!r}; there is {', '.join(axes) or 'none'}")
        if axis in search.per:
            raise SettingError(("search", "on", axis), f"each cell of {axis!r} has a study of its own; leave it out")
    flatten(dict.fromkeys(search.space), ("search", "space"))
    for place, point in enumerate(search.warm_start):
        for path in point:
            if path not in search.space:
                raise SettingError(("search", "warm_start", place, path), f"{path} is not searched; see search.space")
    for axis, cells in axes.items():
        for name, cell in cells.items():
            if cell.ranges and axis not in search.per:
                raise SettingError(
                    ("axes", axis, name, "search"),
                    f"cells of {axis!r} have no study of their own; add it to search.per",
                )


def _study(sweep: Sweep, search: SearchConfig, axes: Axes, name: str, group: dict[str, str]) -> Study:
    chosen = [
        [group[axis]] if axis in group else matches(search.on.get(axis), list(cells), ("search", "on", axis))
        for axis, cells in axes.items()
    ]
    names = [dict(zip(axes, one, strict=True)) for one in product(*chosen)]
    settings = flatten(search.set, ("search", "set"))
    cells = [resolve(sweep, axes, one, settled=settings) for one in names]
    space = dict(search.space)
    for axis in search.per:
        space |= axes[axis][group[axis]].ranges
    # what every cell sets by itself is not searched there
    frozen = {path for path in space if all(path in axes_settings(axes, one) for one in names)}
    frozen |= {*settings, *sweep.overrides}
    space = {path: known for path, known in space.items() if path not in frozen}
    for path, known in space.items():
        for value in known.choice or (known.low, known.high):
            _try(sweep, axes, names[0], settings, path, value)
        for place, begun in enumerate(search.warm_start):
            if path in begun and not known.holds(begun[path]):
                where: Where = ("search", "warm_start", place, path)
                raise SettingError(where, f"{begun[path]!r} is not in the range that {name} searches")
    return Study(name=name, group=group, space=space, cells=tuple(cells))


def axes_settings(axes: Axes, names: Mapping[str, str]) -> set[str]:
    """The paths that a cell's axes set."""
    return {path for axis, name in names.items() for path in axes[axis][name].settings}


def _try(sweep: Sweep, axes: Axes, names: dict[str, str], settings: dict[str, Setting], path: str, value: Any) -> None:
    """A value of a range, as a trial would take it."""
    where: Where = ("search", "space", path)
    resolve(sweep, axes, names, settled=settings, point={path: Setting(value, where)})


def at_point(sweep: Sweep, axes: Axes, study: Study, params: Mapping[str, Any]) -> list[Cell]:
    """The study's cells with a point's settings: above `trial`, below what a cell sets itself."""
    assert sweep.config.search is not None
    settings = flatten(sweep.config.search.set, ("search", "set"))
    point = {path: Setting(value, ("search", "space", path)) for path, value in params.items()}
    return [resolve(sweep, axes, cell.names, settled=settings, point=point) for cell in study.cells]


def frozen_search(sweep: Sweep, folder: Folder) -> Sweep:
    """The sweep with the points that its studies have asked, and the winners that they have found."""
    if sweep.config.search is None:
        return sweep
    points: dict[str, list[dict[str, Any]]] = {}
    winners: dict[str, Winner] = {}
    for study in folder.list(FOLDER):
        names = [name for name in folder.list(f"{FOLDER}/{study}") if name.startswith("point-")]
        points[study] = [folder.read_json(f"{FOLDER}/{study}/{name}")["params"] for name in names]  # type: ignore[index]  # listed just now
        found = folder.read_json(f"{FOLDER}/{study}/winner.json")
        # a search that was made longer since goes on
        if found is not None and found["num_points"] >= sweep.config.search.num_trials:
            winners[study] = Winner(**found)
    return replace(sweep, points=points, winners=winners)


def freeze_point(folder: Folder, study: str, number: int, params: Mapping[str, Any]) -> None:
    """Keeps a point, before any trial of it begins."""
    folder.write_json(f"{FOLDER}/{study}/point-{number:04d}.json", {"params": dict(params)})


def freeze_winner(folder: Folder, study: str, winner: Winner) -> None:
    """Keeps what a study has found, before any trial of the grid begins with it."""
    fields = {name: getattr(winner, name) for name in Winner.__slots__}
    folder.write_json(f"{FOLDER}/{study}/winner.json", fields)
