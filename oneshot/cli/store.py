"""Verbs about what a store holds, and about sweeps that run."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneshot.cli.options import (
    ClusterOption,
    JsonOption,
    StorageOption,
    app,
    cluster_at,
    far_storage,
    find_name,
    load_sweep,
    read_cells,
    relay,
    results,
    sweep_name,
)
from oneshot.errors import OneshotError, UserError, nearest
from oneshot.logs import printable

if TYPE_CHECKING:
    from oneshot.store.store import Store


Name = Annotated[str, typer.Argument(metavar="NAME", help="a sweep file, or the name of a sweep in the storage")]
CellOption = Annotated[
    str, typer.Option(help="only trials of these cells: axis=name, comma between; `seed` and `phase` count as axes")
]


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="a sweep file or name; absent: lists sweeps")
    ] = None,
    storage: StorageOption = None,
    address: ClusterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where a sweep stands: its trials by state, rates, what failed; from any shell that sees the storage."""
    from oneshot.cli.progress import status_table, sweeps_table
    from oneshot.plan.recorded import sweeps
    from oneshot.store.store import Store
    from oneshot.sweep.status import sweep_status

    if address is not None:
        _status_elsewhere(name, storage, address, as_json=as_json)
        return
    if name is None:
        store = Store(storage or "runs")
        every = []
        for one in sweeps(store):
            try:
                every.append(sweep_status(store, one))
            except OneshotError as error:  # its model or data are not on this machine: the others are shown
                print(f"oneshot: {one}: {error}", file=sys.stderr)
        if as_json:
            print(json.dumps([{**one.to_json(), "trials": []} for one in every], indent=2))
        else:
            results().print(sweeps_table(every))
        return
    sweep, store = find_name(name, storage)
    found = sweep_status(store, sweep)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
        return
    counts = ", ".join(f"{number} {state}" for state, number in found.counts.items() if number)
    print(f"{found.name}: {found.phase}; {counts or 'no trials'}; driver: {found.driver or 'none'}")
    results().print(status_table(found))
    if found.last_error:
        print(f"last error: {printable(found.last_error)}")


def _status_elsewhere(name: str | None, storage: str | None, address: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from oneshot.cli.progress import submissions_table

    cluster = cluster_at(address)
    if name is not None:
        relay(cluster, "status", name, storage, *(["--json"] if as_json else []))
        return
    found = cluster.submissions()
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        results().print(submissions_table(found))


@app.command()
def stop(
    name: Name,
    cell: CellOption = "",
    now: Annotated[bool, typer.Option("--now", help="kill running trials, instead of letting them checkpoint")] = False,
    storage: StorageOption = None,
    address: ClusterOption = None,
) -> None:
    """End a running sweep, or some of its cells: `run` goes on from checkpoints, `retry --cell` brings cells back."""
    if address is not None:
        _stop_elsewhere(name, cell, now, storage, address)
        return
    from oneshot.plan.recorded import begun_sweep
    from oneshot.store.lease import holder
    from oneshot.sweep.status import is_alive
    from oneshot.trial.requests import Request, send_request

    sweep, store = find_name(name, storage)
    folder = store.sweep(sweep)
    driver = holder(folder)
    if not is_alive(driver):
        begun_sweep(store, sweep)  # says what there is, where there is no such sweep
    cells = _cells(cell, sweep, store)
    if not is_alive(driver) and not cells:
        raise UserError(f"{sweep}: no driver runs it; nothing to stop")
    send_request(folder, Request(verb="stop", cell=cells, now=now))
    if is_alive(driver):
        print(f"{sweep}: told {driver}; `oneshot status {sweep}` shows what it does")
    else:
        print(f"{sweep}: no driver runs it; the next `run` leaves {cell} out")


def _stop_elsewhere(name: str, cell: str, now: bool, storage: str | None, address: str) -> None:
    cluster = cluster_at(address)
    if cell or now:
        relay(cluster, "stop", name, storage, *(["--cell", cell] if cell else []), *(["--now"] if now else []))
        return
    last = cluster.last(sweep_name(name), storage=far_storage(storage))
    if not last.is_live:
        raise UserError(f"{last.sweep}: {last.id} has ended ({last.status}); nothing to stop")
    cluster.stop(last.id)
    print(f"{last.sweep}: told {last.id}; its trials leave a checkpoint, and `oneshot submit` goes on from there")


@app.command()
def retry(
    name: Name,
    cell: CellOption = "",
    reason: Annotated[str, typer.Option(help="only trials whose reason or class of failure has this text")] = "",
    storage: StorageOption = None,
    address: ClusterOption = None,
) -> None:
    """Take the results of failed trials away, and stops of cells back, so that they are run again."""
    if address is not None:
        chosen = [*(["--cell", cell] if cell else []), *(["--reason", reason] if reason else [])]
        relay(cluster_at(address), "retry", name, storage, *chosen)
        return
    from oneshot.plan.recorded import begun_sweep
    from oneshot.plan.trainings import trainings
    from oneshot.store.lease import holder
    from oneshot.sweep.status import is_alive
    from oneshot.trial.requests import Request, covers, send_request

    sweep, store = find_name(name, storage)
    cells = _cells(cell, sweep, store)
    _, planned = begun_sweep(store, sweep)
    count = 0
    for training in trainings([trial for trial in planned.trials if covers(cells, trial)]):
        result = store.trial(training.key).result()
        if result is not None and result.outcome == "failed" and (reason in result.reason or reason == result.kind):
            store.trial(training.key).remove("result.json")
            count += 1
    folder = store.sweep(sweep)
    send_request(folder, Request(verb="retry", cell=cells))
    when = "now" if is_alive(holder(folder)) else "by the next `oneshot run`"
    print(f"{count} failed trainings will be run again {when}")


@app.command()
def gc(
    storage: StorageOption = None,
    remove: Annotated[bool, typer.Option("--remove", help="take what can go off the disk")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what each sweep holds on disk, and what can go."""
    from dataclasses import asdict

    from oneshot.cli.progress import holdings_table, size
    from oneshot.store.gc import holdings
    from oneshot.store.gc import remove as take_away
    from oneshot.store.store import Store

    store = Store(storage or "runs")
    found, waste = holdings(store)
    if as_json:
        print(json.dumps({"sweeps": [asdict(one) for one in found], "waste": [asdict(one) for one in waste]}, indent=2))
    else:
        results().print(holdings_table(found))
        for one in waste:
            print(f"{size(one.num_bytes):>10}  {one.path}: {one.why}")
        print(
            f"{size(sum(one.num_bytes for one in waste))} can go"
            + ("" if remove or not waste else "; --remove does it")
        )
    for one in waste if remove else ():
        take_away(store, one)


def _cells(text: str, sweep: str, store: "Store") -> dict[str, str]:
    """`--cell` as axes and names, which the sweep has."""
    from oneshot.plan.recorded import begun_sweep
    from oneshot.trial.requests import axes_of, covers

    if not text:
        return {}
    _, planned = begun_sweep(store, sweep)
    cells = read_cells(text, [*(planned.trials[0].cell if planned.trials else ()), "seed", "phase"])
    for axis, wanted in cells.items():
        known = list(dict.fromkeys(axes_of(trial)[axis] for trial in planned.trials))
        if wanted not in known:
            kind = axis if axis in ("seed", "phase") else "cell"
            raise UserError(f"--cell {axis}={wanted}: unknown {kind}{nearest(wanted, known)}")
    if cells and not any(covers(cells, trial) for trial in planned.trials):
        raise UserError(f"--cell {text}: no trial of {sweep} is of all these")
    return cells


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
