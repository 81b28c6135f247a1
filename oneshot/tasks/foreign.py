"""`package.module:name` -> the function, the digest of its source, and where it is.

Foreign code is that of installed packages, or with `--trust-code` that beside the sweep file: its folder is in the
variable ONESHOT_CODE. Nothing of a sweep file is ever run as code.
"""

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from oneshot.errors import DataError

FOLDER = "ONESHOT_CODE"  # variable with the folder of trusted code
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


def load(call: str) -> Callable[..., Any]:
    """Import and return a function. Raises whatever its module raises, and AttributeError: it has no such name."""
    _search_trusted()
    module, _, name = call.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


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
def find(call: str) -> Foreign:
    """Return the source of a function without running it.

    Raises DataError: there is no such module on this machine; says how to make it known.
    """
    _search_trusted()
    top = call.partition(":")[0].partition(".")[0]
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
