"""Names -> the sweep files that oneshot ships, from a clone or from an installed package."""

import re
from pathlib import Path

from oneshot.errors import UserError, nearest

PACKAGE = Path(__file__).parents[1]
STARTER = PACKAGE / "config" / "starter.yaml"
_NAME = re.compile(r"^name: .*$", re.MULTILINE)


def shipped_sweeps() -> dict[str, Path]:
    """Return the shipped sweep files by name, in alphabetical order. A wheel has them in the package."""
    packed, beside = PACKAGE / "shipped", PACKAGE.parent / "sweeps"
    folder = packed if packed.is_dir() else beside
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_file(file: Path) -> Path:
    """Return a sweep's file: the one that is named, or else the shipped sweep of this name."""
    return file if file.exists() else shipped_sweeps().get(str(file), file)


def starter(name: str, *, source: str | None) -> str:
    """Return the text of a new sweep file: the commented starter, or a copy of a shipped sweep, under a new name.

    Raises UserError: there is no such shipped sweep.
    """
    path = STARTER
    if source is not None:
        sweeps = shipped_sweeps()
        if source not in sweeps:
            raise UserError(f"--from {source}: no shipped sweep has this name{nearest(source, list(sweeps))}")
        path = sweeps[source]
    return _NAME.sub(f"name: {name}", path.read_text(encoding="utf-8"), count=1)
