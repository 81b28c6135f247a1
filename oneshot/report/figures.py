"""Gathered runs -> the report's figures, as SVG files by name, each with what it shows in a sentence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from oneshot.report.cells import by_cell, cell_label, finished, gains, over_seeds
from oneshot.report.phenomena import primary_suite
from oneshot.report.plots import as_svg, cost_scatter, forest, heatmap, short, sweep_curves, training_curves
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import Interval
from oneshot.report.verdicts import JudgedClaim
from oneshot.tasks.measures import is_share

MAX_ROWS, MAX_COLUMNS = 24, 12
"""Of one heatmap; a larger matrix is drawn in several."""
WHOSE = "Finished runs; of a cell without any, those that there are."
"""Of which runs a curve is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One figure of the report."""

    name: str
    caption: str
    svg: str


def pictures(gathered: Gathered, judged: list[JudgedClaim]) -> list[Picture]:
    """All that there is something to draw for."""
    return [
        Picture(name=name, caption=caption, svg=as_svg(figure, name=name))
        for name, caption, figure in _drawn(gathered, judged)
    ]


def _drawn(gathered: Gathered, judged: list[JudgedClaim]) -> Iterator[tuple[str, str, Figure]]:
    runs, suite = gathered.runs, primary_suite(gathered)
    bars = [
        (
            _claim_label(one),
            Interval(mean=100 * one.effect, low=_points(one.low), high=_points(one.high), num=one.num_seeds),
        )
        for one in judged
        if one.effect is not None and is_share(one.metric)
    ]
    if bars:
        yield (
            "claims",
            "Every claim's effect with its 95% interval.",
            forest(bars, title="claims: a - b", unit="difference (points of accuracy)"),
        )
    if suite is not None and any(suite in run.measured for run in runs):
        yield (
            "curves",
            "Held-out accuracy by step, mean over seeds, 95% t intervals. Dotted: training reward. Triangle: t_sat, "
            f"hollow where the reward was still rising near the end of some run. {WHOSE}",
            sweep_curves(runs, suite=suite, name=gathered.name),
        )
        lines = [
            (
                cell_label(those[0]),
                Interval(mean=100 * one.mean, low=_points(one.low), high=_points(one.high), num=one.num),
            )
            for those in by_cell(finished(runs))
            if (one := gains(those, suite)) is not None
        ]
        if lines:
            yield (
                "gains",
                "Every cell's gain, mean over seeds with its 95% t interval.",
                forest(lines, title=f"gain on {short(suite)}, last step less start", unit="gain (points of accuracy)"),
            )
        yield from _matrices(gathered, suite)
        yield from _cost(gathered, suite)
    if any("rollout/entropy" in row.metrics for run in runs for row in run.rows):
        yield (
            "training",
            f"Entropy and length of training completions. {WHOSE}",
            training_curves(runs, name=gathered.name),
        )


def _points(end: float | None) -> float | None:
    return None if end is None else 100 * end


def _claim_label(judged: JudgedClaim) -> str:
    where = ", ".join(judged.cells.values())
    return f"{judged.name} ({where})" if where else judged.name


def _matrices(gathered: Gathered, suite: str) -> Iterator[tuple[str, str, Figure]]:
    """Transfer: models by examples, where both have several cells or one of them has; a matrix for each other cell."""
    axes = list(gathered.runs[0].cell)
    if len(axes) < 2:
        return
    first = "model" if "model" in axes else axes[0]
    second = "example" if "example" in axes else next(axis for axis in axes if axis != first)
    groups: dict[tuple[str, ...], list[list[Run]]] = {}
    for those in by_cell(finished(gathered.runs)):
        rest = tuple(name for axis, name in those[0].cell.items() if axis not in (first, second))
        groups.setdefault(rest, []).append(those)
    drawn = (one for rest, cells in groups.items() for one in _transfer(rest, cells, first, second, suite))
    for number, (caption, figure) in enumerate(drawn):
        yield f"transfer-{number}", caption, figure


def _transfer(
    rest: Sequence[str], cells: Sequence[list[Run]], first: str, second: str, suite: str
) -> Iterator[tuple[str, Figure]]:
    """One matrix of gains, in as many parts as it needs."""
    rows, columns = (list(dict.fromkeys(those[0].cell[axis] for those in cells)) for axis in (first, second))
    if len(rows) * len(columns) < 2:
        return
    values = {
        (those[0].cell[first], those[0].cell[second]): one
        for those in cells
        if (one := gains(those, suite)) is not None
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
    """Rows and columns of each part that has something to show."""
    found = [
        (rows[top : top + MAX_ROWS], columns[left : left + MAX_COLUMNS])
        for top in range(0, len(rows), MAX_ROWS)
        for left in range(0, len(columns), MAX_COLUMNS)
    ]
    return [(down, across) for down, across in found if any((y, x) in values for y in down for x in across)]


def _cost(gathered: Gathered, suite: str) -> Iterator[tuple[str, str, Figure]]:
    has_gpus = any(run.gpus for run in gathered.runs)
    points = []
    for those in by_cell(finished(gathered.runs)):
        hours = over_seeds(those, lambda run: run.gpu_hours if has_gpus else run.spent_h)
        gained = gains(those, suite)
        if hours is not None and gained is not None:
            points.append((cell_label(those[0]), hours.mean, gained))
    if len(points) > 1:
        unit = "GPU-hours a trial" if has_gpus else "hours a trial, on the CPU"
        yield (
            "cost",
            f"Gain on {suite} against {unit}.",
            cost_scatter(points, unit=unit, title=f"gain on {short(suite)}"),
        )
