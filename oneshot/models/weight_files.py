"""A model's folder -> its weights' files, checked without loading them."""

import json
from pathlib import Path

from oneshot.errors import ModelError

_LFS = b"version https://git-lfs"


def check_weight_files(folder: Path) -> None:
    """Check that a folder's .safetensors files are all there and whole.

    Raises ModelError: a file is missing, is a Git LFS pointer, or ends too early.
    """
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        files = sorted({folder / name for name in _index(index).values()})
        if missing := [path.name for path in files if not path.is_file()]:
            raise ModelError(f"{index}: names files that are not there: {', '.join(missing)}; copy the whole model")
    if not files:
        raise ModelError(
            f"model.path: {folder}: it has no .safetensors files, and pickles are not loaded; save it with "
            "`save_pretrained`"
        )
    for path in files:
        _check_file(path)


def _index(path: Path) -> dict[str, str]:
    """Return the file of each tensor."""
    try:
        names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not an index of weights ({error}); copy the whole model again") from error
    return names


def _check_file(path: Path) -> None:
    """Compare a file's size with that of the tensors that its header lists (safetensors' format)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == _LFS[:8]:
            raise ModelError(f"{path}: a Git LFS pointer instead of weights; run `git lfs pull` in its folder")
        header_size = int.from_bytes(start, "little")
        if size < 8 or header_size > size - 8:
            raise ModelError(f"{path}: not a whole .safetensors file ({size:,} bytes); copy it again")
        try:
            header = json.loads(file.read(header_size))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: no header of a .safetensors file ({error}); copy it again") from error
    if size != 8 + header_size + end:
        raise ModelError(
            f"{path}: has {size:,} bytes, but its tensors need {8 + header_size + end:,}; copy the file again"
        )
