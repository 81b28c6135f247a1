"""Runs -> cells, with accuracies and gains over seeds, their intervals, and a table of all cells."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from oneshot.report.runs import Run
from oneshot.report.stats import Interval, mean_interval, wilson

COLUMNS = ("suite", "n", "start", "last", "last_low", "last_high", "gain", "gain_low", "gain_high", "num_planned")

OfRun = Callable[[Run], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellLine:
    """Strict pass@1 of one cell on one suite, over its seeds."""

    cell: dict[str, str]
    suite: str
    num_planned: int
    start: Interval | None
    last: Interval
    gain: Interval | None


def by_cell(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs grouped by cell, in the grid's order."""
    cells: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        cells.setdefault(tuple(run.cell.values()), []).append(run)
    return list(cells.values())


def finished(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that finished."""
    return [run for run in runs if run.state == "finished"]


def cell_label(run: Run) -> str:
    """Return the cell's name, such as `tiny-qwen2 / sum / outcome`."""
    return " / ".join(run.cell.values()) or "the only cell"


def gain(run: Run, suite: str, *, measure: str = "pass_at_1") -> float | None:
    """Return the change of a measure from the start to the last step."""
    return change(run, suite, 0, run.num_steps, measure=measure)


def change(run: Run, suite: str, start: int, end: int, *, measure: str = "pass_at_1") -> float | None:
    """Return the change of a measure from one step to another, or None if the run lacks one of the two."""
    before, after = run.measure(suite, start, measure), run.measure(suite, end, measure)
    return None if before is None or after is None else after - before


def over_seeds(runs: Sequence[Run], value: OfRun) -> Interval | None:
    """Return mean and interval over seeds of one number of each run, or None if no run has the number.

    Cells are averaged at each seed.
    """
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        if (number := value(run)) is not None and math.isfinite(number):
            by_seed.setdefault(run.seed, []).append(number)
    return mean_interval([fmean(numbers) for numbers in by_seed.values()]) if by_seed else None


def gains(runs: Sequence[Run], suite: str, *, measure: str = "pass_at_1") -> Interval | None:
    """Return the mean gain over seeds."""
    return over_seeds(runs, lambda run: gain(run, suite, measure=measure))


def level(runs: Sequence[Run], suite: str, at: str, *, measure: str = "pass_at_1") -> Interval | None:
    """Return the mean of a measure over seeds at `start` or `last`."""
    interval = over_seeds(runs, lambda run: run.measure(suite, 0 if at == "start" else run.num_steps, measure))
    return interval if interval is None or not measure.startswith("pass_at_1") else _by_problems(interval, runs, suite)


def _by_problems(interval: Interval, runs: Sequence[Run], suite: str) -> Interval:
    """Replace an interval over seeds that has no width by Wilson's interval over problems.

    It applies to the accuracy of one cell that has one seed, or whose seeds all agree.
    """
    run_suites = {run.suite(suite) for run in runs}
    run_suite = run_suites.pop() if len(run_suites) == 1 else None
    has_width = interval.low is not None and interval.low != interval.high
    if (
        has_width
        or run_suite is None
        or run_suite.samples > 1
        or not run_suite.num_problems
        or len({tuple(run.cell.values()) for run in runs}) > 1
    ):
        return interval
    by_problems = wilson(round(interval.mean * run_suite.num_problems), run_suite.num_problems)
    return replace(by_problems, mean=interval.mean, num=interval.num)


def mean_difference(runs: Sequence[Run], value: OfRun, baseline: OfRun) -> Interval | None:
    """Return the mean over seeds of `value - baseline`, which is taken within each run."""

    def difference(run: Run) -> float | None:
        number, base = value(run), baseline(run)
        return None if number is None or base is None else number - base

    return over_seeds(runs, difference)


def ended_cells(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Yield the finished runs of each cell that has any."""
    for cell_runs in by_cell(runs):
        if ended := finished(cell_runs):
            yield ended


def cell_lines(runs: Sequence[Run]) -> list[CellLine]:
    """Return a line for each cell with at least one finished trial, in the grid's order."""
    return [
        line
        for cell_runs in by_cell(runs)
        for suite in cell_runs[0].suites
        if (line := _line(finished(cell_runs), suite.name, len(cell_runs))) is not None
    ]


def _line(runs: Sequence[Run], suite: str, num_planned: int) -> CellLine | None:
    last = over_seeds(runs, lambda run: run.measure(suite, run.num_steps))
    if last is None:
        return None
    with_gain = [run for run in runs if gain(run, suite) is not None]
    start = over_seeds(with_gain, lambda run: run.measure(suite, 0))
    return CellLine(
        cell=runs[0].cell, suite=suite, num_planned=num_planned, start=start, last=last, gain=gains(runs, suite)
    )


def as_table(lines: Sequence[CellLine]) -> dict[str, list[object]]:
    """Return the lines as columns and rows, in the form of MLflow's tables."""
    axes = list(lines[0].cell) if lines else []
    data: list[object] = []
    for line in lines:
        start, last, gained = (_numbers(interval) for interval in (line.start, line.last, line.gain))
        data.append([*line.cell.values(), line.suite, line.last.num, start[0], *last, *gained, line.num_planned])
    return {"columns": [*axes, *COLUMNS], "data": data}


def _numbers(interval: Interval | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if interval is None else (interval.mean, interval.low, interval.high)
