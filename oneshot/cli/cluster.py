"""Verbs about clusters: submit a sweep through Ray Jobs, read its driver's log, check a cluster."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneshot.cli.find import cluster_at, is_elsewhere, open_store, sweep_name, with_mlflow
from oneshot.cli.options import (
    ClusterOption,
    FarStorageOption,
    File,
    OptionalFile,
    SetOption,
    TrustOption,
    app,
    load_sweep,
    results,
    warn,
)
from oneshot.errors import DataError, ModelError, UserError
from oneshot.logs import printable

if TYPE_CHECKING:
    from oneshot.config.file import SweepFile
    from oneshot.sweep.cluster.jobs import Submission
    from oneshot.sweep.findings import Finding

JobsOption = Annotated[str, typer.Option("--address", help="http://HEAD:8265, or a context of cluster/contexts.yaml")]
FarMlflowOption = Annotated[str | None, typer.Option("--mlflow", help="MLflow tracking server; overrides the context")]


@app.command()
def submit(
    file: File,
    settings: SetOption = None,
    *,
    address: JobsOption,
    storage: FarStorageOption = None,
    mlflow: FarMlflowOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the driver's log until the sweep ends")] = False,
    trust_code: TrustOption = False,
) -> None:
    """Submit a sweep to a Ray cluster, or resume it there.

    Ships the file and this package through Ray Jobs, and checks the cluster before any trial begins.
    """
    from oneshot.sweep.cluster.package import bundle
    from oneshot.sweep.events import PASSED

    sweep = load_sweep(file, settings, trust_code=trust_code)
    root, arguments = _far(sweep, settings, address, storage=storage, mlflow=mlflow)
    wait_s = _check_plan(sweep)
    cluster = cluster_at(address)
    name = sweep.config.name
    submission_id = cluster.submit(bundle(file, sweep), sweep=name, storage=root, arguments=arguments, wait_s=wait_s)
    warn(f"submitted as {submission_id}; checking the cluster")
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        print(printable(line), file=sys.stderr, flush=True)

    job = cluster.follow(submission_id, tell, complain=warn, until=PASSED)
    if not job.is_live and job.exit_code != 0:
        raise typer.Exit(_code(job))
    print(submission_id)
    if follow:
        _follow(name, address, submission_id, num_told=len(told))
    elif sys.stderr.isatty() or job.is_live:
        warn(f"to watch it, use `oneshot logs {name} --address {address} --follow`")


def _far(
    sweep: "SweepFile", settings: list[str] | None, address: str, *, storage: str | None, mlflow: str | None
) -> tuple[str, list[str]]:
    """Return the storage on the cluster, and the other options that the process there gets too."""
    from oneshot.config.contexts import find_context

    context = find_context(address)
    root = _shared(sweep, storage or context.storage)
    with_mlflow(sweep, mlflow)  # refuses a password
    uri = mlflow or context.mlflow
    options = [part for setting in settings or () for part in ("--set", setting)]
    return root, [*options, *(["--mlflow", uri] if uri else [])]


def _shared(sweep: "SweepFile", storage: str | None) -> str:
    """Return the storage, which must mean the same on every machine."""
    root = storage or sweep.config.storage
    scheme, has_scheme, _ = root.partition("://")
    hint = "use a folder that all nodes share, as /shared/oneshot, or a URL, as s3://bucket/oneshot"
    if scheme == "memory":
        raise UserError(f"storage: {root} is the memory of one process; {hint}")
    if has_scheme or Path(root).is_absolute():
        return root
    place = "--storage" if storage else sweep.source.at(("storage",))
    raise UserError(
        f"{place}: {root} is a different folder on every machine; {hint} (here, in the context, or with --storage)"
    )


def _check_plan(sweep: "SweepFile") -> int:
    """Plan as far as this machine can; return the seconds of two steps of the slowest trial."""
    from oneshot.plan.plan import make_plan

    try:
        plan = make_plan(sweep)
    except UserError as error:
        if not isinstance(error, DataError | ModelError) and not isinstance(error.__cause__, DataError | ModelError):
            raise
        warn(f"can only be planned on the cluster: {error}")
        return 0
    for text in plan.warnings:
        warn(f"warning: {text}")
    return int(2 * max((trial.cost.step_s or 0.0 for trial in plan.trials), default=0.0))


def _show(line: str) -> None:
    print(printable(line), flush=True)


def _tell_end(job: "Submission") -> None:
    """Print why a driver ended, if it could not print that itself."""
    if not job.is_live and job.exit_code is None and job.message:
        warn(f"{job.id}: {job.message.strip().splitlines()[0]}")


def _code(job: "Submission") -> int:
    """Return the driver's exit code; 130 if it was stopped."""
    _tell_end(job)
    return 130 if job.status == "STOPPED" else job.exit_code if job.exit_code is not None else 1


def _follow(name: str, address: str, submission_id: str, *, num_told: int = 0) -> None:
    cluster = cluster_at(address)
    try:
        job = cluster.follow(submission_id, _show, complain=warn, num_told=num_told)
    except KeyboardInterrupt:
        warn(f"{submission_id} keeps running; to stop it, use `oneshot stop {name} --address {address}`")
        raise
    if code := _code(job):
        raise typer.Exit(code)


@app.command()
def logs(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A sweep file, or the name of a sweep")],
    address: JobsOption,
    storage: FarStorageOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="Continue until the sweep ends")] = False,
) -> None:
    """Show the log of a submitted sweep's driver."""
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
    file: OptionalFile = None,
    settings: SetOption = None,
    address: ClusterOption = None,
    storage: FarStorageOption = None,
    mlflow: FarMlflowOption = None,
) -> None:
    """Check the cluster, storage, MLflow and data of a sweep.

    Without --address, checks this machine; without FILE, what it can do for any sweep. Runs no trial.
    """
    from oneshot.cli.tables import findings_table

    if file is None:
        _check_machine(settings, address, storage)
        return
    sweep = load_sweep(file, settings)
    if address is not None and is_elsewhere(address):
        from oneshot.sweep.cluster.package import bundle
        from oneshot.sweep.events import ANSWER_S

        root, options = _far(sweep, settings, address, storage=storage, mlflow=mlflow)
        arguments = ["doctor", file.name, "--address", "auto", "--storage", root, *options]
        code, output = cluster_at(address).ask(arguments, bundle=bundle(file, sweep), patience_s=2 * ANSWER_S)
        print(printable(output), end="")
        raise typer.Exit(code)
    findings = _findings(sweep, address, storage=storage, mlflow=mlflow)
    results().print(findings_table(findings))
    if any(finding.is_bad for finding in findings):
        raise typer.Exit(2)


def _check_machine(settings: list[str] | None, address: str | None, storage: str | None) -> None:
    if settings or address is not None:
        raise UserError("doctor: --set and --address need a sweep file; write `oneshot doctor FILE ...`")
    from oneshot.cli.tables import findings_table
    from oneshot.sweep.machine import check_machine

    findings = check_machine(storage or os.environ.get("ONESHOT_STORAGE") or "runs")
    results().print(findings_table(findings))
    if any(finding.is_bad for finding in findings):
        raise typer.Exit(2)


def _findings(sweep: "SweepFile", address: str | None, *, storage: str | None, mlflow: str | None) -> "list[Finding]":
    from oneshot.plan.loader import pin_all
    from oneshot.sweep.cluster.preflight import check_here, check_nodes
    from oneshot.sweep.tracking.server import why_not

    sweep = with_mlflow(sweep, mlflow or os.environ.get("MLFLOW_TRACKING_URI"))
    sweep_run = pin_all(sweep, open_store(storage or os.environ.get("ONESHOT_STORAGE"), sweep))
    reach = partial(why_not, sweep_run.mlflow().uri)
    if address is None:
        return check_here(sweep_run.plan, sweep_run.store, reach=reach)
    from oneshot.sweep.cluster.nodes import joined

    with joined(address):
        return check_nodes(sweep_run.plan, sweep_run.store, reach=reach)
