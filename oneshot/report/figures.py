"""Gathered runs -> the report's figures as SVG, each with a name and a caption."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from matplotlib.figure import Figure

from oneshot.report.cells import by_cell, cell_label, finished, gains, over_seeds
from oneshot.report.forcing import budget_lines, line_label
from oneshot.report.plots import (
    as_svg,
    cost_scatter,
    forest,
    heatmap,
    short,
    sweep_curves,
    thinking_lines,
    training_curves,
)
from oneshot.report.runs import Gathered, Run, primary_suite
from oneshot.report.stats import Interval
from oneshot.report.verdicts import JudgedClaim
from oneshot.tasks.measures import is_share

MAX_ROWS, MAX_COLUMNS = 24, 12  # largest size of one heatmap. A larger matrix is drawn in several parts.
MAX_PARTS = 12  # most heatmaps of a report
RUNS_SHOWN = "Finished runs only; a cell without finished runs shows all its runs."


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One figure of the report."""

    name: str
    caption: str
    svg: str


def pictures(gathered: Gathered, judged: list[JudgedClaim]) -> list[Picture]:
    """Draw every figure that the sweep has data for."""
    return [
        Picture(name=name, caption=caption, svg=as_svg(figure, name=name))
        for name, caption, figure in drawn(gathered, judged)
    ]


def drawn(gathered: Gathered, judged: Sequence[JudgedClaim]) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and drawing of every figure that the sweep has data for."""
    runs, suite = gathered.runs, primary_suite(gathered)
    bars = [
        (
            f"{claim.name} ({', '.join(claim.cells.values())})" if claim.cells else claim.name,
            Interval(mean=claim.effect, low=claim.low, high=claim.high, num=claim.num_seeds),
        )
        for claim in judged
        if claim.effect is not None and is_share(claim.metric)
    ]
    if bars:
        yield (
            "claims",
            "The effect of each claim with its 95% interval.",
            forest(bars, title="claims: a - b", unit="difference (points of accuracy)"),
        )
    if suite is not None and any(suite in run.measured for run in runs):
        yield (
            "curves",
            "Held-out accuracy by step, mean over seeds with 95% t intervals. Dotted line: training "
            "reward; one that leaves 0 to 1 is scaled to it. Triangle: "
            f"t_sat, hollow if the reward of some run was still rising near the end. {RUNS_SHOWN}",
            sweep_curves(runs, suite=suite, name=gathered.name),
        )
        ended = by_cell(finished(runs))
        lines = [(cell_label(each[0]), gain) for each in ended if (gain := gains(each, suite)) is not None]
        if lines:
            yield (
                "gains",
                "The gain of each cell, mean over seeds with its 95% t interval.",
                forest(lines, title=f"gain on {short(suite)}, last step - start", unit="gain (points of accuracy)"),
            )
        yield from _matrices(gathered, suite)
        yield from _cost(gathered, suite)
    if lines_by_budget := budget_lines(runs):
        named = [
            (line_label(line), [(each.thinking_tokens, each.accuracy) for each in line]) for line in lines_by_budget
        ]
        yield (
            "thinking",
            "Accuracy at the last step against thinking tokens, mean over seeds with 95% t intervals. A line joins "
            "points that differ only in their budget.",
            thinking_lines(named, title=f"{short(gathered.name)}: budgets of thinking"),
        )
    if any("rollout/entropy" in row.metrics for run in runs for row in run.rows):
        yield (
            "training",
            f"Entropy and length of training completions. {RUNS_SHOWN}",
            training_curves(runs, name=gathered.name),
        )


def _matrices(gathered: Gathered, suite: str) -> Iterator[tuple[str, str, Figure]]:
    """Yield matrices of gains by model and example (or the first two axes), one for each cell of the other axes."""
    axes = list(gathered.runs[0].cell)
    if len(axes) < 2:
        return
    first = "model" if "model" in axes else axes[0]
    second = next(axis for axis in ("example", *axes) if axis in axes and axis != first)
    groups: dict[tuple[str, ...], list[list[Run]]] = {}
    for runs in by_cell(finished(gathered.runs)):
        rest = tuple(name for axis, name in runs[0].cell.items() if axis not in (first, second))
        groups.setdefault(rest, []).append(runs)
    parts = (part for rest, cells in groups.items() for part in _transfer(rest, cells, first, second, suite))
    shown = list(islice(parts, MAX_PARTS + 1))
    more = " Further matrices are left out; the table has all gains." if len(shown) > MAX_PARTS else ""
    for number, (caption, figure) in enumerate(shown[:MAX_PARTS]):
        yield f"transfer-{number}", f"{caption}{more}", figure


def _transfer(
    rest: Sequence[str], cells: Sequence[list[Run]], first: str, second: str, suite: str
) -> Iterator[tuple[str, Figure]]:
    """Yield one matrix of gains, in as many parts as it needs."""
    rows, columns = (list(dict.fromkeys(runs[0].cell[axis] for runs in cells)) for axis in (first, second))
    if len(rows) * len(columns) < 2:
        return
    values = {
        (runs[0].cell[first], runs[0].cell[second]): gain for runs in cells if (gain := gains(runs, suite)) is not None
    }
    parts = _parts(rows, columns, values)
    for number, (some_rows, some_columns) in enumerate(parts, 1):
        of = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
        where = "".join(f", {text}" for text in rest)
        title = f"gain on {short(suite)} (points){''.join(f', {short(text)}' for text in rest)}{of}"
        yield (
            f"Transfer{where}{of}: gain on {suite} in points by {first} and {second}, with 95% t intervals over seeds.",
            heatmap(values, rows=some_rows, columns=some_columns, title=title),
        )


def _parts(
    rows: Sequence[str], columns: Sequence[str], values: Mapping[tuple[str, str], Interval]
) -> list[tuple[Sequence[str], Sequence[str]]]:
    """Return rows and columns of each part that has a value."""
    parts = [
        (rows[top : top + MAX_ROWS], columns[left : left + MAX_COLUMNS])
        for top in range(0, len(rows), MAX_ROWS)
        for left in range(0, len(columns), MAX_COLUMNS)
    ]
    return [(down, across) for down, across in parts if any((y, x) in values for y in down for x in across)]


def _cost(gathered: Gathered, suite: str) -> Iterator[tuple[str, str, Figure]]:
    has_gpus = any(run.gpus for run in gathered.runs)
    points = []
    for runs in by_cell(finished(gathered.runs)):
        hours = over_seeds(runs, lambda run: run.gpu_hours if has_gpus else run.spent_h)
        gained = gains(runs, suite)
        if hours is not None and gained is not None:
            points.append((cell_label(runs[0]), hours.mean, gained))
    if len(points) > 1:
        unit = "GPU-hours a trial" if has_gpus else "hours a trial, on the CPU"
        yield (
            "cost",
            f"Gain on {suite} against {unit}.",
            cost_scatter(points, unit=unit, title=f"gain on {short(suite)}"),
        )
