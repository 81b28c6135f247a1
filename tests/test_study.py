"""Studies: the same points give the same next one, what was told is learned from, and pictures come."""

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from statistics import mean, median
from typing import Any

import matplotlib.pyplot as plt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot.config.search import RangeConfig, SamplerConfig
from oneshot.sweep.search.optuna_study import ask, figures, importances
from oneshot.sweep.search.points import Point, best

LR = RangeConfig(low=1e-7, high=1e-3, log=True)
SPACE = {"optim.lr": LR, "loss.kl_coef": RangeConfig(choice=[0.0, 0.001, 0.01])}
UNIT = {"x": RangeConfig(low=0.0, high=1.0)}
START = {"optim.lr": 1e-5, "loss.kl_coef": 0.001}
METRIC = "eval/arithmetic-val/pass_at_1"

Objective = Callable[[Mapping[str, Any]], float | None]


def bowl(params: Mapping[str, Any]) -> float:
    """Best at 1e-5 and 0.001, where it is 0."""
    return -((math.log10(params["optim.lr"]) + 5) ** 2) - (params["loss.kl_coef"] != 0.001)


def told(params: Mapping[str, Any], value: float | None, **fields: Any) -> Point:
    return Point(params=params, state="infeasible" if value is None else "complete", value=value, **fields)


def asked(
    objective: Objective,
    num_points: int,
    *,
    parallel: int = 1,
    begun: Sequence[Mapping[str, Any]] = (),
    study: str = "s",
    space: Mapping[str, RangeConfig] = SPACE,
    **sampler: Any,
) -> list[dict[str, Any]]:
    """Points of a study after those in `begun`, each asked while the last `parallel` - 1 before it are pending."""
    config = SamplerConfig.model_validate(sampler)
    points = [dict(point) for point in begun]
    while len(points) < num_points:
        ended = max(0, len(points) - parallel + 1)
        known = [told(point, objective(point)) for point in points[:ended]]
        known += [Point(params=point, state="pending") for point in points[ended:]]
        points.append(ask(space, known, study=study, sampler=config, mode="max"))
    return points


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_study_is_the_same_wherever_it_is_cut(kind: str, parallel: int) -> None:
    whole = asked(bowl, 14, kind=kind, parallel=parallel, num_startup=5)
    for cut in (5, 12):
        assert asked(bowl, 14, kind=kind, parallel=parallel, num_startup=5, begun=whole[:cut]) == whole


def test_a_study_is_the_same_in_another_process() -> None:
    here = asked(bowl, 12, kind="tpe", num_startup=3)
    code = "import json, test_study as t; print(json.dumps(t.asked(t.bowl, 12, kind='tpe', num_startup=3)))"
    env = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": os.path.dirname(__file__)}
    there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(there.stdout) == here


def test_a_point_does_not_depend_on_the_order_of_what_is_told() -> None:
    points = asked(bowl, 8, kind="tpe", num_startup=3)
    turned = [dict(reversed(point.items())) for point in points]
    sampler = SamplerConfig(num_startup=3)
    ways = [
        ask(SPACE, [told(point, bowl(point)) for point in way], study="s", sampler=sampler, mode="max")
        for way in (points, turned)
    ]
    assert ways[0] == ways[1]
    assert list(ways[0]) == list(SPACE)


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_studies_of_other_names_and_seeds_ask_other_points(kind: str) -> None:
    first = asked(bowl, 2, kind=kind)
    assert first != asked(bowl, 2, kind=kind, study="other")
    assert first != asked(bowl, 2, kind=kind, seed=1)
    assert first[0] != first[1]


def test_tpe_finds_more_than_chance() -> None:
    found = {
        kind: [max(map(bowl, asked(bowl, 30, kind=kind, seed=seed))) for seed in range(10)]
        for kind in ("tpe", "random")
    }
    assert median(found["tpe"]) > median(found["random"])
    assert mean(found["tpe"]) > mean(found["random"])


def test_tpe_looks_for_the_small_in_mode_min() -> None:
    known = [told({"x": x / 12}, x / 12) for x in range(13)]
    points = {
        mode: [ask(UNIT, known, study=str(n), sampler=SamplerConfig(), mode=mode)["x"] for n in range(10)]
        for mode in ("max", "min")
    }
    assert mean(points["min"]) < 0.3
    assert mean(points["max"]) > 0.7


def test_infeasible_points_are_avoided() -> None:
    def half(params: Mapping[str, Any]) -> float | None:
        """Nothing from 1e-5 on, and best at 3e-6, near it."""
        return -abs(math.log10(params["optim.lr"] / 3e-6)) if params["optim.lr"] < 1e-5 else None

    def share(kind: str) -> float:
        runs = [asked(half, 30, kind=kind, seed=seed)[10:] for seed in range(8)]
        return mean(half(point) is None for run in runs for point in run)

    assert share("tpe") < 0.7 * share("random")


def test_where_all_points_are_infeasible_others_are_sought() -> None:
    known = [told({"x": 0.8 + x / 100}, None) for x in range(12)]
    points = [ask(UNIT, known, study=str(n), sampler=SamplerConfig(), mode="max")["x"] for n in range(10)]
    assert max(points) < 0.75


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_none(value: float) -> None:
    ends = [told(point, bowl(point)) for point in asked(bowl, 12)]
    ways = [[*ends, Point(params=START, state="complete", value=value)], [*ends, told(START, None)]]
    points = [ask(SPACE, way, study="s", sampler=SamplerConfig(), mode="max") for way in ways]
    assert points[0] == points[1]
    assert best(ways[0], "max") == best(ways[1], "max") != 12
    assert importances(SPACE, ways[0], "max") == importances(SPACE, ways[1], "max")
    for figure in figures(SPACE, ways[0], "max", metric=METRIC).values():
        figure.savefig(BytesIO())


def test_points_that_break_the_constraint_are_avoided() -> None:
    # the largest values, from 0.5 on, break it
    known = [told({"x": x / 19}, x / 19, violation=x / 19 - 0.5) for x in range(20)]
    free = [told({"x": x / 19}, x / 19) for x in range(20)]
    points = [
        [ask(UNIT, way, study=str(n), sampler=SamplerConfig(), mode="max")["x"] for n in range(10)]
        for way in (known, free)
    ]
    assert mean(points[0]) < 0.6 < 0.8 < mean(points[1])


def test_pruned_points_are_worse_than_complete_ones() -> None:
    # of 20 the best 2 are good, and both are complete: 0.4 and 0.5
    ends = [told({"x": x / 10}, x / 10) for x in range(6)]
    stopped = [Point(params={"x": x / 20}, state="pruned", steps={10: 0.9}) for x in range(6, 20)]
    points = [ask(UNIT, ends + stopped, study=str(n), sampler=SamplerConfig(), mode="max")["x"] for n in range(10)]
    assert mean(points) < 0.6


def test_pruned_points_are_better_the_further_they_came() -> None:
    stopped = [Point(params={"x": x / 12}, state="pruned", steps={10: 0.5, 20 + x: 0.5}) for x in range(13)]
    points = [ask(UNIT, stopped, study=str(n), sampler=SamplerConfig(), mode="max")["x"] for n in range(10)]
    assert mean(points) > 0.7


def test_a_pending_point_is_not_suggested_again() -> None:
    space = {"x": RangeConfig(low=0, high=20)}
    known = [told({"x": x}, -float(abs(x - 10))) for x in range(0, 21, 2)]
    pending = [Point(params={"x": x}, state="pending") for x in (9, 10, 10, 11)]
    points = [
        [ask(space, way, study=str(n), sampler=SamplerConfig(), mode="max")["x"] for n in range(20)]
        for way in (known, known + pending)
    ]
    again = [sum(9 <= x <= 11 for x in way) for way in points]
    assert again[1] < again[0] / 2


def test_what_is_given_is_kept_and_completed() -> None:
    sampler = SamplerConfig()
    found = ask(SPACE, [], study="s", sampler=sampler, mode="max", given={"optim.lr": 3e-6})
    assert found["optim.lr"] == 3e-6
    assert found["loss.kl_coef"] in (0.0, 0.001, 0.01)
    both = {"loss.kl_coef": 0.01, "optim.lr": 1e-3}
    assert ask(SPACE, [], study="s", sampler=sampler, mode="max", given=both) == both
    known = [told(point, bowl(point)) for point in asked(bowl, 12)]
    found = ask(SPACE, known, study="s", sampler=sampler, mode="max", given={"loss.kl_coef": 0.01})
    assert found["loss.kl_coef"] == 0.01


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_values_keep_their_type(kind: str) -> None:
    space = {
        "mixed": RangeConfig(choice=[True, 1, 2.0, "1", "True"]),
        "whole": RangeConfig(low=1, high=64, log=True),
        "real": RangeConfig(low=0, high=2.0),
    }

    def objective(params: Mapping[str, Any]) -> float:
        return params["real"] - (type(params["mixed"]) is not int)

    points = asked(objective, 30, kind=kind, space=space, num_startup=5)
    assert {repr(point["mixed"]) for point in points} == {"True", "1", "2.0", "'1'", "'True'"}
    assert {type(point["whole"]) for point in points} == {int}
    assert {type(point["real"]) for point in points} == {float}
    assert ask(space, [], study="s", sampler=SamplerConfig(), mode="max", given={"mixed": 1})["mixed"] is not True


@settings(max_examples=40, deadline=None)
@given(low=st.floats(1e-9, 1e3), width=st.floats(1e-3, 1e6), top=st.booleans(), whole=st.booleans(), log=st.booleans())
def test_points_lie_in_their_range(low: float, width: float, top: bool, whole: bool, log: bool) -> None:
    ends: Any = (math.ceil(low), math.ceil(low + width) + 1) if whole else (low, low + width)
    of = RangeConfig(low=ends[0], high=ends[1], log=log)
    # all of the good at an end: rounding is to put nothing outside
    known = [told({"x": ends[top]}, 1.0) for _ in range(10)] + [told({"x": ends[not top]}, 0.0)]
    for study in "ab":
        found = ask({"x": of}, known, study=study, sampler=SamplerConfig(num_startup=1), mode="max")["x"]
        assert ends[0] <= found <= ends[1]


def test_the_best_is_the_earliest_of_equals() -> None:
    points = [told({}, value) for value in (0.1, 0.7, 0.2, 0.7, 0.1)]
    assert best(points, "max") == 1
    assert best(points, "min") == 0


def test_the_best_is_complete_and_keeps_the_constraint() -> None:
    points = [
        Point(params={}, state="pruned", value=0.9, steps={10: 0.9}),
        told({}, 0.8, violation=0.01),
        told({}, 0.5, violation=0.0),
        told({}, 0.4),
        told({}, None),
        Point(params={}, state="pending"),
    ]
    assert best(points, "max") == 2
    assert best(points, "min") == 3


def test_there_may_be_no_best() -> None:
    assert best([], "max") is None
    assert best([told({}, None), told({}, 0.8, violation=0.1)], "max") is None


def test_importances_name_the_path_that_matters() -> None:
    points = [told(point, -((math.log10(point["optim.lr"]) + 5) ** 2)) for point in asked(bowl, 30, kind="random")]
    found = importances(SPACE, points, "max")
    assert list(found) == ["optim.lr", "loss.kl_coef"]
    assert sum(found.values()) == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([None, 0.0, 0.5, 1.0, 1e9])), max_size=25))
def test_importances_are_shares_or_none(data: list[tuple[float, float | None]]) -> None:
    found = importances(UNIT | SPACE, [told({"x": x, **START}, value) for x, value in data], "max")
    assert found == {} or sum(found.values()) == pytest.approx(1)


def test_one_point_says_nothing_of_importances() -> None:
    assert importances(SPACE, [told(START, 0.5)], "max") == {}
    assert importances(SPACE, [told(START, 0.5)] * 20, "max") == {}


def a_study() -> list[Point]:
    """Of every kind of point some."""
    points = asked(bowl, 16, kind="random")
    return [
        *(told(point, bowl(point), violation=float(index % 4 - 2)) for index, point in enumerate(points[:12])),
        told(points[12], None),
        Point(params=points[13], state="pruned", steps={10: -3.0, 20: -2.0}),
        Point(params=points[14], state="pruned"),
        Point(params=points[15], state="pending"),
    ]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_figures_come_and_leave_nothing_behind(mode: Any) -> None:
    style = dict(plt.rcParams)
    found = figures(SPACE, a_study(), mode, metric=METRIC)
    assert set(found) == {"history", "importances", "parallel_coordinates"}
    for figure in found.values():
        figure.savefig(BytesIO())
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == style


def test_a_figure_comes_where_little_is_known() -> None:
    for points in ([], [told(START, None)], [Point(params=START, state="pending")]):
        found = figures(SPACE, points, "max", metric=METRIC)
        assert set(found) == {"history"}
        found["history"].savefig(BytesIO())
    found = figures(SPACE, [told(START, 0.5)], "max", metric=METRIC)
    assert set(found) == {"history", "parallel_coordinates"}
    found["parallel_coordinates"].savefig(BytesIO())


def test_no_text_of_a_figure_is_cut() -> None:
    space = {"advantage.a_rather_long_name_of_a_setting": RangeConfig(low=1, high=8), **SPACE}
    points = asked(bowl, 12, kind="random", space=space)
    for figure in figures(space, [told(point, bowl(point)) for point in points], "max", metric=METRIC).values():
        figure.savefig(BytesIO())  # lays it out
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_optuna_says_nothing(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG):
        asked(bowl, 12)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
