"""A tracking URI -> a client, an experiment, or why the driver cannot use it."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

PAGE = 100  # runs that are read at a time; with 1,000, those of 10,000 small trials take 170 MiB for 15% less time
NO_TRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""With these, a server that is down is reported at once, not after minutes of retries."""


def connect(tracking_uri: str) -> MlflowClient:
    """Return a client that logs little and gives up after two retries."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # without this, MLflow prints a line for every run that ends
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    return MlflowClient(tracking_uri=tracking_uri)


def find_experiment(client: MlflowClient, name: str, artifacts: str | None, *, metrics: Sequence[str]) -> str:
    """Return the id of an experiment, creating it if needed; `metrics` are its main ones, the first is primary."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    experiment_id = client.create_experiment(name, artifact_location=artifacts)
    # without the kind, the UI takes tables of completions for those of an LLM application
    client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "custom_model_development")
    for metric in metrics[:1]:
        client.set_experiment_tag(experiment_id, "mlflow.experiment.primaryMetric.name", metric)
        client.set_experiment_tag(experiment_id, "mlflow.experiment.primaryMetric.greaterIsBetter", "True")
    return str(experiment_id)


def search(
    client: MlflowClient, experiments: list[str], condition: str = "", *, view: int = ViewType.ACTIVE_ONLY
) -> Iterator[Run]:
    """Yield the runs that meet a condition. They come in small pages, since each has all its metrics."""
    token = None
    while True:
        page = client.search_runs(experiments, condition, run_view_type=view, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def forget(uri: str, sweep: str) -> int:
    """Delete a sweep's runs in all experiments of a server, as its UI does; return their number."""
    client = connect(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    parents = client.search_runs(experiments, f"tags.sweep = '{sweep}' and tags.phase = 'sweep'")
    count = 0
    for parent in parents:
        children = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        while runs := client.search_runs(experiments, children, max_results=1000):
            for run in runs:
                client.delete_run(run.info.run_id)
            count += len(runs)
        client.delete_run(parent.info.run_id)
    return count + len(parents)


def why_not(uri: str) -> str:
    """Ask MLflow for one experiment; return the reason if that fails, or an empty string."""
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        return (
            "" if os.access(folder, os.W_OK) else f"{folder}: not writable; set mlflow.tracking_uri to an MLflow server"
        )
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    before = {name: os.environ[name] for name in NO_TRIES if name in os.environ}
    os.environ |= NO_TRIES
    try:
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except MlflowException as error:
        return _explain(uri, error)
    finally:
        for name in NO_TRIES:
            del os.environ[name]
        os.environ |= before
    return ""


def _explain(uri: str, error: MlflowException) -> str:
    text = str(error)
    line = (text.strip().splitlines() or [""])[0][:300]
    status = error.get_http_status_code()
    if "Invalid Host header" in text or "DNS rebinding" in text:
        host = uri.partition("://")[2].partition("/")[0]
        return (
            f"{uri} refuses requests for the host {host}; start the server with `--allowed-hosts` and this host, "
            "with and without its port"
        )
    if "error code 401" in text or status == 401 or "not authenticated" in text:
        return (
            f"{uri} rejects the user name and password, or their absence; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD in the environment of the head's `ray start`"
        )
    if "error code 403" in text:
        return f"{uri} denies access to this user: {line}"
    return f"{uri} does not answer: {line}; check that it runs and that the driver's machine can reach it"
