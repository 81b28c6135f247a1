"""A sweep's `search` -> its studies: the ranges and cells of each, and its recorded points and winner.

There is no Optuna here: `sweep/search/optuna_study.py` chooses the points. The sweep's folder records points and
winners, which are read again at every start. The value of a point is read from its trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from oneshot.config.file import SweepFile
from oneshot.config.paths import Setting, SettingError, Where, flatten, setting_of
from oneshot.config.search import RangeConfig, SearchConfig
from oneshot.plan.cells import Axes, Cell, matches, resolve, study_name
from oneshot.plan.pinned import PinnedSweep, Winner
from oneshot.store.folder import Folder

FOLDER = "search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The search of one cell of the `per` axes, with the cells that it is tuned on."""

    name: str  # `model=a,arm=outcome`, or `all`
    group: dict[str, str]
    space: dict[str, RangeConfig]
    cells: tuple[Cell, ...]  # the cells that the study is tuned on, without a point's settings


def read_studies(sweep: PinnedSweep, axes: Axes, grid: Sequence[Cell]) -> list[Study]:
    """Return the studies that the grid's cells wait for; without a grid, one for every cell of the `per` axes.

    Raises SettingError: the search is wrong; names its place.
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
    all_studies = [_study(sweep, search, axes, name, group) for name, group in groups.items()]
    studies = [study for study in all_studies if study.space]
    # `--set` may replace the whole search on purpose
    if not studies and not (grid and search.space.keys() <= sweep.overrides.keys()):
        raise SettingError(
            ("search", "space"), "nothing is searched, because the tuned cells set all these paths; search other paths"
        )
    return studies


def idle(sweep: PinnedSweep, studies: Sequence[Study]) -> list[tuple[Where, str]]:
    """Return the places of `early_stop` that have no effect, each with the reason."""
    config = sweep.config.early_stop
    if config is None or not studies:
        return []
    other = {"asha": "min_trials", "median": "factor"}[config.kind]
    places: list[tuple[Where, str]] = []
    if other in config.model_fields_set:
        places.append((("early_stop", other), f"has no effect with kind: {config.kind}"))
    longest = max(cell.config.train.num_steps for study in studies for cell in study.cells)
    if config.grace_steps >= longest and not any("train.num_steps" in study.space for study in studies):
        why = f"no trial ends early, because search trials have at most {longest} steps"
        places.append((("early_stop", "grace_steps"), why))
    return places


def _refuse_without_search(sweep: PinnedSweep, axes: Axes) -> None:
    if sweep.config.early_stop is not None:
        raise SettingError(("early_stop",), "it ends only search trials, and there is no `search`; remove it")
    for axis, cells in axes.items():
        for name, cell in cells.items():
            if cell.ranges:
                raise SettingError(("axes", axis, name, "search"), "the sweep has no `search`; add one, or remove this")


def _check_axes(axes: Axes, names: Sequence[str], where: Where) -> None:
    for place, axis in enumerate(names):
        if axis not in axes:
            raise SettingError((*where, place), _unknown_axis(axis, axes))
        if axis in names[:place]:
            raise SettingError((*where, place), f"{axis!r} appears twice; keep one")


def _unknown_axis(axis: str, axes: Axes) -> str:
    return f"unknown axis {axis!r}; " + (f"choose one of {', '.join(axes)}" if axes else "the sweep has no axes")


def _check(sweep: PinnedSweep, search: SearchConfig, axes: Axes) -> None:
    _check_axes(axes, search.per, ("search", "per"))
    if sweep.config.early_stop is not None:
        _check_axes(axes, sweep.config.early_stop.per or [], ("early_stop", "per"))
    for place, seed in enumerate(search.seeds):
        if seed in search.seeds[:place]:
            raise SettingError(("search", "seeds", place), f"seed {seed} appears twice; each seed is one replicate")
    for axis in search.on:
        if axis not in axes:
            raise SettingError(("search", "on", axis), _unknown_axis(axis, axes))
        if axis in search.per:
            raise SettingError(("search", "on", axis), f"each cell of {axis!r} has its own study; remove it here")
    flatten(dict.fromkeys(search.space, "a range"), ("search", "space"))
    for path, setting in flatten(search.set, ("search", "set")).items():
        if path in search.space:
            raise SettingError(setting.where, f"{path} is also in search.space; keep only one of them")
    if len(search.warm_start) > search.num_trials:
        why = (
            f"{len(search.warm_start)} points, but search.num_trials is {search.num_trials}; remove points or raise it"
        )
        raise SettingError(("search", "warm_start", search.num_trials), why)
    for place, path in ((place, path) for place, point in enumerate(search.warm_start) for path in point):
        if path not in search.space:
            why = f"{path} is not searched; add it to search.space or remove it"
            raise SettingError(("search", "warm_start", place, path), why)
    for axis, cells in axes.items():
        for name in (name for name, cell in cells.items() if cell.ranges and axis not in search.per):
            why = f"cells of {axis!r} do not have their own study; add {axis} to search.per"
            raise SettingError(("axes", axis, name, "search"), why)


def _study(sweep: PinnedSweep, search: SearchConfig, axes: Axes, name: str, group: dict[str, str]) -> Study:
    chosen = {
        axis: [group[axis]]
        if axis in group
        else matches(search.on.get(axis, list(cells)), list(cells), ("search", "on", axis))
        for axis, cells in axes.items()
    }
    for axis, cell_names in chosen.items():
        if not cell_names:
            raise SettingError(("search", "on", axis), "selects no cell; name at least one")
    all_names = [dict(zip(axes, combination, strict=True)) for combination in product(*chosen.values())]
    settings = flatten(search.set, ("search", "set"))
    cells = [resolve(sweep, axes, names, settled=settings) for names in all_names]
    space, places = _ranges(search, axes, name, group)
    own = [{path for axis, cell in names.items() for path in axes[axis][cell].settings} for names in all_names]
    # a path that every cell sets itself is not searched there
    fixed = {*set.intersection(*own), *settings, *sweep.overrides}
    space = {path: range_ for path, range_ in space.items() if path not in fixed}
    for path, range_ in space.items():
        ends = [Setting(value, places[path]) for value in range_.choice or (range_.low, range_.high)]
        # raises an error if a trial cannot have the value; a whole number becomes a float if the path has floats
        trials = [resolve(sweep, axes, all_names[0], settled=settings, point={path: end}) for end in ends]
        values = [setting_of(trial.config, path) for trial in trials]
        if range_.choice is None and isinstance(values[0], float):
            space[path] = range_.model_copy(update={"low": float(values[0]), "high": float(values[1])})
        for place, point in enumerate(search.warm_start):
            if path in point and not space[path].holds(point[path]):
                why = f"{point[path]!r} is not {space[path]}, the range of {name}; use a value in the range"
                raise SettingError(("search", "warm_start", place, path), why)
    return Study(name=name, group=group, space=space, cells=tuple(cells))


def _ranges(
    search: SearchConfig, axes: Axes, name: str, group: Mapping[str, str]
) -> tuple[dict[str, RangeConfig], dict[str, Where]]:
    """Return the range of each path in a study, and the place in the file that states it."""
    space = dict(search.space)
    places: dict[str, Where] = {path: ("search", "space", path) for path in space}
    for axis in search.per:
        for path, range_ in axes[axis][group[axis]].ranges.items():
            where: Where = ("axes", axis, group[axis], "search", path)
            if places.get(path, ("search",))[0] == "axes":
                raise SettingError(where, f"axis {places[path][1]!r} also has a range of {path} for {name}; keep one")
            space[path], places[path] = range_, where
    return space, places


def at_point(sweep: PinnedSweep, axes: Axes, study: Study, params: Mapping[str, Any]) -> list[Cell]:
    """Return the study's cells with a point's settings, which are above `trial` and below a cell's own settings."""
    assert sweep.config.search is not None
    settings = flatten(sweep.config.search.set, ("search", "set"))
    point = {path: Setting(value, ("search", "space", path)) for path, value in params.items()}
    return [resolve(sweep, axes, cell.names, settled=settings, point=point) for cell in study.cells]


def frozen_search(file: SweepFile, folder: Folder) -> PinnedSweep:
    """Return the sweep with the recorded points and winners of its studies."""
    sweep = PinnedSweep.of(file)
    if sweep.config.search is None:
        return sweep
    points: dict[str, list[dict[str, Any]]] = {}
    winners: dict[str, Winner] = {}
    for study in folder.list(FOLDER):
        names = [name for name in folder.list(f"{FOLDER}/{study}") if name.startswith("point-")]
        points[study] = [folder.read_json(f"{FOLDER}/{study}/{name}")["params"] for name in names]  # type: ignore[index]  # listed just now
        winner = folder.read_json(f"{FOLDER}/{study}/winner.json")
        # a search with more points than then continues
        if winner is not None and winner["num_points"] >= sweep.config.search.num_trials:
            winners[study] = Winner(**winner)
    return replace(sweep, points=points, winners=winners)


def freeze_point(folder: Folder, study: str, number: int, params: Mapping[str, Any]) -> None:
    """Record a point, before any trial of it begins."""
    folder.write_json(f"{FOLDER}/{study}/point-{number:04d}.json", {"params": dict(params)})


def freeze_winner(folder: Folder, study: str, winner: Winner) -> None:
    """Record the winner of a study, before any trial of the grid uses it."""
    folder.write_json(f"{FOLDER}/{study}/winner.json", asdict(winner))
