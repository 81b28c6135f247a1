"""A sweep file -> the folder that a job ships to the cluster: this package, the file and its data."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oneshot.config.file import SweepFile
from oneshot.errors import UserError
from oneshot.tasks.foreign import FOLDER, find, is_call, is_trusted

PACKAGE = Path(__file__).parents[2]
COMMIT = "ONESHOT_COMMIT"  # variable with the commit that was shipped, because the copy has no git
MOST_MIB = 64  # most data files that are shipped; Ray itself accepts 500 MiB
_ROW = re.compile(r":\d+$")  # of a set that is a function, such as my_lab.sets:hard:3
_DATA_FILE = re.compile(r"(?P<path>[^:]+\.(jsonl|parquet|json))(:.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A sweep file and its data files."""

    file: Path
    text: str
    data: tuple[Path, ...]
    code: tuple[Path, ...] = ()  # modules and packages beside it, whose functions it calls


def bundle(file: Path, sweep: SweepFile) -> Bundle:
    """Return what a cluster needs of a sweep. Raises UserError: its data files are too large."""
    settings = [setting.value for setting in sweep.overrides.values()]
    texts = _texts([sweep.config.model_dump(mode="json"), settings])
    # the sets, suites and histories that the sweep names by relative paths
    paths = {path: None for text in texts if (path := _beside(text)) is not None}
    if sum(path.stat().st_size for path in paths) > MOST_MIB * 2**20:
        raise UserError(
            f"{', '.join(map(str, paths))}: larger than {MOST_MIB} MiB, so not shipped; put them on the cluster's "
            "shared disk and name them by absolute paths, or use URLs"
        )
    return Bundle(file=file, text=sweep.source.text, data=tuple(paths), code=_trusted_code(sweep))


def _trusted_code(sweep: SweepFile) -> tuple[Path, ...]:
    """Return the trusted modules and packages that the sweep's functions are in; installed ones are on the nodes."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return ()
    settings = [setting.value for setting in sweep.overrides.values()]
    texts = _texts([sweep.config.model_dump(mode="json"), settings])
    calls = [call for text in texts if (call := _ROW.sub("", text)) and is_call(call)]
    paths = {find(call).path: None for call in calls if is_trusted(call)}
    return tuple(paths)


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for name, value in values.items():
            yield from _texts(name)
            yield from _texts(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value)


def _beside(text: str) -> Path | None:
    named = _DATA_FILE.fullmatch(text)
    path = Path(named["path"]) if named else None
    is_inside = path is not None and not path.is_absolute() and ".." not in path.parts
    return path if path is not None and is_inside and path.is_file() else None


@contextmanager
def packed(bundle: Bundle | None) -> Iterator[Path]:
    """Make a temporary folder with oneshot, and a sweep with its data."""
    with TemporaryDirectory(prefix="oneshot-job-") as made:
        folder = Path(made)
        shutil.copytree(PACKAGE, folder / "oneshot", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        if bundle is not None:
            (folder / bundle.file.name).write_text(bundle.text, encoding="utf-8")
        for path in bundle.data if bundle is not None else ():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path)
        for path in bundle.code if bundle is not None else ():
            if path.is_dir():
                shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            else:
                shutil.copy(path, folder / path.name)
        yield folder


@cache
def commit() -> str | None:
    """Return the commit of the checkout that this package is in or was shipped from, or None."""
    if shipped := os.environ.get(COMMIT):
        return shipped
    try:
        output = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=PACKAGE, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.strip()
