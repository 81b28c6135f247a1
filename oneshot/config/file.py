"""A sweep file -> `SweepFile`, or one error with file, line, path and hint."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from oneshot.config.fields import Config
from oneshot.config.paths import Setting, SettingError, Where, flatten
from oneshot.config.ranking import FromRankConfig
from oneshot.config.search import RangeConfig
from oneshot.config.source import Source, parse_yaml
from oneshot.config.sweep import CellConfig, CostConfig, SweepConfig, TableConfig
from oneshot.errors import SweepFileError, nearest
from oneshot.text import read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFile:
    """A sweep file that was read and validated, without the files and models that it names."""

    config: SweepConfig
    source: Source
    overrides: dict[str, Setting]  # settings from `--set`, which override everything in the file

    def override_values(self) -> dict[str, Any]:
        """Return the `--set` values by path, as the store records them."""
        return {path: setting.value for path, setting in self.overrides.items()}


def load(path: Path, *, overrides: tuple[str, ...] = ()) -> SweepFile:
    """Read a sweep file. `overrides` are texts `path=value`, as in `--set`.

    Raises SweepFileError: the file cannot be read, or is not a valid sweep file.
    """
    return read(read_text(path, error=SweepFileError), name=str(path), overrides=overrides)


def read(
    text: str, *, name: str, overrides: tuple[str, ...] = (), settings: Mapping[str, Any] = MappingProxyType({})
) -> SweepFile:
    """Read the text of a sweep file. `name` is the file's name in errors, and `settings` are overrides already read.

    Raises SweepFileError: it is not a valid sweep file.
    """
    data, source = parse_yaml(text, name)
    if not isinstance(data, dict):
        raise source.error((), "must be a mapping with `version`, `name`, `question`, `trial` and `seeds`")
    try:
        config = SweepConfig.model_validate(data)
    except ValidationError as error:
        raise SweepFileError("\n".join(_explain(error, data, source))) from error
    _check_rules(config, source)
    earlier = {path: Setting(value, ("--set", path)) for path, value in settings.items()}
    return SweepFile(config=config, source=source, overrides={**earlier, **_read_overrides(overrides)})


def _check_rules(config: SweepConfig, source: Source) -> None:
    """Refuse seeds that appear twice, looks that do not fit them, and groups of groups."""
    seeds, looks = config.planned_seeds, config.looks
    for place, seed in enumerate(seeds):
        if seed in seeds[:place]:
            raise source.error(("seeds", place), f"seed {seed} appears twice; each seed is one replicate")
    for place, (earlier, look) in enumerate(pairwise(looks), 1):
        if look <= earlier:
            raise source.error(("looks", place), f"{look} is not above {earlier}, the look before; sort the looks")
    if looks and looks[-1] != len(seeds):
        raise source.error(("looks",), f"the last look is {looks[-1]}; it must be the number of seeds, {len(seeds)}")
    if config.stops_when_decided and not looks:
        why = "needs the numbers of seeds after which the claims are judged; add `looks`, such as"
        raise source.error(("seeds", "stop"), f"{why} looks: [3, {max(4, len(seeds))}]")
    for name, group in config.groups.items():
        for place, suite in enumerate(group.suites):
            if suite.startswith("@"):
                raise source.error(("groups", name, "suites", place), "is a group; name the suites of that group")


def _read_overrides(overrides: tuple[str, ...]) -> dict[str, Setting]:
    flat: dict[str, Setting] = {}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals:
            raise SweepFileError(
                f"--set {override}: has no value; write it as path=value, such as `--set loss.kl_coef=0.01`"
            )
        data, _ = parse_yaml(value, f"--set {override}")
        try:
            flat |= flatten({path: data}, ("--set",))
        except SettingError as error:
            raise SweepFileError(f"--set {override}: {error.message}") from error
    return flat


def _explain(error: ValidationError, data: Any, source: Source) -> list[str]:
    """Return one line for each of pydantic's findings, with place and hint, without those of a union's other types."""
    places = [(finding, _place(finding["loc"], data)) for finding in error.errors()]
    lines = {
        f"{source.at(where)}: {explain(finding, SweepConfig, where)}": where
        for finding, where in places
        if where is not None
    }
    misspelt = [line for line in lines if "did you mean" in line]
    # a misspelt required key is also missing under its right name: report one mistake
    return [
        line
        for line, where in lines.items()
        if not (line.endswith("missing; add it") and any(f"did you mean '{where[-1]}'" in other for other in misspelt))
    ]


def _place(loc: tuple[str | int, ...], data: Any) -> Where | None:
    """Return the place in the file of pydantic's location, which also names the type in a union.

    None if the location is in a type of the union that was not meant.
    """
    if len(loc) > 2 and loc[0] == "axes":
        axis = data["axes"].get(loc[1]) if isinstance(data["axes"], Mapping) else None
        branch, rest = str(loc[2]), loc[3:]
        is_table = isinstance(axis, Mapping) and "columns" in axis
        meant = "list" if isinstance(axis, list) else "TableConfig" if is_table else "dict"
        if not branch.startswith(meant):
            return None
        if meant == "list":
            rest = rest[:1]
        return tuple(part for part in (*loc[:2], *rest) if part != "[key]")
    if len(loc) > 1 and loc[0] == "seeds":
        meant = "SeedsConfig" if isinstance(data["seeds"], Mapping) else "list"
        return ("seeds", *loc[2:]) if str(loc[1]).startswith(meant) else None
    return tuple(part for part in loc if part != "[key]")


def explain(finding: Any, model: type[Config], where: Where) -> str:
    """Return the text of one of pydantic's findings: what is wrong and what to do."""
    kind, value = finding["type"], finding["input"]
    name = str(where[-1]) if where else ""
    if kind == "extra_forbidden":
        keys = _siblings(model, where)
        hint = nearest(name, keys)
        return f"unknown key{hint}" + (
            f" The keys are {', '.join(keys)}" if "did you" in hint and len(keys) < 4 else ""
        )
    if kind == "missing":
        return "missing; add it"
    if kind == "value_error":
        return str(finding["ctx"]["error"])
    if kind == "literal_error":
        return f"{value!r} is not one of {finding['ctx']['expected']}"
    if kind == "too_short":
        least, item = finding["ctx"]["min_length"], name[:-1] if name.endswith("s") else "item"
        return f"needs at least {f'one {item}' if least == 1 else f'{least} {item}s'}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "list_type" and not isinstance(value, dict):
        such_as = "[0, 1, 2]" if name == "seeds" else "[]" if value is None else f"[{value}]"
        return f"must be a list, such as {such_as}, not {'null' if value is None else repr(value)}"
    if kind == "string_pattern_mismatch":
        return f"{value!r} is not a valid name; use letters, digits, _ and -"
    if kind in ("less_than_equal", "greater_than_equal"):
        ((side, bound),) = finding["ctx"].items()
        whole = int(bound) if bound == int(bound) else bound
        return f"must be at {'most' if side == 'le' else 'least'} {whole:,}, not {value!r}"
    message = (
        re.sub(r" or instance of \w+", "", finding["msg"])
        .replace("Input should be", "must be")
        .replace("a valid integer", "a whole number")
        .replace("a valid ", "a ")
        .replace("dictionary", "mapping")
    )
    shown = "null" if value is None else repr(value)
    return f"{message}, not {shown}" if not isinstance(value, dict | list) or len(str(value)) < 60 else message


def _siblings(model: type[Config], where: Where) -> list[str]:
    """Return the keys that are allowed where an unknown key is."""
    if where[:1] == ("axes",):
        owners: dict[int, type[Config]] = {3: TableConfig, 4: CellConfig}
        inner = FromRankConfig if "from_rank" in where else RangeConfig if "search" in where else CostConfig
        return list(owners.get(len(where), inner).model_fields)
    kind: Any = model
    for part in where[:-1]:
        fields = getattr(kind, "model_fields", {})
        if part not in fields:  # an index, or a name in a mapping
            continue
        annotation = fields[part].annotation
        candidates = [a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields")]
        kind = candidates[0] if candidates else None
    return [field.alias or name for name, field in getattr(kind, "model_fields", {}).items()]
