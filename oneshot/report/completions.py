"""Gathered runs -> completions to read: the same problem at the start, at saturation and at the end."""

from collections.abc import Sequence
from dataclasses import dataclass

from oneshot.report.cells import cell_label, ended_cells
from oneshot.report.runs import Gathered, Run, Shown
from oneshot.report.steps import evaluated_after, saturation

MAX_CELLS = 12
MAX_CHARS = 4000
"""Of one completion as it is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One problem of one run, answered at several steps."""

    cell: str
    seed: int
    problem: str
    answer: str
    why: str
    """Why this problem was chosen."""
    answers: tuple[tuple[str, Shown], ...]
    """What the step is, and what was answered."""


def shown_steps(run: Run, suite: str) -> list[tuple[str, int]]:
    """Steps of a run that are shown, each with its name; steps that are one stand once."""
    named = [("start", 0)]
    found = saturation(run)
    turn = None if found is None else evaluated_after(run, suite, found.step)
    if turn is not None and 0 < turn < run.num_steps:
        named.append(("t_sat", turn))
    return [*named, ("end", run.num_steps)] if run.num_steps else named


def side_by_side(gathered: Gathered, suite: str) -> tuple[list[Beside], int]:
    """Two problems of each cell, of its first finished seed; and of how many cells none are shown."""
    ended = [those[0] for those in ended_cells(gathered.runs)]
    found = []
    for run in ended[:MAX_CELLS]:
        tables = [(name, step, gathered.record.shown(run, suite, step)) for name, step in shown_steps(run, suite)]
        if any(not table for _, _, table in tables):
            continue
        for place, why in chosen([table for _, _, table in tables]):
            first = tables[0][2][place]
            answers = tuple((f"{name}, step {step}", table[place]) for name, step, table in tables)
            found.append(
                Beside(
                    cell=cell_label(run),
                    seed=run.seed,
                    problem=first.problem,
                    answer=first.answer,
                    why=why,
                    answers=answers,
                )
            )
    return found, max(0, len(ended) - MAX_CELLS)


def chosen(tables: Sequence[Sequence[Shown]]) -> list[tuple[int, str]]:
    """The first problem that turned right, and the first that is still not, or turned wrong."""
    start, end = tables[0], tables[-1]
    turned = [place for place in range(len(start)) if not start[place].strict and end[place].strict]
    wrong = [place for place in range(len(end)) if not end[place].strict]
    found = [(place, "the first problem that turned right") for place in turned[:1]]
    return found + [(place, "the first problem that is not right at the end") for place in wrong[:1]]
