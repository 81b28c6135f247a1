"""A sweep file -> the folder that a job brings to the cluster: this package as it is here, and the file."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import oneshot

PACKAGE = Path(oneshot.__file__).parent
COMMIT = "ONESHOT_COMMIT"
"""Variable that says which commit was shipped: the copy has no git."""


@contextmanager
def packed(file: Path | None, text: str) -> Iterator[Path]:
    """A folder with oneshot, its metadata, and a sweep file under its own name, for as long as the block lasts."""
    with TemporaryDirectory(prefix="oneshot-job-") as made:
        folder = Path(made)
        shutil.copytree(PACKAGE, folder / "oneshot", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        # an import finds the copy without this; its version is read from here
        facts = folder / f"oneshot-{version('oneshot')}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: oneshot\nVersion: {version('oneshot')}\n")
        if file is not None:
            (folder / file.name).write_text(text, encoding="utf-8")
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
