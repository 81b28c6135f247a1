"""Rows of trials -> matplotlib figures. One axis each, no chart without its unit."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oneshot.plan import Plan
from oneshot.report.stats import mean_interval
from oneshot.standing import view
from oneshot.store import Row, Store

INK, FAINT = "#22303c", "#d7dee4"
PALETTE = ("#0b6e99", "#d1495b", "#66873a", "#8e5ea2", "#c98a1b", "#3f4a56")


def has_curve(row: Row) -> bool:
    """Whether a step has something that `trial_curve` draws."""
    return any(name == "reward/mean" or name.endswith("/pass_at_1") for name in row.metrics)


def trial_curve(rows: Sequence[Row], *, title: str) -> Figure:
    """Training reward, and held-out accuracy of each suite, by step."""
    figure, axes = _figure(7.0, 3.6)
    rewards = [(row.step, row.metrics["reward/mean"]) for row in rows if "reward/mean" in row.metrics]
    if rewards:
        axes.plot(*zip(*rewards, strict=True), color=PALETTE[4], linewidth=1.2, label="training reward")
    suites = sorted({name.split("/")[1] for row in rows for name in row.metrics if name.endswith("/pass_at_1")})
    for index, suite in enumerate(suites):
        name = f"eval/{suite}/pass_at_1"
        points = [(row.step, row.metrics[name]) for row in rows if name in row.metrics]
        axes.plot(*zip(*points, strict=True), color=PALETTE[index % 4], marker="o", label=f"{suite}, held out")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("step")
    axes.set_ylabel("reward, accuracy (pass@1)")
    axes.set_ylim(-0.02, 1.02)
    if rewards or suites:
        axes.legend(frameon=False, fontsize=8)
    return figure


def sweep_curves(plan: Plan, store: Store, *, suite: str) -> Figure:
    """Mean accuracy by step of every cell, one panel for each cell of the first axis, with 95% intervals over seeds."""
    curves: dict[str, dict[str, dict[int, list[float]]]] = {}
    for trial in plan.grid:
        if trial.key is None or suite not in trial.config.eval.suites:
            continue
        panel, *rest = trial.cell.values() or ("all",)
        by_step = curves.setdefault(panel, {}).setdefault(" / ".join(rest) or "trials", {})
        for row in view(trial, store.trial(trial.key)):
            accuracy = row.metrics.get(f"eval/{suite}/pass_at_1")
            if accuracy is not None:
                by_step.setdefault(row.step, []).append(accuracy)
    return _panels(curves, ylabel=f"accuracy on {suite} (pass@1)", title=plan.name)


def _panels(curves: Mapping[str, Mapping[str, Mapping[int, list[float]]]], *, ylabel: str, title: str) -> Figure:
    figure = Figure(figsize=(4.6 * max(1, len(curves)), 3.8), layout="constrained")
    panels = figure.subplots(1, max(1, len(curves)), sharey=True, squeeze=False)[0]
    for axes, (panel, lines) in zip(panels, curves.items(), strict=False):
        _dress(axes)
        for index, (name, by_step) in enumerate(lines.items()):
            steps = sorted(by_step)
            intervals = [mean_interval(by_step[step]) for step in steps]
            color = PALETTE[index % len(PALETTE)]
            axes.plot(steps, [i.mean for i in intervals], color=color, marker="o", markersize=4, label=name)
            axes.fill_between(
                steps,
                [i.low if i.low is not None else i.mean for i in intervals],
                [i.high if i.high is not None else i.mean for i in intervals],
                color=color,
                alpha=0.15,
                linewidth=0,
            )
        axes.set_title(panel, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("step")
        axes.set_ylim(-0.02, 1.02)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    panels[0].set_ylabel(ylabel)
    figure.suptitle(f"{title}: mean over seeds, 95% t interval", fontsize=10, color=INK, x=0.01, ha="left")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _dress(axes)
    return figure, axes


def _dress(axes: Axes) -> None:
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
