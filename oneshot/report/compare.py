"""Two gathered sweeps -> their common cells side by side, each with the difference and its interval.

The two may be different sweeps, or one sweep run by two versions of the code. A cell is common if the names on all its
axes are equal. Runs are paired by seed, and by problem if both sweeps evaluated the same suite.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from oneshot.report.cells import by_cell, cell_label, finished, level
from oneshot.report.contrast import paired_difference, problem_difference, seed_difference
from oneshot.report.decision import holm
from oneshot.report.environments import differences_of_sides, environments_of
from oneshot.report.evidence import Difference
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import CHANGE, Interval
from oneshot.report.values import over_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The result of one cell on one suite after the last step, in both sweeps."""

    cell: str
    suite: str
    a: Interval
    b: Interval
    difference: Difference | None  # b - a, or None if the two have no seed in common
    p_value: float | None
    p_holm: float | None
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return the line as `compare --json` prints it."""
        fields = {name: getattr(self, name) for name in ("cell", "suite", "p_value", "p_holm", "note")}
        difference = self.difference and self.difference.numbers()
        return {**fields, "a": asdict(self.a), "b": asdict(self.b), "difference": difference}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepComparison:
    """What two sweeps have in common, and what only one of them has."""

    lines: tuple[Line, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]  # cells that only this sweep has
    notes: tuple[str, ...]  # parts of the common cells that no line shows, and why
    environments: str  # versions, GPU and platform that differ between A and B, in words

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as `compare --json` prints it."""
        return {
            "lines": [line.to_json() for line in self.lines],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "notes": list(self.notes),
            "environments": self.environments,
        }


def compare(a: Gathered, b: Gathered) -> SweepComparison:
    """Compare the finished trials of the cells that both sweeps have."""
    cells_a, cells_b = ({frozenset(runs[0].cell.items()): runs for runs in by_cell(each.runs)} for each in (a, b))
    rows: list[tuple[str, str, Interval, Interval, Difference | None, str]] = []
    common = [(runs, cells_b[name]) for name, runs in cells_a.items() if name in cells_b]
    for all_a, all_b in common:
        runs_a, runs_b = finished(all_a), finished(all_b)
        for suite in all_a[0].suites:
            level_a, level_b = (level(runs, suite.name, "last") for runs in (runs_a, runs_b))
            if level_a is not None and level_b is not None:
                difference, note = _difference(a, b, runs_a, runs_b, suite.name)
                difference = None if difference is None else difference.within(CHANGE)
                rows.append((cell_label(all_a[0]), suite.name, level_a, level_b, difference, note))
    p_values = [None if difference is None else difference.p_value() for *_, difference, _ in rows]
    return SweepComparison(
        lines=tuple(
            Line(cell=cell, suite=suite, a=of_a, b=of_b, difference=difference, note=note, p_value=p, p_holm=corrected)
            for (cell, suite, of_a, of_b, difference, note), p, corrected in zip(
                rows, p_values, holm(p_values), strict=True
            )
        ),
        only_a=tuple(cell_label(runs[0]) for name, runs in cells_a.items() if name not in cells_b),
        only_b=tuple(cell_label(runs[0]) for name, runs in cells_b.items() if name not in cells_a),
        notes=tuple(_notes(common)),
        environments=differences_of_sides(
            environments_of([run for runs_a, _ in common for run in finished(runs_a)]),
            environments_of([run for _, runs_b in common for run in finished(runs_b)]),
        ),
    )


def _notes(common: Sequence[tuple[Sequence[Run], Sequence[Run]]]) -> Iterator[str]:
    """Yield why parts of the common cells are not compared, with the cells unless the reason applies to all."""
    cells_by_note: dict[str, list[str]] = {}
    for sides in common:
        cell, ended = cell_label(sides[0][0]), [finished(side) for side in sides]
        suites = [[suite.name for suite in side[0].suites] for side in sides]
        for name, runs, own, other in zip("AB", ended, suites, reversed(suites), strict=True):
            if not runs:
                cells_by_note.setdefault(f"no finished trial in {name}", []).append(cell)
            for suite in own:
                if suite not in other:
                    cells_by_note.setdefault(f"suite {suite} only in {name}", []).append(cell)
                elif runs and level(runs, suite, "last") is None:
                    note = f"no evaluation on {suite} after the last step in {name}"
                    cells_by_note.setdefault(note, []).append(cell)
    for note, cells in cells_by_note.items():
        yield note if note.startswith("suite ") and len(cells) == len(common) else f"{note}: {', '.join(cells)}"


def _difference(
    a: Gathered, b: Gathered, runs_a: Sequence[Run], runs_b: Sequence[Run], suite: str
) -> tuple[Difference | None, str]:
    """Return b - a over the seeds that both have, and notes on it."""
    runs_a, runs_b = ([run for run in runs if _has_last(run, suite)] for runs in (runs_a, runs_b))
    by_seed = {run.seed: run for run in runs_b}
    pairs = [(run, by_seed[run.seed]) for run in runs_a if run.seed in by_seed]
    if not pairs:
        return None, "no seed in common"
    notes = []
    is_same = all(run_a.key == run_b.key for run_a, run_b in pairs)
    if is_same:
        notes.append("the same trainings by key")
    if any(run_a.num_steps != run_b.num_steps for run_a, run_b in pairs):
        notes.append("different numbers of steps")
    if any(_digest(run_a, suite) != _digest(run_b, suite) for run_a, run_b in pairs):
        notes.append("the suite differs in its problems, prompts or sampling")
    rows = []
    for run_a, run_b in pairs:
        values = [_problems(gathered, run, suite) for gathered, run in ((a, run_a), (b, run_b))]
        if values[0] is None or values[1] is None or values[0][1] != values[1][1]:
            notes.append("different problems, so compared by means")
            means = [_last(other, suite) - _last(run, suite) for run, other in pairs]
            return seed_difference(np.array(means)), "; ".join(notes)
        rows.append(values[1][0] - values[0][0])
    differences_SP = np.array(rows)
    if is_same and not differences_SP.any():  # one draw, read twice: no uncertainty
        same = seed_difference(differences_SP.mean(axis=1))
        return replace(same, num_problems=differences_SP.shape[1], test="the same trainings"), "; ".join(notes)
    if all(run.num_steps == 0 for pair in pairs for run in pair):  # without training all seeds are one checkpoint
        return problem_difference(differences_SP.mean(axis=0), num_seeds=len(pairs)), "; ".join(notes)
    return paired_difference(differences_SP), "; ".join(notes)


def _digest(run: Run, suite: str) -> str | None:
    run_suite = run.suite(suite)
    return None if run_suite is None else run_suite.digest


def _problems(gathered: Gathered, run: Run, suite: str) -> tuple[Any, tuple[str, ...]] | None:
    grades = gathered.record.grades(run, suite, run.num_steps)
    return None if grades is None else over_problems(grades, "pass_at_1")


def _last(run: Run, suite: str) -> float:
    number = run.measure(suite, run.num_steps)
    assert number is not None, "_has_last chose the runs"
    return number


def _has_last(run: Run, suite: str) -> bool:
    number = run.measure(suite, run.num_steps)
    return number is not None and math.isfinite(number)
