"""`model.path` -> the model's folder, its config, and a digest of its contents. No weights are loaded."""

import json
import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from oneshot.config.model import ModelConfig
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
    """Return config.json of a shipped or local model; None for a hub id. Raises ModelError: it is not JSON."""
    folder = local_folder(path)
    if folder is None:
        return None
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        # json names a byte-order mark, and transformers cannot read it either
        raise ModelError(f"{file}: not JSON ({error}); correct it or save the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: not a mapping of settings; save the model again with `save_pretrained`")
    return config


def max_positions(config: Mapping[str, Any]) -> int:
    """Return the largest number of tokens that a model's config allows.

    Rope scaling that depends on a sequence's length would give a rollout, in which the sequence grows, other numbers
    than an update, which sees it whole. Such a model is used up to the length at which scaling begins.
    """
    most = int(config["max_position_embeddings"])
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) in ("longrope", "dynamic", "su"):
        name = "original_max_position_embeddings"
        return int(rope.get(name) or config.get(name) or most)
    return most


def reached_positions(config: ModelConfig, own: int) -> int:
    """Return the largest number of tokens that a trial may use of a model with `own` positions.

    Raises ModelError: `model.max_positions` is beyond them without scaling.
    """
    wanted = config.max_positions
    if wanted is None or wanted <= own or config.rope_scaling == "yarn":
        return wanted or own
    raise ModelError(
        f"model.max_positions: {wanted}, but {config.path} has {own}; set model.rope_scaling: yarn to reach more"
    )


def scaled(config: ModelConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what YaRN (arXiv 2309.00071) changes of a model's config, so that it reaches `model.max_positions`.

    Raises ModelError: the model scales its positions already.
    """
    if config.max_positions is None or reached_positions(config, own := max_positions(settings)) <= own:
        return {}
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    by_layer = any(isinstance(value, Mapping) for value in rope.values())
    kind = "by layer" if by_layer else rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ModelError(
            f"model.rope_scaling: yarn, but {config.path} scales its positions already ({kind}); leave it out"
        )
    yarn = {
        **rope,  # such as the share of a head's numbers that are rotated
        "rope_type": "yarn",
        "rope_theta": rope.get("rope_theta") or settings.get("rope_theta") or 10_000.0,
        "factor": reached_positions(config, own) / own,
        "original_max_position_embeddings": own,
    }
    return {"max_position_embeddings": config.max_positions, "rope_parameters": yarn}


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
