"""Addresses of stores and servers -> the same, or an error if they have a password or name no server."""

import re
from functools import partial
from typing import Any

from pydantic import field_validator

STORAGE_HINT = "set the environment variables of fsspec's driver, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
MLFLOW_HINT = "name an MLflow server, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"


_DATABASES = ("sqlite:///", "postgresql", "mysql", "mssql")


def without_password(url: str | None, hint: str) -> str | None:
    """Return the URL unchanged. Raises ValueError: it contains a password, which would be logged and stored."""
    if url is not None and has_password(url):
        raise ValueError(f"the URL contains a password, and URLs are logged and stored; {hint}")
    return url


def server_uri(uri: str | None) -> str | None:
    """Return a tracking URI unchanged. Raises ValueError: MLflow has no such server, or it has a password."""
    if uri is not None and not uri.startswith(("http://", "https://", "databricks", *_DATABASES)):
        raise ValueError(
            f"{uri!r} is no address of MLflow; name a server, such as http://HOST:5000, or a database, such as "
            "sqlite:////path/mlflow.db"
        )
    return without_password(uri, MLFLOW_HINT)


def no_password(*fields: str, hint: str) -> Any:
    """Return a validator of fields that are URLs: their error has this hint."""
    return field_validator(*fields)(partial(without_password, hint=hint))


def has_password(url: str) -> bool:
    """Return whether a URL contains a user's password."""
    return re.search(r"://[^@?#\s/]*:(?!\d+/)[^@?#\s]*@", url) is not None
