"""Verbs that plan and run trials."""

import json
import signal
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneshot.cli.find import check_ray, choose_trial, find_sweep, open_store, with_mlflow
from oneshot.cli.options import (
    File,
    JsonOption,
    MlflowOption,
    Name,
    RayOption,
    SetOption,
    StepOption,
    StorageOption,
    TrustOption,
    Typed,
    app,
    load_sweep,
    results,
    warn,
)
from oneshot.errors import UserError
from oneshot.logs import printable

MOST_GATHERED = 500  # trials whose results `plan` reads, to measure the spread of claims by

if TYPE_CHECKING:
    from oneshot.plan.edits import Edits
    from oneshot.plan.plan import Plan
    from oneshot.plan.sweep_run import SweepRun
    from oneshot.plan.wallclock import Schedule
    from oneshot.report.power import Prospect
    from oneshot.report.runs import Gathered
    from oneshot.store.records import Result
    from oneshot.sweep.disk import Disk
    from oneshot.sweep.remaining import Remaining
    from oneshot.sweep.run import Summary


@app.command()
def plan(
    file: File,
    settings: SetOption = None,
    storage: StorageOption = None,
    gpus: Annotated[float | None, typer.Option(min=0.01, help="Estimate wall-clock time and budget on N GPUs")] = None,
    address: RayOption = None,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show a sweep's trials, keys and cost without running it.

    Also shows what an edited file changes in a sweep that has begun, and what its claims can detect.
    """
    from oneshot.plan.cost import measured_steps
    from oneshot.plan.edits import find_edits
    from oneshot.plan.loader import pin_known
    from oneshot.plan.plan import make_plan
    from oneshot.plan.sweep_run import SweepRun
    from oneshot.plan.wallclock import schedule
    from oneshot.sweep.disk import find_disk
    from oneshot.sweep.remaining import find_remaining

    check_ray(address, instead=f"doctor {file}")
    sweep = load_sweep(file, settings, trust_code=trust_code)
    store = open_store(storage, sweep)
    pinned = pin_known(sweep, store)
    sweep_run = SweepRun.of(pinned, make_plan(pinned, measured=measured_steps(store)), store)
    _warn_of_plan(sweep_run.plan)
    edits = find_edits(sweep_run)
    remaining = find_remaining(sweep_run)
    disk = find_disk(sweep_run, num_finished=remaining.ended["finished"])
    scheduled = schedule(sweep_run.plan, gpus=gpus) if gpus is not None else None
    prospects: list[Prospect] = []
    if sweep.config.claims:
        from oneshot.report.power import find_prospects

        measured = {}
        if sum(remaining.ended.values()) > 0 and len(sweep_run.plan.trials) <= MOST_GATHERED:
            from oneshot.report.runs import gather
            from oneshot.report.spread import observed_spread

            measured["spread_of"] = partial(observed_spread, gathered=gather(sweep_run))
        num_seeds = len(sweep.config.planned_seeds)
        prospects = find_prospects(sweep_run.plan, sweep.config.claims, num_seeds=num_seeds, **measured)
    if address is not None:
        from oneshot.sweep.cluster.nodes import check_cluster

        check_cluster(address, sweep_run.plan.trials)
    if as_json:
        print(json.dumps(_plan_json(sweep_run, edits, remaining, disk, scheduled, prospects), indent=2))
    else:
        _show_plan(sweep_run, edits, remaining, disk, scheduled, prospects, gpus=gpus)


def _warn_of_plan(plan: "Plan") -> None:
    for text in plan.warnings:
        warn(f"warning: {text}")


def _plan_json(
    sweep_run: "SweepRun",
    edits: "Edits | None",
    remaining: "Remaining",
    disk: "Disk",
    scheduled: "Schedule | None",
    prospects: "list[Prospect]",
) -> dict[str, Any]:
    from oneshot.plan.wallclock import planned_cost

    data = {**sweep_run.plan.to_json(), **remaining.ended, "seconds_left": remaining.seconds, "disk": disk.to_json()}
    for row, of_trial in zip(data["trials"], disk.trials, strict=True):
        row["bytes_by_kind"] = of_trial.bytes_by_kind
    if prospects:
        data["claims"] = [asdict(prospect) for prospect in prospects]
    if (cost := planned_cost(sweep_run.plan, sweep_run.sweep.config.budget)) is not None:
        data["cost"] = cost
    if edits is not None:
        data["edits"] = edits.to_json()
    if scheduled is not None:
        data["wall_clock_hours"] = scheduled.hours
        data["num_within_budget"] = scheduled.num_within(**sweep_run.sweep.config.budget.limits())
    return data


def _show_plan(
    sweep_run: "SweepRun",
    edits: "Edits | None",
    remaining: "Remaining",
    disk: "Disk",
    scheduled: "Schedule | None",
    prospects: "list[Prospect]",
    *,
    gpus: float | None,
) -> None:
    from oneshot.cli.plan_tables import (
        cost_lines,
        disk_line,
        edit_lines,
        plan_table,
        price_lines,
        schedule_lines,
        standing_lines,
    )

    console = results()
    console.print(plan_table(sweep_run.plan))
    budget = sweep_run.sweep.config.budget
    lines = cost_lines(sweep_run.plan) + price_lines(sweep_run.plan, budget)
    lines += [disk_line(disk), *standing_lines(remaining)]
    if gpus is not None:
        lines += schedule_lines(scheduled, budget, gpus=gpus)
    if prospects:
        from oneshot.report.power import prospect_lines

        lines += prospect_lines(prospects)
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
        typer.Option("--check/--no-check", help="Check the cluster first; default: if it has several nodes"),
    ] = None,
    trust_code: TrustOption = False,
) -> None:
    """Run a sweep, or resume it.

    Finished trials are never run again. If anything crashed, run the same command again: it resumes from checkpoints.
    """
    from oneshot.plan.edits import check_edits
    from oneshot.plan.loader import pin_all
    from oneshot.sweep.notify import notify, webhook_url

    check_ray(address, instead=f"submit {file}")
    sweep = with_mlflow(load_sweep(file, settings, trust_code=trust_code), mlflow)
    sweep_run = pin_all(sweep, open_store(storage, sweep))
    _warn_of_plan(sweep_run.plan)
    check_edits(sweep_run)
    webhook = webhook_url(sweep.config.notify) if sweep.config.notify else None
    as_typed = Typed(name=str(file), settings=settings, storage=storage, address=address, mlflow=mlflow)
    summary = _run(sweep_run, as_typed, check=check)
    if webhook:
        notify(webhook, sweep=sweep_run.name, summary=summary)
    if summary.interrupted and not summary.halted:
        raise typer.Exit(130)
    if summary.failed or summary.missing:
        raise typer.Exit(1)


def _run(
    sweep_run: "SweepRun", as_typed: Typed, *, only: set[str] | None = None, check: bool | None = False
) -> "Summary":
    """Run the missing trainings (`only`: among these keys), and show the results."""
    from rich.console import Console

    from oneshot.cli.progress import Progress
    from oneshot.report.runs import gather
    from oneshot.sweep.local import run_local

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    with Progress(Console(stderr=True), sweep=sweep_run.name) as progress:
        summary, sweep_run = run_local(sweep_run, listen=progress, address=as_typed.address, check=check, only=only)
    gathered = gather(sweep_run)
    _show_summary(sweep_run, summary, gathered, as_typed)
    has_results = any(run.suites for run in gathered.runs)  # scripted trials have none
    is_over = not summary.interrupted or summary.halted
    if only is None and is_over and (has_results or sweep_run.sweep.config.claims):
        from oneshot.cli.report import keep_and_publish, show_verdict
        from oneshot.report.page import make_report

        made = make_report(gathered)
        print()
        show_verdict(made)
        print(f"report: {keep_and_publish(made, sweep_run)}/report.html")
    return summary


def _show_summary(sweep_run: "SweepRun", summary: "Summary", gathered: "Gathered", as_typed: Typed) -> None:
    from oneshot.report.cells import cell_lines

    lines = cell_lines(gathered.runs)
    if lines:
        from oneshot.cli.verdict_tables import cells_table

        results().print(cells_table(lines))
    location = sweep_run.mlflow()
    stopped = f", {summary.stopped} stopped" if summary.stopped else ""
    counts = f"{summary.finished} finished, {summary.failed} failed{stopped}, {summary.missing} missing"
    print(f"\n{counts}; store: {sweep_run.store.root}")
    if summary.decided:
        print(summary.decided)
    server = f"oneshot ui {as_typed.place}" if location.uri.startswith("sqlite") else location.uri
    print(f"MLflow: {server}, experiment {location.experiment!r}")
    if summary.tracking_error:
        warn(f"MLflow is behind ({summary.tracking_error}); `oneshot run {as_typed.whole}` sends the rest")
    if summary.failed:
        _show_failures(sweep_run, as_typed)
    if summary.halted or summary.interrupted:
        why = summary.halted or "interrupted; checkpoints are saved"
        warn(f"{why}; `oneshot run {as_typed.whole}` resumes")


def _show_failures(sweep_run: "SweepRun", as_typed: Typed) -> None:
    from oneshot.trial.requests import read_stops
    from oneshot.trial.state import TrialState, trial_state

    stops = read_stops(sweep_run.folder)
    faults = sweep_run.sweep.config.faults
    for trial in sweep_run.plan.trials:
        if trial_state(trial, sweep_run.store, stops, faults=faults) is TrialState.FAILED:
            assert trial.key is not None, "a trial that failed has run"
            result = sweep_run.store.trial(trial.key).result()
            assert result is not None, "a trial that failed has a result"
            _warn_of_failure(trial.label, result)
    warn(f"to run failed trials again, use `oneshot retry {as_typed.place}`")


def _warn_of_failure(label: str, result: "Result") -> None:
    warn(f"{label} failed: {result.reason}; log: {result.log_path}")


@app.command("eval")
def evaluate(
    name: Name,
    settings: SetOption = None,
    *,
    suite: Annotated[list[str], typer.Option("--suite", help="A built-in suite, or NAME=SOURCE; repeatable")],
    samples: Annotated[int | None, typer.Option(min=1, help="Completions per problem; default: the suite's")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=10.0, help="Sampling temperature; default: the suite's")
    ] = None,
    num_problems: Annotated[
        int | None, typer.Option(min=1, help="Use only part of the suite, as in the sweep file")
    ] = None,
    step: StepOption = "last",
    storage: StorageOption = None,
    address: RayOption = None,
    mlflow: MlflowOption = None,
) -> None:
    """Evaluate a finished sweep's weights on more suites.

    Trials that kept their weights are evaluated before and after training, without training again. With --step best,
    also at the best step, if the trial kept its weights (checkpoint.keep).
    """
    from oneshot.config.evaluation import SuiteConfig
    from oneshot.plan.loader import pin_all
    from oneshot.trial.state import with_suites

    check_ray(address, instead=None)
    sweep, store = find_sweep(name, storage, settings)
    sweep_run = pin_all(with_mlflow(sweep, mlflow), store)
    options = {"samples": samples, "temperature": temperature, "num_problems": num_problems}
    suites = {}
    for text in suite:
        suite_name, _, source = text.partition("=")
        suites[suite_name] = SuiteConfig.model_validate({**options, "source": source or None})
    whole, trials, left_out = with_suites(sweep_run.plan, suites, store, at=step)
    for reason in left_out:
        warn(reason)
    if not trials:
        if step == "best":
            hint = "before a sweep runs, set checkpoint.keep: {best: METRIC}"
            raise UserError(f"{name}: --step best: no finished trial with kept best weights in {store.root}; {hint}")
        raise UserError(f"{name}: no finished trial with kept weights in {store.root}; run the sweep first")
    keys = {trial.key for trial in trials if trial.key is not None}
    as_typed = Typed(name=name, settings=settings, storage=storage, address=address, mlflow=mlflow)
    summary = _run(replace(sweep_run, plan=whole), as_typed, only=keys)
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def trial(
    file: File,
    cell: Annotated[str, typer.Option(help="The trial's cell: axis=name for every axis, as model=a,example=b")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Any seed, also one that the sweep does not have")] = 0,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="An empty folder for the records; default: a new one")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run one trial here, without Ray and MLflow.

    Its metrics equal those of the same trial in the sweep, to the last bit.
    """
    sweep = load_sweep(file, settings)
    chosen = choose_trial(sweep, cell, seed)
    from tempfile import mkdtemp

    from oneshot.plan.trainings import trainings
    from oneshot.store.store import Store
    from oneshot.tasks.grading import Grader
    from oneshot.trial.recorder import record

    if out is not None and out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: the folder is not empty; name a new one")
    store = Store(str(out or mkdtemp(prefix="oneshot-trial-")))
    (training,) = trainings([chosen])
    folder = store.trial(training.key)
    warn(f"{chosen.label}, key {training.key}, records in {folder.path}")
    with Grader(timeout_s=chosen.config.reward.timeout_s) as grader:
        for step in record(training, folder, grader=grader, origin="trial", starts=open_store(None, sweep)):
            if as_json:
                print(json.dumps({"step": step.step, "metrics": step.metrics}), flush=True)
            else:
                print(_step_line(step.step, step.metrics), flush=True)
    result = folder.result()
    assert result is not None, "record ends with a result"
    if result.outcome == "failed":
        print(printable(result.traceback), file=sys.stderr)
        _warn_of_failure(chosen.label, result)
        raise typer.Exit(1)


def _step_line(step: int, metrics: dict[str, float]) -> str:
    shown: dict[str, Any] = {
        "reward": metrics.get("reward/mean"),
        "loss": None if "reward/mean" in metrics else metrics.get("loss/total"),
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
