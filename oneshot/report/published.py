"""Gathered runs and published numbers -> tables that show both side by side."""

from collections.abc import Sequence

from oneshot.report.cells import finished, level
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import Interval
from oneshot.report.table import Table, Value


def published_tables(gathered: Gathered) -> list[Table]:
    """Return a table for each publication in the sweep file that has a number to show."""
    tables, ended = [], finished(gathered.runs)
    for number, published in enumerate(gathered.published, 1):
        rows: list[tuple[Value, ...]] = []
        for row in published.rows:
            wanted = {axis: str(name) for axis, name in row.cell.items()}
            runs = [run for run in ended if wanted.items() <= run.cell.items()]
            for suite, theirs in zip(published.columns, row.values, strict=True):
                if theirs is None:
                    continue
                ours, grader = _ours(runs, suite, row.at, grader=published.grader)
                cell = " / ".join(wanted.values()) or "all cells"
                rows.append((cell, suite, row.at, theirs, ours, _minus(ours, theirs), grader))
        tables.append(
            Table(
                name=f"published_{number}",
                title=f"Beside {published.by}",
                about=f"Published by {published.by}: {published.how}. Ours: mean over seeds at the stated step, with "
                "its interval, by the grader that made the published number if it is on record. The difference treats "
                "the published number as exact.",
                columns=("cell", "suite", "at", "published", "ours", "ours - published", "graded by"),
                rows=tuple(rows),
                form="points",
            )
        )
    return [table for table in tables if table.rows]


def _ours(runs: Sequence[Run], suite: str, at: str, *, grader: str) -> tuple[Interval | None, str]:
    """Return our accuracy by the grader that made the published number, or by ours if that was not recorded."""
    if grader != "strict":
        ours = level(runs, suite, at, measure=f"pass_at_1_{grader}")
        if ours is not None:
            return ours, grader
    return level(runs, suite, at), "strict" if grader == "strict" else f"strict, without {grader}"


def _minus(ours: Interval | None, theirs: float) -> Interval | None:
    """Return an interval moved down by a fixed number."""
    if ours is None:
        return None
    low, high = (None if end is None else end - theirs for end in (ours.low, ours.high))
    return Interval(mean=ours.mean - theirs, low=low, high=high, num=ours.num)
