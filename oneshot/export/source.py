"""A trial's base model -> the files that an export copies: tokenizer, generation config, licence.

The tokenizer is copied, not loaded and saved: transformers loads every Qwen2 model's tokenizer as Qwen2's own class,
and saves a different pre-tokenizer.
"""

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from oneshot.config.model import ModelConfig
from oneshot.errors import ModelError
from oneshot.models.source import local_folder
from oneshot.plan.revisions import UNREACHABLE

TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
)
LICENCE = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
GENERATION, CARD = "generation_config.json", "README.md"
_NOT_AVAILABLE: tuple[type[Exception], ...] = (LocalEntryNotFoundError, *UNREACHABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A trial's base model, without its weights."""

    folder: Path
    copied: tuple[str, ...]  # names in the folder of the files that an export copies
    generation: dict[str, Any]  # its generation config; empty if it has none
    licence: dict[str, str]  # fields of its card: `license`, `license_name`, `license_link`


def source_model(config: ModelConfig) -> SourceModel:
    """Find the files of a shipped, local or hub model. Raises ModelError: the model is no longer there."""
    patterns = (*TOKENIZER, *LICENCE, *(("*.py",) if config.trust_remote_code else ()))
    folder = local_folder(config.path)
    if folder is None:
        try:
            names = [*patterns, GENERATION, CARD]
            folder = Path(snapshot_download(config.path, revision=config.revision, allow_patterns=names))
        except _NOT_AVAILABLE as error:
            raise ModelError(f"model.path: {config.path}: cannot download its files: {error}") from error
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    generation = folder / GENERATION
    return SourceModel(
        folder=folder,
        copied=tuple(name for name in names if any(fnmatch(name, pattern) for pattern in patterns)),
        generation=json.loads(generation.read_text()) if generation.is_file() else {},
        licence=_licence(folder / CARD),
    )


def _licence(card: Path) -> dict[str, str]:
    try:
        metadata = (metadata_load(card) if card.is_file() else None) or {}
    except ValueError:  # the base model's card may be malformed
        metadata = {}
    return {name: str(metadata[name]) for name in ("license", "license_name", "license_link") if metadata.get(name)}
