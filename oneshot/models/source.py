"""`model.path` -> the model's folder, its config, and a digest of its contents. No weights are loaded."""

import json
import re
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from oneshot.errors import ModelError

SHIPPED = Path(__file__).parents[1] / "tiny"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NO_MODEL = "script"  # `model.path` of a scripted trial, which has no model


def local_folder(path: str) -> Path | None:
    """Return the folder of a shipped (`tiny:qwen2`) or local model; None for a hub id or a scripted trial.

    Raises ModelError: the path is neither a shipped name, a folder with a model, nor a hub id.
    """
    if path == NO_MODEL:
        return None
    if path.startswith("tiny:"):
        folder = SHIPPED / path.removeprefix("tiny:")
        if not (folder / "config.json").is_file():
            shipped = ", ".join(f"tiny:{p.parent.name}" for p in sorted(SHIPPED.glob("*/config.json")))
            raise ModelError(f"model.path: {path}: not shipped; use one of {shipped}")
        return folder
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise ModelError(f"model.path: {path}: no config.json in this folder; save the model with `save_pretrained`")
    if path.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(path):
        raise ModelError(
            f"model.path: {path}: no such folder (paths are relative to {Path.cwd()}), and not a hub id `owner/name`"
        )
    return None


def read_config(path: str) -> dict[str, Any] | None:
    """Return config.json of a shipped or local model; None for a hub id."""
    folder = local_folder(path)
    return None if folder is None else dict(json.loads((folder / "config.json").read_text()))


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a commit hash, whose contents never change."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def folder_digest(folder: Path) -> str:
    """Return the sha256 (hex) over the names and contents of a model folder's files, without its card."""
    files = {p.relative_to(folder): p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".md"}
    # hidden files and folders (.cache, .git) belong to download tools, not to the model
    visible = {name: p for name, p in files.items() if not any(part.startswith(".") for part in name.parts)}
    return _digest(tuple((str(name), str(p), p.stat().st_mtime_ns) for name, p in visible.items()))


@cache
def _digest(files: tuple[tuple[str, str, int], ...]) -> str:
    digest = sha256()
    for name, path, _mtime_ns in files:
        digest.update(name.encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
