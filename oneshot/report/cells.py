"""A plan and its store -> one line a cell and suite: accuracy before and after, and the gain with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

from oneshot.plan import Plan, Trial
from oneshot.report.stats import Interval, mean_interval
from oneshot.standing import trial_standing, view
from oneshot.store import Row, Store

COLUMNS = ("suite", "n", "start", "last", "last_low", "last_high", "gain", "gain_low", "gain_high", "num_planned")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellLine:
    """One cell on one suite, over its seeds; pass@1, strict."""

    cell: dict[str, str]
    suite: str
    num_planned: int
    start: Interval | None
    last: Interval
    gain: Interval | None


def cell_lines(plan: Plan, store: Store) -> list[CellLine]:
    """A line for each cell with at least one finished trial, in the plan's order."""
    finished: dict[tuple[str, ...], list[tuple[Trial, list[Row]]]] = {}
    planned: dict[tuple[str, ...], int] = {}
    for trial in plan.grid:
        name = tuple(trial.cell.values())
        planned[name] = planned.get(name, 0) + 1
        if trial.key is None or not trial.config.eval.suites:
            continue
        folder = store.trial(trial.key)
        if trial_standing(trial, folder.result()) == "finished":
            finished.setdefault(name, []).append((trial, view(trial, folder)))
    return [
        line
        for name, those in finished.items()
        for suite in those[0][0].config.eval.suites
        if (line := _line(those, suite, planned[name])) is not None
    ]


def _line(those: Sequence[tuple[Trial, list[Row]]], suite: str, num_planned: int) -> CellLine | None:
    starts, lasts, gains = [], [], []
    for trial, rows in those:
        by_step = {row.step: row.metrics for row in rows}
        last = by_step.get(trial.config.train.num_steps, {}).get(f"eval/{suite}/pass_at_1")
        start = by_step.get(0, {}).get(f"eval/{suite}/pass_at_1")
        if last is None:
            continue
        lasts.append(last)
        if start is not None:
            starts.append(start)
            gains.append(last - start)
    if not lasts:
        return None
    return CellLine(
        cell=those[0][0].cell,
        suite=suite,
        num_planned=num_planned,
        start=mean_interval(starts) if starts else None,
        last=mean_interval(lasts),
        gain=mean_interval(gains) if gains else None,
    )


def as_table(lines: Sequence[CellLine]) -> dict[str, list[object]]:
    """The lines as columns and rows, as MLflow shows tables."""
    axes = list(lines[0].cell) if lines else []
    data: list[object] = [
        [
            *line.cell.values(),
            line.suite,
            line.last.num,
            line.start.mean if line.start else None,
            line.last.mean,
            line.last.low,
            line.last.high,
            line.gain.mean if line.gain else None,
            line.gain.low if line.gain else None,
            line.gain.high if line.gain else None,
            line.num_planned,
        ]
        for line in lines
    ]
    return {"columns": [*axes, *COLUMNS], "data": data}
