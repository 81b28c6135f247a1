"""A tracking URI -> why the driver cannot use it, with the mend; nothing where it can."""

import logging
import os
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

NO_TRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""A server that is down is to be told of at once, not after minutes of tries."""


def why_not(uri: str) -> str:
    """Asks MLflow for one experiment."""
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        return "" if os.access(folder, os.W_OK) else f"{folder}: cannot be written; set mlflow.tracking_uri to a server"
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    before = {name: os.environ.get(name) for name in NO_TRIES}
    os.environ |= NO_TRIES
    try:
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except MlflowException as error:
        return _explain(uri, error)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return ""


def _explain(uri: str, error: MlflowException) -> str:
    text = str(error)
    status = error.get_http_status_code()
    if "Invalid Host header" in text or "DNS rebinding" in text:
        host = uri.partition("://")[2].partition("/")[0]
        return (
            f"{uri} refuses requests for the host {host}: start the server with `--allowed-hosts` naming it, with and "
            "without its port"
        )
    if "error code 401" in text or status == 401 or "not authenticated" in text:
        return (
            f"{uri} asks for a user and password, or for others: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD in the environment of the head's `ray start`"
        )
    if "error code 403" in text:
        return f"{uri} does not let this user in: {_line(text)}"
    return f"{uri} does not answer: {_line(text)}; is it up, and is there a way to it from the driver's machine?"


def _line(text: str) -> str:
    return text.strip().splitlines()[0][:300]
