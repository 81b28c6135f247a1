"""What a node says of itself before a trial is sent there. Shipped by value: a node may lack oneshot.

So nothing of oneshot is imported at the top.
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
"""What a trial computes with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a node is asked."""

    working_directory: str
    data_folder: str | None
    storage: str
    node: str
    """Id of the node that is asked."""
    token: str
    """Names a folder of the storage for this, and is what its files say."""
    models: tuple[tuple[str, str | None], ...] = ()
    """(path, revision) of models that trials of this node load."""
    configs: tuple[dict[str, Any], ...] = ()
    """Trials whose examples and suites this node reads."""
    needs_libraries: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What it says; empty texts are good news."""

    host: str
    versions: dict[str, str]
    """python, ray, oneshot (a digest of its files), and the libraries; `missing` where there is none."""
    storage: str = ""
    models: dict[str, str] = field(default_factory=dict)
    """Model path and revision -> what identifies its files here, or why it is not at hand."""
    data: str = ""


def ask(question: dict[str, Any]) -> dict[str, Any]:
    """`answer`, in plain values, which need no module of ours where they are read."""
    return asdict(answer(Question(**question)))


def answer(question: Question) -> Answer:
    """Looks at this node."""
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
    return Answer(
        host=host,
        versions=versions,
        storage=_read_back(question),
        models={_named(path, revision): _model(path, revision) for path, revision in question.models},
        data=_data(question.configs),
    )


def package_digest() -> str:
    """First 12 hex digits of sha256 over oneshot's own Python files; `missing` where it cannot be imported."""
    found = importlib.util.find_spec("oneshot")
    if found is None or found.origin is None:
        return "missing"
    root = Path(found.origin).parent
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
    """Reads the driver's token, and leaves one for it."""
    from oneshot.store.store import Store

    try:
        folder = Store(question.storage).scratch(question.token)
        if folder.read("driver") != question.token:
            return "what the driver wrote there is not to be seen: it is another folder"
        folder.write(question.node, question.token)
    except Exception as error:  # whatever is wrong with a storage is what is asked for here
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _named(path: str, revision: str | None) -> str:
    return f"{path}@{revision}" if revision else path


def _model(path: str, revision: str | None) -> str:
    """`ok` and a digest of the names and sizes of a folder's files; else why it is not at hand."""
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
    except Exception as error:  # network, a gated model, a name that is wrong
        return f"neither in its cache nor to be had from the hub ({type(error).__name__})"
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
