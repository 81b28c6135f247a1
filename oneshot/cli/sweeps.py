"""Verbs that plan and run trials."""

import json
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneshot.cli.options import (
    File,
    JsonOption,
    MlflowOption,
    RayOption,
    SetOption,
    StorageOption,
    app,
    check_ray,
    choose_trial,
    find_sweep,
    load_sweep,
    resolved,
    results,
    with_known,
    with_mlflow,
)
from oneshot.errors import UserError
from oneshot.logs import printable

if TYPE_CHECKING:
    from oneshot.config.file import Sweep
    from oneshot.plan.plan import Plan
    from oneshot.store.store import Store
    from oneshot.sweep.agenda import Agenda
    from oneshot.sweep.run import Summary
    from oneshot.sweep.tracking.thread import TrackingThread


@app.command()
def plan(
    file: File,
    settings: SetOption = None,
    storage: StorageOption = None,
    gpus: Annotated[float | None, typer.Option(min=0.01, help="so many: how long it takes, what a budget lets")] = None,
    address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a sweep's trials, keys and cost, and what an edited file changes, without running anything."""
    from oneshot.plan.cost import measured_steps
    from oneshot.plan.plan import make_plan
    from oneshot.store.store import Store

    check_ray(address, instead=f"doctor {file}")
    sweep = load_sweep(file, settings)
    store = Store(storage or sweep.config.storage)
    measured = measured_steps(store) if sweep.config.asks_for_gpus else None
    planned = make_plan(with_known(sweep, store), measured=measured)
    for warning in planned.warnings:
        print(f"oneshot: warning: {warning}", file=sys.stderr)
    from oneshot.cli.progress import cost_lines, edit_lines, plan_table, schedule_lines
    from oneshot.plan.edits import find_edits
    from oneshot.plan.wallclock import schedule

    edits = find_edits(sweep, planned, store)
    scheduled = schedule(planned, gpus=gpus) if gpus is not None else None
    foreseen = []
    if sweep.config.claims:
        from oneshot.report.prospects import prospect_lines, prospects

        foreseen = prospects(planned, sweep.config.claims, num_seeds=len(sweep.config.seeds))
    if address is not None:
        from oneshot.sweep.cluster.nodes import check_cluster

        check_cluster(address, planned.trials)
    if as_json:
        facts = planned.to_json()
        if foreseen:
            facts["claims"] = [one.to_json() for one in foreseen]
        if edits is not None:
            facts["edits"] = edits.to_json()
        if scheduled is not None:
            facts["wall_clock_hours"] = scheduled.hours
            facts["num_within_budget"] = scheduled.num_within(**sweep.config.budget.limits())
        print(json.dumps(facts, indent=2))
        return
    console = results()
    console.print(plan_table(planned))
    lines = cost_lines(planned)
    if gpus is not None:
        lines += schedule_lines(scheduled, sweep.config.budget, gpus=gpus)
    lines += prospect_lines(foreseen) if foreseen else []
    for line in [*lines, *edit_lines(edits)]:
        console.print(line, highlight=False)


@app.command()
def run(
    file: File,
    settings: SetOption = None,
    storage: StorageOption = None,
    address: RayOption = None,
    mlflow: MlflowOption = None,
    check: Annotated[
        bool | None,
        typer.Option("--check/--no-check", help="look the cluster over first; absent: where it has several nodes"),
    ] = None,
) -> None:
    """Run a sweep, or what is missing of it; finished trials are never run again."""
    from oneshot.store.store import Store

    check_ray(address, instead=f"submit {file}")
    sweep = with_mlflow(load_sweep(file, settings), mlflow)
    root = storage or sweep.config.storage
    store = Store(root)
    sweep, planned = resolved(sweep, store)
    for warning in planned.warnings:
        print(f"oneshot: warning: {warning}", file=sys.stderr)
    from oneshot.plan.edits import check_edits
    from oneshot.sweep.notify import notify, webhook_url

    check_edits(sweep, planned, store)
    webhook = webhook_url(sweep.config.notify) if sweep.config.notify else None
    summary = _run(sweep, planned, store, address=address, file=str(file), check=check)
    if webhook:
        notify(webhook, sweep=planned.name, summary=summary)
    if summary.interrupted and not summary.halted:
        raise typer.Exit(130)
    if summary.failed or summary.missing:
        raise typer.Exit(1)


def _run(
    sweep: "Sweep",
    planned: "Plan",
    store: "Store",
    *,
    address: str | None,
    file: str,
    work: "Plan | None" = None,
    check: bool | None = False,
) -> "Summary":
    """Runs what is missing of a plan (`work`: of these trials alone), and shows what came of it."""
    from rich.console import Console

    from oneshot.cli.progress import Progress
    from oneshot.cli.report import keep_and_publish, show_verdict
    from oneshot.report.cells import cell_lines
    from oneshot.report.runs import gather
    from oneshot.sweep.run import mlflow_location
    from oneshot.sweep.run import run as run_sweep

    uri, _ = mlflow_location(sweep, store)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    only = None if work is None else {trial.key for trial in work.trials if trial.key is not None}
    with Progress(Console(stderr=True), sweep=planned.name) as progress:

        def launch(agenda: "Agenda", tracking: "TrackingThread") -> bool:
            # Ray takes seconds to import, and a sweep that is done needs none of it
            from oneshot.sweep.cluster.tuner import run_on_ray
            from oneshot.sweep.tracking.server import why_not

            return run_on_ray(
                agenda,
                tracking,
                store=store,
                address=address,
                max_concurrent=sweep.config.resources.max_concurrent,
                listen=progress,
                check=check,
                reach=partial(why_not, uri),
            )

        summary, planned = run_sweep(sweep, planned, store, launch=launch, listen=progress, only=only)
    gathered = gather(sweep, planned, store)
    lines = cell_lines(gathered.runs)
    if lines:
        from oneshot.cli.tables import cells_table

        results().print(cells_table(lines))
    print(f"\n{_counts(summary)}; store: {store.root}")
    where = f"oneshot ui {file}" if uri.startswith("sqlite") else uri
    print(f"MLflow: {where}, experiment {sweep.config.mlflow.experiment or planned.name!r}")
    if summary.tracking_error:
        print(f"oneshot: MLflow is behind ({summary.tracking_error}); `oneshot run {file}` catches up", file=sys.stderr)
    if summary.failed:
        _tell_failures(sweep, planned, store)
    if summary.halted:
        print(f"oneshot: {summary.halted}; `oneshot run {file}` goes on", file=sys.stderr)
    is_evaluated = any(one.suites for one in gathered.runs)  # of scripts alone there is nothing to say
    if work is None and (is_evaluated or sweep.config.claims) and (not summary.interrupted or summary.halted):
        from oneshot.report.page import make_report

        made = make_report(gathered)
        print()
        show_verdict(made)
        print(f"report: {keep_and_publish(made, sweep, planned, store)}/report.html")
    return summary


def _counts(summary: "Summary") -> str:
    stopped = f", {summary.stopped} stopped" if summary.stopped else ""
    return f"{summary.finished} finished, {summary.failed} failed{stopped}, {summary.missing} missing"


def _tell_failures(sweep: "Sweep", planned: "Plan", store: "Store") -> None:
    from oneshot.trial.requests import read_stops
    from oneshot.trial.state import trial_state

    stops = read_stops(store.sweep(planned.name))
    for trial in planned.trials:
        if trial_state(trial, store, stops, faults=sweep.config.faults) == "failed":
            assert trial.key is not None, "a trial that failed has run"
            result = store.trial(trial.key).result()
            assert result is not None, "a trial that failed has a result"
            print(f"oneshot: {trial.label} failed: {printable(result.reason)}; log: {result.log_path}", file=sys.stderr)
    print("oneshot: failed trials are not run again until `oneshot retry` takes their results away", file=sys.stderr)


@app.command("eval")
def evaluate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a sweep file, or the name of a sweep in the storage")],
    settings: SetOption = None,
    *,
    suite: Annotated[list[str], typer.Option("--suite", help="a built-in suite, or name=SOURCE; again for more")],
    samples: Annotated[int | None, typer.Option(min=1, help="completions a problem; default: the suite's")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=10.0, help="default: the suite's")] = None,
    num_problems: Annotated[int | None, typer.Option(min=1, help="as in the sweep file")] = None,
    storage: StorageOption = None,
    address: RayOption = None,
    mlflow: MlflowOption = None,
) -> None:
    """Evaluate the kept weights of a sweep's finished trials, and their start, on more suites."""
    from oneshot.config.trial import SuiteConfig
    from oneshot.trial.state import with_suites

    check_ray(address, instead=None)
    sweep, store = find_sweep(name, storage, settings)
    sweep, planned = resolved(with_mlflow(sweep, mlflow), store)
    given = {"samples": samples, "temperature": temperature, "num_problems": num_problems}
    suites = {}
    for text in suite:
        suite_name, _, source = text.partition("=")
        suites[suite_name] = SuiteConfig.model_validate({**given, "source": source or None})
    whole, asked, left_out = with_suites(planned, suites, store)
    for reason in left_out:
        print(f"oneshot: {reason}", file=sys.stderr)
    if not asked:
        raise UserError(f"{name}: no finished trial with kept weights in {store.root}; run it first")
    work = replace(whole, trials=tuple(asked))
    summary = _run(sweep, whole, store, address=address, file=name, work=work)
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.failed:
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
    chosen = choose_trial(load_sweep(file, settings), cell, seed)
    from tempfile import mkdtemp

    from oneshot.plan.trainings import trainings
    from oneshot.store.store import Store
    from oneshot.tasks.grading import Grader
    from oneshot.trial.recorder import record

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
        print(printable(result.traceback), file=sys.stderr)
        print(f"oneshot: {chosen.label} failed: {printable(result.reason)}; log: {result.log_path}", file=sys.stderr)
        raise typer.Exit(1)


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
