"""Verbs about clusters: submit a sweep through Ray Jobs, read its driver's log, look a cluster over."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneshot.cli.options import (
    ClusterOption,
    FarStorageOption,
    File,
    SetOption,
    app,
    cluster_at,
    is_elsewhere,
    load_sweep,
    resolved,
    results,
    sweep_name,
    with_mlflow,
)
from oneshot.errors import DataError, ModelError, UserError
from oneshot.logs import printable

if TYPE_CHECKING:
    from oneshot.config.file import Sweep
    from oneshot.sweep.cluster.jobs import Submission

JobsOption = Annotated[str, typer.Option("--address", help="http://HEAD:8265, or a context of cluster/contexts.yaml")]


@app.command()
def submit(
    file: File,
    settings: SetOption = None,
    *,
    address: JobsOption,
    storage: FarStorageOption = None,
    mlflow: Annotated[str | None, typer.Option(help="tracking server; above the context's and the file's")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="show the driver's log until the sweep ends")] = False,
) -> None:
    """Have a cluster run a sweep, or what is missing of it: ships the file and this package through Ray Jobs."""
    from oneshot.config.contexts import find_context
    from oneshot.sweep.cluster.package import bundle

    sweep = load_sweep(file, settings)
    context = find_context(address)
    root = _shared(sweep, storage or context.storage)
    with_mlflow(sweep, mlflow)  # refuses a password
    wait_s = _check_plan(sweep)
    arguments = _options(settings, mlflow or context.mlflow)
    cluster = cluster_at(address)
    name = sweep.config.name
    submitted = cluster.submit(bundle(file, sweep), sweep=name, storage=root, arguments=arguments, wait_s=wait_s)
    print(f"oneshot: submitted as {submitted}; looks the cluster over", file=sys.stderr)
    from oneshot.sweep.events import PASSED

    found = cluster.follow(submitted, _tell, complain=_complain, until=PASSED)
    if not found.is_live and found.exit_code != 0:
        raise typer.Exit(_code(found))
    print(submitted)
    if follow:
        _follow(name, address, submitted)
    elif sys.stderr.isatty() or found.is_live:
        print(f"oneshot: `oneshot logs {name} --address {address} --follow` shows what it does", file=sys.stderr)


def _options(settings: list[str] | None, mlflow: str | None) -> list[str]:
    """What of the command line goes on to the driver's."""
    chosen = [part for setting in settings or () for part in ("--set", setting)]
    return [*chosen, *(["--mlflow", mlflow] if mlflow else [])]


def _shared(sweep: "Sweep", storage: str | None) -> str:
    """The storage, which must mean the same on every machine."""
    root = storage or sweep.config.storage
    scheme, has_scheme, _ = root.partition("://")
    mend = "name a folder that all nodes share, as /shared/oneshot, or a URL, as s3://bucket/oneshot"
    if scheme == "memory":
        raise UserError(f"storage: {root} is one process's memory; {mend}")
    if has_scheme or Path(root).is_absolute():
        return root
    place = "--storage" if storage else sweep.source.at(("storage",))
    raise UserError(
        f"{place}: {root} means another folder on every machine; {mend} (here, in the context, or --storage)"
    )


def _check_plan(sweep: "Sweep") -> int:
    """Plans as far as this machine can, without the cluster's storage; seconds of two steps of the slowest trial."""
    from oneshot.plan.plan import make_plan

    try:
        planned = make_plan(sweep)
    except UserError as error:
        if not isinstance(error, DataError | ModelError) and not isinstance(error.__cause__, DataError | ModelError):
            raise
        print(f"oneshot: cannot be planned on this machine, only there: {error}", file=sys.stderr)
        return 0
    for warning in planned.warnings:
        print(f"oneshot: warning: {warning}", file=sys.stderr)
    return int(2 * max((trial.cost.step_s or 0.0 for trial in planned.trials), default=0.0))


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def _show(line: str) -> None:
    print(printable(line), flush=True)


def _complain(text: str) -> None:
    print(f"oneshot: {printable(text)}", file=sys.stderr, flush=True)


def _tell_end(found: "Submission") -> None:
    """Says why a driver ended that could not say so itself."""
    if not found.is_live and found.exit_code is None and found.message:
        _complain(f"{found.id}: {found.message.strip().splitlines()[0]}")


def _code(found: "Submission") -> int:
    """The driver's exit code; one that was stopped is interrupted."""
    _tell_end(found)
    return 130 if found.status == "STOPPED" else found.exit_code if found.exit_code is not None else 1


def _follow(name: str, address: str, submission_id: str) -> None:
    cluster = cluster_at(address)
    try:
        found = cluster.follow(submission_id, _show, complain=_complain)
    except KeyboardInterrupt:
        _complain(f"{submission_id} goes on; `oneshot stop {name} --address {address}` ends it")
        raise
    if code := _code(found):
        raise typer.Exit(code)


@app.command()
def logs(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a sweep file, or the name of a sweep")],
    address: JobsOption,
    storage: FarStorageOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="until the sweep ends")] = False,
) -> None:
    """Show what a submitted sweep's driver has said."""
    sweep = sweep_name(name)
    cluster = cluster_at(address)
    last = cluster.last(sweep, storage=storage)
    if follow:
        _follow(sweep, address, last.id)
        return
    from oneshot.sweep.cluster.jobs import own_words

    for line in own_words(cluster.logs(last.id).splitlines()):
        _show(line)
    _tell_end(last)


@app.command()
def doctor(
    file: File,
    settings: SetOption = None,
    address: ClusterOption = None,
    storage: FarStorageOption = None,
    mlflow: Annotated[str | None, typer.Option(help="tracking server; above the context's and the file's")] = None,
) -> None:
    """Look over whatever a sweep would run on, without running it: nodes, versions, storage, MLflow, models, data."""
    from oneshot.cli.progress import findings_table
    from oneshot.store.store import Store
    from oneshot.sweep.run import mlflow_location

    sweep = load_sweep(file, settings)
    if address is not None and is_elsewhere(address):
        from oneshot.config.contexts import find_context
        from oneshot.sweep.cluster.package import bundle
        from oneshot.sweep.events import ANSWER_S

        context = find_context(address)
        root = _shared(sweep, storage or context.storage)
        with_mlflow(sweep, mlflow)  # refuses a password
        options = _options(settings, mlflow or context.mlflow)
        arguments = ["doctor", file.name, "--address", "auto", "--storage", root, *options]
        code, said = cluster_at(address).ask(arguments, bundle=bundle(file, sweep), patience_s=2 * ANSWER_S)
        print(printable(said), end="")
        raise typer.Exit(code)
    store = Store(storage or os.environ.get("ONESHOT_STORAGE") or sweep.config.storage)
    sweep, planned = resolved(with_mlflow(sweep, mlflow or os.environ.get("MLFLOW_TRACKING_URI")), store)
    uri, _ = mlflow_location(sweep, store)
    from oneshot.sweep.cluster.preflight import findings, here
    from oneshot.sweep.tracking.server import why_not

    if address is None:
        found = here(planned, store, reach=partial(why_not, uri))
    else:
        from oneshot.sweep.cluster.nodes import joined

        with joined(address):
            found = findings(planned, store, reach=partial(why_not, uri))
    results().print(findings_table(found))
    if any(finding.is_bad for finding in found):
        raise typer.Exit(2)
