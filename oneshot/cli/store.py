"""Verbs about what a store holds, and about sweeps that run."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneshot.cli.options import (
    File,
    SetOption,
    StorageOption,
    app,
    load_sweep,
    with_known,
)
from oneshot.errors import UserError

if TYPE_CHECKING:
    pass


@app.command()
def retry(file: File, settings: SetOption = None, storage: StorageOption = None) -> None:
    """Take the results of a sweep's failed trials away, so that `run` starts them again."""
    from oneshot.plan import make_plan
    from oneshot.store import Store
    from oneshot.trainings import trainings

    sweep = load_sweep(file, settings)
    store = Store(storage or sweep.config.storage)
    count = 0
    for training in trainings(make_plan(with_known(sweep, store)).trials):
        folder = store.trial(training.key)
        result = folder.result()
        if result is not None and result.outcome == "failed":
            folder.remove("result.json")
            count += 1
    print(f"{count} failed trainings will be run again by `oneshot run {file}`")


@app.command()
def ui(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="a sweep file; its storage is shown")] = None,
    storage: StorageOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="on this machine")] = 5000,
) -> None:
    """Open the MLflow server of an embedded store."""
    root = Path(storage or (load_sweep(file, None).config.storage if file else "runs")).resolve()
    database = root / "mlflow.db"
    if not database.is_file():
        raise UserError(f"{database}: no such database; run a sweep first, or name its --storage")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(root / "mlartifacts"), "--host", "127.0.0.1", "--port", str(port)]
    print(f"MLflow on http://127.0.0.1:{port} in half a minute; Ctrl-C ends it", file=sys.stderr)
    os.execv(sys.executable, command)
