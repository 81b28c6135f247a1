"""Runs -> matplotlib figures, and figures -> SVG that follows a page's light and dark mode. Every axis has a unit."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle, islice
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oneshot.logs import printable
from oneshot.report.cells import by_cell, cell_label, finished
from oneshot.report.runs import Run
from oneshot.report.stats import SHARE, UNBOUNDED, Interval, mean_interval
from oneshot.report.steps import saturation
from oneshot.store.records import Row

INK, FAINT = "#22303c", "#d7dee4"
PALETTE = ("#2489b8", "#d1495b", "#66873a", "#8e5ea2", "#c98a1b", "#5f7a8c")
"""Colours that differ from paper and from ink, on white and on near black."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "legend.labelcolor": INK,
    "font.size": 9,
}
MAX_LINES = 8  # most coloured lines of one panel. Further lines are drawn faintly.
MAX_COLUMNS = 3
MAX_CELLS = 60  # most cells of one figure or panel
MAX_PANELS = 12
MAX_CHARS = 40  # most characters of a name in a figure. A longer name loses its middle.
NUM_CHARS_ACROSS, CHAR_INCHES = 16, 0.07  # characters that fit above a column of a matrix, and the width of one


def short(text: str) -> str:
    """Return a name as a figure writes it: one line, at most MAX_CHARS long, and never hidden."""
    line = printable(" ".join(text.split()))
    if len(line) > MAX_CHARS:
        line = f"{line[: MAX_CHARS - 16]}…{line[-15:]}"
    return f"\u200b{line}" if line.startswith("_") else line  # a legend hides names that begin with _


def _left_out(num_cells: int) -> str:
    """Return what a title adds if the figure leaves out cells."""
    return f"; {num_cells:,} more cells are in the table" if num_cells > 0 else ""


def has_curve(row: Row) -> bool:
    """Return whether a step has a metric that `trial_curve` draws."""
    return any(name == "reward/mean" or name.endswith("/pass_at_1") for name in row.metrics)


@mpl.rc_context(STYLE)
def trial_curve(rows: Sequence[Row], *, title: str) -> Figure:
    """Draw training reward and the held-out accuracy on each suite by step."""
    figure, (axes,) = _figure(7.0, 3.6)
    rewards = dict(_points(rows, "reward/mean"))
    if rewards:
        drawn = _on_share_axis(rewards)
        label = "training reward" if drawn == rewards else "training reward, scaled to 0 to 1"
        axes.plot(list(drawn), list(drawn.values()), color=PALETTE[4], linewidth=1.2, label=label)
    suites = sorted({name.split("/")[1] for row in rows for name in row.metrics if name.endswith("/pass_at_1")})
    for index, suite in enumerate(suites):
        points, label = _points(rows, f"eval/{suite}/pass_at_1"), short(f"{suite}, held out")
        axes.plot(*zip(*points, strict=True), color=PALETTE[index % 4], marker="o", label=label)
    axes.set_title(short(title), loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("reward, accuracy (pass@1)")
    axes.set_ylim(-0.02, 1.02)
    if rewards or suites:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _on_share_axis(rewards: Mapping[int, float]) -> dict[int, float]:
    """Return rewards by step, with their own range scaled to 0 to 1 if they leave it: the axis shows shares."""
    low, high = min(rewards.values(), default=0.0), max(rewards.values(), default=0.0)
    if low >= 0 and high <= 1:
        return dict(rewards)
    return {step: (reward - low) / ((high - low) or 1.0) for step, reward in rewards.items()}


def _points(rows: Sequence[Row], metric: str) -> list[tuple[int, float]]:
    return [(row.step, row.metrics[metric]) for row in rows if metric in row.metrics]


@mpl.rc_context(STYLE)
def sweep_curves(runs: Sequence[Run], *, suite: str, name: str) -> Figure:
    """Draw held-out accuracy by step (mean over seeds, 95% t intervals), and training reward (dotted) with t_sat.

    Each cell of the first axis has a panel. A cell shows its finished runs, or all its runs if none finished.
    """
    panels: dict[str, list[list[Run]]] = {}
    for cell_runs in by_cell(runs):
        if cell_runs[0].suite(suite) is not None:
            panels.setdefault(next(iter(cell_runs[0].cell.values()), "all"), []).append(cell_runs)
    shown = {panel: cells[:MAX_CELLS] for panel, cells in islice(panels.items(), MAX_PANELS)}
    figure, all_axes = _figure(4.4, 3.4, num=len(shown))
    for axes, (panel, cells) in zip(all_axes, shown.items(), strict=False):
        for index, cell_runs in enumerate(cells):
            _draw_cell(axes, finished(cell_runs) or cell_runs, suite, index=index)
        axes.set_title(short(panel), loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(-0.02, 1.02)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=7, loc="best")
    all_axes[0].set_ylabel(f"accuracy on {short(suite)} (pass@1)")
    title = f"{short(name)}: held-out accuracy, mean over seeds, 95% t interval; dotted: training reward"
    num_more = sum(map(len, panels.values())) - sum(map(len, shown.values()))
    figure.suptitle(f"{title}{_left_out(num_more)}", fontsize=9, x=0.01, ha="left")
    return figure


def _draw_cell(axes: Axes, runs: Sequence[Run], suite: str, *, index: int) -> None:
    """Draw one cell's accuracy with its interval, its training reward, and the step where that saturates."""
    color, is_faint = PALETTE[index % len(PALETTE)], index >= MAX_LINES
    label = short(" / ".join(list(runs[0].cell.values())[1:]) or "trials")
    measured = [run.measured.get(suite, {}).items() for run in runs]
    accuracies = _by_step(
        [{step: numbers["pass_at_1"] for step, numbers in steps if "pass_at_1" in numbers} for steps in measured],
        bounds=SHARE,
    )
    _draw_band(axes, accuracies, color=FAINT if is_faint else color, label="" if is_faint else label, marker="o")
    if is_faint:
        return
    by_step = _by_step([dict(_points(run.rows, "reward/mean")) for run in runs])
    rewards = _on_share_axis({step: interval.mean for step, interval in by_step.items()})
    axes.plot(list(rewards), list(rewards.values()), color=color, linewidth=0.9, linestyle=":")
    saturations = [saturated for run in finished(runs) if (saturated := saturation(run)) is not None]
    if saturations:
        mean_step = fmean(saturated.step for saturated in saturations)
        fill = color if all(saturated.is_seen for saturated in saturations) else "none"
        axes.plot([mean_step], [1.0], color=color, markerfacecolor=fill, marker="v", markersize=6, linestyle="none")


def _by_step(series: Sequence[Mapping[int, float]], *, bounds: tuple[float, float] = UNBOUNDED) -> dict[int, Interval]:
    """Return mean and interval at each step of several runs' numbers."""
    values: dict[int, list[float]] = {}
    for numbers_by_step in series:
        for step, number in numbers_by_step.items():
            values.setdefault(step, []).append(number)
    return {step: mean_interval(numbers, bounds=bounds) for step, numbers in sorted(values.items())}


def _draw_band(axes: Axes, points: Mapping[int, Interval], *, color: str, label: str, marker: str = "") -> None:
    steps, intervals = list(points), list(points.values())
    means = [interval.mean for interval in intervals]
    axes.plot(steps, means, color=color, marker=marker, markersize=3.5, label=label or "_hidden")
    lows = [each.mean if each.low is None else each.low for each in intervals]
    highs = [each.mean if each.high is None else each.high for each in intervals]
    axes.fill_between(steps, lows, highs, color=color, alpha=0.15, linewidth=0)


@mpl.rc_context(STYLE)
def training_curves(runs: Sequence[Run], *, name: str) -> Figure:
    """Draw entropy and length of training completions by step, mean over seeds with 95% t intervals.

    A cell shows its finished runs, or all its runs if none finished.
    """
    cells = [finished(cell_runs) or cell_runs for cell_runs in by_cell(runs)]
    figure, all_axes = _figure(6.0, 3.2, num=2)
    units = {"rollout/entropy": "entropy (nats a token)", "rollout/length_mean": "length (tokens)"}
    for axes, (metric, unit) in zip(all_axes, units.items(), strict=True):
        for index, cell_runs in enumerate(cells[:MAX_CELLS]):
            is_faint = index >= MAX_LINES
            color = FAINT if is_faint else PALETTE[index % len(PALETTE)]
            label = "" if is_faint else short(cell_label(cell_runs[0]))
            _draw_band(axes, _by_step([dict(_points(run.rows, metric)) for run in cell_runs]), color=color, label=label)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
    handles, labels = all_axes[0].get_legend_handles_labels()
    if labels:
        num_columns = 4 if max(map(len, labels)) <= MAX_CHARS // 2 else 2
        figure.legend(handles, labels, loc="outside lower center", ncols=num_columns, frameon=False)
    more = _left_out(len(cells) - MAX_CELLS)
    figure.suptitle(f"{short(name)}: training completions, mean over seeds{more}", fontsize=9, x=0.01, ha="left")
    return figure


@mpl.rc_context(STYLE)
def forest(lines: Sequence[tuple[str, Interval]], *, title: str, unit: str) -> Figure:
    """Draw differences of shares in points with their intervals, one below the other, and a vertical line at 0."""
    shown = list(lines[:MAX_CELLS])
    figure, (axes,) = _figure(7.0, 1.2 + 0.26 * len(shown))
    places = range(len(shown), 0, -1)
    for place, (_, interval) in zip(places, shown, strict=True):
        axes.plot([100 * interval.mean], [place], "o", color=PALETTE[0], markersize=4.5)
        if interval.low is not None and interval.high is not None:
            axes.plot([100 * interval.low, 100 * interval.high], [place, place], color=PALETTE[0], linewidth=1.6)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(list(places), [short(label) for label, _ in shown])
    axes.set_ylim(0.4, len(shown) + 0.6)
    axes.set_xlabel(unit)
    axes.set_title(f"{title}{_left_out(len(lines) - len(shown))}", loc="left", fontsize=9)
    return figure


@mpl.rc_context(STYLE)
def heatmap(
    values: Mapping[tuple[str, str], Interval], *, rows: Sequence[str], columns: Sequence[str], title: str
) -> Figure:
    """Draw a matrix of gains in points, each with its interval.

    `values` may have other cells too: the largest of all values sets the scale of the colours.
    """
    largest = max((abs(gain.mean) for gain in values.values()), default=1.0) or 1.0
    names, heads = ([short(name) for name in side] for side in (rows, columns))
    longest = max(map(len, heads))
    is_turned = len(columns) > 4 or longest > NUM_CHARS_ACROSS
    width = 1.6 + 1.35 * len(columns) + CHAR_INCHES * max(0, max(map(len, names)) - NUM_CHARS_ACROSS)
    height = 1.3 + 0.62 * len(rows) + (CHAR_INCHES * longest / 2 if is_turned else 0)
    figure, (axes,) = _figure(width, height)
    axes.grid(visible=False)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if (gain := values.get((row, column))) is None:
                continue
            strength = 0.55 * abs(gain.mean) / largest
            color = PALETTE[0] if gain.mean >= 0 else PALETTE[1]
            left, right, top, bottom = x - 0.5, x + 0.5, y - 0.5, y + 0.5
            corners = [left, right, right, left], [top, top, bottom, bottom]
            axes.fill(*corners, color=color, alpha=strength, linewidth=0)
            text = f"{100 * gain.mean:+.1f}"
            if gain.low is not None and gain.high is not None:
                text += f"\n[{100 * gain.low:.0f}, {100 * gain.high:.0f}]"
            axes.text(x, y, text, ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(columns)), heads, rotation=30 if is_turned else 0, ha="right" if is_turned else "center")
    axes.set_yticks(range(len(rows)), names)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(title, loc="left", fontsize=9)
    return figure


@mpl.rc_context(STYLE)
def cost_scatter(points: Sequence[tuple[str, float, Interval]], *, unit: str, title: str) -> Figure:
    """Draw gain against hours, one point for each cell."""
    figure, (axes,) = _figure(6.0, 3.4)
    for (label, hours, gained), color in zip(points, cycle(PALETTE), strict=False):
        name = short(label) if len(points) <= MAX_LINES else "_hidden"
        axes.plot([hours], [100 * gained.mean], "o", color=color, label=name)
        if gained.low is not None and gained.high is not None:
            axes.plot([hours, hours], [100 * gained.low, 100 * gained.high], color=color, linewidth=1.2)
    axes.set_xlabel(unit)
    axes.set_ylabel("gain (points)")
    if 0 < len(points) <= MAX_LINES:
        axes.legend(frameon=False, fontsize=7)
    axes.set_title(title, loc="left", fontsize=9)
    return figure


@mpl.rc_context(STYLE)
def thinking_lines(lines: Sequence[tuple[str, Sequence[tuple[float, Interval]]]], *, title: str) -> Figure:
    """Draw accuracy against thinking tokens, one line for each set of budgets."""
    figure, (axes,) = _figure(6.0, 3.4)
    for index, (label, points) in enumerate(lines):
        color = PALETTE[index % len(PALETTE)] if index < MAX_LINES else FAINT
        tokens, intervals = zip(*points, strict=True)
        name = short(label) if index < MAX_LINES else "_hidden"
        axes.plot(tokens, [each.mean for each in intervals], "o-", color=color, markersize=4, linewidth=1.2, label=name)
        for x, each in points:
            if each.low is not None and each.high is not None:
                axes.plot([x, x], [each.low, each.high], color=color, linewidth=1.2)
    axes.set_xlabel("thinking tokens (mean)")
    axes.set_ylabel("accuracy (pass@1)")
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize=7)
    axes.set_title(title, loc="left", fontsize=9)
    return figure


def as_svg(figure: Figure, *, name: str) -> str:
    """Return the figure as the text of an SVG file, the same text each time."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text, in the reader's own font
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def inline(svg: str, *, label: str) -> str:
    """Return an SVG for use within a page, in the page's colours and with a label for screen readers."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    body = re.sub(r'(<svg[^>]*?) width="([^"]*)"', r'\1 style="width: \2"', body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _figure(width: float, height: float, *, num: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of equal panels, at most three in a row."""
    num = max(1, num)
    columns = min(num, MAX_COLUMNS)
    rows = -(-num // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = [axes for line in figure.subplots(rows, columns, squeeze=False) for axes in line]
    for axes in panels[num:]:
        axes.remove()
    for axes in panels[:num]:
        axes.grid(visible=True, color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels[:num]
