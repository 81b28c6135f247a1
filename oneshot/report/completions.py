"""Gathered runs -> completions to read: one problem, answered at the start, at saturation and at the end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oneshot.report.cells import cell_label, ended_cells
from oneshot.report.runs import Gathered, Run, Shown
from oneshot.report.steps import evaluated_after, saturation

MAX_CELLS = 12
MAX_CHARS = 4000  # most characters shown of one completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One problem of one run with its completions at several steps."""

    cell: str
    seed: int
    why: str  # why this problem was chosen
    answers: tuple[tuple[str, Shown], ...]  # (name of the step, completion)


def shown_steps(run: Run, suite: str) -> list[tuple[str, int]]:
    """Return the names and numbers of the steps that are shown, without duplicates."""
    named = [("start", 0)]
    saturated = saturation(run)
    step = None if saturated is None else evaluated_after(run, suite, saturated.step)
    if step is not None and 0 < step < run.num_steps:
        named.append(("t_sat", step))
    return [*named, ("end", run.num_steps)] if run.num_steps else named


def side_by_side(gathered: Gathered, suite: str) -> tuple[list[Beside], int]:
    """Return two problems of the first finished seed of each cell, and the number of cells that are not shown."""
    problems = []
    for run, tables in shown_tables(gathered, suite):
        for place, why in chosen(list(tables.values())):
            answers = tuple((f"{name}, step {step}", table[place]) for (name, step), table in tables.items())
            problems.append(Beside(cell=cell_label(run), seed=run.seed, why=why, answers=answers))
    return problems, max(0, len(list(ended_cells(gathered.runs))) - MAX_CELLS)


def shown_tables(gathered: Gathered, suite: str) -> Iterator[tuple[Run, dict[tuple[str, int], Sequence[Shown]]]]:
    """Yield the first finished run of each cell, with its completions by name and number of the step."""
    for run in [runs[0] for runs in ended_cells(gathered.runs)][:MAX_CELLS]:
        tables = {named: gathered.record.shown(run, suite, named[1]) for named in shown_steps(run, suite)}
        if all(tables.values()):
            yield run, tables


def chosen(tables: Sequence[Sequence[Shown]]) -> list[tuple[int, str]]:
    """Return the index of the first problem that became right, and of the first that is not right at the end."""
    start, end = tables[0], tables[-1]
    learnt = [place for place in range(len(start)) if not start[place].strict and end[place].strict]
    wrong = [place for place in range(len(end)) if not end[place].strict]
    places = [(place, "the first problem that became right") for place in learnt[:1]]
    return places + [(place, "the first problem that is not right at the end") for place in wrong[:1]]
