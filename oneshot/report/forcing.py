"""Gathered runs -> accuracy against thinking tokens, in suites with a budget of thinking.

A line joins the points that differ only in the budget: suites of one cell, or cells of one sweep. Its measures are
those of s1, arXiv 2501.19393, section 3.2.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from oneshot.report.cells import cell_label, ended_cells, level
from oneshot.report.runs import Gathered, Run, RunSuite
from oneshot.report.stats import Interval
from oneshot.report.table import Table, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One suite of one cell at the last step."""

    runs: Sequence[Run]  # the cell's finished runs
    suite: str
    budget: int
    thinking_tokens: float
    accuracy: Interval

    @property
    def run(self) -> Run:
        """Return the first run."""
        return self.runs[0]

    def mean(self, measure: str) -> float | None:
        """Return a measure's mean over seeds."""
        interval = level(self.runs, self.suite, "last", measure=measure)
        return None if interval is None else interval.mean


def budget_lines(runs: Sequence[Run]) -> list[list[Point]]:
    """Return the points of each line, in the order of their budgets."""
    lines: dict[str, list[Point]] = {}
    for ended in ended_cells(runs):
        for suite in ended[0].suites:
            rule = ended[0].config.get("eval", {}).get("suites", {}).get(suite.name, {})
            tokens = level(ended, suite.name, "last", measure="thinking_tokens")
            accuracy = level(ended, suite.name, "last")
            if not rule.get("thinking") or tokens is None or accuracy is None:
                continue
            point = Point(
                runs=ended,
                suite=suite.name,
                budget=rule["thinking"]["max_tokens"],
                thinking_tokens=tokens.mean,
                accuracy=accuracy,
            )
            lines.setdefault(_without_budget(ended[0], suite), []).append(point)
    return [sorted(points, key=lambda point: point.budget) for points in lines.values()]


def _without_budget(run: Run, suite: RunSuite) -> str:
    """Return what a point's line has in common: everything but the budget and other suites."""
    rule = run.config["eval"]["suites"][suite.name]
    thinking = {name: value for name, value in rule["thinking"].items() if name != "max_tokens"}
    rule = {**rule, "source": suite.source, "thinking": thinking, "every_steps": None}
    evaluation = {name: value for name, value in run.config["eval"].items() if name != "suites"}
    return json.dumps([{**run.config, "eval": evaluation}, rule], sort_keys=True)


def line_label(points: Sequence[Point]) -> str:
    """Return the names that the points have in common on the axes, and their suite or its source."""
    first = points[0]
    names = [name for axis, name in first.run.cell.items() if all(point.run.cell.get(axis) == name for point in points)]
    suites = {point.suite for point in points}
    source = first.run.suite(first.suite)
    names.append(first.suite if len(suites) == 1 or source is None else source.source)
    return " / ".join(names)


def scaling(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the mean slope of accuracy over thinking tokens, over all pairs of points with different tokens."""
    slopes = [(f_b - f_a) / (b - a) for (a, f_a), (b, f_b) in combinations(points, 2) if a != b]
    return fmean(slopes) if slopes else None


def forcing_table(gathered: Gathered, _suite: str) -> Table | None:
    """Return how each cell used its budgets of thinking."""
    rows: list[tuple[Value, ...]] = []
    for point in (point for line in budget_lines(gathered.runs) for point in line):
        waits = point.mean("waits")
        shares = [point.mean(measure) for measure in ("forced_ends", "no_final_answer", "control")]
        counts = (f"{point.budget:,}", f"{point.thinking_tokens:,.0f}", "" if waits is None else f"{waits:.2f}")
        rows.append((cell_label(point.run), point.suite, *counts, *shares, point.accuracy))
    return Table(
        name="forcing",
        title="Budget forcing",
        about="Means over completions at the last step. Forced ends: thinking used up its budget. No final answer: the "
        "answer is blank, or has all its tokens and no box. Control: the thinking kept to the budget and waited as "
        "often as asked, or had no room left to wait; the rule makes it 1 (arXiv 2501.19393).",
        columns=(
            *("cell", "suite", "budget", "thinking tokens", "waits"),
            *("forced ends", "no final answer", "control", "accuracy"),
        ),
        rows=tuple(rows),
    )


def scaling_table(gathered: Gathered, _suite: str) -> Table | None:
    """Return control, scaling and performance over the budgets that were compared."""
    rows: list[tuple[Value, ...]] = []
    for line in budget_lines(gathered.runs):
        if len(line) < 2:
            continue
        slope = scaling([(point.thinking_tokens, point.accuracy.mean) for point in line])
        controls = [control for point in line if (control := point.mean("control")) is not None]
        budgets = ", ".join(f"{point.budget:,}" for point in line)
        best = max(point.accuracy.mean for point in line)
        control = fmean(controls) if controls else None
        rows.append((line_label(line), budgets, control, None if slope is None else 1000 * slope, best))
    return Table(
        name="scaling",
        title="Accuracy by budget of thinking",
        about="The measures of arXiv 2501.19393, section 3.2. Control: the share of completions within the bounds. "
        "Scaling: the mean slope over all pairs of budgets, in points of accuracy for 1,000 thinking tokens. "
        "Performance: the largest accuracy.",
        columns=("cells", "budgets", "control", "scaling", "performance"),
        rows=tuple(rows),
    )
