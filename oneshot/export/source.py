"""A trial's model -> the files of it that an export takes over as they are: tokenizer, generation config, licence.

The tokenizer is copied, not saved anew: transformers loads that of every Qwen2 model as Qwen2's own class, and writes
another pre-tokenizer than it read.
"""

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from oneshot.config.trial import ModelConfig
from oneshot.errors import ModelError
from oneshot.models.source import local_folder

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
UNREACHABLE: tuple[type[Exception], ...] = tuple(
    base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)
)
"""The errors of the hub's client, those of its transport among them, whose classes differ by version."""
_NOT_GIVEN: tuple[type[Exception], ...] = (LocalEntryNotFoundError, *UNREACHABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """What a trial began with, apart from its weights."""

    folder: Path
    copied: tuple[str, ...]
    """Files that an export has as they are, by their names in the folder."""
    generation: dict[str, Any]
    """Its generation config; empty where it has none."""
    licence: dict[str, str]
    """What its card says of one: `license`, `license_name`, `license_link`."""


def source_model(config: ModelConfig) -> SourceModel:
    """Finds the files of a shipped, local or hub model.

    Raises:
        ModelError: it is not there any more.
    """
    patterns = (*TOKENIZER, *LICENCE, *(("*.py",) if config.trust_remote_code else ()))
    folder = local_folder(config.path)
    if folder is None:
        try:
            wanted = [*patterns, GENERATION, CARD]
            folder = Path(snapshot_download(config.path, revision=config.revision, allow_patterns=wanted))
        except _NOT_GIVEN as error:
            raise ModelError(f"model.path: {config.path}: the hub does not give its files: {error}") from error
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
        said = (metadata_load(card) if card.is_file() else None) or {}
    except ValueError:  # a stranger's card
        said = {}
    return {name: str(said[name]) for name in ("license", "license_name", "license_link") if said.get(name)}
