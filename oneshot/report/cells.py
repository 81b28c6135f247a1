"""Runs -> cells, with accuracies and gains over seeds, their intervals, and a table of all cells."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from oneshot.report.runs import Run
from oneshot.report.stats import CHANGE, SHARE, UNBOUNDED, Interval, mean_interval, wilson
from oneshot.tasks.measures import is_share

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


def over_seeds(runs: Sequence[Run], value: OfRun, *, bounds: tuple[float, float] = UNBOUNDED) -> Interval | None:
    """Return mean and interval over seeds of one number of each run, or None if no run has the number.

    Cells are averaged at each seed. The interval is cut at the number's bounds.
    """
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        if (number := value(run)) is not None and math.isfinite(number):
            by_seed.setdefault(run.seed, []).append(number)
    return mean_interval([fmean(numbers) for numbers in by_seed.values()], bounds=bounds) if by_seed else None


def gains(runs: Sequence[Run], suite: str, *, measure: str = "pass_at_1") -> Interval | None:
    """Return the mean gain over seeds."""
    bounds = CHANGE if _is_share(measure) else UNBOUNDED
    return over_seeds(runs, lambda run: gain(run, suite, measure=measure), bounds=bounds)


def level(runs: Sequence[Run], suite: str, at: str, *, measure: str = "pass_at_1") -> Interval | None:
    """Return the mean of a measure over seeds at `start` or `last`."""
    bounds = SHARE if _is_share(measure) else UNBOUNDED

    def value(run: Run) -> float | None:
        return run.measure(suite, 0 if at == "start" else run.num_steps, measure)

    interval = over_seeds(runs, value, bounds=bounds)
    is_over_all = _is_share(measure) and "/" not in measure  # the number of problems of a category is not on record
    return _by_problems(interval, runs, suite) if interval is not None and is_over_all else interval


def _is_share(measure: str) -> bool:
    return is_share(f"eval/suite/{measure}")


def _by_problems(interval: Interval, runs: Sequence[Run], suite: str) -> Interval:
    """Give a share whose seeds show no spread Wilson's interval over the suite's problems.

    Each problem counts once, however many completions and seeds it has: its mean varies at most as one completion does,
    so the interval may be too wide, but is not too narrow.
    """
    sizes = {None if run_suite is None else run_suite.num_problems for run_suite in (run.suite(suite) for run in runs)}
    num_problems = sizes.pop() if len(sizes) == 1 else None
    if interval.low is not None or not num_problems:
        return interval
    by_problems = wilson(round(interval.mean * num_problems), num_problems)
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
    last = level(runs, suite, "last")
    if last is None:
        return None
    with_gain = [run for run in runs if gain(run, suite) is not None]
    start = level(with_gain, suite, "start")
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
