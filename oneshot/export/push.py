"""An exported folder -> a repository on a model hub, private by default."""

import re
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, if not in its `__all__`

from oneshot.errors import OneshotError, UserError, first_line
from oneshot.plan.revisions import UNREACHABLE

_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def check_push(repository: str) -> None:
    """Check, before anything is written, that a push can succeed.

    Raises UserError: the name is not valid for a repository, or there is no token.
    """
    if not re.fullmatch(REPOSITORY, repository):
        raise UserError(f"--push {repository}: write it as OWNER/NAME")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push {repository}: not a valid name on the hub: {error}") from error
    if get_token() is None:
        raise UserError(
            f"--push {repository}: there is no token for the hub; set HF_TOKEN, or run `hf auth login`, with a token "
            "that may write"
        )


def push(folder: Path, repository: str, *, public: bool, message: str) -> str:
    """Upload a folder's files as one commit; return the repository's URL.

    Raises:
        UserError: the repository exists and is public, but `public` is not set.
        OneshotError: the hub cannot be reached, or refuses the upload.
    """
    hub = HfApi()
    try:
        url = hub.create_repo(repository, private=not public, exist_ok=True)
        if not public and not hub.model_info(repository).private:
            raise UserError(
                f"--push {repository}: it exists and is public; add --public or choose another; nothing was sent"
            )
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            delete_patterns=_WEIGHTS,  # an earlier push may have had other parts, which a loader would read
        )
    except UNREACHABLE as error:
        raise OneshotError(
            f"--push {repository}: {first_line(error)}; {folder} is written; run the same command to push again"
        ) from error
    return str(url)
