"""What a verb's arguments name -> the sweep, store, trial or cluster that they mean."""

import os
import re
import shlex
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from oneshot.cli.options import load_sweep
from oneshot.errors import UserError, nearest
from oneshot.logs import printable

if TYPE_CHECKING:
    from oneshot.config.file import SweepFile
    from oneshot.plan.trial import Trial
    from oneshot.store.store import Store
    from oneshot.sweep.cluster.jobs import Cluster

Sweep = TypeVar("Sweep", bound="SweepFile")


def with_mlflow(sweep: Sweep, uri: str | None) -> Sweep:
    """Return the sweep with another tracking server than the file's, if one is given."""
    if not uri:  # also an empty MLFLOW_TRACKING_URI
        return sweep
    from oneshot.config.urls import server_uri

    try:
        server_uri(uri)
    except ValueError as error:
        raise UserError(f"--mlflow: {error}") from error
    mlflow = sweep.config.mlflow.model_copy(update={"tracking_uri": uri})
    return replace(sweep, config=sweep.config.model_copy(update={"mlflow": mlflow}))


def is_elsewhere(address: str) -> bool:
    """Return whether an address is one of Ray Jobs (URL or context), not a Ray that this machine belongs to."""
    return "://" in address or (":" not in address and address != "auto")


def check_ray(address: str | None, *, instead: str | None) -> None:
    """Refuse an address of Ray Jobs where this process itself must join Ray.

    Raises UserError: names the command to use instead.
    """
    if address is not None and is_elsewhere(address):
        hint = f"from another machine, use `oneshot {instead} --address {address}`" if instead else "run it there"
        raise UserError(
            f"--address {address}: expected HOST:PORT of a Ray that this machine belongs to, or auto; {hint}"
        )


def cluster_at(address: str) -> "Cluster":
    """Return the Ray Jobs client of a URL or context."""
    from oneshot.config.contexts import find_context
    from oneshot.sweep.cluster.jobs import Cluster

    return Cluster(find_context(address), name=address)


def far_storage(storage: str | None) -> str | None:
    """Return `--storage` for a cluster elsewhere, where this machine's ONESHOT_STORAGE does not count."""
    return None if storage == os.environ.get("ONESHOT_STORAGE") else storage


def open_store(storage: str | None, sweep: "SweepFile | None" = None) -> "Store":
    """Return the store of `--storage`, else of the sweep file, else `runs`."""
    from oneshot.store.store import Store

    return Store(storage or (sweep.config.storage if sweep is not None else "runs"))


def sweep_name(name: str) -> str:
    """Return a sweep's name, given its file or its name. Raises UserError: the text is neither."""
    if Path(name).is_file():
        return load_sweep(Path(name)).config.name
    from oneshot.config.fields import NAME

    if not re.fullmatch(NAME, name):
        raise UserError(f"{name}: no such file, and not a sweep's name (letters, digits, _ and -)")
    return name


def find_sweep(name: str, storage: str | None, settings: list[str] | None) -> tuple["SweepFile", "Store"]:
    """Return a sweep by its file, or by its name in the storage, and its store."""
    from oneshot.config.file import read
    from oneshot.plan.loader import begun_text

    if Path(name).is_file():
        sweep = load_sweep(Path(name), settings)
        return sweep, open_store(storage, sweep)
    store = open_store(storage)
    store.check_exists()
    return read(begun_text(store, sweep_name(name)), name=name, overrides=tuple(settings or ())), store


def find_name(name: str, storage: str | None) -> tuple[str, "Store"]:
    """Return a sweep's name, given its file or its name, and its store."""
    if Path(name).is_file():
        sweep = load_sweep(Path(name))
        return sweep.config.name, open_store(storage, sweep)
    chosen, store = sweep_name(name), open_store(storage)
    store.check_exists()
    return chosen, store


def read_cells(text: str, axes: list[str]) -> dict[str, str]:
    """Parse `model=a,example=b` into cells by axis.

    Raises UserError: the text has another form, or names an unknown axis.
    """
    cells: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        axis, equals, name = part.partition("=")
        if not equals or axis not in axes:
            raise UserError(f"--cell {part}: expected axis=name{nearest(axis, axes)}")
        cells[axis] = name
    return cells


def choose_trial(sweep: "SweepFile", cell: str, seed: int) -> "Trial":
    """Return the trial that `--cell` and `--seed` name."""
    from oneshot.plan.loader import pin_known
    from oneshot.plan.plan import make_plan, with_seed

    wanted = read_cells(cell, list(sweep.config.axes))
    plan = make_plan(pin_known(sweep, open_store(None, sweep)))
    trials = {tuple(trial.cell.items()): trial for trial in plan.grid}
    matching = [t for t in trials.values() if all(t.cell[axis] == name for axis, name in wanted.items())]
    if len(matching) != 1:
        choices = "\n  ".join(",".join(f"{axis}={name}" for axis, name in names) for names in trials)
        problem = f"matches {len(matching)} cells" if matching else "matches no cell of the grid"
        raise UserError(f"--cell {cell or '(none)'}: {problem}; choose one of\n  {choices}")
    return with_seed(matching[0], seed)


def relay(address: str, verb: str, name: str, storage: str | None, **options: str | bool) -> None:
    """Run a verb on the cluster's head, which sees the storage, for a sweep that was submitted to it."""
    stated = {f"--{option}": value for option, value in options.items() if value}
    arguments = [part for option, value in stated.items() for part in (option, value) if isinstance(part, str)]
    cluster, sweep = cluster_at(address), sweep_name(name)
    root = cluster.last(sweep, storage=far_storage(storage)).storage
    code, output = cluster.ask([verb, sweep, "--storage", root, *arguments])
    print(printable(from_here(output, root=root, address=address)), end="")
    if code:
        raise typer.Exit(code)


def from_here(output: str, *, root: str, address: str) -> str:
    """Return what a verb printed on the cluster's head, with its commands and paths as they are from this machine."""
    output = output.replace(shlex.join(["--storage", root]), shlex.join(["--address", address]))
    return re.sub(r"^(report: .*)$", r"\1 (on the cluster; in MLflow it is an artifact)", output, flags=re.MULTILINE)


def experiment_path(database: Path, sweep: str | None) -> str:
    """Return the path of MLflow's charts of a sweep, or nothing if it has no runs there."""
    if sweep is None:
        return ""
    # MLflow takes seconds to import
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        query = (
            "SELECT experiment_id FROM runs JOIN tags USING (run_uuid) "
            "WHERE tags.key = 'sweep' AND tags.value = ? AND lifecycle_stage = 'active' LIMIT 1"
        )
        rows = connection.execute(query, (sweep,)).fetchall()
    from oneshot.sweep.tracking.views import CELLS, chart_page

    return f"/{chart_page(sweep, CELLS, rows[0][0])}" if rows else ""
