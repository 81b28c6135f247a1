"""A sweep's axes and grid -> its cells, each with its name on every axis, its settings and its resources.

Precedence: `trial` < axis cell < grid block < `--set`. It is an error if two axes set the same path in one cell, unless
the grid block sets that path.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from oneshot.config.file import explain
from oneshot.config.paths import Setting, SettingError, Where, flatten, layered, unflatten
from oneshot.config.ranking import FromRankConfig
from oneshot.config.resources import ResourceConfig
from oneshot.config.search import RangeConfig
from oneshot.config.sweep import CellConfig, CostConfig, GridBlock, TableConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, UserError, nearest
from oneshot.models.placement import with_share
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.recorded_solutions import with_solutions
from oneshot.plan.starts import with_start
from oneshot.tasks.solutions import num_demonstrations
from oneshot.tasks.templates import foreign_templates, template_call, template_text, with_texts

PLACEHOLDER = "rank:"
"""Prefix of an example that a ranking will choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisCell:
    """One value of an axis."""

    settings: dict[str, Setting]
    resources: dict[str, Setting] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, RangeConfig] = field(default_factory=dict)  # ranges that replace those of the search
    cost: CostConfig | None = None
    waits_for: str | None = None  # what must be known before the cell can run


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One point of the grid, shared by its seeds."""

    names: dict[str, str]  # axis -> name of its cell, in the order of the file
    config: TrialConfig
    resources: ResourceConfig
    labels: dict[str, str]
    cost: CostConfig
    waits_for: str | None
    places: dict[str, Where]  # path of each setting -> the place in the file that set it for this cell
    templates: dict[str, str] = field(default_factory=dict)  # package's template -> where the package has its text

    def place(self, path: str) -> Where:
        """Return the place that set a path, or the first place that set a path below it."""
        under = [place for setting, place in self.places.items() if setting == path or setting.startswith(f"{path}.")]
        return under[0] if under else ("trial",)

    @property
    def label(self) -> str:
        """Return `model=math-1.5b example=pi_1`, or `the only cell`."""
        return " ".join(f"{axis}={name}" for axis, name in self.names.items()) or "the only cell"


Axes = dict[str, dict[str, AxisCell]]


def read_axes(sweep: PinnedSweep) -> Axes:
    """Return the cells of each axis by name, from the three kinds of axis.

    Raises SettingError: an axis sets a path that trials do not have, or two of its cells have the same name.
    """
    axes: Axes = {}
    for name, axis in sweep.config.axes.items():
        where: Where = ("axes", name)
        if isinstance(axis, TableConfig):
            axes[name] = _table(axis, where)
        elif isinstance(axis, list):
            axes[name] = _scalars(name, axis, where)
        else:
            named = (_named(sweep, name, cell, config).items() for cell, config in axis.items())
            axes[name] = dict(chain.from_iterable(named))
        if not axes[name]:
            raise SettingError(
                where, "the axis has no cells; write a list of values or named cells, or remove the axis"
            )
    return axes


def _named(sweep: PinnedSweep, axis: str, name: str, config: CellConfig) -> dict[str, AxisCell]:
    """Return one cell, or the cells of its ranking."""
    where: Where = ("axes", axis, name)
    keys = list(ResourceConfig.model_fields)
    for key in config.resources:
        if key not in keys:
            raise SettingError((*where, "resources", key), f"unknown key{nearest(key, keys)}")
    cell = AxisCell(
        settings=flatten(config.set, (*where, "set")),
        resources={key: Setting(value, (*where, "resources", key)) for key, value in config.resources.items()},
        labels=config.labels,
        ranges=config.search,
        cost=config.cost,
    )
    flatten(dict.fromkeys(config.search), (*where, "search"))  # refuses a key that is not a path
    if config.from_rank is None:
        return {name: cell}
    place: Where = (*where, "from_rank")
    if "examples" in cell.settings:
        raise SettingError(
            cell.settings["examples"].where, "the cell sets both examples and from_rank; keep only one of them"
        )
    chosen = sweep.rankings.get((axis, name))
    if chosen is None:
        waits_for = f"the history of {config.from_rank.history!r}: run that sweep first"
        names = rank_names(config.from_rank)
        # placeholders for the examples, so that the other settings of these cells can be checked
        settings = {**cell.settings, "examples": Setting([f"{PLACEHOLDER}{end}" for end in names], place)}
        waiting = replace(cell, settings=settings, waits_for=waits_for)
        return {name: waiting} if config.from_rank.together else {f"{name}#{end}": waiting for end in names}
    if config.from_rank.together:
        examples = Setting([ranked.example for ranked in chosen.values()], place)
        return {name: replace(cell, settings={**cell.settings, "examples": examples})}
    return {
        f"{name}#{end}": replace(
            cell,
            settings={**cell.settings, "examples": Setting([ranked.example], place)},
            labels={**cell.labels, "example": ranked.example, "score": f"{ranked.score:.6g}"},
        )
        for end, ranked in chosen.items()
    }


def rank_names(config: FromRankConfig) -> list[str]:
    """Return the names of a ranking's cells, which follow the `#`."""
    counts = {"": config.top, "last": config.bottom, "random": config.random}
    return [f"{kind}{place + 1}" for kind, count in counts.items() for place in range(count)]


def _scalars(path: str, values: list[Any], where: Where) -> dict[str, AxisCell]:
    cells: dict[str, AxisCell] = {}
    for index, value in enumerate(values):
        name = cell_name(value)
        if not name.isprintable():
            why = "a text of several lines cannot name its cell; write named cells, such as `first: {set: {PATH: ...}}`"
            raise SettingError((*where, index), why)
        if name in cells:
            raise SettingError((*where, index), f"{name} appears twice; each value is one cell")
        settings = {p: Setting(s.value, (*where, index)) for p, s in flatten({path: value}, ("axes",)).items()}
        cells[name] = AxisCell(settings=settings)
    return cells


def cell_name(value: Any) -> str:
    """Return the name of a value's cell, also as a selector writes it: `null` for null."""
    return "null" if value is None else str(value)


def _table(table: TableConfig, where: Where) -> dict[str, AxisCell]:
    flatten(dict.fromkeys(table.columns), (*where, "columns"))  # refuses a column that is not a path
    cells = {}
    for row, values in table.rows.items():
        place = (*where, "rows", row)
        if len(values) != len(table.columns):
            columns = f"{len(table.columns)} columns ({', '.join(table.columns)})"
            raise SettingError(place, f"{len(values)} values for {columns}")
        settings = {path: Setting(values[index], (*place, index)) for index, path in enumerate(table.columns)}
        cells[row] = AxisCell(settings=settings)
    return cells


def expand(sweep: PinnedSweep, axes: Axes) -> list[Cell]:
    """Return every cell of the grid once, in the order of blocks and axes.

    Raises SettingError: a selector, a setting or a combination of settings is wrong; names its place.
    """
    if sweep.config.grid == []:
        if sweep.config.search is None:
            raise SettingError(("grid",), "there is no grid and no `search`, so nothing to run; add one of them")
        return []
    cells: dict[tuple[str, ...], Cell] = {}
    for index, block in enumerate(sweep.config.grid or [GridBlock()]):
        where: Where = ("grid", index)
        block_settings = flatten(block.set, (*where, "set"))
        for names in _select(block, axes, where):
            cell = resolve(sweep, axes, names, settled=block_settings, point=_winner(sweep, names))
            earlier = cells.setdefault(tuple(names.values()), cell)
            if earlier.config != cell.config:
                raise SettingError(
                    where, f"cell {cell.label} is in an earlier block with other settings; exclude it from one block"
                )
    if not cells:
        raise SettingError(("grid",), "the grid selects no cell; change its selectors")
    return list(cells.values())


def study_name(names: Mapping[str, str], per: Sequence[str]) -> str:
    """Return the name of the study that a cell waits for: `model=a,arm=outcome`, or `all`. It also names a folder."""
    name = ",".join(f"{axis}={names[axis]}" for axis in per if axis in names) or "all"
    return name.replace("/", "%2F")


def _winner(sweep: PinnedSweep, names: Mapping[str, str]) -> dict[str, Setting]:
    """Return the settings of a cell's search winner, empty if there is none."""
    if sweep.config.search is None:
        return {}
    winner = sweep.winners.get(study_name(names, sweep.config.search.per))
    return {path: Setting(value, ("search", "space", path)) for path, value in winner.params.items()} if winner else {}


def _select(block: GridBlock, axes: Axes, where: Where) -> Iterator[dict[str, str]]:
    selectors: Mapping[str, Any] = block.model_extra or {}
    for name in selectors:
        if name not in axes:
            raise SettingError((*where, name), f"unknown axis{nearest(name, [*axes, 'set'])}")
    chosen = [matches(selectors.get(name, list(cells)), list(cells), (*where, name)) for name, cells in axes.items()]
    for names in product(*chosen):
        yield dict(zip(axes, names, strict=True))


def matches(selector: Any, names: list[str], where: Where) -> list[str]:
    """Return the names that a selector means: a cell, a list of cells, or `{not: ...}`."""
    if isinstance(selector, dict):
        if list(selector) != ["not"]:
            raise SettingError(where, "a selector must be a cell, a list of cells, or {not: ...}")
        excluded = matches(selector["not"], names, (*where, "not"))
        return [name for name in names if name not in excluded]
    wanted = [cell_name(item) for item in (selector if isinstance(selector, list) else [selector])]
    for name in wanted:
        if name not in {*names, *(each.partition("#")[0] for each in names)}:
            raise SettingError(where, f"unknown cell {name!r}{nearest(name, names)}")
    # `ranked` means all of ranked#1, ranked#2 ...
    return [name for name in names if name in wanted or name.partition("#")[0] in wanted]


def resolve(
    sweep: PinnedSweep,
    axes: Axes,
    names: dict[str, str],
    *,
    settled: Mapping[str, Setting],
    point: Mapping[str, Setting] = MappingProxyType({}),
) -> Cell:
    """Return one cell with its settings by precedence. `settled` is above its axes, a search's `point` below them.

    Raises SettingError: a setting or a combination of settings is wrong; names its place.
    """
    label = " ".join(f"{axis}={name}" for axis, name in names.items())
    chosen = {axis: axes[axis][name] for axis, name in names.items()}
    above = layered(settled, sweep.overrides)
    by_axes = _union({axis: cell.settings for axis, cell in chosen.items()}, label, above)
    common = flatten(sweep.config.trial, ("trial",))
    flat = layered(common, point, by_axes, above)
    resources = _union({axis: cell.resources for axis, cell in chosen.items()}, label, {})
    config = _validated(TrialConfig, unflatten({p: s.value for p, s in flat.items()}), flat, label, ("trial",))
    config, templates = _with_texts(config, flat)
    place = next((s.where for path, s in flat.items() if path.startswith("examples")), ("trial",))
    try:
        config, awaited = with_solutions(sweep, config, place)
        start = next((s.where for path, s in flat.items() if path.startswith("model.init")), ("trial",))
        config, awaited_start = with_start(sweep, config, start)
        config = _in_steps(config, flat, is_known=awaited is None)
    except DataError as error:
        raise SettingError(place, str(error)) from error
    if commit := sweep.revisions.get((config.model.path, config.model.revision)):
        config = config.model_copy(update={"model": config.model.model_copy(update={"revision": commit})})
    awaited = awaited or awaited_start
    return Cell(
        names=names,
        config=config,
        resources=_resources(sweep, resources, label),
        labels={key: value for cell in chosen.values() for key, value in cell.labels.items()},
        cost=next((cell.cost for cell in chosen.values() if cell.cost is not None), CostConfig()),
        waits_for=next((cell.waits_for for cell in chosen.values() if cell.waits_for is not None), awaited),
        places={path: setting.where for path, setting in flat.items()},
        templates=templates,
    )


def _resources(sweep: PinnedSweep, of_cell: Mapping[str, Setting], label: str) -> ResourceConfig:
    """Return a cell's resources, with the share of a GPU that a plan assumes. Raises SettingError: names the place."""
    common = sweep.config.resources.model_dump(exclude={"max_concurrent"})
    merged = common | {key: setting.value for key, setting in of_cell.items()}
    resources: ResourceConfig = _validated(ResourceConfig, merged, of_cell, label, ("resources",))
    try:
        return with_share(resources)
    except UserError as error:
        place = of_cell["gpu_gib"].where if "gpu_gib" in of_cell else ("resources", "gpu_gib")
        raise SettingError(place, str(error)) from error


def _with_texts(config: TrialConfig, flat: Mapping[str, Setting]) -> tuple[TrialConfig, dict[str, str]]:
    """Return a trial with the text of each package's template, and where the packages have them.

    Raises SettingError: a template is none of ours, and no package's; names its place.
    """
    calls = {}
    for path, name in foreign_templates(config):
        try:
            template_text(name)
        except DataError as error:
            inside = path.split(".")
            places = [".".join(inside[:end]) for end in range(len(inside), 0, -1)]
            where: Where = next((flat[place].where for place in places if place in flat), ("trial",))
            raise SettingError(where, str(error)) from error
        calls[name] = template_call(name)
    return with_texts(config), calls


def _in_steps(config: TrialConfig, flat: Mapping[str, Setting], *, is_known: bool) -> TrialConfig:
    """Return a trial with the number of steps that its epochs have; `is_known`: it waits for no sweep's completions.

    Raises SettingError: a model samples the solutions, whose number is not known before. DataError: there is none.
    """
    num_epochs = config.train.num_epochs
    if num_epochs is None:
        return config
    # until a ranking or another sweep's completions are known, each example counts as one solution
    is_ranked = any(isinstance(each, str) and each.startswith(PLACEHOLDER) for each in config.examples)
    number = num_demonstrations(config.examples) if is_known and not is_ranked else len(config.examples)
    if number is None:
        raise SettingError(
            flat["train.num_epochs"].where,
            "train.num_epochs: the number of solutions is unknown before they are sampled; set train.num_steps",
        )
    num_steps = math.ceil(num_epochs * math.ceil(number / config.train.batch_size))
    train = config.train.model_copy(update={"num_steps": num_steps, "num_epochs": None})
    return config.model_copy(update={"train": train})


def _union(
    by_axis: Mapping[str, Mapping[str, Setting]], label: str, settled: Mapping[str, Setting]
) -> dict[str, Setting]:
    """Merge the settings of several axes. It is an error if two set the same path and nothing above them sets it."""
    merged: dict[str, Setting] = {}
    owner: dict[str, str] = {}
    for axis, settings in by_axis.items():
        for path, setting in settings.items():
            if path in merged and path not in settled and merged[path].value != {}:
                both = f"axes {owner[path]!r} and {axis!r} both set {path} in cell {label}"
                raise SettingError(setting.where, f"{both}; set it in one of them, or in the grid block")
            merged[path], owner[path] = setting, axis
    return merged


def _validated(model: Any, nested: dict[str, Any], flat: Mapping[str, Setting], label: str, default: Where) -> Any:
    """Validate a cell's settings. An error names the place that set the wrong value."""
    try:
        return model.model_validate(nested)
    except ValidationError as error:
        finding = error.errors()[0]
        path = ".".join(str(part) for part in finding["loc"])
        parts = path.split(".")
        places = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        place = next((flat[candidate].where for candidate in places if candidate in flat), default)
        message = explain(finding, model, tuple(parts))
        named = message if finding["type"] == "value_error" else f"{path}: {message}"
        raise SettingError(place, f"{named} (in cell {label})" if label else named) from error


def unused(
    sweep: PinnedSweep, axes: Axes, cells: Sequence[Cell], *, besides: Collection[str]
) -> list[tuple[Where, str]]:
    """Return places of the file that change no trial, each with the reason. `besides` are paths that a search sets."""
    unused_places: list[tuple[Where, str]] = []
    selected = {pair for cell in cells for pair in cell.names.items()}
    used = {place for cell in cells for place in cell.places.values()}
    is_grid = sweep.config.grid != []
    unselected = "no block of the grid selects this cell" if is_grid else "the search is not tuned on this cell"
    settled = {*sweep.overrides, *besides}  # replaced on purpose, by `--set` or by a search
    for axis, values in axes.items():
        for name, value in values.items():
            if (axis, name) not in selected:
                unused_places.append((("axes", axis, name), unselected))
                continue
            for path, setting in value.settings.items():
                if setting.where not in used and setting.value != {} and path not in settled:
                    unused_places.append((setting.where, "overridden in every trial"))
    for path, setting in flatten(sweep.config.trial, ("trial",)).items():
        if setting.where not in used and setting.value != {} and path not in settled:
            unused_places.append((setting.where, f"{path} is overridden in every trial"))
    return unused_places
