"""A sweep's `search` -> its studies: what each searches, on which cells, and what it has asked and found so far.

No Optuna here: points are asked in `sweep/study.py`. What was asked and what won is kept in the sweep's folder, and is
read back at every start; what a point is worth is read from its trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from oneshot.config.file import SweepFile
from oneshot.config.paths import Setting, SettingError, Where, flatten, setting_of
from oneshot.config.sweep import RangeConfig, SearchConfig
from oneshot.config.trial import TrialConfig
from oneshot.plan.cells import Axes, Cell, matches, resolve, study_name
from oneshot.plan.pinned import PinnedSweep, Winner
from oneshot.store.folder import Folder

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


def read_studies(sweep: PinnedSweep, axes: Axes, grid: Sequence[Cell]) -> list[Study]:
    """The studies that the grid's cells wait for; without a grid, one for every cell of the `per` axes.

    Raises:
        SettingError: the search asks for what cannot be; names its place.
    """
    search = sweep.config.search
    if search is None:
        _refuse_without_search(sweep, axes)
        return []
    _check(sweep, search, axes)
    wanted = [cell.names for cell in grid]
    if not grid:
        wanted = [dict(zip(search.per, names, strict=True)) for names in product(*(axes[axis] for axis in search.per))]
    groups = {study_name(names, search.per): {axis: names[axis] for axis in search.per} for names in wanted}
    found = [_study(sweep, search, axes, name, group) for name, group in groups.items()]
    studies = [study for study in found if study.space]
    # what `--set` takes over was meant to be
    if not studies and not (grid and search.space.keys() <= sweep.overrides.keys()):
        raise SettingError(
            ("search", "space"), "nothing is searched: the cells that are tuned on set all of it by themselves"
        )
    return studies


def idle(sweep: PinnedSweep, studies: Sequence[Study]) -> list[tuple[Where, str]]:
    """Places of `early_stop` that end no trial, each with a sentence why."""
    config = sweep.config.early_stop
    if config is None or not studies:
        return []
    other = {"asha": "min_trials", "median": "factor"}[config.kind]
    found: list[tuple[Where, str]] = []
    if other in config.model_fields_set:
        found.append((("early_stop", other), f"changes nothing with kind: {config.kind}"))
    longest = max(cell.config.train.num_steps for study in studies for cell in study.cells)
    if config.grace_steps >= longest and not any("train.num_steps" in study.space for study in studies):
        why = f"no trial ends early: those of the search have at most {longest} steps"
        found.append((("early_stop", "grace_steps"), why))
    return found


def _refuse_without_search(sweep: PinnedSweep, axes: Axes) -> None:
    if sweep.config.early_stop is not None:
        raise SettingError(("early_stop",), "there is no `search`, and grid trials are never cut; leave it out")
    for axis, cells in axes.items():
        for name, cell in cells.items():
            if cell.ranges:
                raise SettingError(("axes", axis, name, "search"), "there is no `search`; add one, or leave it out")


def _check_axes(axes: Axes, named: Sequence[str], where: Where) -> None:
    for place, axis in enumerate(named):
        if axis not in axes:
            raise SettingError((*where, place), f"unknown axis {axis!r}; there is {', '.join(axes) or 'none'}")
        if axis in named[:place]:
            raise SettingError((*where, place), f"{axis!r} stands twice; keep one")


def _check(sweep: PinnedSweep, search: SearchConfig, axes: Axes) -> None:
    _check_axes(axes, search.per, ("search", "per"))
    if sweep.config.early_stop is not None:
        _check_axes(axes, sweep.config.early_stop.per or [], ("early_stop", "per"))
    for place, seed in enumerate(search.seeds):
        if seed in search.seeds[:place]:
            raise SettingError(("search", "seeds", place), f"seed {seed} stands twice; each is one replicate")
    for axis in search.on:
        if axis not in axes:
            raise SettingError(("search", "on", axis), f"unknown axis {axis!r}; there is {', '.join(axes) or 'none'}")
        if axis in search.per:
            raise SettingError(("search", "on", axis), f"each cell of {axis!r} has a study of its own; leave it out")
    flatten(dict.fromkeys(search.space, "a range"), ("search", "space"))
    for path, setting in flatten(search.set, ("search", "set")).items():
        if path in search.space:
            raise SettingError(setting.where, f"{path} is searched (search.space); keep one")
    if len(search.warm_start) > search.num_trials:
        raise SettingError(
            ("search", "warm_start", search.num_trials),
            f"{len(search.warm_start)} points to begin with, of {search.num_trials} (search.num_trials)",
        )
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


def _study(sweep: PinnedSweep, search: SearchConfig, axes: Axes, name: str, group: dict[str, str]) -> Study:
    chosen = {
        axis: [group[axis]] if axis in group else matches(search.on.get(axis), list(cells), ("search", "on", axis))
        for axis, cells in axes.items()
    }
    for axis, those in chosen.items():
        if not those:
            raise SettingError(("search", "on", axis), "selects no cell")
    names = [dict(zip(axes, one, strict=True)) for one in product(*chosen.values())]
    settings = flatten(search.set, ("search", "set"))
    cells = [resolve(sweep, axes, one, settled=settings) for one in names]
    space = dict(search.space)
    places: dict[str, Where] = {path: ("search", "space", path) for path in space}
    for axis in search.per:
        for path, known in axes[axis][group[axis]].ranges.items():
            where: Where = ("axes", axis, group[axis], "search", path)
            if places.get(path, ("search",))[0] == "axes":
                raise SettingError(where, f"axis {places[path][1]!r} has a range of {path} for {name}, too; keep one")
            space[path], places[path] = known, where
    # what every cell sets by itself is not searched there
    frozen = {path for path in space if all(path in axes_settings(axes, one) for one in names)}
    frozen |= {*settings, *sweep.overrides}
    space = {path: known for path, known in space.items() if path not in frozen}
    for path, known in space.items():
        tried = [Setting(value, places[path]) for value in known.choice or (known.low, known.high)]
        taken = [setting_of(_try(sweep, axes, names[0], settings, path, value), path) for value in tried]
        if known.choice is None and isinstance(taken[0], float):  # 0 to 1 is more than two numbers
            space[path] = known.model_copy(update={"low": float(taken[0]), "high": float(taken[1])})
        for place, begun in enumerate(search.warm_start):
            if path in begun and not space[path].holds(begun[path]):
                raise SettingError(
                    ("search", "warm_start", place, path),
                    f"{begun[path]!r} is not {space[path]}, which {name} searches",
                )
    return Study(name=name, group=group, space=space, cells=tuple(cells))


def axes_settings(axes: Axes, names: Mapping[str, str]) -> set[str]:
    """The paths that a cell's axes set."""
    return {path for axis, name in names.items() for path in axes[axis][name].settings}


def _try(
    sweep: PinnedSweep, axes: Axes, names: dict[str, str], settings: dict[str, Setting], path: str, value: Setting
) -> TrialConfig:
    """A trial with a value of a range."""
    return resolve(sweep, axes, names, settled=settings, point={path: value}).config


def at_point(sweep: PinnedSweep, axes: Axes, study: Study, params: Mapping[str, Any]) -> list[Cell]:
    """The study's cells with a point's settings: above `trial`, below what a cell sets itself."""
    assert sweep.config.search is not None
    settings = flatten(sweep.config.search.set, ("search", "set"))
    point = {path: Setting(value, ("search", "space", path)) for path, value in params.items()}
    return [resolve(sweep, axes, cell.names, settled=settings, point=point) for cell in study.cells]


def frozen_search(file: SweepFile, folder: Folder) -> PinnedSweep:
    """The sweep with the points that its studies have asked, and the winners that they have found."""
    sweep = PinnedSweep.of(file)
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
