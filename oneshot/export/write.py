"""A kept training -> a folder that plain transformers loads; whole or not there at all."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from oneshot.errors import OneshotError, UserError
from oneshot.export.card import card, facts, identity
from oneshot.export.kept import Kept
from oneshot.export.source import GENERATION, source_model

FACTS = "oneshot.json"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A written model."""

    folder: Path
    kept: Kept
    dtype: str
    facts: dict[str, Any]
    """What its oneshot.json says."""
    is_new: bool
    """It was not there already."""

    @property
    def identity(self) -> str:
        """Of its contents."""
        return identity(self.kept, self.dtype)

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum((self.folder / name).stat().st_size for name in self.facts["files"])


def read_export(folder: Path) -> dict[str, Any] | None:
    """What an earlier export in a folder says of itself; None where the folder is no whole one."""
    try:
        said: dict[str, Any] = json.loads((folder / FACTS).read_text())
        return said if all((folder / name).is_file() for name in said["files"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_export(kept: Kept, folder: Path, *, dtype: str, force: bool, say: Say) -> Export:
    """Writes the model, unless the folder has the very same already; the folder is whole once it has its name.

    Raises:
        UserError: the folder has something else, or cannot be written.
        ModelError: the model that the trial began with is not there any more.
    """
    before = read_export(folder)
    if before is not None and before.get("identity") == identity(kept, dtype) and not force:
        say(f"{folder} has it already; --force writes it anew")
        return Export(folder=folder, kept=kept, dtype=dtype, facts=before, is_new=False)
    check_target(folder, force=force)
    # in the same folder: a rename is whole on one file system only
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir(parents=True)
        said = _fill(temporary, kept, dtype=dtype, say=say)
        _put(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--to {folder}: cannot be written: {error}; choose a folder that this user may write, on a disk with room"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Export(folder=folder, kept=kept, dtype=dtype, facts=said, is_new=True)


def check_target(folder: Path, *, force: bool) -> None:
    """Refuses what would be lost.

    Raises:
        UserError: the folder has something in it; with `force`, something that is no export.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--to {folder}: a file; name a new folder")
    before = read_export(folder)
    if before is None and any(folder.iterdir()):
        raise UserError(f"--to {folder}: not empty, and no earlier export, so --force spares it; name a new folder")
    if before is not None and not force:
        raise UserError(
            f"--to {folder}: holds the export of {before['label']} after step {before['step']} in {before['dtype']}; "
            "name a new folder, or --force to replace it"
        )


def _fill(folder: Path, kept: Kept, *, dtype: str, say: Say) -> dict[str, Any]:
    """Everything into an empty folder; returns what its oneshot.json says."""
    from oneshot.export.weights import load_kept, save_model  # torch takes seconds, and what is there needs none

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
    mode = (folder / GENERATION).stat().st_mode  # safetensors writes for its user alone
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    said = facts(kept, dtype=dtype, files={name: _digest(folder / name) for name in names})
    (folder / FACTS).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
    return said


def _put(temporary: Path, folder: Path) -> None:
    """Gives a folder its name, in place of an empty one or of an earlier export."""
    if folder.exists() and any(folder.iterdir()):
        away = temporary.with_suffix(".old")
        os.rename(folder, away)
        try:
            os.rename(temporary, folder)
        except OSError:
            os.rename(away, folder)
            raise
        shutil.rmtree(away)
    else:
        os.rename(temporary, folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
