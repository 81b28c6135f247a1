"""The command line: parse, call, print. Nothing heavy is imported before it is needed.

Results go to stdout, messages and progress to stderr. Exit codes: 0 done, 1 trials failed, 2 the input is wrong,
130 interrupted.
"""

import json
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneshot.errors import OneshotError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from oneshot.plan import Plan, Trial
    from oneshot.store import Store
    from oneshot.sweepfile import Sweep

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The replication lab for one-shot RLVR: plan, run and watch sweeps of GRPO trials.",
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="a sweep file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="a setting above the file's")]
StorageOption = Annotated[
    str | None, typer.Option("--storage", envvar="ONESHOT_STORAGE", help="above the file's `storage`")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout")]


def main() -> None:
    """Entry point: runs a verb and turns its errors into one line and an exit code."""
    logging.basicConfig(format="oneshot: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        app()
    except OneshotError as error:
        print(f"oneshot: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except BrokenPipeError:  # `oneshot plan FILE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def plan(file: File, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Show a sweep's trials, keys and cost, without running anything."""
    from oneshot.plan import make_plan, trainings

    planned = make_plan(_load(file, settings))
    for warning in planned.warnings:
        print(f"oneshot: warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(planned.to_json(), indent=2))
        return
    from oneshot.display import plan_table

    console = _results()
    console.print(plan_table(planned))
    facts = planned.to_json()
    console.print(
        f"\n{planned.num_cells} cells, {len(planned.trials)} trials, {len(trainings(planned.trials))} trainings; "
        f"at most {facts['max_tokens']:,} completion tokens"
        + (f"; {planned.gpu_hours:.1f} GPU-hours by the stated step times" if planned.gpu_hours else ""),
        highlight=False,
    )
    if planned.gpu_hours is None:
        console.print("GPU-hours unknown: a cell on GPUs states no `cost: {step_s: ...}`", highlight=False)


@app.command()
def run(
    file: File,
    settings: SetOption = None,
    storage: StorageOption = None,
    address: Annotated[str | None, typer.Option(help="a running Ray cluster, as host:port or auto")] = None,
) -> None:
    """Run a sweep, or what is missing of it; finished trials are never run again."""
    from oneshot.store import Store

    sweep = _load(file, settings)
    root = storage or sweep.config.storage
    store = Store(root)
    planned = _resolved(sweep, store)
    for warning in planned.warnings:
        print(f"oneshot: warning: {warning}", file=sys.stderr)
    from rich.console import Console

    from oneshot.display import Progress, cells_table
    from oneshot.plan import trainings
    from oneshot.report.cells import cell_lines
    from oneshot.standing import trial_standing
    from oneshot.sweep.notify import notify, webhook_url
    from oneshot.sweep.run import Launch, mlflow_location, outstanding
    from oneshot.sweep.run import run as run_sweep

    uri, _ = mlflow_location(sweep, store)
    webhook = webhook_url(sweep.config.notify) if sweep.config.notify else None
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with Progress(trainings(planned.trials), Console(stderr=True)) as progress:
        launch: Launch | None = None
        if outstanding(planned, store):  # Ray and torch take seconds to import, and a sweep that is done needs neither
            from oneshot.sweep.tuner import run_on_ray

            launch = partial(run_on_ray, sweep=sweep, store=store, address=address, listen=progress)
        summary = run_sweep(sweep, planned, store, launch=launch, listen=progress)
    _results().print(cells_table(cell_lines(planned, store)))
    print(f"\n{summary.finished} finished, {summary.failed} failed, {summary.missing} missing; store: {root}")
    where = f"oneshot ui {file}" if uri.startswith("sqlite") else uri
    print(f"MLflow: {where}, experiment {sweep.config.mlflow.experiment or planned.name!r}")
    if summary.tracking_error:
        print(f"oneshot: MLflow is behind ({summary.tracking_error}); `oneshot run {file}` catches up", file=sys.stderr)
    for trial in planned.trials:
        result = store.trial(trial.key).current_result() if trial.key else None
        if result is not None and trial_standing(trial, result) == "failed":
            print(f"oneshot: {trial.label} failed: {result.reason}; log: {result.log_path}", file=sys.stderr)
    if summary.failed:
        print(
            "oneshot: failed trials are not run again until `oneshot retry` takes their results away", file=sys.stderr
        )
    if webhook:
        notify(webhook, sweep=planned.name, summary=summary)
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.failed or summary.missing:
        raise typer.Exit(1)


@app.command()
def trial(
    file: File,
    cell: Annotated[str, typer.Option(help="axis=name for every axis, comma between, as model=a,example=b")] = "",
    seed: Annotated[int, typer.Option(min=0, help="one of the sweep's or any other")] = 0,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="an empty folder for the records; default: a new one")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run one trial of a sweep here, without Ray, MLflow or the sweep's store."""
    chosen = _choose(_load(file, settings), cell, seed)
    from tempfile import mkdtemp

    from oneshot.plan import trainings
    from oneshot.runner import record
    from oneshot.store import Store
    from oneshot.tasks.grading import Grader

    if out is not None and out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: not empty; name a new folder")
    store = Store(str(out or mkdtemp(prefix="oneshot-trial-")))
    (training,) = trainings([chosen])
    folder = store.trial(training.key)
    print(f"oneshot: {chosen.label}, key {training.key}, records in {folder.path}", file=sys.stderr)
    with Grader(timeout_s=chosen.config.reward.timeout_s) as grader:
        for step in record(training, folder, grader=grader, origin="trial"):
            if as_json:
                print(json.dumps({"step": step.step, "metrics": step.metrics}), flush=True)
            else:
                print(_step_line(step.step, step.metrics), flush=True)
    result = folder.result()
    assert result is not None, "record ends with a result"
    if result.outcome == "failed":
        print(result.traceback, file=sys.stderr)
        print(f"oneshot: {chosen.label} failed: {result.reason}; log: {result.log_path}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def retry(file: File, settings: SetOption = None, storage: StorageOption = None) -> None:
    """Take the results of a sweep's failed trials away, so that `run` starts them again."""
    from oneshot.hub import frozen_revisions
    from oneshot.plan import make_plan, trainings
    from oneshot.store import Store

    sweep = _load(file, settings)
    store = Store(storage or sweep.config.storage)
    count = 0
    for training in trainings(make_plan(frozen_revisions(sweep, store.sweep(sweep.config.name))).trials):
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
    root = Path(storage or (_load(file, None).config.storage if file else "runs")).resolve()
    database = root / "mlflow.db"
    if not database.is_file():
        raise UserError(f"{database}: no such database; run a sweep first, or name its --storage")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(root / "mlartifacts"), "--host", "127.0.0.1", "--port", str(port)]
    print(f"MLflow on http://127.0.0.1:{port} in half a minute; Ctrl-C ends it", file=sys.stderr)
    os.execv(sys.executable, command)


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="the reference, as docs/sweep-file.md")] = False,
) -> None:
    """Print the JSON schema of sweep files, for editors."""
    from oneshot.schema import sweep_reference, sweep_schema

    print(sweep_reference() if markdown else json.dumps(sweep_schema(), indent=2))


def _results() -> "Console":
    """Where tables go: as wide as the terminal, and wide enough where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _load(file: Path, settings: list[str] | None) -> "Sweep":
    from oneshot.sweepfile import load

    return load(file, overrides=tuple(settings or ()))


def _resolved(sweep: "Sweep", store: "Store") -> "Plan":
    """The plan with every key known; asks the hub for the commit of a revision that is none, once for each sweep."""
    from oneshot.hub import frozen_revisions, pin_revisions
    from oneshot.plan import make_plan

    folder = store.sweep(sweep.config.name)
    frozen = frozen_revisions(sweep, folder)
    return make_plan(pin_revisions(frozen, make_plan(frozen), folder))


def _choose(sweep: "Sweep", cell: str, seed: int) -> "Trial":
    """The trial that `--cell` and `--seed` name."""
    from oneshot.errors import nearest
    from oneshot.plan import make_plan, with_seed

    wanted: dict[str, str] = {}
    for part in filter(None, cell.split(",")):
        axis, equals, name = part.partition("=")
        if not equals or axis not in sweep.config.axes:
            raise UserError(f"--cell {part}: write it as axis=name{nearest(axis, list(sweep.config.axes))}")
        wanted[axis] = name
    trials = {tuple(trial.cell.items()): trial for trial in make_plan(sweep).trials}
    matching = [t for t in trials.values() if all(t.cell[axis] == name for axis, name in wanted.items())]
    if len(matching) != 1:
        there = "\n  ".join(",".join(f"{axis}={name}" for axis, name in names) for names in trials)
        found = f"names {len(matching)} cells" if matching else "names no cell of the grid"
        raise UserError(f"--cell {cell or '(none)'}: {found}; choose one of\n  {there}")
    return with_seed(matching[0], seed)


def _step_line(step: int, metrics: dict[str, float]) -> str:
    shown: dict[str, Any] = {
        "reward": metrics.get("reward/mean"),
        "zero-std groups": metrics.get("reward/frac_groups_zero_std"),
        "entropy": metrics.get("rollout/entropy"),
        "length": metrics.get("rollout/length_mean"),
        "s": metrics.get("perf/step_s"),
    }
    shown |= {
        name.removeprefix("eval/"): value
        for name, value in metrics.items()
        if name.endswith("pass_at_1") and name.count("/") == 2
    }
    return f"step {step:5d}  " + "  ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)
