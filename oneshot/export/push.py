"""An exported folder -> a repository on a model hub, private unless told otherwise; only when somebody says so."""

import re
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, if not in its `__all__`

from oneshot.errors import OneshotError, UserError
from oneshot.export.source import UNREACHABLE

_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def check_push(repository: str) -> None:
    """Refuses, before anything is written, what cannot be pushed.

    Raises:
        UserError: the name is no repository's, or there is no token.
    """
    if not re.fullmatch(REPOSITORY, repository):
        raise UserError(f"--push {repository}: write it as OWNER/NAME")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push {repository}: the hub takes no such name: {error}") from error
    if get_token() is None:
        raise UserError(
            f"--push {repository}: the hub asks who you are: set HF_TOKEN in the environment, or `hf auth login` once, "
            "with a token that may write"
        )


def push(folder: Path, repository: str, *, public: bool, message: str) -> str:
    """Uploads a folder's files as one commit; returns the address of the repository.

    Raises:
        UserError: the repository is there and public, and nobody said so.
        OneshotError: the hub cannot be reached, or does not take it.
    """
    hub = HfApi()
    try:
        made = hub.create_repo(repository, private=not public, exist_ok=True)
        if not public and not hub.model_info(repository).private:
            raise UserError(f"--push {repository}: is there and public: say --public, or name another; nothing is sent")
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            delete_patterns=_WEIGHTS,  # of an earlier push in other parts, which a loader would go by
        )
    except UNREACHABLE as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise OneshotError(
            f"--push {repository}: {why}; {folder} is written, and the same command tries again"
        ) from error
    return str(made)
