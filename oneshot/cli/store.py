"""Verbs about the trial store, and about sweeps that run."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneshot.cli.find import (
    cluster_at,
    experiment_path,
    far_storage,
    find_name,
    is_elsewhere,
    open_store,
    read_cells,
    relay,
    sweep_name,
)
from oneshot.cli.options import (
    AnyClusterOption,
    ClusterOption,
    JsonOption,
    Name,
    StorageOption,
    Typed,
    app,
    results,
    warn,
)
from oneshot.errors import OneshotError, UserError, nearest
from oneshot.logs import counted, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oneshot.store.gc import Holding, Waste
    from oneshot.store.store import Store
    from oneshot.sweep.tracking.deleted import DeletedRun

CellOption = Annotated[str, typer.Option(help="Only these cells: axis=name,...; seed and phase count as axes")]


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A sweep file or name; without it, list all sweeps")
    ] = None,
    storage: StorageOption = None,
    address: AnyClusterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the state of a sweep's trials.

    Works from any shell or machine that sees the storage, while the sweep runs and afterwards. With --address and no
    name, lists the sweeps on a cluster with the GPUs that each holds and has used.
    """
    from oneshot.cli.tables import status_table
    from oneshot.sweep.status import sweep_status

    if address is not None:
        _status_elsewhere(name, storage, address, as_json=as_json)
        return
    if name is None:
        store = open_store(storage)
        store.check_exists()
        _list_sweeps(store, as_json=as_json)
        return
    sweep, store = find_name(name, storage)
    current = sweep_status(store, sweep)
    if as_json:
        print(json.dumps(current.to_json(), indent=2))
        return
    counts = ", ".join(f"{number} {state}" for state, number in current.counts.items() if number)
    print(f"{current.name}: {current.phase}; {counts or 'no trials'}; driver: {current.driver or 'none'}")
    if any(trial.state != "finished" for trial in current.trials):
        results().print(status_table(current))
    if current.last_error:
        print(f"last error: {printable(current.last_error)}")
    if current.phase == "done":
        _show_result(store, sweep, place=Typed(name=name, storage=storage).place)


def _show_result(store: "Store", sweep: str, *, place: str) -> None:
    """Print the verdicts of the kept report, or else each cell's accuracies."""
    from oneshot.cli.verdict_tables import cells_table, verdict_table
    from oneshot.plan.loader import begun_sweep
    from oneshot.report.cells import cell_lines
    from oneshot.report.page import kept_report
    from oneshot.report.runs import read_runs

    if (kept := kept_report(store.sweep(sweep))) is not None and kept.judged:
        results().print(verdict_table(kept.judged))
        print(f"report: {kept.path}")
        return
    sweep_run = begun_sweep(store, sweep)
    if lines := cell_lines(read_runs(sweep_run.plan, store)):
        results().print(cells_table(lines))
    if sweep_run.sweep.config.claims:
        print(f"to judge its claims, use `oneshot report {place}`")


def _list_sweeps(store: "Store", *, as_json: bool) -> None:
    from oneshot.cli.tables import sweeps_table
    from oneshot.plan.loader import sweep_names
    from oneshot.sweep.status import sweep_status

    sweeps = []
    for name in sweep_names(store):
        try:
            sweeps.append(sweep_status(store, name))
        except OneshotError as error:  # its model or data are on another machine
            warn(f"{name}: {error}")
    if as_json:
        print(json.dumps([{**sweep.to_json(), "trials": []} for sweep in sweeps], indent=2))
    else:
        results().print(sweeps_table(sweeps))


def _status_elsewhere(name: str | None, storage: str | None, address: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from oneshot.cli.tables import submissions_table

    if name is not None:
        relay(address, "status", name, storage, json=as_json)
        return
    if not is_elsewhere(address):
        _show_sharing(_sharing_here(address), as_json=as_json)
        return
    cluster = cluster_at(address)
    submissions = cluster.submissions()
    if as_json:
        print(json.dumps([asdict(submission) for submission in submissions], indent=2))
        return
    results().print(submissions_table(submissions))
    if any(submission.is_live for submission in submissions):
        _, output = cluster.ask(["status", "--address", "auto"])
        print(f"\n{printable(output)}", end="")


def _sharing_here(address: str) -> "list[Mapping[str, Any]]":
    from oneshot.sweep.cluster.nodes import joined
    from oneshot.sweep.cluster.sharing import members

    with joined(address):
        return members()


def _show_sharing(sharing: "Sequence[Mapping[str, Any]]", *, as_json: bool) -> None:
    from oneshot.cli.tables import sharing_table

    if as_json:
        print(json.dumps(sharing, indent=2))
    elif sharing:
        results().print(sharing_table(sharing))
    else:
        print("no sweep runs on this cluster")


@app.command()
def stop(
    name: Name,
    cell: CellOption = "",
    now: Annotated[bool, typer.Option("--now", help="Kill running trials instead of saving checkpoints")] = False,
    storage: StorageOption = None,
    address: ClusterOption = None,
) -> None:
    """Stop a running sweep, or some of its cells.

    `oneshot run` resumes a stopped sweep from its checkpoints; `oneshot retry --cell` resumes stopped cells.
    """
    if address is not None:
        _stop_elsewhere(name, cell, now, storage, address)
        return
    from oneshot.plan.loader import begun_text
    from oneshot.store.lease import holder
    from oneshot.sweep.status import is_alive
    from oneshot.trial.requests import Request, send_request

    sweep, store = find_name(name, storage)
    folder = store.sweep(sweep)
    driver = holder(folder)
    if not is_alive(driver):
        begun_text(store, sweep)  # refuses an unknown sweep
    cells = _cells(cell, sweep, store)
    if not is_alive(driver) and not cells:
        raise UserError(f"{sweep}: no driver is running, so there is nothing to stop")
    send_request(folder, Request(verb="stop", cell=cells, now=now))
    if is_alive(driver):
        place = Typed(name=name, storage=storage).place
        print(f"{sweep}: sent to {driver}; watch it with `oneshot status {place}`")
    else:
        print(f"{sweep}: no driver is running; the next `oneshot run` leaves out {cell}")


def _stop_elsewhere(name: str, cell: str, now: bool, storage: str | None, address: str) -> None:
    if cell or now:
        relay(address, "stop", name, storage, cell=cell, now=now)
        return
    cluster = cluster_at(address)
    last = cluster.last(sweep_name(name), storage=far_storage(storage))
    if not last.is_live:
        raise UserError(f"{last.sweep}: {last.id} has already ended ({last.status})")
    cluster.stop(last.id)
    print(f"{last.sweep}: sent to {last.id}; its trials save checkpoints, and `oneshot submit` resumes them")


@app.command()
def retry(
    name: Name,
    cell: CellOption = "",
    reason: Annotated[str, typer.Option(help="Only trials whose reason or kind of failure contains this text")] = "",
    storage: StorageOption = None,
    address: ClusterOption = None,
) -> None:
    """Retry failed trials and resume stopped cells.

    A running driver does so at once; otherwise the next `oneshot run` does.
    """
    if address is not None:
        relay(address, "retry", name, storage, cell=cell, reason=reason)
        return
    from oneshot.plan.loader import begun_sweep
    from oneshot.plan.trainings import trainings
    from oneshot.store.lease import holder
    from oneshot.sweep.status import is_alive
    from oneshot.trial.requests import Request, covers, requested_stops, send_request
    from oneshot.trial.state import TrialState, trial_standing

    sweep, store = find_name(name, storage)
    cells = _cells(cell, sweep, store)
    sweep_run = begun_sweep(store, sweep)
    stops = requested_stops(sweep_run.folder)
    still_stopped = stops.without(cells)
    resumed = [
        trial
        for trial in sweep_run.plan.trials
        if stops.reason(trial) and not still_stopped.reason(trial) and trial.key is not None
        if trial_standing(trial, store.trial(trial.key).result()) is not TrialState.FINISHED
    ]
    count = 0
    for training in trainings([trial for trial in sweep_run.plan.trials if covers(cells, trial)]):
        result = store.trial(training.key).result()
        if result is not None and result.outcome == "failed" and (reason in result.reason or reason == result.kind):
            store.trial(training.key).remove("result.json")
            count += 1
    send_request(sweep_run.folder, Request(verb="retry", cell=cells))
    when = "now" if is_alive(holder(sweep_run.folder)) else "with the next `oneshot run`"
    parts = [f"{counted(count, 'failed training')} will run again"] if count else []
    parts += [f"{counted(len(resumed), 'stopped trial')} will resume"] if resumed else []
    print(f"{' and '.join(parts)} {when}" if parts else f"{sweep}: no failed training and no stopped trial matches")


@app.command()
def gc(
    storage: StorageOption = None,
    sweep: Annotated[str | None, typer.Option(metavar="NAME", help="Also this sweep and what it alone holds")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what no sweep needs")] = False,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="Also runs that were deleted in MLflow, with their artifacts")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show disk space by sweep, and remove what no sweep needs.

    Weights and completions that are older than `keep` of their sweep files allows count as not needed. With --sweep,
    also a whole sweep.
    """
    from dataclasses import asdict

    from oneshot.cli.tables import holdings_table, size
    from oneshot.report.retention import retentions
    from oneshot.store.gc import find_waste, remove_waste

    store = open_store(storage)
    store.check_exists()
    if sweep is not None:
        _check_at_rest(store, sweep)
    kept, unreadable = retentions(store, without=sweep)
    for line in unreadable:
        warn(line)
    holdings, waste = find_waste(store, without=sweep, retentions=kept)
    root = Path(store.path).resolve() if store.is_local else None
    runs = _deleted_runs(store, root) if mlflow else []
    if as_json:
        data: dict[str, Sequence[Holding | Waste | DeletedRun]] = {"sweeps": holdings, "waste": waste}
        data |= {"mlflow": runs} if mlflow else {}
        print(json.dumps({name: [asdict(item) for item in items] for name, items in data.items()}, indent=2))
    else:
        results().print(holdings_table(holdings))
        for item in waste:
            print(f"{size(item.num_bytes):>10}  {item.path}: {item.why}")
        for run in runs:
            name = f"{printable(run.experiment)}, {printable(run.name)}"
            print(f"{size(run.num_bytes):>10}  MLflow: {name}: deleted there")
        hint = "" if remove or not (waste or runs) else "; use --remove to remove it"
        total = sum(item.num_bytes for item in waste) + sum(run.num_bytes for run in runs)
        print(f"{size(total)} can be removed{hint}")
    if not remove:
        return
    for item in waste:
        remove_waste(store, item)
    if sweep is not None and root is not None and (root / "mlflow.db").is_file():
        from oneshot.sweep.tracking.server import forget

        count = forget(f"sqlite:///{root}/mlflow.db", sweep)
        print(f"{sweep}: removed, with {count} runs in MLflow")
    if mlflow and root is not None:
        from oneshot.sweep.tracking.deleted import deleted_runs, remove_deleted

        remove_deleted(root, deleted_runs(root))


def _deleted_runs(store: "Store", root: Path | None) -> "list[DeletedRun]":
    """Return the runs that were deleted in the store's MLflow. Raises UserError: its MLflow is a server."""
    from oneshot.sweep.tracking.deleted import deleted_runs, why_elsewhere

    if root is not None and (root / "mlflow.db").is_file():
        return deleted_runs(root)
    from oneshot.config.file import read
    from oneshot.plan.loader import begun_text, sweep_names

    uris = [os.environ.get("MLFLOW_TRACKING_URI")]
    for name in sweep_names(store):
        with contextlib.suppress(OneshotError):  # another version wrote it
            uris.append(read(begun_text(store, name), name=name).config.mlflow.tracking_uri)
    raise UserError(why_elsewhere(store.root, filter(None, uris)))


def _check_at_rest(store: "Store", sweep: str) -> None:
    """Refuse to remove a sweep that is not there or that runs."""
    from oneshot.plan.loader import begun_text
    from oneshot.store.lease import holder
    from oneshot.sweep.status import is_alive

    begun_text(store, sweep)
    if is_alive(holder(store.sweep(sweep))):
        place = Typed(name=sweep, storage=store.root).place
        raise UserError(f"--sweep {sweep}: it is running; end it with `oneshot stop {place}` first")


def _cells(text: str, sweep: str, store: "Store") -> dict[str, str]:
    """Return `--cell` as names by axis, after checking that the sweep has them."""
    from oneshot.plan.loader import begun_sweep
    from oneshot.trial.requests import axes_of, covers

    if not text:
        return {}
    trials = begun_sweep(store, sweep).plan.trials
    cells = read_cells(text, [*(trials[0].cell if trials else ()), "seed", "phase"])
    for axis, wanted in cells.items():
        names = list(dict.fromkeys(axes_of(trial)[axis] for trial in trials))
        if wanted not in names:
            kind = axis if axis in ("seed", "phase") else "cell"
            raise UserError(f"--cell {axis}={wanted}: unknown {kind}{nearest(wanted, names)}")
    if cells and not any(covers(cells, trial) for trial in trials):
        raise UserError(f"--cell {text}: no trial of {sweep} matches all of these")
    return cells


@app.command()
def ui(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A sweep file or name; shows its storage and experiment")
    ] = None,
    storage: StorageOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine")] = 5000,
) -> None:
    """Open the MLflow server of a local store."""
    sweep, store = (None, open_store(storage)) if name is None else find_name(name, storage)
    database = Path(store.path).resolve() / "mlflow.db"
    if not database.is_file():
        raise UserError(f"{database}: no such database; run a sweep first, or name its --storage")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; choose another, such as --port {port + 1}") from error
    from oneshot.sweep.tracking.relocate import relocate

    relocate(database.parent)
    url = f"http://127.0.0.1:{port}{experiment_path(database, sweep)}"
    print(f"MLflow starts on {url} within half a minute; Ctrl-C stops it", file=sys.stderr)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(database.parent / "mlartifacts"), "--workers", "1"]
    # its jobs are for evaluations of language models by others, and take most of its processes and memory
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.execve(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)], environment)
