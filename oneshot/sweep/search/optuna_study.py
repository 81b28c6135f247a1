"""The points of a study so far -> the next point, the importance of each path, and figures.

An Optuna study exists only during one call, in memory, and is rebuilt from the points. So there is no state to lose,
and the same points give the same next point in any process.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from oneshot.config.search import RangeConfig, SamplerConfig
from oneshot.report.plots import FAINT, INK, PALETTE
from oneshot.sweep.search.points import Mode, Point, best, breaks, value_of

Space = Mapping[str, RangeConfig]

FEW_POINTS = 5  # with fewer points, importances mean nothing
TOP_QUANTILE = 0.1  # share of the points that counts as good; Optuna's default

optuna.logging.set_verbosity(optuna.logging.ERROR)


def ask(
    space: Space,
    points: Sequence[Point],
    *,
    study: str,
    sampler: SamplerConfig,
    mode: Mode,
    given: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Return the next point: a value for every path of `space`; values in `given` are taken as they are.

    TPE is Optuna 5's: multivariate, with a constant liar for pending points. Given values lie in their range, or
    are one of its choices, with the right type: the caller checks that.
    """
    digest = hashlib.sha256(json.dumps([sampler.seed, study, len(points)]).encode()).digest()
    seeded = _sampler(sampler, points, seed=int.from_bytes(digest[:4], "big"))
    fresh_study = _restored(space, points, mode=mode, sampler=seeded)
    fresh_study.enqueue_trial({path: _encoded(of, given[path]) for path, of in space.items() if path in given})
    params = fresh_study.ask(fixed_distributions=_distributions(space)).params
    return {path: _decoded(of, params[path]) for path, of in space.items()}


def importances(space: Space, points: Sequence[Point], mode: Mode) -> dict[str, float]:
    """Return each path's share in reaching the best tenth (PED-ANOVA, arxiv.org/abs/2304.10255), largest first.

    Empty with too few complete points, or if the best tenth is not better than the worst point.
    """
    complete = [point for point in points if value_of(point) is not None]
    values = sorted((value for point in complete if (value := value_of(point)) is not None), reverse=mode == "max")
    if len(values) < FEW_POINTS or values[math.ceil(TOP_QUANTILE * len(values)) - 1] == values[-1]:
        return {}
    shares = get_param_importances(
        _restored(space, complete, mode=mode, sampler=RandomSampler(seed=0)),
        evaluator=PedAnovaImportanceEvaluator(target_quantile=TOP_QUANTILE),
        params=list(space),
    )
    return {path: float(shares[path]) for path in sorted(space, key=lambda path: -shares[path])}


def _sampler(config: SamplerConfig, points: Sequence[Point], *, seed: int) -> BaseSampler:
    if config.kind == "random":
        return RandomSampler(seed=seed)
    # infeasible points that Optuna is shown as running do not count as startup points, but they were
    num_hidden = 0 if _any_ended(points) else sum(_is_infeasible(point) for point in points)
    return TPESampler(n_startup_trials=max(0, config.num_startup - num_hidden), seed=seed)


def _restored(space: Space, points: Sequence[Point], *, mode: Mode, sampler: BaseSampler) -> optuna.Study:
    study = optuna.create_study(sampler=sampler, direction="maximize" if mode == "max" else "minimize")
    study.add_trials(trials_of(space, points))
    return study


def trials_of(space: Space, points: Sequence[Point]) -> list[FrozenTrial]:
    """Return the points as Optuna's trials."""
    ended = _any_ended(points)
    return [_trial(space, point, ended=ended) for point in points]


def _trial(space: Space, point: Point, *, ended: bool) -> FrozenTrial:
    """Return a point as the Optuna trial from which TPE learns it.

    An infeasible point is a pruned trial with an infinite violation, which TPE counts among the bad ones unless the
    best tenth cannot be filled otherwise. So until a point has ended well it is a running trial, which always counts
    among the bad ones. A failed trial would teach TPE nothing.
    """
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "pending": TrialState.RUNNING}
    violation = point.violation
    if _is_infeasible(point):
        states[point.state] = TrialState.PRUNED if ended else TrialState.RUNNING
        violation = math.inf
    return create_trial(
        state=states[point.state],
        params={path: _encoded(of, point.params[path]) for path, of in space.items()},
        distributions=_distributions(space),
        value=value_of(point),
        intermediate_values=dict(point.steps),
        constraints={} if violation is None else {"violation": violation},
    )


def _any_ended(points: Sequence[Point]) -> bool:
    return any(point.state != "pending" and not _is_infeasible(point) for point in points)


def _is_infeasible(point: Point) -> bool:
    return point.state == "infeasible" or (point.state == "complete" and value_of(point) is None)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {path: _distribution(of) for path, of in space.items()}


def _distribution(of: RangeConfig) -> BaseDistribution:
    if of.choice is not None:
        # Optuna takes True for 1, and 1 for 1.0
        return CategoricalDistribution([repr(value) for value in of.choice])
    low, high = _ends(of)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=of.log)
    return FloatDistribution(low, high, log=of.log)


def _encoded(of: RangeConfig, value: Any) -> Any:
    if of.choice is not None:
        assert repr(value) in map(repr, of.choice), f"{value!r} is not one of {of.choice}"
        return repr(value)
    low, high = _ends(of)
    assert low <= value <= high, f"{value!r} is not between {low} and {high}"
    return value


def _decoded(of: RangeConfig, value: Any) -> Any:
    if of.choice is not None:
        return next(choice for choice in of.choice if repr(choice) == value)
    low, high = _ends(of)
    if isinstance(low, int) and isinstance(high, int):
        return int(value)
    # exp(log(high)) may exceed high in the last digit
    return float(min(max(value, low), high))


def _ends(of: RangeConfig) -> tuple[int | float, int | float]:
    assert of.low is not None and of.high is not None
    return of.low, of.high


def figures(space: Space, points: Sequence[Point], mode: Mode, *, metric: str) -> dict[str, Figure]:
    """Return `history`, and if possible `parallel_coordinates` and `importances`.

    Optuna's own figures cut long paths and change pyplot's style for the whole process.
    """
    drawn = {"history": _history(points, mode, metric=metric)}
    if any(value_of(point) is not None for point in points):
        drawn["parallel_coordinates"] = _parallel_coordinates(space, points, mode, metric=metric)
    if shares := importances(space, points, mode):
        drawn["importances"] = _importances(shares, metric=metric)
    return drawn


def _history(points: Sequence[Point], mode: Mode, *, metric: str) -> Figure:
    figure, axes = _figure(7.0, 3.6, title=f"{metric} of each point")
    complete = {index: value for index, point in enumerate(points) if (value := value_of(point)) is not None}
    kept = {index: value for index, value in complete.items() if not breaks(points[index])}
    broken = {index: value for index, value in complete.items() if breaks(points[index])}
    stopped = {
        index: point.steps[max(point.steps)]
        for index, point in enumerate(points)
        if point.state == "pruned" and point.steps
    }
    failed = [index for index, point in enumerate(points) if _is_infeasible(point)]
    axes.plot(list(kept), list(kept.values()), "o", color=PALETTE[0], label="complete")
    if broken:
        axes.plot(
            list(broken), list(broken.values()), "o", color=PALETTE[0], mfc="white", label="breaks the constraint"
        )
    if stopped:
        axes.plot(list(stopped), list(stopped.values()), "x", color=PALETTE[4], label="stopped early: last value")
    if failed:
        floor = axes.get_xaxis_transform()
        axes.plot(failed, [0.0] * len(failed), "^", color=PALETTE[1], transform=floor, clip_on=False, label="no value")
    winners = [(end, best(points[: end + 1], mode)) for end in range(len(points))]
    line = [(end, kept[winner]) for end, winner in winners if winner is not None]
    if line:
        axes.step(*zip(*line, strict=True), where="post", color=PALETTE[2], linewidth=1.2, label="best so far")
    axes.set_xlabel("point")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _importances(shares: Mapping[str, float], *, metric: str) -> Figure:
    figure, axes = _figure(7.0, 0.8 + 0.4 * len(shares), title=f"{metric}: what the best tenth has in common")
    bars = axes.barh(list(shares), list(shares.values()), color=PALETTE[0], height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("share of importance (PED-ANOVA)")
    return figure


def _parallel_coordinates(space: Space, points: Sequence[Point], mode: Mode, *, metric: str) -> Figure:
    values = [value for point in points if (value := value_of(point)) is not None]
    low, high = min(values), max(values)
    last = RangeConfig(low=low, high=high if high > low else low + abs(low) + 1.0)
    columns = {**space, metric: last}
    title = "dark is better, dotted breaks the constraint, red has no value"
    figure, axes = _figure(max(6.0, 1.2 + 1.5 * len(columns)), 4.0, title=title)
    for point in points:
        heights = [_height(of, point.params[path]) for path, of in space.items()]
        value = value_of(point)
        if value is not None:
            height = _height(last, value)
            good = height if mode == "max" else 1 - height
            line = ":" if breaks(point) else "-"
            axes.plot([*heights, height], line, color=colormaps["viridis_r"](good), linewidth=1.2, zorder=2 + good)
        elif _is_infeasible(point):
            axes.plot(heights, color=PALETTE[1], linewidth=0.6, alpha=0.6, zorder=1)
    for index, of in enumerate(columns.values()):
        axes.axvline(index, color=INK, linewidth=0.8, zorder=4)
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5}
        for height, label in _ticks(of):
            axes.text(index + 0.04, height, label, fontsize=7, va="center", color=INK, bbox=box, zorder=5)
    axes.set_xlim(-0.3, len(columns) - 0.5)
    axes.set_xticks(range(len(columns)), [path.replace(".", ".\n").replace("/", "/\n") for path in columns])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _height(of: RangeConfig, value: Any) -> float:
    """Return the position of a value in its range, from 0 to 1."""
    if of.choice is not None:
        return [repr(choice) for choice in of.choice].index(repr(value)) / (len(of.choice) - 1)
    low, high = _ends(of)
    if of.log:
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


def _ticks(of: RangeConfig) -> list[tuple[float, str]]:
    if of.choice is not None:
        return [(_height(of, choice), str(choice)) for choice in of.choice]
    low, high = _ends(of)
    return [
        (share, f"{low * (high / low) ** share if of.log else low + share * (high - low):.3g}") for share in (0, 0.5, 1)
    ]


def _figure(width: float, height: float, *, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    axes = figure.subplots()
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
