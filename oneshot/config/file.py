"""A sweep file's YAML -> `SweepFile`, or one error with file, line, path and hint.

The YAML is version 1.2, as ruamel reads it: `1e-6` is a number, `on` and `no` are text, and a key that appears twice is
an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from oneshot.config.paths import Setting, SettingError, Where, flatten
from oneshot.config.search import RangeConfig
from oneshot.config.sweep import CellConfig, CostConfig, FromRankConfig, SweepConfig, TableConfig
from oneshot.config.trial import Config
from oneshot.errors import SweepFileError, nearest
from oneshot.text import read_text, stray_character


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The text of a file, and the line of each of its places."""

    name: str
    text: str
    lines: dict[Where, int]

    def at(self, where: Where) -> str:
        """Return `file:line: dotted.path` of a place. The line is that of the nearest place around it that has one."""
        if where and str(where[0]).startswith("--"):
            return " ".join(str(part) for part in where)
        place = where
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.name}:{self.lines.get(place, 1)}: {'.'.join(str(part) for part in where) or 'the file'}"

    def error(self, where: Where, message: str) -> SweepFileError:
        """Return an error about a place."""
        return SweepFileError(f"{self.at(where)}: {message}")


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
    for place, seed in enumerate(config.seeds):
        if seed in config.seeds[:place]:
            raise source.error(("seeds", place), f"seed {seed} appears twice; each seed is one replicate")
    earlier = {path: Setting(value, ("--set", path)) for path, value in settings.items()}
    return SweepFile(config=config, source=source, overrides={**earlier, **_read_overrides(overrides)})


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


def parse_yaml(text: str, name: str) -> tuple[Any, Source]:
    """Parse a YAML text into plain Python, with the line of each of its places.

    Raises SweepFileError: it is not valid YAML, or a key appears twice.
    """
    yaml = YAML(typ="rt", pure=True)
    try:
        tree = yaml.load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise SweepFileError(
            f"{name}:{line}: {error.problem.split(' with value')[0].replace('found ', '')}; keep one"
        ) from error
    except MarkedYAMLError as error:
        raise _yaml_error(error, name, text) from error
    except YAMLError as error:
        raise SweepFileError(f"{name}: not YAML: {error}") from error
    except (ValueError, RecursionError) as error:
        raise SweepFileError(
            f"{name}: a date or number does not exist, or brackets are nested too deep; put the value in quotes"
        ) from error
    lines: dict[Where, int] = {}
    data = _plain(tree, (), lines)
    source = Source(name=name, text=text, lines=lines)
    _check_characters(data, (), source)
    return data, source


_YAML_MISTAKES = {
    "mapping values are not allowed": "a colon and a space inside text; quote the text, or correct its indentation",
    "unknown escape": "a backslash in double quotes begins an escape; use single quotes",
    "undefined alias": "text cannot begin with *; put it in quotes",
    "could not find expected ':'": "a line that is no `key: value`; add a colon and a space, or put text in quotes",
    "found '<scalar>'": "text after a quote or bracket; put the whole text in one pair of quotes",
    "<block end>": "the indentation does not fit the lines above; align the keys of a section",
    "flow sequence": "a list is not closed; add ] or a comma",
    "flow mapping": "a mapping is not closed; add } or a comma",
    "quoted scalar": "a quoted text is not closed; add the quote",
}
"""What ruamel's messages contain -> what is wrong, in plain words, and how to fix it."""


def _yaml_error(error: MarkedYAMLError, name: str, text: str) -> SweepFileError:
    """Return an error with the line of what is not YAML, in plain words."""
    problem = f"{error.problem or ''} {error.context or ''}"
    mark = error.problem_mark or error.context_mark
    if "could not find" in problem and error.context_mark:  # the mark of the problem is where the search ended
        mark = error.context_mark
    line = text.split("\n")[mark.line]
    if "cannot start any token" in problem:
        char = line[mark.column]
        why = "a tab; indent with spaces" if char == "\t" else f"text cannot begin with {char}; put it in quotes"
    elif "\t" in line[: len(line) - len(line.lstrip())]:
        why = "a tab; indent with spaces"
    else:
        why = next((why for part, why in _YAML_MISTAKES.items() if part in problem), problem.strip())
    return SweepFileError(f"{name}:{mark.line + 1}: not YAML: {why}")


def _check_characters(value: Any, where: Where, source: Source) -> None:
    """Check that no text contains a control character, which a backslash in double quotes makes.

    Raises SweepFileError: a text does; names its place.
    """
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_characters(inner, (*where, key), source)
    elif isinstance(value, str) and (stray := stray_character(value)):
        raise source.error(
            where, f"contains {stray}, as a backslash in double quotes begins an escape; use single quotes"
        )


def _plain(node: Any, where: Where, lines: dict[Where, int]) -> Any:
    """Convert ruamel's tree to plain Python, and note the line of every key and item."""
    if isinstance(node, CommentedMap):
        plain = {}
        for key, value in node.items():
            name = key if isinstance(key, str) else str(key)
            lines[(*where, name)] = node.lc.key(key)[0] + 1 if key in (node.lc.data or {}) else lines.get(where, 1)
            plain[name] = _plain(value, (*where, name), lines)
        return plain
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*where, index)] = node.lc.item(index)[0] + 1
        return [_plain(value, (*where, index), lines) for index, value in enumerate(node)]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


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
