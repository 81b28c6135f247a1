"""Verbs about problems, grades and the sweep file itself."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneshot.cli.options import (
    JsonOption,
    StorageOption,
    app,
    load_sweep,
    results,
)
from oneshot.errors import UserError, nearest

if TYPE_CHECKING:
    pass


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

    from oneshot.plan.rank_rules import By, read_history
    from oneshot.plan.rank_rules import rank as rank_examples
    from oneshot.plan.ranking import sweep_histories
    from oneshot.store.store import Store

    if by not in get_args(By):
        raise UserError(f"--by {by}: unknown{nearest(by, get_args(By))}")
    if not 0 <= band[0] <= band[1] <= 1:
        raise UserError(f"--band {band[0]:g} {band[1]:g}: two accuracies from 0 to 1, the lower one first")
    if history.endswith(".json"):
        histories: list[Any] = [read_history(Path(history).expanduser(), of=of)]
    else:
        sweep = load_sweep(Path(history), None) if Path(history).is_file() else None
        store = Store(storage or (sweep.config.storage if sweep else "runs"))
        histories = list(sweep_histories(store, sweep.config.name if sweep else history))
        if not histories:
            raise UserError(f"--history {history}: {store.root} has no finished sweep of that name; run it first")
    ranked = rank_examples(histories, by=by, seed=seed, band=band)[:top]  # type: ignore[arg-type]  # checked above
    if as_json:
        names = ("index", "example", "score", "variance", "std", "mean", "num_visits")
        print(json.dumps([{name: getattr(one, name) for name in names} for one in ranked], indent=2))
        return
    from oneshot.cli.progress import ranking_table

    results().print(ranking_table(ranked))


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
    from oneshot.tasks.fetch import fetch as fetch_one

    for source in sources:
        path, num_rows = fetch_one(source)
        print(f"{source}: {num_rows} rows, {path}")


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="the reference, as docs/sweep-file.md")] = False,
) -> None:
    """Print the JSON schema of sweep files, for editors."""
    from oneshot.config.schema import sweep_reference, sweep_schema

    print(sweep_reference() if markdown else json.dumps(sweep_schema(), indent=2))
