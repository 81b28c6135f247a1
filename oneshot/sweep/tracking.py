"""The store -> MLflow: one parent run a sweep, one child run a trial, written by the driver alone.

MLflow is a view. Everything here can be done again from the store: a step is sent once (the last one sent is a tag of
the same request), artifacts are overwritten, and a run is looked up by its tags before it is made.
"""

import json
import logging
import os
import subprocess
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType

from oneshot.plan import Plan, Trial, due_evaluations, suites_of
from oneshot.report.cells import as_table, cell_lines
from oneshot.report.plots import sweep_curves, trial_curve
from oneshot.store import EVALUATION_COLUMNS, Result, Row, Store, TrialFolder, now_ms
from oneshot.tasks.examples import load_example

logger = logging.getLogger(__name__)

TABLE_COLUMNS = EVALUATION_COLUMNS[:5]
"""Columns of an evaluation's table in MLflow; the store keeps more."""
SENT = "oneshot.sent_step"
TRIAL = "oneshot.trial"


class Tracker:
    """One sweep's runs in one MLflow experiment."""

    def __init__(self, plan: Plan, store: Store, *, tracking_uri: str, experiment: str, artifacts: str | None) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        self._plan = plan
        self._store = store
        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._experiment_id = self._find_experiment(experiment, artifacts)
        self._parent_id = self._find_parent()
        self._children = self._find_children()
        self._sent: dict[str, int] = {}

    def _find_experiment(self, name: str, artifacts: str | None) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        experiment_id = self._client.create_experiment(name, artifact_location=artifacts)
        for suite in list(self._plan.trials[0].config.eval.suites)[:1]:
            self._client.set_experiment_tag(
                experiment_id, "mlflow.experiment.primaryMetric.name", f"eval/{suite}/pass_at_1"
            )
            self._client.set_experiment_tag(experiment_id, "mlflow.experiment.primaryMetric.greaterIsBetter", "True")
        return str(experiment_id)

    def _search(self, condition: str) -> list[Any]:
        found, token = [], None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], condition, run_view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
            )
            found += list(page)
            token = page.token
            if not token:
                return found

    def _find_parent(self) -> str | None:
        runs = self._search(f"tags.sweep = '{self._plan.name}' and tags.phase = 'sweep'")
        return str(runs[0].info.run_id) if runs else None

    def _find_children(self) -> dict[str, tuple[str, str]]:
        """Name of a trial and key of its training -> its run and status."""
        if self._parent_id is None:
            return {}
        runs = self._search(f"tags.`mlflow.parentRunId` = '{self._parent_id}'")
        return {
            run.data.tags[TRIAL]: (str(run.info.run_id), str(run.info.status)) for run in runs if TRIAL in run.data.tags
        }

    def open(self, *, question: str, sweep_yaml: str) -> None:
        """Makes or continues the parent run."""
        if self._parent_id is None:
            run = self._client.create_run(
                self._experiment_id,
                run_name=self._plan.name,
                tags={
                    "sweep": self._plan.name,
                    "phase": "sweep",
                    "mlflow.note.content": f"{question}\n\n{self._plan.num_cells} cells, "
                    f"{len(self._plan.trials)} trials",
                    **_source_tags(),
                },
            )
            self._parent_id = str(run.info.run_id)
        else:
            self._client.update_run(self._parent_id, status="RUNNING")
        self._client.log_text(self._parent_id, sweep_yaml, "sweep.yaml")
        self._client.log_dict(self._parent_id, self._plan.to_json(), "plan.json")

    def is_complete(self) -> bool:
        """Whether the parent and every trial's run are there and ended as the store says."""
        if self._parent_id is None or self._client.get_run(self._parent_id).info.status != "FINISHED":
            return False
        return all(
            self._children.get(_identity(trial), ("", ""))[1] in ("FINISHED", "FAILED") for trial in self._plan.trials
        )

    def sync(self, trial: Trial) -> None:
        """Sends what the store has of a trial and MLflow has not; makes the run, and ends it with its training."""
        assert trial.key is not None and self._parent_id is not None, "only trials that ran are tracked"
        folder = self._store.trial(trial.key)
        result = folder.result()
        identity = _identity(trial)
        if self._children.get(identity, ("", ""))[1] in ("FINISHED", "FAILED"):
            return
        attempt = folder.attempt(result.attempt if result else max(1, len(folder.list("attempts"))))
        if not attempt:
            return
        if identity not in self._children:
            self._children[identity] = (self._create(trial, folder, attempt), "RUNNING")
        run_id, status = self._children[identity]
        if status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
            self._children[identity] = (run_id, "RUNNING")
        if run_id not in self._sent:
            self._sent[run_id] = int(self._client.get_run(run_id).data.tags.get(SENT, -1))
        rows = view(trial, folder.rows())
        for row in rows:
            if row.step > self._sent[run_id]:
                metrics = [Metric(name, value, row.time_ms, row.step) for name, value in row.metrics.items()]
                self._client.log_batch(run_id, metrics=metrics, tags=[RunTag(SENT, str(row.step))])
                self._sent[run_id] = row.step
        if result is not None:
            self._end(trial, folder, result, rows, run_id)

    def _create(self, trial: Trial, folder: TrialFolder, attempt: dict[str, Any]) -> str:
        assert self._parent_id is not None
        tags = {
            "mlflow.parentRunId": self._parent_id,
            TRIAL: _identity(trial),
            "sweep": self._plan.name,
            "trial.key": str(trial.key),
            "seed": str(trial.seed),
            "phase": "grid",
            "attempt": str(len(folder.list("attempts"))),
            "env.digest": attempt["env_digest"],
            "gpu": attempt["gpu"] or "none",
            **{f"cell.{axis}": name for axis, name in trial.cell.items()},
            **{f"label.{name}": value for name, value in trial.labels.items()},
            **_source_tags(),
        }
        if attempt["sweep"] != self._plan.name:
            tags["reused.from"] = attempt["sweep"]
        run = self._client.create_run(
            self._experiment_id, start_time=attempt["started_ms"], tags=tags, run_name=trial.label
        )
        run_id = str(run.info.run_id)
        self._client.log_batch(run_id, params=[Param(name, value) for name, value in _params(trial)])
        self._client.log_inputs(run_id, datasets=_dataset_inputs(trial))
        return run_id

    def _end(self, trial: Trial, folder: TrialFolder, result: Result, rows: list[Row], run_id: str) -> None:
        tables = []
        suites = {suite.digest: suite.name for suite in suites_of(trial.config)}
        wanted = due_evaluations(trial.config)
        for (digest, step), name in sorted(folder.evaluations().items(), key=lambda item: item[0][1]):
            if (digest, step) in wanted and (completions := folder.completions(name)) is not None:
                path = f"eval/{suites[digest]}/step_{step}.json"
                rows_ = [row[: len(TABLE_COLUMNS)] for row in completions["data"]]
                self._client.log_dict(run_id, {"columns": list(TABLE_COLUMNS), "data": rows_}, path)
                tables.append({"path": path, "type": "table"})
        self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))
        self._client.log_figure(run_id, trial_curve(rows, title=trial.label), "curve.png")
        self._client.set_tag(run_id, "attempt", str(result.attempt))
        status = "FINISHED"
        if result.outcome == "failed":
            status = "FAILED"
            self._client.set_tag(run_id, "state.reason", result.reason)
            self._client.log_text(run_id, result.traceback, "traceback.txt")
        self._client.set_terminated(run_id, status, end_time=result.ended_ms)
        self._children[_identity(trial)] = (run_id, status)

    def refresh_cells(self) -> None:
        """Writes the parent's `cells` table and figures anew."""
        assert self._parent_id is not None
        lines = cell_lines(self._plan, self._store)
        self._client.log_dict(self._parent_id, as_table(lines), "cells.json")
        self._client.set_tag(
            self._parent_id, "mlflow.loggedArtifacts", json.dumps([{"path": "cells.json", "type": "table"}])
        )
        for suite in sorted({line.suite for line in lines}):
            self._client.log_figure(self._parent_id, sweep_curves(self._plan, self._store, suite=suite), f"{suite}.png")

    def close(self, status: str) -> None:
        """Ends the parent with `FINISHED`, `FAILED` or `KILLED`; runs of trials that did not end are KILLED too."""
        assert self._parent_id is not None
        self.refresh_cells()
        for run_id, child_status in self._children.values():
            if child_status == "RUNNING":
                self._client.set_terminated(run_id, "KILLED")
        self._client.set_terminated(self._parent_id, status, end_time=now_ms())


def view(trial: Trial, rows: Iterable[Row]) -> list[Row]:
    """What one trial sees of its training's rows: its own steps, and the evaluations that it asked for."""
    suites = {suite.digest: suite.name for suite in suites_of(trial.config)}
    due = {(suites[digest], step) for digest, step in due_evaluations(trial.config)}
    return [
        Row(
            step=row.step,
            time_ms=row.time_ms,
            metrics={
                name: value
                for name, value in row.metrics.items()
                if not name.startswith("eval/") or (name.split("/")[1], row.step) in due
            },
        )
        for row in rows
        if row.step <= trial.config.train.num_steps
    ]


def _identity(trial: Trial) -> str:
    return f"{trial.key} {trial.label}"


def _params(trial: Trial) -> list[tuple[str, str]]:
    params = {f"cell.{axis}": name for axis, name in trial.cell.items()}
    params |= {"seed": str(trial.seed), "phase": "grid"}
    return [*params.items(), *_flat(trial.config.model_dump(mode="json"))]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for name, inner in value.items() for pair in _flat(inner, f"{prefix}.{name}" if prefix else name)]
    return [(prefix, value if isinstance(value, str) else json.dumps(value))]


def _dataset_inputs(trial: Trial) -> list[DatasetInput]:
    examples = [load_example(name) for name in trial.config.examples]
    digest = sha256("".join(example.digest for example in examples).encode()).hexdigest()
    found = [(", ".join(trial.config.examples), digest, "training", len(examples))]
    found += [(suite.name, suite.digest, "eval", len(suite.problems)) for suite in suites_of(trial.config)]
    return [
        DatasetInput(
            Dataset(
                name=name[:500],
                digest=digest[:36],
                source_type="oneshot",
                source=json.dumps({"name": name[:500]}),
                profile=json.dumps({"num_problems": num_problems}),
            ),
            tags=[InputTag("mlflow.data.context", context)],
        )
        for name, digest, context, num_problems in found
    ]


@cache
def _source_tags() -> dict[str, str]:
    """Commit of the checkout that runs, where it is one."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": commit}
