"""The checks that run on a node before a trial is sent there.

This module is shipped by value, because the node may lack oneshot. So it imports nothing of oneshot at the top.
"""

import importlib.util
import os
import platform
import socket
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "math-verify", "numpy")
"""Libraries that a trial computes with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a node must check."""

    working_directory: str
    data_folder: str | None
    storage: str
    node: str  # id of the node
    token: str  # names a scratch folder of the storage, and is the content of its files
    models: tuple[tuple[str, str | None], ...] = ()  # (path, revision) of the models that trials on this node load
    configs: tuple[dict[str, Any], ...] = ()  # trials whose examples and suites this node reads
    needs_libraries: bool = True
    needs_vllm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A node's answer; an empty text means that all is well."""

    host: str
    versions: dict[str, str]  # versions of python, ray, oneshot (a digest of its files) and the libraries, or `missing`
    storage: str = ""
    models: dict[str, str] = field(default_factory=dict)
    """Model path and revision -> a digest of its files, or why it is not available."""
    data: str = ""


def ask(question: dict[str, Any]) -> dict[str, Any]:
    """Return `answer` as plain values, which the reader can unpickle without this module."""
    return asdict(answer(Question(**question)))


def answer(question: Question) -> Answer:
    """Check this node."""
    if os.path.isdir(question.working_directory):
        os.chdir(question.working_directory)
    if question.data_folder:
        os.environ["ONESHOT_DATA"] = question.data_folder
    names = ("ray", *(LIBRARIES if question.needs_libraries else ()))
    versions = {"python": platform.python_version(), **{name: _version(name) for name in names}}
    versions["oneshot"] = package_digest()
    host = socket.gethostname()
    if versions["oneshot"] == "missing":
        return Answer(host=host, versions=versions)
    if question.needs_vllm:
        from oneshot.models.engines import vllm_version

        versions["vllm"] = vllm_version()
    return Answer(
        host=host,
        versions=versions,
        storage=_read_back(question),
        models={f"{path}@{at}" if at else path: _model(path, at) for path, at in question.models},
        data=_data(question.configs),
    )


def package_digest() -> str:
    """Return the first 12 hex digits of sha256 over oneshot's Python files, or `missing`."""
    spec = importlib.util.find_spec("oneshot")
    if spec is None or spec.origin is None:
        return "missing"
    root = Path(spec.origin).parent
    digest = sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _read_back(question: Question) -> str:
    """Read the driver's token and write one back; return what is wrong."""
    from oneshot.errors import first_line
    from oneshot.store.store import Store

    try:
        folder = Store(question.storage).scratch(question.token)
        if folder.read("driver") != question.token:
            return "this node cannot see what the driver wrote: it is another folder"
        folder.write(question.node, question.token)
    except Exception as error:  # any error of the storage is the answer
        return first_line(error)
    return ""


def _model(path: str, revision: str | None) -> str:
    """Return `ok` and a digest of the names and sizes of a folder's files, or why it is not available."""
    from oneshot.errors import UserError
    from oneshot.models.source import local_folder

    try:
        folder = local_folder(path)
    except UserError as error:
        return str(error)
    if folder is not None:
        files = sorted((file.name, file.stat().st_size) for file in folder.iterdir() if file.suffix != ".md")
        return f"ok {sha256(repr(files).encode()).hexdigest()[:12]}"
    return _hub_model(path, revision)


def _hub_model(path: str, revision: str | None) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
        return "ok"
    try:
        HfApi().model_info(path, revision=revision, timeout=10.0)
    except Exception as error:  # network, a gated model, or a wrong name
        return f"not in its cache, and not available from the Hub ({type(error).__name__})"
    return "ok"


def _data(configs: tuple[dict[str, Any], ...]) -> str:
    from oneshot.config.trial import TrialConfig
    from oneshot.errors import UserError
    from oneshot.plan.trainings import read_data

    try:
        read_data([TrialConfig.model_validate(config) for config in configs])
    except UserError as error:
        return str(error)
    return ""
