"""The store -> MLflow: one parent run a sweep, one child run a trial, written by the driver alone.

MLflow is a view. Everything here can be done again from the store: a run is looked up by its tags before it is made, a
point that it has is not sent again, artifacts are overwritten.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, ViewType

from oneshot.config.paths import flat
from oneshot.plan.plan import Plan, Trial
from oneshot.plan.studies import FOLDER as SEARCH
from oneshot.report.cells import as_table, cell_lines
from oneshot.report.plots import has_curve, sweep_curves, trial_curve
from oneshot.report.runs import read_runs
from oneshot.store.store import Result, Row, Store, TrialFolder, now_ms
from oneshot.sweep.cluster.package import commit
from oneshot.sweep.search.points import read_points
from oneshot.sweep.tracking.views import accuracies, links, views
from oneshot.tasks.benchmarks import due_evaluations, load_suites
from oneshot.tasks.examples import identify
from oneshot.trial.requests import Stops, read_stops
from oneshot.trial.state import trial_standing, view

TABLE_COLUMNS = ("problem", "completion", "answer", "strict", "lenient")
"""Columns of an evaluation's table in MLflow, which compares runs by the second; the store keeps more."""
TAG_LENGTH = 7500
"""Of a tag's 8,000 characters, past which MLflow cuts without a word."""
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a description, in Markdown."""
CUT = "*Cut here: the rest is under Artifacts, in `report/`.*"
BATCH = 1000
"""Points that MLflow takes at once."""
TRIAL = "oneshot.trial"
MEASURES = "measures.json"
ACCURACIES = ("pass_at_1", "pass_at_1_lenient", "gain", "avg_at_k", "pass_at_k")
CURVES = (*ACCURACIES, "boxed", "truncated", "length_mean")
"""Of a suite, what MLflow draws a curve of; the rest is one table a trial, since hundreds of curves freeze a page."""


@dataclass(slots=True, kw_only=True)
class _Child:
    """A trial's run, and what is known of it."""

    run_id: str
    status: str
    attempt: str = ""
    is_new: bool = False
    is_described: bool = False
    sent: set[tuple[str, int]] = field(default_factory=set)
    """(metric, step) of every point that it has."""
    read: dict[str, list[Row]] = field(default_factory=dict)
    """Segments of its rows."""


def connect(tracking_uri: str) -> MlflowClient:
    """A client that says no more than it must, and does not try for minutes."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # else a line on stdout for every run that ends
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    return MlflowClient(tracking_uri=tracking_uri)


def find_experiment(client: MlflowClient, name: str, artifacts: str | None, *, metrics: Sequence[str]) -> str:
    """The id of an experiment, made where there is none; `metrics` are those that it is about, the first above all."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    experiment_id = client.create_experiment(name, artifact_location=artifacts)
    # said, for the UI guesses otherwise, and takes tables of completions for an LLM application's
    client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "custom_model_development")
    for metric in metrics[:1]:
        client.set_experiment_tag(experiment_id, "mlflow.experiment.primaryMetric.name", metric)
        client.set_experiment_tag(experiment_id, "mlflow.experiment.primaryMetric.greaterIsBetter", "True")
    return str(experiment_id)


class Tracker:
    """One sweep's runs in one MLflow experiment."""

    def __init__(self, plan: Plan, store: Store, *, tracking_uri: str, experiment: str, artifacts: str | None) -> None:
        self._plan = plan
        self._store = store
        self._client = connect(tracking_uri)
        self._experiment_id = find_experiment(self._client, experiment, artifacts, metrics=accuracies(plan))
        self._parent_id = self._find_parent()
        self._children = self._find_children()
        self._is_open = False
        self._studies: dict[str, Any] = {}
        """What MLflow has of each study."""
        self._description = ""
        self._published: dict[str, str] = {}
        """Name of a file -> digest of what was sent of it."""

    def replan(self, plan: Plan) -> None:
        """The sweep has trials that it had not."""
        self._plan = plan
        if self._is_open and self._parent_id is not None:
            self._client.log_dict(self._parent_id, plan.to_json(), "plan.json")
            self.refresh_studies()

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

    def _find_children(self) -> dict[str, _Child]:
        """Identity of a trial -> its run."""
        if self._parent_id is None:
            return {}
        runs = self._search(f"tags.`mlflow.parentRunId` = '{self._parent_id}'")
        return {
            run.data.tags[TRIAL]: _Child(
                run_id=str(run.info.run_id), status=str(run.info.status), attempt=run.data.tags.get("attempt", "")
            )
            for run in runs
            if TRIAL in run.data.tags
        }

    def open(self, *, question: str, sweep_yaml: str) -> None:
        """Makes or continues the parent run, once."""
        if self._is_open:
            return
        if self._parent_id is None:
            run = self._client.create_run(
                self._experiment_id,
                run_name=self._plan.name,
                tags={"sweep": self._plan.name, "phase": "sweep", **_source_tags()},
            )
            self._parent_id = str(run.info.run_id)
            self.describe(f"{question}\n\n{self._plan.num_cells} cells, {len(self._plan.trials)} trials")
        else:
            self._client.update_run(self._parent_id, status="RUNNING")
        self._client.log_text(self._parent_id, sweep_yaml, "sweep.yaml")
        self._client.log_dict(self._parent_id, self._plan.to_json(), "plan.json")
        for name, value in views(self._plan, time_ms=now_ms()).items():
            self._client.set_experiment_tag(self._experiment_id, name, value)
        self._is_open = True

    @property
    def has_parent(self) -> bool:
        """Whether the sweep has a run."""
        return self._parent_id is not None

    def describe(self, text: str) -> None:
        """Says what the sweep has found, in Markdown, on the parent's page; cut by lines to what MLflow keeps.

        The first paragraph also stands over the list of runs, where the experiment is the sweep's alone.
        """
        assert self._parent_id is not None
        if text == self._description:
            return
        where = links(self._plan, self._experiment_id)
        self._client.set_tag(self._parent_id, NOTE, f"{_cut(text, TAG_LENGTH - len(where) - 2)}\n\n{where}")
        experiment = self._client.get_experiment(self._experiment_id)
        note = experiment.tags.get(NOTE, "")
        if experiment.name == self._plan.name and (not note or where in note):  # the sweep's own, and ours still
            first = _cut(text, TAG_LENGTH // 2).split("\n\n")[0]
            run = f"[The sweep's run](#/experiments/{self._experiment_id}/runs/{self._parent_id})."
            self._client.set_experiment_tag(self._experiment_id, NOTE, f"{first} {run} {where}")
        self._description = text

    def publish(self, files: Mapping[str, str | bytes]) -> None:
        """Puts files by name under `report/` of the parent's artifacts; what it sent before is not sent again."""
        assert self._parent_id is not None
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            digest = sha256(data).hexdigest()
            if self._published.get(name) == digest:
                continue
            target = PurePosixPath("report", name)
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder, target.name)
                local.write_bytes(data)
                self._client.log_artifact(self._parent_id, str(local), str(target.parent))
            self._published[name] = digest

    def is_complete(self) -> bool:
        """Whether the parent and every trial's run are there and ended as the store says."""
        if self._parent_id is None or self._client.get_run(self._parent_id).info.status != "FINISHED":
            return False
        return all(self._is_told(trial, self._ended(trial)) for trial in self._plan.trials if trial.key is not None)

    def _ended(self, trial: Trial) -> Result | None:
        """The result that ended a trial; None while an attempt may still change what it has."""
        assert trial.key is not None, "only trials that ran are tracked"
        folder = self._store.trial(trial.key)
        result = folder.result()
        is_enough = trial_standing(trial, result) == "finished"
        return result if is_enough else folder.current_result()

    def _is_told(self, trial: Trial, result: Result | None) -> bool:
        child = self._children.get(run_identity(trial))
        if child is not None and trial.is_settled and child.status in ("FINISHED", "FAILED"):
            return True
        if child is None or result is None:
            return False
        return child.status == _status(trial, result) and child.attempt == str(result.attempt)

    def _stops(self) -> Stops:
        return read_stops(self._store.sweep(self._plan.name))

    def _is_stopped(self, trial: Trial) -> bool:
        child = self._children.get(run_identity(trial))
        return child is not None and child.status == "KILLED"

    def sync(self, trial: Trial) -> None:
        """Sends what the store has of a trial and MLflow has not; makes the run, and ends it with its training.

        A run that had ended is opened again where a later attempt went further.
        """
        assert trial.key is not None and self._parent_id is not None, "only trials that ran are tracked"
        folder = self._store.trial(trial.key)
        result = self._ended(trial)
        if self._is_told(trial, result):
            return
        stopped = None if result is not None else self._stops().reason(trial)
        attempt = folder.attempt(result.attempt if result else folder.last_attempt())
        if not attempt or (stopped and self._is_stopped(trial)):
            return
        child = self._child(trial, folder, attempt)
        rows = view(trial, folder, read=child.read)
        self._describe(trial, child)
        fresh = [
            Metric(name, value, row.time_ms, row.step)
            for row in rows
            for name, value in row.metrics.items()
            if (name, row.step) not in child.sent and is_curve(name)
        ]
        for start in range(0, len(fresh), BATCH):
            batch = fresh[start : start + BATCH]
            self._client.log_batch(child.run_id, metrics=batch)
            child.sent.update((metric.key, metric.step) for metric in batch)
        if result is not None:
            self._end(trial, folder, result, rows, child)
        elif stopped:
            self._client.set_tag(child.run_id, "state.reason", stopped)
            self._client.set_terminated(child.run_id, "KILLED", end_time=rows[-1].time_ms if rows else now_ms())
            child.status = "KILLED"

    def _child(self, trial: Trial, folder: TrialFolder, attempt: dict[str, Any]) -> _Child:
        """The trial's run, RUNNING, described, and with what it has of metrics known."""
        assert self._parent_id is not None
        identity = run_identity(trial)
        if identity not in self._children:
            tags = {"mlflow.parentRunId": self._parent_id, TRIAL: identity, **self._tags(trial, folder, attempt)}
            tags[NOTE] = self._note(trial)
            run = self._client.create_run(
                self._experiment_id, start_time=attempt["started_ms"], tags=tags, run_name=trial.label
            )
            self._children[identity] = _Child(
                run_id=str(run.info.run_id), status="RUNNING", attempt=tags["attempt"], is_new=True
            )
        child = self._children[identity]
        if child.status != "RUNNING":
            self._client.update_run(child.run_id, status="RUNNING")
            child.status = "RUNNING"
        return child

    def _describe(self, trial: Trial, child: _Child) -> None:
        """Says once what the trial is, and learns what the run has."""
        if child.is_described:
            return
        params = [Param(name, value) for name, value in run_params(trial)]
        datasets = _dataset_inputs(trial)
        if not child.is_new:
            run = self._client.get_run(child.run_id)
            # params are written once; a longer request of the same training keeps the first's
            params = [param for param in params if param.key not in run.data.params]
            datasets = [] if run.inputs is not None and run.inputs.dataset_inputs else datasets
            for name in run.data.metrics:
                child.sent.update((name, m.step) for m in self._client.get_metric_history(child.run_id, name))
        if params:
            self._client.log_batch(child.run_id, params=params)
        if datasets:
            self._client.log_inputs(child.run_id, datasets=datasets)
        child.is_described = True

    def _note(self, trial: Trial) -> str:
        """What a trial's run is, in one line."""
        cell = "".join(f", {axis} **{name}**" for axis, name in trial.cell.items())
        parent = f"[{self._plan.name}](#/experiments/{self._experiment_id}/runs/{self._parent_id})"
        return (
            f"A trial of {parent}{cell}, seed **{trial.seed}**. Curves: Model metrics. Completions: Artifacts, `eval/`."
        )

    def _tags(self, trial: Trial, folder: TrialFolder, attempt: dict[str, Any]) -> dict[str, str]:
        tags = {
            "sweep": self._plan.name,
            "trial.key": str(trial.key),
            "seed": str(trial.seed),
            "phase": trial.phase,
            "attempt": str(folder.last_attempt()),
            "env.digest": attempt["env_digest"],
            "gpu": attempt["gpu"] or "none",
            **_spread_tags(attempt),
            **{f"cell.{axis}": name for axis, name in trial.cell.items()},
            **{f"label.{name}": value for name, value in trial.labels.items()},
            **_source_tags(),
        }
        return tags if attempt["sweep"] == self._plan.name else {**tags, "reused.from": attempt["sweep"]}

    def _end(self, trial: Trial, folder: TrialFolder, result: Result, rows: list[Row], child: _Child) -> None:
        tables = []
        due = due_evaluations(trial.config)
        for suite in load_suites(trial.config):
            for step in sorted(step for digest, step in due & result.evaluations if digest == suite.digest):
                completions = folder.completions(f"eval-{suite.digest}-{step}")
                assert completions is not None, "an evaluation on record has its completions"
                path = f"eval/{suite.name}/step_{step}.json"
                places = [completions["columns"].index(name) for name in TABLE_COLUMNS]
                data = [[row[place] for place in places] for row in completions["data"]]
                self._client.log_dict(child.run_id, {"columns": list(TABLE_COLUMNS), "data": data}, path)
                tables.append(path)
        measures = measures_table(rows)
        if measures["data"]:
            self._client.log_dict(child.run_id, measures, MEASURES)
            tables.insert(0, MEASURES)
        if tables:
            self._list_tables(child.run_id, tables)
        if any(has_curve(row) for row in rows):
            self._client.log_figure(child.run_id, trial_curve(rows, title=trial.label), "curve.png")
        status = _status(trial, result)
        if status == "FAILED":
            self._client.set_tag(child.run_id, "state.reason", result.reason)
            self._client.log_text(child.run_id, result.traceback, "traceback.txt")
        elif not child.is_new and "state.reason" in self._client.get_run(child.run_id).data.tags:
            self._client.delete_tag(child.run_id, "state.reason")
        if child.attempt != str(result.attempt):
            self._client.set_tag(child.run_id, "attempt", str(result.attempt))
            for name, value in _spread_tags(folder.attempt(result.attempt)).items():
                self._client.set_tag(child.run_id, name, value)
        self._client.set_terminated(child.run_id, status, end_time=result.ended_ms)
        child.status, child.attempt, child.is_new = status, str(result.attempt), False
        child.read.clear()

    def _list_tables(self, run_id: str, paths: Sequence[str]) -> None:
        """Tells MLflow which artifacts are tables, the last first; of very many, not the first: a tag has an end."""
        tables = [{"path": path, "type": "table"} for path in reversed(paths)]
        while len(json.dumps(tables)) > TAG_LENGTH:
            tables.pop()
        self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def refresh_cells(self) -> None:
        """Writes the parent's `cells` table and figures anew."""
        assert self._parent_id is not None
        runs = read_runs(self._plan, self._store)
        lines = cell_lines(runs)
        self._client.log_dict(self._parent_id, as_table(lines), "cells.json")
        self._list_tables(self._parent_id, ["cells.json"])
        for suite in sorted({line.suite for line in lines}):
            self._client.log_figure(
                self._parent_id, sweep_curves(runs, suite=suite, name=self._plan.name), f"{suite}.png"
            )

    def refresh_studies(self) -> None:
        """Writes what each study that is through has found to the parent: its points, its winner, its pictures."""
        assert self._parent_id is not None
        folder = self._store.sweep(self._plan.name)
        for study in self._plan.studies:
            from oneshot.sweep.search.optuna_study import figures  # Optuna takes seconds to import

            record = folder.read_json(f"{SEARCH}/{study.name}/study.json")
            if record is None or record == self._studies.get(study.name):
                continue
            path = f"{SEARCH}/{re.sub('[^A-Za-z0-9_.+]+', '-', study.name)}"
            self._client.log_dict(self._parent_id, record, f"{path}/study.json")
            told = read_points(record)
            metric, mode = record["objective"]["metric"], record["objective"]["mode"]
            for name, figure in figures(study.space, told, mode, metric=metric).items():
                self._client.log_figure(self._parent_id, figure, f"{path}/{name}.png")
            if record["winner"] is not None:
                for setting, value in record["points"][record["winner"]]["params"].items():
                    self._client.set_tag(self._parent_id, _tag_name(f"winner.{study.name}.{setting}"), str(value))
            self._studies[study.name] = record

    def close(self, status: str) -> None:
        """Ends the parent with `FINISHED`, `FAILED` or `KILLED`; runs of trials that did not end are KILLED too."""
        assert self._parent_id is not None
        self.refresh_studies()
        self.refresh_cells()
        for child in self._children.values():
            if child.status == "RUNNING":
                self._client.set_terminated(child.run_id, "KILLED")
                child.status = "KILLED"
        self._client.set_terminated(self._parent_id, status, end_time=now_ms())


def _cut(text: str, length: int) -> str:
    """The text, or as many of its whole lines as there is room for with a word on the rest."""
    if len(text) <= length:
        return text
    kept = text[: length - len(CUT) - 2]
    return f"{kept.rpartition(chr(10))[0] or kept}\n\n{CUT}"


def _tag_name(text: str) -> str:
    """A name that MLflow takes: letters, digits and some marks."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", " ", text)[:250]


def is_curve(name: str) -> bool:
    """Whether a metric is sent to MLflow as such: all but a suite's lesser measures."""
    room, _, rest = name.partition("/")
    if room != "eval":
        return True
    _, _, measure = rest.partition("/")
    category, _, last = measure.rpartition("/")
    return measure in CURVES or (last == "pass_at_1" and not category.startswith("level "))


def measures_table(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """What of evaluations is no curve, a line for each suite, step and measure."""
    data = [
        [*name.split("/", 2)[1:], row.step, value]
        for row in rows
        for name, value in row.metrics.items()
        if not is_curve(name)
    ]
    return {"columns": ["suite", "measure", "step", "value"], "data": data}


def _status(trial: Trial, result: Result) -> str:
    """MLflow's word for how a trial ended."""
    return "FINISHED" if trial_standing(trial, result) == "finished" else "FAILED"


def run_identity(trial: Trial) -> str:
    """The tag by which a trial's run is found."""
    return f"{trial.key} {trial.label}"


def run_params(trial: Trial) -> list[tuple[str, str]]:
    """What MLflow shows as the parameters of a trial's run."""
    # whole, too: MLflow groups runs by one name better than by several
    params = {"cell": "/".join(trial.cell.values())} | {f"cell.{axis}": name for axis, name in trial.cell.items()}
    params |= {"seed": str(trial.seed), "phase": trial.phase}
    if trial.phase == "search":
        params |= {"study": trial.study, "point": str(trial.point)}
    config = flat(trial.config.model_dump(mode="json"))
    return [
        *params.items(),
        *((path, one if isinstance(one, str) else json.dumps(one)) for path, one in config.items()),
    ]


def _dataset_inputs(trial: Trial) -> list[DatasetInput]:
    found = [(suite.name, suite.digest, "eval", len(suite.problems)) for suite in load_suites(trial.config)]
    examples = identify(trial.config.examples)
    if examples.ids:
        digest = sha256("".join(examples.digests).encode()).hexdigest()
        found.insert(0, (", ".join(examples.ids), digest, "training", len(examples.ids)))
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


def _spread_tags(attempt: Mapping[str, Any]) -> dict[str, str]:
    """How an attempt was spread over processes; one of before there were several was not."""
    return {
        "num_processes": str(attempt.get("num_processes", 1)),
        "strategy": str(attempt.get("strategy", "single")),
    }


def _source_tags() -> dict[str, str]:
    """Commit of the checkout that runs, where it is one."""
    found = commit()
    return {} if found is None else {"mlflow.source.git.commit": found}
