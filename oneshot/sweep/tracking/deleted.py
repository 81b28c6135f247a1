"""The MLflow database of a local store -> the runs that were deleted in it, and their removal with all artifacts."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from mlflow.entities import Run, ViewType

from oneshot.errors import UserError
from oneshot.sweep.tracking.relocate import relocate
from oneshot.sweep.tracking.server import connect, search


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedRun:
    """A run that was deleted in MLflow, which keeps it until it is collected."""

    run_id: str
    name: str
    experiment: str
    num_bytes: int  # of its artifacts


def deleted_runs(root: Path) -> list[DeletedRun]:
    """Return the deleted runs of the database in a store's folder, and those of deleted experiments."""
    relocate(root)  # or the artifacts of the place that the store was copied from would be meant
    client = connect(_uri(root))
    names = {each.experiment_id: each.name for each in client.search_experiments(view_type=ViewType.ALL)}
    return [
        DeletedRun(
            run_id=run.info.run_id,
            name=run.info.run_name or run.info.run_id,
            experiment=names[run.info.experiment_id],
            num_bytes=sum(file.stat().st_size for file in _folder(run).rglob("*") if file.is_file()),
        )
        for run in search(client, list(names), view=ViewType.DELETED_ONLY)
    ]


def remove_deleted(root: Path, runs: list[DeletedRun]) -> None:
    """Remove what was deleted in the database for good, by MLflow's own command: runs, experiments and models.

    Raises UserError: the command failed; has its last line.
    """
    client = connect(_uri(root))
    folders = [_folder(client.get_run(run.run_id)).parent for run in runs]
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", _uri(root), "--tracking-uri", _uri(root)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"--mlflow: `mlflow gc` failed: {last}; stop what uses {root}/mlflow.db and try again")
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    # or the file would stay as large as it was; while a driver writes to it, it does
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(root / "mlflow.db", timeout=30)) as connection:
        connection.execute("VACUUM")


def why_elsewhere(root: str, servers: Iterable[str]) -> str:
    """Return that a store has no database of its own, and the command that removes deleted runs on a server."""
    known = sorted(set(servers))
    uri = known[0] if known else "URI"
    where = f"its sweeps' runs are on {', '.join(known)}" if known else "their server has them"
    return (
        f"--mlflow: {root} has no mlflow.db: {where}; on the machine of that server, use `MLFLOW_TRACKING_URI={uri} "
        "mlflow gc --backend-store-uri DATABASE --artifacts-destination ARTIFACTS` with the values of its start"
    )


def _uri(root: Path) -> str:
    return f"sqlite:///{root}/mlflow.db"


def _folder(run: Run) -> Path:
    """Return the folder of a run's artifacts."""
    return Path(url2pathname(urlparse(run.info.artifact_uri).path))
