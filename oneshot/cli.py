"""The command line: parse, call, print. Nothing heavy is imported before it is needed.

Results go to stdout, messages and progress to stderr. Exit codes: 0 done, 1 trials failed, 2 the input is wrong,
130 interrupted.
"""

import json
import logging
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneshot.errors import OneshotError, UserError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from oneshot.plan import Plan, Trial
    from oneshot.store import Store
    from oneshot.sweep.run import Summary
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
def plan(file: File, settings: SetOption = None, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Show a sweep's trials, keys and cost, without running anything."""
    from oneshot.cost import measured_steps
    from oneshot.plan import make_plan
    from oneshot.store import Store

    sweep = _load(file, settings)
    store = Store(storage or sweep.config.storage)
    measured = measured_steps(store) if sweep.config.asks_for_gpus else None
    planned = make_plan(_known(sweep, store), measured=measured)
    for warning in planned.warnings:
        print(f"oneshot: warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(planned.to_json(), indent=2))
        return
    from oneshot.display import cost_lines, plan_table

    console = _results()
    console.print(plan_table(planned))
    for line in cost_lines(planned):
        console.print(line, highlight=False)


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
    from oneshot.sweep.notify import notify, webhook_url

    webhook = webhook_url(sweep.config.notify) if sweep.config.notify else None
    summary = _run(sweep, planned, store, address=address, file=str(file))
    if webhook:
        notify(webhook, sweep=planned.name, summary=summary)
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.failed or summary.missing:
        raise typer.Exit(1)


def _run(
    sweep: "Sweep", planned: "Plan", store: "Store", *, address: str | None, file: str, work: "Plan | None" = None
) -> "Summary":
    """Runs what is missing of a plan (`work`: of these trials alone), and shows what came of it."""
    from rich.console import Console

    from oneshot.display import Progress, cells_table
    from oneshot.report.cells import cell_lines
    from oneshot.standing import trial_standing
    from oneshot.sweep.run import Launch, mlflow_location, outstanding
    from oneshot.sweep.run import run as run_sweep
    from oneshot.trainings import check_data, trainings

    uri, _ = mlflow_location(sweep, store)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    missing = outstanding(work or planned, store)
    check_data(missing)
    with Progress(trainings((work or planned).trials), Console(stderr=True)) as progress:
        launch: Launch | None = None
        if missing:  # Ray and torch take seconds to import, and a sweep that is done needs neither
            from oneshot.sweep.tuner import run_on_ray

            launch = partial(run_on_ray, sweep=sweep, store=store, address=address, listen=progress)
        summary = run_sweep(sweep, planned, store, missing=missing, launch=launch, listen=progress)
    _results().print(cells_table(cell_lines(planned, store)))
    print(f"\n{summary.finished} finished, {summary.failed} failed, {summary.missing} missing; store: {store.root}")
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
    return summary


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
    address: Annotated[str | None, typer.Option(help="a running Ray cluster, as host:port or auto")] = None,
) -> None:
    """Evaluate the kept weights of a sweep's finished trials, and their start, on more suites."""
    from oneshot.config import SuiteConfig
    from oneshot.standing import with_suites

    sweep, store = _find_sweep(name, storage, settings)
    planned = _resolved(sweep, store)
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
def rank(
    history: Annotated[str, typer.Option(help="a finished sweep, or a .json file: {row: [accuracy, ...]}")],
    by: Annotated[str, typer.Option(help="historical_variance, lim, pass_rate or random")] = "historical_variance",
    top: Annotated[int | None, typer.Option(min=1, help="only so many; default: all")] = None,
    of: Annotated[str, typer.Option("--set", help="of which a file's numbers are rows")] = "dsr_sub",
    band: Annotated[tuple[float, float], typer.Option(help="for pass_rate")] = (0, 1),
    seed: Annotated[int, typer.Option(min=0, help="for random")] = 0,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank a set's examples by what a training on all of them saw."""
    from typing import get_args

    from oneshot.ranking import sweep_histories
    from oneshot.select import By, read_history
    from oneshot.select import rank as rank_examples
    from oneshot.store import Store

    if by not in get_args(By):
        raise UserError(f"--by {by}: unknown{nearest(by, get_args(By))}")
    if not 0 <= band[0] <= band[1] <= 1:
        raise UserError(f"--band {band[0]:g} {band[1]:g}: two accuracies from 0 to 1, the lower one first")
    if history.endswith(".json"):
        histories: list[Any] = [read_history(Path(history).expanduser(), of=of)]
    else:
        sweep = _load(Path(history), None) if Path(history).is_file() else None
        store = Store(storage or (sweep.config.storage if sweep else "runs"))
        histories = list(sweep_histories(store, sweep.config.name if sweep else history))
        if not histories:
            raise UserError(f"--history {history}: {store.root} has no finished sweep of that name; run it first")
    ranked = rank_examples(histories, by=by, seed=seed, band=band)[:top]  # type: ignore[arg-type]  # checked above
    if as_json:
        names = ("index", "example", "score", "variance", "std", "mean", "num_visits")
        print(json.dumps([{name: getattr(one, name) for name in names} for one in ranked], indent=2))
        return
    from oneshot.display import ranking_table

    _results().print(ranking_table(ranked))


@app.command()
def grade(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".jsonl with `completion` and `answer` a line")],
    as_json: Annotated[bool, typer.Option("--json", help="a line of JSON for each completion instead")] = False,
    timeout_s: Annotated[float, typer.Option(min=0.1, max=60, help="deadline of one answer")] = 5.0,
) -> None:
    """Grade completions that were made elsewhere, by both graders."""
    from oneshot.tasks.grading import Grader
    from oneshot.tasks.problems import read_completions

    pairs = read_completions(file)
    with Grader(timeout_s=timeout_s, num_children=os.cpu_count() or 1) as grader:
        grades = grader.grade_all(pairs)
    if as_json:
        for one in grades:
            print(json.dumps({"strict": one.strict, "lenient": one.lenient, "reason": one.reason}))
        return
    ungraded = sum(one.strict is None or one.lenient is None for one in grades)
    for kind, verdicts in (("strict", [g.strict for g in grades]), ("lenient", [g.lenient for g in grades])):
        num_right = sum(verdict is True for verdict in verdicts)
        print(f"{kind:8}{num_right / len(verdicts):.4f}  ({num_right} of {len(verdicts)})")
    if ungraded:
        print(f"oneshot: {ungraded} ungraded, counted as not right; --json says why", file=sys.stderr)


@app.command()
def fetch(
    sources: Annotated[
        list[str], typer.Argument(metavar="SET...", help="known sets, or URLs of .jsonl or .parquet files")
    ],
) -> None:
    """Download example sets and suites into the data folder (ONESHOT_DATA, else data), and check them."""
    from oneshot.fetch import fetch as fetch_one

    for source in sources:
        path, num_rows = fetch_one(source)
        print(f"{source}: {num_rows} rows, {path}")


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

    from oneshot.runner import record
    from oneshot.store import Store
    from oneshot.tasks.grading import Grader
    from oneshot.trainings import trainings

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
    from oneshot.plan import make_plan
    from oneshot.store import Store
    from oneshot.trainings import trainings

    sweep = _load(file, settings)
    store = Store(storage or sweep.config.storage)
    count = 0
    for training in trainings(make_plan(_known(sweep, store)).trials):
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

    return Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)


def _load(file: Path, settings: list[str] | None) -> "Sweep":
    from oneshot.sweepfile import load

    return load(file, overrides=tuple(settings or ()))


def _known(sweep: "Sweep", store: "Store") -> "Sweep":
    """The sweep with what is frozen of it, and every ranking that can be made now."""
    from oneshot.hub import frozen_revisions
    from oneshot.ranking import known_rankings

    known, _ = known_rankings(sweep, store)
    return frozen_revisions(known, store.sweep(sweep.config.name))


def _resolved(sweep: "Sweep", store: "Store") -> "Plan":
    """The plan with every key known; asks the hub for the commit of a revision that is none, once for each sweep."""
    from oneshot.hub import frozen_revisions, pin_revisions
    from oneshot.plan import make_plan
    from oneshot.ranking import pin_rankings

    folder = store.sweep(sweep.config.name)
    frozen = frozen_revisions(pin_rankings(sweep, store), folder)
    return make_plan(pin_revisions(frozen, make_plan(frozen), folder))


def _find_sweep(name: str, storage: str | None, settings: list[str] | None) -> tuple["Sweep", "Store"]:
    """A sweep by its file, or by its name in the storage; and that storage."""
    from oneshot.store import Store
    from oneshot.sweepfile import read

    if Path(name).is_file():
        sweep = _load(Path(name), settings)
        return sweep, Store(storage or sweep.config.storage)
    store = Store(storage or "runs")
    text = store.sweep(name).read("sweep.yaml")
    if text is None:
        raise UserError(f"{name}: no such file, and no sweep of that name in {store.root}; name its --storage")
    return read(text, name=name, overrides=tuple(settings or ())), store


def _choose(sweep: "Sweep", cell: str, seed: int) -> "Trial":
    """The trial that `--cell` and `--seed` name."""
    from oneshot.plan import make_plan, with_seed
    from oneshot.store import Store

    wanted: dict[str, str] = {}
    for part in filter(None, cell.split(",")):
        axis, equals, name = part.partition("=")
        if not equals or axis not in sweep.config.axes:
            raise UserError(f"--cell {part}: write it as axis=name{nearest(axis, list(sweep.config.axes))}")
        wanted[axis] = name
    known = _known(sweep, Store(sweep.config.storage))
    trials = {tuple(trial.cell.items()): trial for trial in make_plan(known).trials}
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
