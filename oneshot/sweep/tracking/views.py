"""A plan -> saved views of its runs, which MLflow's page offers under `Views`.

A view is a tag of the experiment, in the format of MLflow's page (3.17): a filter, an order, columns, groups and
charts. The page ignores keys that it does not know, and fills in missing ones.
"""

import json
from typing import Any

from oneshot.plan.plan import Plan

TAG = "mlflow.sharedViewState."  # Prefix of the tags that are views
CELLS, TRIALS = "cells", "trials"
LAST, GAIN = "last", "gain"
"""Beginnings of a trial's metrics `last/<suite>` and `gain/<suite>`: a column's header shows only its first letters."""


def views(plan: Plan, *, time_ms: int) -> dict[str, str]:
    """Return two views by tag: the means of each cell, and every trial."""
    return {
        f"{TAG}{key(plan.name, which)}": json.dumps(
            {
                "name": f"{plan.name}: {which}",
                "createdAt": time_ms,
                "updatedAt": time_ms,
                "state": json.dumps(_state(plan, which)),
            }
        )
        for which in (CELLS, TRIALS)
    }


def key(sweep: str, which: str) -> str:
    """Return a view's key in a URL."""
    return f"oneshot-{sweep}-{which}"


def chart_page(sweep: str, which: str, experiment_id: str) -> str:
    """Return the page of a view as charts, relative to MLflow's address."""
    query = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={key(sweep, which)}"
    return f"#/experiments/{experiment_id}/runs?{query}"


def links(plan: Plan, experiment_id: str) -> str:
    """Return Markdown links to the views as charts, relative to the page that shows them."""
    charts = (f"[{which}]({chart_page(plan.name, which, experiment_id)})" for which in (CELLS, TRIALS))
    return f"Charts: {', '.join(charts)}."


def accuracies(plan: Plan) -> list[str]:
    """Return each suite's accuracy metric."""
    return [f"eval/{suite}/pass_at_1" for suite in _suites(plan)]


def _suites(plan: Plan) -> list[str]:
    suites = dict.fromkeys(suite for trial in plan.trials for suite in trial.config.eval.suites)
    return [*plan.groups, *suites]


def _state(plan: Plan, which: str) -> dict[str, Any]:
    axes = dict.fromkeys(f"cell.{axis}" for trial in plan.trials for axis in trial.cell)
    curves = accuracies(plan)
    ends = [f"{end}/{suite}" for suite in _suites(plan) for end in (LAST, GAIN)]
    state: dict[str, Any] = {
        "searchFilter": f"tags.sweep = '{plan.name}' and tags.phase = 'grid'",
        "selectedColumns": [*(f"params.`{name}`" for name in (*axes, "seed")), *(f"metrics.`{name}`" for name in ends)],
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    if curves:
        # ordered by time, the page would nest trials under the sweep's run and draw no curves of them
        state |= {"orderByKey": f"metrics.`{curves[0]}`", "orderByAsc": False, "isAccordionReordered": True}
        flags = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
        state["compareRunSections"] = [{"uuid": "oneshot", "name": "Held-out accuracy", **flags}]
        state["compareRunCharts"] = [*map(_curve, curves), _parallel([*axes, "seed"], curves)]
    if which == CELLS and axes:
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "cell"}]}
    return state


def _card(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    where = {"metricSectionId": "oneshot", "deleted": False, "isGenerated": False, "runsCountToCompare": 20}
    return {"uuid": f"oneshot-{kind}-{name}", "type": kind, "displayName": name, **where, **settings}


def _curve(metric: str) -> dict[str, Any]:
    axis = {"xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear", "scaleType": "linear"}
    line = {"lineSmoothness": 0, "yAxisKey": "metric", "yAxisExpressions": [], "range": {}, "ignoreOutliers": False}
    own = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    return _card("LINE", metric, metricKey=metric, selectedMetricKeys=[metric], **axis, **line, **own)


def _parallel(params: list[str], metrics: list[str]) -> dict[str, Any]:
    return _card("PARALLEL", "Cells", selectedParams=params, selectedMetrics=metrics, showAllRuns=False)
