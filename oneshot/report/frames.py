"""Gathered runs -> pandas tables: results, cells, training metrics, problems, completions, verdicts and failures.

Every table begins with the trial: its axes as `cell.<axis>`, `seed` and `key`. Accuracies and other shares are from 0
to 1, times in seconds or hours as the name says.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from oneshot.report.cells import cell_lines
from oneshot.report.runs import Gathered, Grades, Run
from oneshot.report.verdicts import JudgedClaim


def _trial(run: Run) -> dict[str, Any]:
    return {**{f"cell.{axis}": name for axis, name in run.cell.items()}, "seed": run.seed, "key": run.key}


def _frame(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Return a table with these columns first, which an empty one has too."""
    made = pd.DataFrame(list(rows))
    return made if len(made) else pd.DataFrame(columns=list(columns))


def _wanted(gathered: Gathered, suite: str | None) -> Iterator[tuple[Run, str, int]]:
    for run in gathered.runs:
        for name, steps in run.measured.items():
            if suite is None or name == suite:
                yield from ((run, name, step) for step in steps)


def results_frame(gathered: Gathered, *, suite: str | None = None) -> pd.DataFrame:
    """Return one row for each trial, suite and evaluated step, with the state of the trial and every measure."""
    return _frame(
        (
            {**_trial(run), "state": str(run.state), "suite": name, "step": step, **run.measured[name][step]}
            for run, name, step in _wanted(gathered, suite)
        ),
        ("seed", "key", "state", "suite", "step", "pass_at_1"),
    )


def cells_frame(gathered: Gathered) -> pd.DataFrame:
    """Return one row for each cell and suite: strict pass@1 before and after training, with intervals over seeds."""
    rows = []
    for line in cell_lines(gathered.runs):
        row: dict[str, Any] = {f"cell.{axis}": name for axis, name in line.cell.items()}
        row |= {"suite": line.suite, "num_seeds": line.last.num, "num_planned": line.num_planned}
        for name, interval in (("start", line.start), ("last", line.last), ("gain", line.gain)):
            ends = (None, None, None) if interval is None else (interval.mean, interval.low, interval.high)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        rows.append(row)
    return _frame(rows, ("suite", "num_seeds", "num_planned", "start", "last", "gain"))


def metrics_frame(gathered: Gathered) -> pd.DataFrame:
    """Return one row for each trial and training step, with its metrics and the seconds since its first step."""
    rows = []
    for run in gathered.runs:
        first_ms = run.rows[0].time_ms if run.rows else 0
        rows += [
            {**_trial(run), "step": row.step, "time_s": (row.time_ms - first_ms) / 1000, **row.metrics}
            for row in run.rows
        ]
    return _frame(rows, ("seed", "key", "step", "time_s"))


def problems_frame(gathered: Gathered, *, suite: str | None = None, step: int | None = None) -> pd.DataFrame:
    """Return one row for each trial, suite, step, problem and sample, with its grades and number of tokens.

    Without `step`, the first and last steps of each trial are read: all steps of a large sweep are millions of rows.
    """
    parts = []
    for run, name, at in _wanted(gathered, suite):
        if at not in ({0, run.num_steps} if step is None else {step}):
            continue
        grades = gathered.record.grades(run, name, at)
        if grades is not None:
            parts.append(_graded(grades).assign(**{**_trial(run), "suite": name, "step": at}))
    if not parts:
        return pd.DataFrame(columns=["seed", "key", "suite", "step", "problem", "sample", "strict", "lenient"])
    whole = pd.concat(parts, ignore_index=True)
    return whole.reindex(columns=[*(column for column in whole if column not in GRADED), *GRADED])


GRADED = ("problem", "category", "sample", "strict", "lenient", "boxed", "num_tokens")


def _graded(grades: Grades) -> pd.DataFrame:
    num_problems, num_samples = grades.strict_PK.shape
    return pd.DataFrame(
        {
            "problem": np.repeat(np.array(grades.ids, dtype=object), num_samples),
            "category": np.repeat(np.array(grades.categories, dtype=object), num_samples),
            "sample": np.tile(np.arange(num_samples), num_problems),
            "strict": grades.strict_PK.ravel().astype(bool),
            "lenient": grades.lenient_PK.ravel().astype(bool),
            "boxed": grades.boxed_PK.ravel().astype(bool),
            "num_tokens": grades.num_tokens_PK.ravel().astype(np.int64),
        }
    )


def completions_frame(gathered: Gathered, *, suite: str, step: int | None = None) -> pd.DataFrame:
    """Return the first completion of each problem of a suite, at one step or at each trial's last, with its grade.

    A bundle has only those completions that its page shows.
    """
    rows = []
    for run in gathered.runs:
        at = run.num_steps if step is None else step
        if run.suite(suite) is not None and at in run.measured.get(suite, {}):
            rows += [
                {
                    **_trial(run),
                    "suite": suite,
                    "step": at,
                    "problem": shown.id,
                    "category": shown.category,
                    "prompt": shown.problem,
                    "answer": shown.answer,
                    "completion": shown.completion,
                    "strict": shown.strict,
                }
                for shown in gathered.record.shown(run, suite, at)
            ]
    return _frame(rows, ("seed", "key", "suite", "step", "problem", "prompt", "answer", "completion", "strict"))


def verdicts_frame(judged: Sequence[JudgedClaim]) -> pd.DataFrame:
    """Return one row for each verdict; `notes` are the reservations, as one text."""
    names = ("name", "verdict", "effect", "low", "high", "p_value", "p_holm", "num_seeds", "num_problems")
    more = ("metric", "of", "expect", "test", "is_amended")
    return _frame(
        (
            {
                **{name: getattr(claim, name) for name in names},
                **{f"cell.{axis}": cell for axis, cell in claim.cells.items()},
                **{name: getattr(claim, name) for name in more},
                "notes": "; ".join(claim.notes),
            }
            for claim in judged
        ),
        (*names, *more, "notes"),
    )


def failures_frame(gathered: Gathered) -> pd.DataFrame:
    """Return one row for each trial that has no result, with its state, the reason, and the hours that it used."""
    absent = (run for run in (*gathered.runs, *gathered.searched) if run.state != "finished")
    return _frame(
        (
            {**_trial(run), "state": str(run.state), "reason": run.reason, "spent_h": run.spent_h, "gpus": run.gpus}
            for run in absent
        ),
        ("seed", "key", "state", "reason", "spent_h", "gpus"),
    )
