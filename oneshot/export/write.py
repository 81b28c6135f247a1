"""A kept training -> a folder that plain transformers loads, written completely or not at all."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from oneshot.errors import OneshotError, UserError
from oneshot.export.card import card, describe, identity
from oneshot.export.kept import Kept
from oneshot.export.source import GENERATION, source_model

METADATA = "oneshot.json"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """An exported model."""

    folder: Path
    kept: Kept
    dtype: str
    metadata: dict[str, Any]  # contents of its oneshot.json
    is_new: bool  # false if the folder had the same export already

    @property
    def identity(self) -> str:
        """Return the identity of its contents."""
        return identity(self.kept, self.dtype)

    @property
    def num_bytes(self) -> int:
        """Return the size of all files."""
        return sum((self.folder / name).stat().st_size for name in self.metadata["files"])


def read_export(folder: Path) -> dict[str, Any] | None:
    """Return the metadata of an earlier export, or None if the folder is not a complete export."""
    try:
        metadata: dict[str, Any] = json.loads((folder / METADATA).read_text())
        return metadata if all((folder / name).is_file() for name in metadata["files"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_export(kept: Kept, folder: Path, *, dtype: str, force: bool, say: Say) -> Export:
    """Write the model unless the folder already has the same export; the rename at the end completes it.

    Raises:
        UserError: the folder has other contents, or cannot be written.
        ModelError: the base model is no longer there.
    """
    previous = read_export(folder)
    if previous is not None and previous.get("identity") == identity(kept, dtype) and not force:
        say(f"{folder} already has this export; --force writes it again")
        return Export(folder=folder, kept=kept, dtype=dtype, metadata=previous, is_new=False)
    check_target(folder, force=force)
    # beside the target: a rename is atomic only within one file system
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir(parents=True)
        metadata = _fill(temporary, kept, dtype=dtype, say=say)
        _put(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--to {folder}: cannot be written: {error}; choose a writable folder on a disk with enough space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Export(folder=folder, kept=kept, dtype=dtype, metadata=metadata, is_new=True)


def check_target(folder: Path, *, force: bool) -> None:
    """Check that no files would be lost.

    Raises UserError: the folder is not empty; with `force`, it is not an export.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--to {folder}: a file, not a folder; choose a new folder")
    previous = read_export(folder)
    if previous is None and any(folder.iterdir()):
        raise UserError(
            f"--to {folder}: not empty and not an earlier export, so not even --force replaces it; choose a new folder"
        )
    if previous is not None and not force:
        raise UserError(
            f"--to {folder}: has the export of {previous['label']} after step {previous['step']} in "
            f"{previous['dtype']}; choose a new folder, or replace it with --force"
        )


def _fill(folder: Path, kept: Kept, *, dtype: str, say: Say) -> dict[str, Any]:
    """Write all files into an empty folder; return the contents of its oneshot.json."""
    from oneshot.export.weights import load_kept, save_model  # torch takes seconds; an existing export needs none

    source = source_model(kept.config.model)
    say(f"reads {kept.config.model.path} and the weights of step {kept.step}")
    try:
        with TemporaryDirectory() as local:
            files = (kept.folder.at_hand(name, Path(local)) for name in kept.weights)
            policy = load_kept(kept, files, dtype=dtype)
    except (OSError, SafetensorError) as error:
        raise OneshotError(f"{kept.label}: the checkpoint in {kept.folder.path} cannot be read: {error}") from error
    say(f"writes {policy.model.num_parameters():,} weights in {dtype}")
    generation = save_model(policy, source, folder)
    for name in source.copied:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / name, folder / name)
    (folder / GENERATION).write_text(json.dumps(generation, indent=2) + "\n")
    (folder / "README.md").write_text(card(kept, source, dtype=dtype))
    mode = (folder / GENERATION).stat().st_mode  # safetensors makes files that only their owner can read
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    metadata = describe(kept, dtype=dtype, files={name: _digest(folder / name) for name in names})
    (folder / METADATA).write_text(json.dumps(metadata, indent=2, sort_keys=True) + "\n")
    return metadata


def _put(temporary: Path, folder: Path) -> None:
    """Rename a folder to its final name, where an empty folder or an earlier export may be."""
    if folder.exists() and any(folder.iterdir()):
        old = temporary.with_suffix(".old")
        os.rename(folder, old)
        try:
            os.rename(temporary, folder)
        except OSError:
            os.rename(old, folder)
            raise
        shutil.rmtree(old)
    else:
        os.rename(temporary, folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
