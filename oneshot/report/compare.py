"""Two gathered sweeps -> their common cells side by side, each with the difference and its interval.

Two sweeps, or one sweep run by two versions of the code: cells are common by the names of all their axes. Runs are
paired by seed, and by problem where both were asked the same suite.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from oneshot.report.cells import by_cell, cell_label, finished, level
from oneshot.report.decision import holm
from oneshot.report.environments import apart, environments_of
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import Difference, Interval, paired_difference, problem_difference, seed_difference
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
class SweepComparison:
    """All that two sweeps have in common, and what they have not."""

    lines: tuple[Line, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    """Cells."""
    notes: tuple[str, ...]
    """What of the common cells is in no line, and why."""
    environments: str
    """Versions, GPU and platform where they are not the same in A and B, in words."""

    def to_json(self) -> dict[str, Any]:
        """As `compare --json` prints it."""
        return {
            "lines": [line.to_json() for line in self.lines],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "notes": list(self.notes),
            "environments": self.environments,
        }


def compare(a: Gathered, b: Gathered) -> SweepComparison:
    """Finished trials of cells that both sweeps have."""
    cells_a, cells_b = ({frozenset(those[0].cell.items()): those for those in by_cell(each.runs)} for each in (a, b))
    found: list[tuple[str, str, Interval, Interval, Difference | None, str]] = []
    common = [(those, cells_b[name]) for name, those in cells_a.items() if name in cells_b]
    for those, others in common:
        runs_a, runs_b = finished(those), finished(others)
        for suite in those[0].suites:
            level_a, level_b = (level(runs, suite.name, "last") for runs in (runs_a, runs_b))
            if level_a is not None and level_b is not None:
                difference, note = _difference(a, b, runs_a, runs_b, suite.name)
                found.append((cell_label(those[0]), suite.name, level_a, level_b, difference, note))
    p_values = [None if difference is None else difference.p_value() for *_, difference, _ in found]
    return SweepComparison(
        lines=tuple(
            Line(cell=cell, suite=suite, a=of_a, b=of_b, difference=difference, note=note, p_value=p, p_holm=corrected)
            for (cell, suite, of_a, of_b, difference, note), p, corrected in zip(
                found, p_values, holm(p_values), strict=True
            )
        ),
        only_a=tuple(cell_label(those[0]) for name, those in cells_a.items() if name not in cells_b),
        only_b=tuple(cell_label(those[0]) for name, those in cells_b.items() if name not in cells_a),
        notes=tuple(_notes(common)),
        environments=apart(
            environments_of([run for those, _ in common for run in finished(those)]),
            environments_of([run for _, others in common for run in finished(others)]),
        ),
    )


def _notes(common: Sequence[tuple[Sequence[Run], Sequence[Run]]]) -> Iterator[str]:
    """What is not compared of the cells that both have, each reason once, with its cells unless it is of all."""
    found: dict[str, list[str]] = {}
    for sides in common:
        cell, ended = cell_label(sides[0][0]), [finished(side) for side in sides]
        suites = [[suite.name for suite in side[0].suites] for side in sides]
        for name, runs, own, other in zip("AB", ended, suites, reversed(suites), strict=True):
            if not runs:
                found.setdefault(f"no finished trial in {name}", []).append(cell)
            for suite in own:
                if suite not in other:
                    found.setdefault(f"suite {suite} only in {name}", []).append(cell)
                elif runs and level(runs, suite, "last") is None:
                    found.setdefault(f"{suite} is not on record after the last step in {name}", []).append(cell)
    for note, cells in found.items():
        yield note if note.startswith("suite ") and len(cells) == len(common) else f"{note}: {', '.join(cells)}"


def _difference(
    a: Gathered, b: Gathered, runs_a: Sequence[Run], runs_b: Sequence[Run], suite: str
) -> tuple[Difference | None, str]:
    """b - a over the seeds that both have, and what is to be said of it."""
    runs_a, runs_b = ([run for run in runs if _has_last(run, suite)] for runs in (runs_a, runs_b))
    by_seed = {run.seed: run for run in runs_b}
    pairs = [(run, by_seed[run.seed]) for run in runs_a if run.seed in by_seed]
    if not pairs:
        return None, "no seed in common"
    notes = []
    is_same = all(one.key == other.key for one, other in pairs)
    if is_same:
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
    differences_SP = np.array(rows)
    if is_same and not differences_SP.any():  # nothing was drawn twice, so there is nothing to be unsure of
        same = seed_difference(differences_SP.mean(axis=1))
        return replace(same, num_problems=differences_SP.shape[1], test="the same trainings"), "; ".join(notes)
    if all(run.num_steps == 0 for pair in pairs for run in pair):  # its own start is all that a run has: one checkpoint
        return problem_difference(differences_SP.mean(axis=0), num_seeds=len(pairs)), "; ".join(notes)
    return paired_difference(differences_SP), "; ".join(notes)


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
    assert number is not None, "runs are paired that have it"
    return number


def _has_last(run: Run, suite: str) -> bool:
    number = run.measure(suite, run.num_steps)
    return number is not None and math.isfinite(number)
