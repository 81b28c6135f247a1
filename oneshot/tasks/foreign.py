"""A part that is not ours, `package.module:name` or a registered name -> its source, its digest, and what it returns.

Foreign code is that of installed packages, or with `--trust-code` that beside the sweep file: its folder is in the
variable ONESHOT_CODE. It only ever runs in child processes. Nothing of a sweep file is ever run as code.
"""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from oneshot.children import command
from oneshot.errors import DataError, nearest

FOLDER = "ONESHOT_CODE"  # variable with the folder of trusted code
DEADLINE_S = 300.0  # time for a set, a template or a ranking rule to answer
Kind = Literal["rewards", "sets", "templates", "graders", "rank_rules"]
"""What a package may register: the entry points of the group `oneshot.<kind>`."""
WORDS: dict[Kind, str] = {
    "rewards": "reward",
    "sets": "set",
    "templates": "template",
    "graders": "grader",
    "rank_rules": "ranking rule",
}
_CALL = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """The source of a function."""

    call: str
    path: Path  # of the package's folder, or of the module's file
    digest: str  # sha256 (hex) of the Python files of the package, or of the module


def trust(folder: Path) -> None:
    """Let functions be found in a folder, here and in every process that this one starts."""
    os.environ[FOLDER] = str(folder.resolve())


def _search_trusted() -> None:
    """Search the trusted folder after everything else, so that its names replace no library's."""
    folder = os.environ.get(FOLDER)
    if folder and folder not in sys.path:
        sys.path.append(folder)


def load(call: str) -> Any:
    """Import and return a function or a value, in a child process only.

    Raises whatever its module raises, and AttributeError: it has no such name.
    """
    _search_trusted()
    module, _, name = call.partition(":")
    return getattr(importlib.import_module(module), name)


def is_call(text: str) -> bool:
    """Return whether a text has the form of a function's name."""
    return _CALL.fullmatch(text) is not None


def is_trusted(call: str) -> bool:
    """Return whether a function is in the trusted folder, as opposed to an installed package."""
    folder = os.environ.get(FOLDER)
    try:
        return folder is not None and find(call).path.resolve().is_relative_to(Path(folder).resolve())
    except DataError:  # a text that only looks like a function's name
        return False


@cache
def registered(kind: Kind) -> dict[str, tuple[str, ...]]:
    """Return the names that installed packages register, each with its functions: several if packages disagree."""
    names: dict[str, set[str]] = {}
    for point in entry_points(group=f"oneshot.{kind}"):
        names.setdefault(point.name, set()).add(f"{point.module}:{point.attr}")
    return {name: tuple(sorted(calls)) for name, calls in sorted(names.items())}


def resolve(name: str, kind: Kind, *, built_in: Sequence[str] = ()) -> str:
    """Return `package.module:name` of a part, by its registered name or its own. Imports nothing.

    Raises DataError: nobody registers the name, or two packages do; `built_in` are further names for the hint.
    """
    if is_call(name):
        return name
    calls = registered(kind).get(name, ())
    if not calls:
        hint = nearest(name, [*built_in, *registered(kind)])
        end = "" if hint.endswith("?") else "."
        raise DataError(
            f"{name!r} is no {WORDS[kind]}{hint}{end} Write one of your own as package.module:name (docs/own-parts.md)"
        )
    if len(calls) > 1:
        raise DataError(f"{name!r} is registered by several packages; write one of {', '.join(calls)}")
    if not is_call(calls[0]):
        raise DataError(f"{name!r} is registered as {calls[0]}, which is not package.module:name; correct its package")
    return calls[0]


@cache
def find(call: str) -> Foreign:
    """Return the source of a function without running it.

    Raises DataError: there is no such module on this machine, or it is Python's own; says how to make it known.
    """
    _search_trusted()
    top = call.partition(":")[0].partition(".")[0]
    if top in sys.stdlib_module_names:
        raise DataError(f"{call}: {top!r} is part of Python; name a function of a package or module of your own")
    spec = importlib.util.find_spec(top)
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise DataError(
            f"{call}: no module named {top!r}; install its package, or use --trust-code if it is beside the sweep file"
        )
    if spec.submodule_search_locations:
        path = Path(next(iter(spec.submodule_search_locations)))
        files = sorted(path.rglob("*.py"))
    else:
        path = Path(str(spec.origin))
        files = [path]
    digest = sha256()
    for file in files:
        digest.update(file.relative_to(path.parent).as_posix().encode())
        digest.update(file.read_bytes())
    return Foreign(call=call, path=path, digest=digest.hexdigest())


def returned(call: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
    """Return what a function returns for each list of arguments, as JSON has it. It runs in a child process.

    Raises DataError: it cannot be found or imported, it raises, or it takes longer than the deadline.
    """
    values: list[Any] = _child(call, {"call": call, "arguments": [list(each) for each in arguments]})
    return values


def value(call: str) -> Any:
    """Return the value of a module's name, as JSON has it. Raises DataError as `returned` does."""
    return _child(call, {"call": call, "arguments": None})


def _child(call: str, request: dict[str, Any]) -> Any:
    find(call)
    try:
        ended = subprocess.run(
            command("oneshot.tasks.foreign_worker"),
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{call}: it did not end within {DEADLINE_S:g} s; make it faster") from error
    if ended.returncode or not ended.stdout:
        last = (ended.stderr.strip().splitlines() or [""])[-1]
        raise DataError(f"{call}: its process ended with status {ended.returncode}{last and f': {last}'}; correct it")
    reply = json.loads(ended.stdout)
    if "error" in reply:
        raise DataError(f"{call}: {reply['error']}; correct the function, or its name")
    return reply["value"]


def forget() -> None:
    """Forget what was found, so that edited code and new packages count in this process, too."""
    find.cache_clear()
    registered.cache_clear()
