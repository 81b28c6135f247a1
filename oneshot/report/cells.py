"""Runs -> cells, and their numbers over seeds: accuracy before and after, gains with intervals, a table of all."""

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
    """One cell on one suite, over its seeds; pass@1, strict."""

    cell: dict[str, str]
    suite: str
    num_planned: int
    start: Interval | None
    last: Interval
    gain: Interval | None


def by_cell(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that share a cell, in the grid's order."""
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(run.cell.values()), []).append(run)
    return list(found.values())


def finished(runs: Sequence[Run]) -> list[Run]:
    """Those that came to their end."""
    return [run for run in runs if run.state == "finished"]


def cell_label(run: Run) -> str:
    """`tiny-qwen2 / sum / outcome`."""
    return " / ".join(run.cell.values()) or "the only cell"


def gain(run: Run, suite: str, *, measure: str = "pass_at_1") -> float | None:
    """Change of a measure from the start to the last step."""
    return change(run, suite, 0, run.num_steps, measure=measure)


def change(run: Run, suite: str, start: int, end: int, *, measure: str = "pass_at_1") -> float | None:
    """What a measure at one step is more than at another; None where a run lacks one of them."""
    before, after = run.measure(suite, start, measure), run.measure(suite, end, measure)
    return None if before is None or after is None else after - before


def over_seeds(runs: Sequence[Run], value: OfRun) -> Interval | None:
    """Mean and interval over seeds of a number of each run, of those that have it; cells are averaged at each seed."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if (number := value(run)) is not None and math.isfinite(number):
            found.setdefault(run.seed, []).append(number)
    return mean_interval([fmean(numbers) for numbers in found.values()]) if found else None


def gains(runs: Sequence[Run], suite: str, *, measure: str = "pass_at_1") -> Interval | None:
    """Mean gain over seeds."""
    return over_seeds(runs, lambda run: gain(run, suite, measure=measure))


def level(runs: Sequence[Run], suite: str, at: str, *, measure: str = "pass_at_1") -> Interval | None:
    """Mean over seeds at `start` or `last`."""
    found = over_seeds(runs, lambda run: run.measure(suite, 0 if at == "start" else run.num_steps, measure))
    return found if found is None or measure != "pass_at_1" else _by_problems(found, runs, suite)


def _by_problems(found: Interval, runs: Sequence[Run], suite: str) -> Interval:
    """Wilson's interval over problems, for one cell's accuracy where seeds say nothing: there is one, or all agree."""
    facts = {run.suite(suite) for run in runs}
    one = facts.pop() if len(facts) == 1 else None
    is_told = found.low is not None and found.low != found.high
    if (
        is_told
        or one is None
        or one.samples > 1
        or not one.num_problems
        or len({tuple(run.cell.values()) for run in runs}) > 1
    ):
        return found
    return replace(wilson(round(found.mean * one.num_problems), one.num_problems), mean=found.mean, num=found.num)


def apart(runs: Sequence[Run], value: OfRun, less: OfRun) -> Interval | None:
    """Mean over seeds of a difference within each run."""

    def difference(run: Run) -> float | None:
        one, other = value(run), less(run)
        return None if one is None or other is None else one - other

    return over_seeds(runs, difference)


def ended_cells(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Finished runs of each cell that has some."""
    for those in by_cell(runs):
        if ended := finished(those):
            yield ended


def cell_lines(runs: Sequence[Run]) -> list[CellLine]:
    """A line for each cell with at least one finished trial, in the grid's order."""
    return [
        line
        for those in by_cell(runs)
        for suite in those[0].suites
        if (line := _line(finished(those), suite.name, len(those))) is not None
    ]


def _line(those: Sequence[Run], suite: str, num_planned: int) -> CellLine | None:
    ends = [(run.measure(suite, 0), run.measure(suite, run.num_steps)) for run in those]
    lasts = [last for _, last in ends if last is not None]
    pairs = [(start, last) for start, last in ends if start is not None and last is not None]
    if not lasts:
        return None
    return CellLine(
        cell=those[0].cell,
        suite=suite,
        num_planned=num_planned,
        start=mean_interval([start for start, _ in pairs]) if pairs else None,
        last=mean_interval(lasts),
        gain=mean_interval([last - start for start, last in pairs]) if pairs else None,
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
