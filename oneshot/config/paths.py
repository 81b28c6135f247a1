"""Nested or dotted settings <-> flat paths of `TrialConfig`, each with its place in a file.

`{"loss": {"kl_coef": 0.0}, "optim.lr": 1e-4}` -> `{"loss.kl_coef": 0.0, "optim.lr": 1e-4}`. A path that does not exist
is an error that names the nearest path.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from keyword import iskeyword
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from oneshot.config.trial import TrialConfig

Where = tuple[str | int, ...]  # A place in a sweep file, as the keys and indices that lead to it


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and the place that set it."""

    value: Any
    where: Where


class SettingError(Exception):
    """A wrong setting. `where` is its place, and the message says what is wrong and what to do."""

    def __init__(self, where: Where, message: str) -> None:
        super().__init__(message)
        self.where = where
        self.message = message


def flatten(settings: Mapping[str, Any], where: Where) -> dict[str, Setting]:
    """Return the settings of one place of the file by flat path.

    Raises SettingError: a path does not exist, or is set twice.
    """
    flat: dict[str, Setting] = {}
    for path, setting in _walk(TrialConfig, settings, "", where):
        if path in flat:
            raise SettingError(setting.where, f"{path} is set twice here; keep one")
        flat[path] = setting
    return flat


def layered(*levels: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return the settings of all levels by flat path. A later level replaces a path, and a section that it sets whole.

    Raises SettingError: a level sets a key of a section that it also sets to null.
    """
    merged: dict[str, Setting] = {}
    for level in levels:
        replaced = {path for path, setting in level.items() if setting.value != {}}
        merged = {path: setting for path, setting in merged.items() if replaced.isdisjoint(_sections(path))}
        merged |= level
        absent = {path for path, setting in merged.items() if setting.value is None}
        for path in level if absent else ():
            for section in absent & _sections(path):
                if section in level:
                    raise SettingError(level[path].where, f"{path} is set, but {section} is null; remove one of them")
                merged.pop(section, None)
    return merged


@cache
def _sections(path: str) -> frozenset[str]:
    """Return the sections that a path is in, such as `model` and `model.adapter`."""
    parts = path.split(".")
    return frozenset(".".join(parts[:end]) for end in range(1, len(parts)))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat paths as the nested mapping that `TrialConfig` validates."""
    nested: dict[str, Any] = {}
    for path in sorted(flat):  # `eval.suites.val: {}` before what is inside it
        *parents, last = path.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        if flat[path] == {} and last in inner:
            continue
        inner[last] = dict(flat[path]) if isinstance(flat[path], dict) else flat[path]
    return nested


def _walk(kind: Any, value: Mapping[str, Any], prefix: str, where: Where) -> Iterator[tuple[str, Setting]]:
    for key, inner in value.items():
        path, inner_kind = prefix, kind
        for part in str(key).split("."):
            inner_kind = _child(inner_kind, part, path, (*where, key))
            path = f"{path}.{part}" if path else part
        place = (*where, key)
        if _children(inner_kind) is None or _is_optional(inner_kind):
            yield path, Setting(inner, place)
        elif not isinstance(inner, Mapping):
            raise SettingError(place, f"{path} is a section and cannot be {inner!r}; write its keys below it")
        elif not inner:
            yield path, Setting({}, place)
        else:
            yield from _walk(inner_kind, inner, path, place)


def _child(kind: Any, name: str, path: str, where: Where) -> Any:
    children = _children(kind)
    if children is None:
        raise SettingError(where, f"{path} is a single value and has no key {name!r}")
    if isinstance(children, dict):
        if name not in children:
            full = f"{path}.{name}" if path else name
            raise SettingError(where, f"unknown key {full!r}{_suggestion(name, path, list(children))}")
        return children[name]
    return children


def _suggestion(name: str, path: str, names: list[str]) -> str:
    """Return a hint: the nearest key here, or else a path that ends in this key, or else all keys here."""
    if name == "trial" and not path:
        return "; leave out `trial.`, as paths begin below it"
    if close := get_close_matches(name, names, n=1, cutoff=0.6):
        return f"; did you mean {f'{path}.{close[0]}' if path else close[0]!r}?"
    elsewhere = [each for each in all_paths() if each.split(".")[-1] == name]
    if elsewhere:
        return f"; did you mean {elsewhere[0]!r}?"
    return f"; choose one of {', '.join(names)}"


def _children(kind: Any) -> dict[str, Any] | Any | None:
    """Return a section's fields by name, the type of a mapping's values, or None for a single value."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if _is_optional(kind):
        kind = next(inner for inner in get_args(kind) if inner is not NoneType)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    return None


def _is_optional(kind: Any) -> bool:
    """Return whether this is a section or null: its mapping is one value, and its keys are paths too."""
    kinds = get_args(kind)
    return NoneType in kinds and any(isinstance(inner, type) and issubclass(inner, BaseModel) for inner in kinds)


def setting_of(config: BaseModel, path: str) -> Any:
    """Return the value at a path of a config."""
    value: Any = config
    for part in path.split("."):
        if value is not None:  # else an optional section that is absent
            # a field whose name is a word of Python ends in _, such as `with`
            value = value[part] if isinstance(value, dict) else getattr(value, f"{part}_" if iskeyword(part) else part)
    return value


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the single values of a config's dump by dotted path."""
    if not isinstance(value, dict):
        return {prefix: value}
    inner = ((f"{prefix}.{name}" if prefix else name, child) for name, child in value.items())
    return {path: single for place, child in inner for path, single in flat(child, place).items()}


@cache
def all_paths() -> tuple[str, ...]:
    """Return every path of a trial's settings, without those in mappings."""

    def under(kind: Any, prefix: str) -> Iterator[str]:
        children = _children(kind)
        if isinstance(children, dict):
            for name, child in children.items():
                yield from under(child, f"{prefix}.{name}" if prefix else name)
        if children is None or _is_optional(kind):
            yield prefix

    return tuple(under(TrialConfig, ""))
