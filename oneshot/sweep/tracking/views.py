"""A plan -> views of its runs that MLflow's page offers under `Views`: what a person would set up by hand, once.

A view is a tag of the experiment, in the words of MLflow's page (3.17): a filter, an order, columns, groups and charts.
What the page does not know it leaves out, and what a view does not say the page fills in.
"""

import json
from typing import Any

from oneshot.plan.plan import Plan

TAG = "mlflow.sharedViewState."
"""How the name of an experiment's tag begins that is a view."""
CELLS, TRIALS = "cells", "trials"


def views(plan: Plan, *, time_ms: int) -> dict[str, str]:
    """Tag -> value: the means of each cell, and every trial by itself."""
    return {
        f"{TAG}{key(plan, which)}": json.dumps(
            {
                "name": f"{plan.name}: {which}",
                "createdAt": time_ms,
                "updatedAt": time_ms,
                "state": json.dumps(_state(plan, which)),
            }
        )
        for which in (CELLS, TRIALS)
    }


def key(plan: Plan, which: str) -> str:
    """What a view is called in an address."""
    return f"oneshot-{plan.name}-{which}"


def links(plan: Plan, experiment_id: str) -> str:
    """Markdown that leads to the views, as charts; to wherever the page that shows it comes from."""
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey="
    return f"Charts: [cells]({page}{key(plan, CELLS)}), [trials]({page}{key(plan, TRIALS)})."


def accuracies(plan: Plan) -> list[str]:
    """The metrics that a sweep is about: a suite's accuracy, each."""
    suites = dict.fromkeys(suite for trial in plan.trials for suite in trial.config.eval.suites)
    return [f"eval/{suite}/pass_at_1" for suite in suites]


def _state(plan: Plan, which: str) -> dict[str, Any]:
    axes = dict.fromkeys(f"cell.{axis}" for trial in plan.trials for axis in trial.cell)
    curves = accuracies(plan)
    gains = [f"{curve.rpartition('/')[0]}/gain" for curve in curves]
    state: dict[str, Any] = {
        "searchFilter": f"tags.sweep = '{plan.name}' and tags.phase = 'grid'",
        "selectedColumns": [
            *(f"params.`{name}`" for name in (*axes, "seed")),
            *(f"metrics.`{name}`" for name in (*curves, *gains)),
        ],
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    if curves:
        # not by time: the page would nest trials under the sweep's run, and draw no curve of them
        state |= {"orderByKey": f"metrics.`{curves[0]}`", "orderByAsc": False, "isAccordionReordered": True}
        state["compareRunSections"] = [_section("Held-out accuracy")]
        state["compareRunCharts"] = [*map(_curve, curves), _parallel([*axes, "seed"], curves)]
    if which == CELLS and axes:
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "cell"}]}
    return state


def _section(name: str) -> dict[str, Any]:
    flags = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": "oneshot", "name": name, **flags}


def _card(kind: str, name: str, **facts: Any) -> dict[str, Any]:
    where = {"metricSectionId": "oneshot", "deleted": False, "isGenerated": False, "runsCountToCompare": 20}
    return {"uuid": f"oneshot-{kind}-{name}", "type": kind, "displayName": name, **where, **facts}


def _curve(metric: str) -> dict[str, Any]:
    axis = {"xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear", "scaleType": "linear"}
    line = {"lineSmoothness": 0, "yAxisKey": "metric", "yAxisExpressions": [], "range": {}, "ignoreOutliers": False}
    own = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    return _card("LINE", metric, metricKey=metric, selectedMetricKeys=[metric], **axis, **line, **own)


def _parallel(params: list[str], metrics: list[str]) -> dict[str, Any]:
    return _card("PARALLEL", "Cells", selectedParams=params, selectedMetrics=metrics, showAllRuns=False)
