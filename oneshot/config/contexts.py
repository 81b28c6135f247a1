"""`--address` -> a cluster: a URL of Ray Jobs, or a name in cluster/contexts.yaml that says more about it."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator

from oneshot.config.file import explain, parse_yaml
from oneshot.config.sweep import has_password, without_password
from oneshot.config.trial import Config
from oneshot.errors import SweepFileError, UserError, nearest

FILE = Path("cluster/contexts.yaml")
SECRET_NAME = re.compile(
    r"token|secret|pass|credential|(api|access|storage|account|private)_?key|connection_string", re.IGNORECASE
)

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ContextConfig(Config):
    """One cluster, and what sweeps that run there use."""

    address: str = Field(pattern=r"^https?://[^/@\s]+(/[^@\s]*)?$", description="of Ray Jobs, as http://HEAD:8265")
    storage: str | None = Field(None, min_length=1, description="above the sweep file's; absolute, or an fsspec URL")
    mlflow: str | None = Field(None, min_length=1, description="tracking server, for the driver; above the file's")
    token_path: str | None = Field(None, min_length=1, description="file with the cluster's authentication token")
    env: dict[EnvName, str] = Field(default_factory=dict, description="variables of driver and workers; no secrets")

    @field_validator("storage", "mlflow")
    @classmethod
    def _no_password(cls, url: str | None) -> str | None:
        return without_password(url, "set it for the cluster's `ray start`")

    @field_validator("env")
    @classmethod
    def _no_secret(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if SECRET_NAME.search(name) or has_password(value):
                raise ValueError(
                    f"{name} looks like a secret, and jobs show theirs; set it for the cluster's `ray start`"
                )
        return env


def find_context(address: str) -> ContextConfig:
    """What `--address` names.

    Raises:
        UserError: it is no URL, and no such context; or the file is wrong.
    """
    if "://" in address:
        try:
            return ContextConfig(address=address.rstrip("/"))
        except ValidationError as error:
            raise UserError(f"--address {address}: write it as http://HEAD:8265, without user or password") from error
    contexts, file = _read_contexts()
    if address not in contexts:
        where = f"no context of {file}" if file is not None else f"there is no {FILE} to take it for a name in"
        raise UserError(
            f"--address {address}: no URL as http://HEAD:8265, and {where}{nearest(address, list(contexts))}; "
            "ONESHOT_CONTEXTS names another file"
        )
    return contexts[address]


def _read_contexts() -> tuple[dict[str, ContextConfig], Path | None]:
    named = os.environ.get("ONESHOT_CONTEXTS")
    path = Path(named) if named else FILE
    if not path.is_file():
        if named:
            raise UserError(f"ONESHOT_CONTEXTS: {named}: no such file")
        return {}, None
    data, source = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(data, dict):
        raise source.error((), "it must be a mapping of names to contexts")
    found = {}
    for name, fields in data.items():
        try:
            found[name] = ContextConfig.model_validate(fields)
        except ValidationError as error:
            findings = [(finding, finding["loc"]) for finding in error.errors()]
            lines = [f"{source.at((name, *loc))}: {explain(f, ContextConfig, loc)}" for f, loc in findings]
            raise SweepFileError("\n".join(lines)) from error
    return found, path


def token_of(context: ContextConfig) -> str | None:
    """The cluster's token: the context's file, else where Ray itself looks; None where there is none.

    Raises:
        UserError: the file that is named is not there.
    """
    named = context.token_path or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_TOKEN") and context.token_path is None:
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        if named:
            raise UserError(f"{path}: the cluster's token cannot be read: {error.strerror}") from error
        return None
