"""`--address` -> a cluster: a URL of Ray Jobs, or the name of a context in cluster/contexts.yaml."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator

from oneshot.config.fields import Config
from oneshot.config.file import explain
from oneshot.config.source import parse_yaml
from oneshot.config.urls import has_password, no_password
from oneshot.errors import SweepFileError, UserError, nearest
from oneshot.text import read_text

FILE = Path("cluster/contexts.yaml")
SECRET_NAME = re.compile(
    r"token|secret|pass|credential|(api|access|storage|account|private)_?key|connection_string", re.IGNORECASE
)

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ContextConfig(Config):
    """One cluster, with the storage, MLflow server and environment of sweeps that run there."""

    address: str = Field(
        pattern=r"^https?://[^/@\s]+(/[^@\s]*)?$", description="Address of Ray Jobs, such as http://HEAD:8265"
    )
    storage: str | None = Field(
        None, min_length=1, description="Absolute path or fsspec URL, which overrides that of the sweep file"
    )
    mlflow: str | None = Field(
        None, min_length=1, description="Tracking server for the driver, which overrides that of the sweep file"
    )
    token_path: str | None = Field(None, min_length=1, description="File with the cluster's authentication token")
    env: dict[EnvName, str] = Field(
        default_factory=dict, description="Environment variables of driver and workers, without secrets"
    )

    _no_password = no_password(
        "storage", "mlflow", hint="set the password in the environment of the cluster's `ray start`"
    )

    @field_validator("env")
    @classmethod
    def _no_secret(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if SECRET_NAME.search(name) or has_password(value):
                raise ValueError(
                    f"{name} looks like a secret, and Ray shows the variables of a job; set it in the environment of "
                    "the cluster's `ray start`"
                )
        return env


def find_context(address: str) -> ContextConfig:
    """Return the cluster that `--address` names.

    Raises UserError: it is neither a URL nor a context, or the file of contexts is wrong.
    """
    if "://" in address:
        try:
            return ContextConfig(address=address.rstrip("/"))
        except ValidationError as error:
            raise UserError(
                f"--address {address}: not a valid address; write it as http://HEAD:8265, without user or password"
            ) from error
    contexts, file = _read_contexts()
    if address not in contexts:
        where = f"not a context in {file}" if file is not None else f"{FILE} does not exist"
        raise UserError(
            f"--address {address}: not a URL such as http://HEAD:8265, and {where}{nearest(address, list(contexts))}; "
            "to use another file of contexts, set ONESHOT_CONTEXTS"
        )
    return contexts[address]


def _read_contexts() -> tuple[dict[str, ContextConfig], Path | None]:
    variable = os.environ.get("ONESHOT_CONTEXTS")
    path = Path(variable) if variable else FILE
    if not path.is_file():
        if variable:
            raise UserError(f"ONESHOT_CONTEXTS: {variable}: no such file; correct or unset the variable")
        return {}, None
    data, source = parse_yaml(read_text(path, error=UserError), str(path))
    if not isinstance(data, dict):
        raise source.error((), "must be a mapping of names to contexts")
    contexts = {}
    for name, fields in data.items():
        try:
            contexts[name] = ContextConfig.model_validate(fields)
        except ValidationError as error:
            findings = [(finding, finding["loc"]) for finding in error.errors()]
            lines = [f"{source.at((name, *loc))}: {explain(f, ContextConfig, loc)}" for f, loc in findings]
            raise SweepFileError("\n".join(lines)) from error
    return contexts, path


def token_of(context: ContextConfig) -> str | None:
    """Return the cluster's token from the context's file, or else from where Ray looks for it; None if there is none.

    Raises UserError: the file that is set for the token cannot be read.
    """
    set_path = context.token_path or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_TOKEN") and context.token_path is None:
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(set_path).expanduser() if set_path else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        if set_path:
            raise UserError(f"{path}: the cluster's token cannot be read: {error.strerror}") from error
        return None
