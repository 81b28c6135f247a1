"""A sweep file -> the folder that a job brings to the cluster: this package as it is here, and the file."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import oneshot
from oneshot.config.file import SweepFile
from oneshot.errors import UserError

PACKAGE = Path(oneshot.__file__).parent
COMMIT = "ONESHOT_COMMIT"
"""Variable that says which commit was shipped: the copy has no git."""


MOST_MIB = 64
"""Of data files that go along; Ray itself takes 500."""
_DATA_FILE = re.compile(r"(?P<path>[^:]+\.(jsonl|parquet|json))(:.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A sweep file, and the data files that go with it."""

    file: Path
    text: str
    data: tuple[Path, ...]


def bundle(file: Path, sweep: SweepFile) -> Bundle:
    """What of a sweep is sent to a cluster.

    Raises:
        UserError: its data files are too large.
    """
    settings = [setting.value for setting in sweep.overrides.values()]
    said = [sweep.config.model_dump(mode="json"), settings]
    return Bundle(file=file, text=sweep.source.text, data=tuple(data_files(said)))


def data_files(said: Any) -> list[Path]:
    """Files that a sweep names by paths relative to the working directory: sets, suites, histories.

    Raises:
        UserError: they are too large to be sent.
    """
    found = {path: None for text in _texts(said) if (path := _beside(text)) is not None}
    if sum(path.stat().st_size for path in found) > MOST_MIB * 2**20:
        raise UserError(
            f"{', '.join(map(str, found))}: more than {MOST_MIB} MiB are not sent along; put them on the cluster's "
            "shared disk and name them by absolute paths, or by URLs"
        )
    return list(found)


def _texts(said: Any) -> Iterator[str]:
    if isinstance(said, str):
        yield said
    elif isinstance(said, dict):
        for name, value in said.items():
            yield from _texts(name)
            yield from _texts(value)
    elif isinstance(said, list | tuple):
        for value in said:
            yield from _texts(value)


def _beside(text: str) -> Path | None:
    named = _DATA_FILE.fullmatch(text)
    path = Path(named["path"]) if named else None
    is_inside = path is not None and not path.is_absolute() and ".." not in path.parts
    return path if path is not None and is_inside and path.is_file() else None


@contextmanager
def packed(bundle: Bundle | None) -> Iterator[Path]:
    """A folder with oneshot, its metadata, and a sweep with its data, while the block lasts."""
    with TemporaryDirectory(prefix="oneshot-job-") as made:
        folder = Path(made)
        shutil.copytree(PACKAGE, folder / "oneshot", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        # an import finds the copy without this; its version is read from here
        facts = folder / f"oneshot-{version('oneshot')}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: oneshot\nVersion: {version('oneshot')}\n")
        if bundle is not None:
            (folder / bundle.file.name).write_text(bundle.text, encoding="utf-8")
        for path in bundle.data if bundle is not None else ():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path)
        yield folder


@cache
def commit() -> str | None:
    """Commit of the checkout that this package lies in, or was shipped from; None where it is of none."""
    if shipped := os.environ.get(COMMIT):
        return shipped
    try:
        said = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=PACKAGE, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.strip()
