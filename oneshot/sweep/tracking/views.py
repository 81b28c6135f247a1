"""A plan -> saved views of its runs, which MLflow's page offers under `Views`.

A view is a tag of the experiment, in the format of MLflow's page (3.17): a filter, an order, columns, groups and
charts. The page ignores keys that it does not know, and fills in missing ones.
"""

import json
from typing import Any

from oneshot.plan.plan import Plan

TAG = "mlflow.sharedViewState."  # Prefix of the tags that are views
CELLS, TRIALS = "cells", "trials"


def views(plan: Plan, *, time_ms: int) -> dict[str, str]:
    """Return two views by tag: the means of each cell, and every trial."""
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
    """Return a view's key in a URL."""
    return f"oneshot-{plan.name}-{which}"


def links(plan: Plan, experiment_id: str) -> str:
    """Return Markdown links to the views as charts, relative to the page that shows them."""
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey="
    return f"Charts: [cells]({page}{key(plan, CELLS)}), [trials]({page}{key(plan, TRIALS)})."


def accuracies(plan: Plan) -> list[str]:
    """Return each suite's accuracy metric."""
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
