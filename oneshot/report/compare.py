"""Two gathered sweeps -> their common cells side by side, each with the difference and its interval.

Two sweeps, or one sweep run by two versions of the code: cells are common by the names of all their axes. Runs are
paired by seed, and by problem where both were asked the same suite.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from oneshot.report.cells import by_cell, cell_label, finished, level
from oneshot.report.judging import holm
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import Difference, Interval, paired_difference, seed_difference
from oneshot.report.values import over_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One cell on one suite, in both sweeps, after the last step."""

    cell: str
    suite: str
    a: Interval
    b: Interval
    difference: Difference | None
    """b - a; None where no seed is in both."""
    p_value: float | None
    p_holm: float | None
    note: str

    def to_json(self) -> dict[str, Any]:
        """As `compare --json` prints it."""
        found = {name: getattr(self, name) for name in ("cell", "suite", "p_value", "p_holm", "note")}
        sides = {"a": asdict(self.a), "b": asdict(self.b)}
        if self.difference is None:
            return {**found, **sides, "difference": None}
        names = ("effect", "low", "high", "num_seeds", "num_problems", "test")
        return {**found, **sides, "difference": {name: getattr(self.difference, name) for name in names}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that two sweeps have in common, and what they have not."""

    lines: tuple[Line, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    """Cells."""

    def to_json(self) -> dict[str, Any]:
        """As `compare --json` prints it."""
        return {
            "lines": [line.to_json() for line in self.lines],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
        }


def compare(a: Gathered, b: Gathered) -> Comparison:
    """Finished trials of cells that both sweeps have."""
    cells_a, cells_b = ({frozenset(those[0].cell.items()): those for those in by_cell(each.runs)} for each in (a, b))
    found: list[tuple[str, str, Interval, Interval, Difference | None, str]] = []
    for name, those in cells_a.items():
        runs_a, runs_b = finished(those), finished(cells_b.get(name, []))
        for suite in those[0].suites:
            level_a, level_b = (level(runs, suite.name, "last") for runs in (runs_a, runs_b))
            if level_a is not None and level_b is not None:
                difference, note = _difference(a, b, runs_a, runs_b, suite.name)
                found.append((cell_label(those[0]), suite.name, level_a, level_b, difference, note))
    p_values = [None if difference is None else difference.p_value() for *_, difference, _ in found]
    return Comparison(
        lines=tuple(
            Line(cell=cell, suite=suite, a=of_a, b=of_b, difference=difference, note=note, p_value=p, p_holm=corrected)
            for (cell, suite, of_a, of_b, difference, note), p, corrected in zip(
                found, p_values, holm(p_values), strict=True
            )
        ),
        only_a=tuple(cell_label(those[0]) for name, those in cells_a.items() if name not in cells_b),
        only_b=tuple(cell_label(those[0]) for name, those in cells_b.items() if name not in cells_a),
    )


def _difference(
    a: Gathered, b: Gathered, runs_a: Sequence[Run], runs_b: Sequence[Run], suite: str
) -> tuple[Difference | None, str]:
    """b - a over the seeds that both have, and what is to be said of it."""
    by_seed = {run.seed: run for run in runs_b}
    pairs = [(run, by_seed[run.seed]) for run in runs_a if run.seed in by_seed]
    if not pairs:
        return None, "no seed in common"
    notes = []
    if all(one.key == other.key for one, other in pairs):
        notes.append("the same trainings by key")
    if any(one.num_steps != other.num_steps for one, other in pairs):
        notes.append("other numbers of steps")
    if any(_digest(one, suite) != _digest(other, suite) for one, other in pairs):
        notes.append("the suite was not asked in the same way: other problems, prompts or sampling")
    rows = []
    for one, other in pairs:
        values = [_problems(each, run, suite) for each, run in ((a, one), (b, other))]
        if values[0] is None or values[1] is None or values[0][1] != values[1][1]:
            notes.append("not the same problems: compared by means")
            means = [_last(other, suite) - _last(one, suite) for one, other in pairs]
            return seed_difference(np.array(means)), "; ".join(notes)
        rows.append(values[1][0] - values[0][0])
    return paired_difference(np.array(rows)), "; ".join(notes)


def _digest(run: Run, suite: str) -> str | None:
    facts = run.suite(suite)
    return None if facts is None else facts.digest


def _problems(gathered: Gathered, run: Run, suite: str) -> tuple[Any, tuple[str, ...]] | None:
    grades = gathered.record.grades(run, suite, run.num_steps)
    if grades is None:
        return None
    return over_problems(grades, "pass_at_1", categories="all", trained=frozenset())


def _last(run: Run, suite: str) -> float:
    number = run.measure(suite, run.num_steps)
    assert number is not None, "a cell whose level is known has it at every finished run"
    return number
