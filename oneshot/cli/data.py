"""Verbs about problems, grades and the sweep file format."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneshot.cli.find import open_store
from oneshot.cli.options import JsonOption, StorageOption, app, load_sweep, results, warn
from oneshot.errors import UserError

if TYPE_CHECKING:
    from oneshot.tasks.grading import Grade


@app.command()
def rank(
    history: Annotated[str, typer.Option(help="A finished sweep, or a .json file: {row: [accuracy, ...]}")],
    by: Annotated[
        str,
        typer.Option(
            help="Rule: historical_variance, answer_entropy, lim, pass_rate, pass_rate_variance, random, or a function "
            "package.module:name"
        ),
    ] = "historical_variance",
    top: Annotated[int | None, typer.Option(min=1, help="Show only the first N; default: all")] = None,
    of: Annotated[str, typer.Option("--set", help="The set that the history's row numbers index")] = "dsr_sub",
    band: Annotated[tuple[float, float], typer.Option(help="Accuracies that pass_rate selects between")] = (0, 1),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random rule")] = 0,
    storage: StorageOption = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Let --by be a function of the Python files in this folder")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Rank a set's examples by their training history."""
    from oneshot.plan.rank_rules import check_rule, read_history
    from oneshot.plan.rank_rules import rank as rank_examples
    from oneshot.plan.ranking import first_entropies, sweep_histories
    from oneshot.tasks.foreign import trust

    if trust_code:
        trust(Path.cwd())
    try:
        check_rule(by)
    except UserError as error:
        raise UserError(f"--by {by}: {error}") from error
    if not 0 <= band[0] <= band[1] <= 1:
        raise UserError(f"--band {band[0]:g} {band[1]:g}: expected two accuracies from 0 to 1, the lower one first")
    if history.endswith(".json"):
        histories: list[Any] = [read_history(Path(history).expanduser(), of=of)]
        entropies: list[dict[str, float]] = []
    else:
        sweep = load_sweep(Path(history)) if Path(history).is_file() else None
        store = open_store(storage, sweep)
        name = sweep.config.name if sweep else history
        histories, entropies = list(sweep_histories(store, name)), first_entropies(store, name, by=by)
        if not histories:
            raise UserError(f"--history {history}: no finished sweep of this name in {store.root}; run it first")
    ranked = rank_examples(histories, by=by, seed=seed, band=band, entropies=entropies)[:top]
    if as_json:
        print(json.dumps([{"index": row.index, **asdict(row)} for row in ranked], indent=2))
        return
    from oneshot.cli.tables import ranking_table

    results().print(ranking_table(ranked))


@app.command()
def grade(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .jsonl file with `completion` and `answer` on each line")
    ],
    both: Annotated[bool, typer.Option("--both", help="Also grade by the rules of the released evaluation")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per completion")] = False,
    timeout_s: Annotated[float, typer.Option(min=0.1, max=60, help="Time limit for one answer in seconds")] = 5.0,
) -> None:
    """Grade completions from a file, strictly and leniently.

    Strictly: the last box is right. Leniently: any answer that can be read is right.
    """
    from oneshot.tasks.grading import Grader
    from oneshot.tasks.problems import read_completions

    pairs = read_completions(file)
    with Grader(timeout_s=timeout_s, num_children=os.cpu_count() or 1) as grader:
        grades = grader.grade_all(pairs, graders=("strict", "released") if both else ("strict",))
    if as_json:
        for row in grades:
            released = {"released": row.released} if both else {}
            print(json.dumps({"strict": row.strict, "lenient": row.lenient, **released, "reason": row.reason}))
        return
    ungraded = sum(row.strict is None or row.lenient is None for row in grades)
    for kind in ("strict", "lenient", *(["released"] if both else [])):
        num_right = sum(getattr(row, kind) is True for row in grades)
        print(f"{kind:9}{num_right / len(grades):.4f}  ({num_right} of {len(grades)})")
    if both:
        _print_disagreements(pairs, grades)
    if ungraded:
        warn(f"{ungraded} could not be graded and count as wrong; --json shows why")


def _print_disagreements(pairs: Sequence[tuple[str, str]], grades: Sequence["Grade"]) -> None:
    """Print where the strict and the released grader differ, with answer and label."""
    from oneshot.tasks.answers import extract_boxed

    differing = [row for row, grade in enumerate(grades) if (grade.strict is True) != (grade.released is True)]
    print(f"disagree {len(differing) / len(grades):.4f}  ({len(differing)} of {len(grades)})")
    for row in differing:
        completion, label = pairs[row]
        answer = extract_boxed(completion)
        shown = "no box" if answer is None else repr(answer)
        print(f"line {row + 1}: {shown}, label {label!r}: strict {grades[row].strict}, released {grades[row].released}")


@app.command()
def fetch(
    sources: Annotated[
        list[str], typer.Argument(metavar="SET...", help="Known sets, or URLs of .jsonl or .parquet files")
    ],
) -> None:
    """Download example sets and suites, and check them.

    Files go into the folder that ONESHOT_DATA names, by default `data`.
    """
    from oneshot.tasks.fetch import fetch as fetch_set
    from oneshot.tasks.labels import label_warnings, row_warnings
    from oneshot.tasks.sets import load as load_set

    for source in sources:
        path, num_rows = fetch_set(source)
        print(f"{source}: {num_rows} rows, {path}")
        problems = load_set(source)
        for warning in (*label_warnings(source, problems), *row_warnings(source, problems)):
            warn(warning)


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference, docs/sweep-file.md")] = False,
) -> None:
    """Print the JSON schema of sweep files, for editors."""
    from oneshot.config.schema import sweep_reference, sweep_schema

    print(sweep_reference() if markdown else json.dumps(sweep_schema(), indent=2))
