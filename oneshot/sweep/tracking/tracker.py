"""The store -> MLflow: one parent run for a sweep, one child run for each trial, written only by the driver.

MLflow is a view: all of it can be made again from the store. A run is looked up by its tags before it is created,
points that it has are not sent again, and artifacts are overwritten.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.entities import Metric, Param, RunTag

from oneshot.plan.plan import Plan
from oneshot.plan.studies import FOLDER as SEARCH
from oneshot.plan.sweep_run import MlflowLocation
from oneshot.plan.trial import Trial
from oneshot.report.cells import as_table, cell_lines
from oneshot.report.plots import has_curve, sweep_curves, trial_curve
from oneshot.report.runs import read_runs, with_groups
from oneshot.store.folder import now_ms
from oneshot.store.records import Result, Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder, table_name
from oneshot.sweep.tracking import run_data
from oneshot.sweep.tracking.relocate import relocate
from oneshot.sweep.tracking.server import connect, find_experiment, search
from oneshot.sweep.tracking.study_record import log_study
from oneshot.sweep.tracking.views import accuracies, links, views
from oneshot.tasks.benchmarks import due_evaluations, load_suites
from oneshot.trial.requests import read_stops
from oneshot.trial.state import DEFAULT_FAULTS, TrialState, trial_standing, trial_state, view

TABLE_COLUMNS = ("problem", "completion", "answer", "strict", "lenient")
"""Columns of an evaluation's table in MLflow, which compares runs by the second one; the store has more."""
NOTE = "mlflow.note.content"  # the tag that MLflow shows as a description in Markdown
BATCH = 900  # points in one call; MLflow accepts 1000 of everything, of which at most 100 are parameters
COMPLETE = "oneshot.complete"
"""Tag of the parent run: a digest of the results that MLflow has, set once it has those of all trials."""
TRIAL = "oneshot.trial"
MEASURES = "measures.json"


@dataclass(slots=True, kw_only=True)
class _Child:
    """A trial's run, and what MLflow already has of it."""

    run_id: str
    status: str
    attempt: str = ""
    is_new: bool = False
    is_described: bool = False
    sent: set[tuple[str, int]] = field(default_factory=set)  # (metric, step) of every point sent
    read: dict[str, list[Row]] = field(default_factory=dict)  # segments of the trial's rows that were read


class Tracker:
    """A sweep's runs in one MLflow experiment."""

    def __init__(self, plan: Plan, store: Store, location: MlflowLocation) -> None:
        self._plan, self._store = plan, store
        self._owner = location.owner.tags()
        if location.artifacts is not None:
            relocate(Path(store.path).resolve())
        self._client = connect(location.uri)
        self._experiment_id = find_experiment(
            self._client, location.experiment, location.artifacts, metrics=accuracies(plan)
        )
        sweeps = search(self._client, [self._experiment_id], f"tags.sweep = '{plan.name}' and tags.phase = 'sweep'")
        self._parent_id = next((str(run.info.run_id) for run in sweeps), "")  # until `open` creates the run
        self._is_open = False
        self._studies: dict[str, Any] = {}  # study -> its record in MLflow
        self._description = ""
        self._measured: dict[str, float] = {}  # number of the whole sweep -> what was sent last
        self._published: dict[str, str] = {}  # file name -> digest of the contents sent

    def replan(self, plan: Plan) -> None:
        """Take a plan with new trials."""
        self._plan = plan
        if self._is_open:
            self._describe_sweep()
            self._client.log_dict(self._parent_id, plan.to_json(), "plan.json")
            self.refresh_studies()

    @cached_property
    def _children(self) -> dict[str, _Child]:
        """Return the trials' runs that MLflow has, by identity; it takes MLflow milliseconds to find each."""
        if not self._parent_id:
            return {}
        of_sweep = f"tags.`mlflow.parentRunId` = '{self._parent_id}'"
        return {
            run.data.tags[TRIAL]: _Child(
                run_id=str(run.info.run_id), status=str(run.info.status), attempt=run.data.tags.get("attempt", "")
            )
            for run in search(self._client, [self._experiment_id], of_sweep)
            if TRIAL in run.data.tags
        }

    def open(self, *, question: str, sweep_yaml: str) -> None:
        """Create or reopen the parent run, once."""
        if self._is_open:
            return
        if not self._parent_id:
            run = self._client.create_run(
                self._experiment_id,
                start_time=self._start_ms(),
                run_name=self._plan.name,
                tags={"sweep": self._plan.name, "phase": "sweep", **self._owner, **run_data.source_tags()},
            )
            self._parent_id = str(run.info.run_id)
            self.describe(f"{question}\n\n{self._plan.num_cells} cells, {len(self._plan.trials)} trials")
        else:
            self._client.set_tag(self._parent_id, COMPLETE, "")
            self._client.update_run(self._parent_id, status="RUNNING")
        self._describe_sweep()
        self._client.log_text(self._parent_id, sweep_yaml, "sweep.yaml")
        self._client.log_dict(self._parent_id, self._plan.to_json(), "plan.json")
        for name, value in views(self._plan, time_ms=now_ms()).items():
            self._client.set_experiment_tag(self._experiment_id, name, value)
        self._is_open = True

    def _start_ms(self) -> int:
        """Return when the sweep's first trial began, of which MLflow may hear later."""
        keys = {trial.key for trial in self._plan.trials if trial.key is not None}
        attempts = (self._store.trial(key).attempt(1) for key in keys)
        own = [a["started_ms"] for a in attempts if a.get("sweep") == self._plan.name and "started_ms" in a]
        return min(own, default=now_ms())

    def _describe_sweep(self) -> None:
        """Send the sweep's settings to the parent run: parameters that cannot change, and tags that can."""
        known = self._client.get_run(self._parent_id).data.params
        params = [Param(name, value) for name, value in run_data.sweep_params(self._plan) if name not in known]
        tags = [RunTag(name, value) for name, value in run_data.sweep_tags(self._plan).items()]
        self._client.log_batch(self._parent_id, params=params, tags=tags)

    @property
    def has_parent(self) -> bool:
        """Return whether the sweep has a parent run."""
        return bool(self._parent_id)

    def describe(self, text: str) -> None:
        """Set the parent run's description, in Markdown, cut at a line to what MLflow keeps.

        If the experiment has the sweep's name, the first paragraph also appears above its list of runs.
        """
        if text == self._description:
            return
        where = links(self._plan, self._experiment_id)
        self._client.set_tag(
            self._parent_id, NOTE, f"{run_data.cut(text, run_data.TAG_LENGTH - len(where) - 2)}\n\n{where}"
        )
        experiment = self._client.get_experiment(self._experiment_id)
        note = experiment.tags.get(NOTE, "")
        if experiment.name == self._plan.name and (not note or where in note):  # nobody has edited it
            first = run_data.cut(text, run_data.TAG_LENGTH // 2).split("\n\n")[0]
            run = f"[The sweep's run](#/experiments/{self._experiment_id}/runs/{self._parent_id})."
            self._client.set_experiment_tag(self._experiment_id, NOTE, f"{first} {run} {where}")
        self._description = text

    def measure(self, metrics: Mapping[str, float]) -> None:
        """Show numbers of the whole sweep on the parent run, except those sent before."""
        fresh = {name: value for name, value in metrics.items() if self._measured.get(name) != value}
        points = [Metric(name, value, now_ms(), 0) for name, value in fresh.items()]
        for start in range(0, len(points), BATCH):
            self._client.log_batch(self._parent_id, metrics=points[start : start + BATCH])
        self._measured |= fresh

    def publish(self, files: Mapping[str, str | bytes]) -> None:
        """Upload files to `report/` of the parent's artifacts, except those sent before."""
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
        """Return whether the parent run says that MLflow has all results of the store."""
        if not self._parent_id:
            return False
        run = self._client.get_run(self._parent_id)
        return run.info.status == "FINISHED" and run.data.tags.get(COMPLETE) == self._results_digest()

    def _results_digest(self) -> str:
        """Return a digest of how the sweep's trials ended."""
        results = ((run_data.run_identity(t), self._ended(t)) for t in self._plan.trials if t.key is not None)
        return sha256(
            repr([(name, r and (r.attempt, r.outcome, r.steps_done)) for name, r in results]).encode()
        ).hexdigest()

    def _ended(self, trial: Trial) -> Result | None:
        """Return the result that ended a trial; None while an attempt may still change it."""
        assert trial.key is not None, "only trials that ran are tracked"
        folder = self._store.trial(trial.key)
        result = folder.result()
        is_enough = trial_standing(trial, result) is TrialState.FINISHED
        return result if is_enough else folder.current_result()

    def _is_current(self, trial: Trial, result: Result | None) -> bool:
        child = self._children.get(run_data.run_identity(trial))
        if child is not None and trial.is_settled and child.status in ("FINISHED", "FAILED"):
            return True
        if child is None or result is None:
            return False
        return child.status == run_data.run_status(trial, result) and child.attempt == str(result.attempt)

    def sync(self, trial: Trial) -> None:
        """Send a trial's new points to its run; create the run first, and end it with its training.

        A run that had ended is reopened if a later attempt went further.
        """
        assert trial.key is not None, "only trials that ran are tracked"
        folder = self._store.trial(trial.key)
        result = self._ended(trial)
        if self._is_current(trial, result):
            return
        stopped = None if result is not None else read_stops(self._store.sweep(self._plan.name)).reason(trial)
        attempt = folder.attempt(result.attempt if result else folder.last_attempt())
        known = self._children.get(run_data.run_identity(trial))
        if not attempt or (stopped and known is not None and known.status == "KILLED"):
            return
        child = self._child(trial, folder, attempt)
        rows = run_data.with_groups(view(trial, folder, read=child.read), trial, self._plan.groups)
        params = self._describe(trial, child)
        points = [
            Metric(name, value, row.time_ms, row.step)
            for row in rows
            for name, value in row.metrics.items()
            if run_data.is_curve(name)
        ]
        if result is not None:
            step, ends = trial.config.train.num_steps, run_data.end_metrics(trial, rows, self._plan.groups)
            points += [Metric(name, value, result.ended_ms, step) for name, value in ends.items()]
        fresh = [point for point in points if (point.key, point.step) not in child.sent]
        for start in range(0, max(len(fresh), bool(params)), BATCH):
            batch = fresh[start : start + BATCH]
            self._client.log_batch(child.run_id, metrics=batch, params=[] if start else params)
            child.sent.update((metric.key, metric.step) for metric in batch)
        child.is_described = True
        if result is not None:
            self._end(trial, folder, result, rows, child)
        elif stopped:
            self._client.set_tag(child.run_id, "state.reason", stopped)
            self._client.set_terminated(child.run_id, "KILLED", end_time=rows[-1].time_ms if rows else now_ms())
            child.status = "KILLED"

    def _child(self, trial: Trial, folder: TrialFolder, attempt: dict[str, Any]) -> _Child:
        """Return the trial's run with status RUNNING, created if needed."""
        identity = run_data.run_identity(trial)
        if identity not in self._children:
            described = run_data.trial_tags(trial, folder.last_attempt(), attempt, sweep=self._plan.name)
            tags = {"mlflow.parentRunId": self._parent_id, TRIAL: identity, **self._owner, **described}
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

    def _describe(self, trial: Trial, child: _Child) -> list[Param]:
        """Send the trial's datasets once, and read which points the run has; return parameters that it lacks."""
        if child.is_described:
            return []
        params = [Param(name, value) for name, value in run_data.run_params(trial)]
        datasets = run_data.dataset_inputs(trial)
        if not child.is_new:
            run = self._client.get_run(child.run_id)
            # MLflow never changes a param; a longer request of the same training keeps the first values
            params = [param for param in params if param.key not in run.data.params]
            datasets = [] if run.inputs is not None and run.inputs.dataset_inputs else datasets
            for name in run.data.metrics:
                child.sent.update((name, m.step) for m in self._client.get_metric_history(child.run_id, name))
        if datasets:
            self._client.log_inputs(child.run_id, datasets=datasets)
        return params

    def _note(self, trial: Trial) -> str:
        cell = "".join(f", {axis} **{name}**" for axis, name in trial.cell.items())
        parent = f"[{self._plan.name}](#/experiments/{self._experiment_id}/runs/{self._parent_id})"
        return (
            f"A trial of {parent}{cell}, seed **{trial.seed}**. Curves: Model metrics. Completions: Artifacts, `eval/`."
        )

    def _end(self, trial: Trial, folder: TrialFolder, result: Result, rows: list[Row], child: _Child) -> None:
        tables = []
        due = due_evaluations(trial.config)
        for suite in load_suites(trial.config):
            for step in sorted(step for digest, step in due & result.evaluations if digest == suite.digest):
                completions = folder.completions(table_name(suite.digest, step))
                if completions is None:  # gc removed it by age
                    continue
                path = f"eval/{suite.name}/step_{step}.json"
                places = [completions["columns"].index(name) for name in TABLE_COLUMNS]
                data = [[row[place] for place in places] for row in completions["data"]]
                self._client.log_dict(child.run_id, {"columns": list(TABLE_COLUMNS), "data": data}, path)
                tables.append(path)
        measures = run_data.measures_table(rows)
        if measures["data"]:
            self._client.log_dict(child.run_id, measures, MEASURES)
            tables.insert(0, MEASURES)
        if tables:
            self._list_tables(child.run_id, tables)
        if any(has_curve(row) for row in rows):
            self._client.log_figure(child.run_id, trial_curve(rows, title=trial.label), "curve.png")
        status = run_data.run_status(trial, result)
        if status == "FAILED":
            self._client.set_tag(child.run_id, "state.reason", result.reason)
            self._client.log_text(child.run_id, result.traceback, "traceback.txt")
        elif not child.is_new and "state.reason" in self._client.get_run(child.run_id).data.tags:
            self._client.delete_tag(child.run_id, "state.reason")
        if child.attempt != str(result.attempt):
            self._client.set_tag(child.run_id, "attempt", str(result.attempt))
            for name, value in run_data.placement_tags(folder.attempt(result.attempt)).items():
                self._client.set_tag(child.run_id, name, value)
        self._client.set_terminated(child.run_id, status, end_time=result.ended_ms)
        # MLflow is asked again if the trial goes on, so that thousands of ended trials take no memory
        self._children[run_data.run_identity(trial)] = _Child(
            run_id=child.run_id, status=status, attempt=str(result.attempt)
        )

    def _list_tables(self, run_id: str, paths: Sequence[str]) -> None:
        """Tell MLflow which artifacts are tables, last first, and as many as fit into a tag."""
        tables = [{"path": path, "type": "table"} for path in reversed(paths)]
        while len(json.dumps(tables)) > run_data.TAG_LENGTH:
            tables.pop()
        self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def refresh_cells(self) -> None:
        """Write the parent's `cells` table and figures again."""
        runs = with_groups(read_runs(self._plan, self._store), self._plan.groups)
        lines = cell_lines(runs)
        self._client.log_dict(self._parent_id, as_table(lines), "cells.json")
        self._list_tables(self._parent_id, ["cells.json"])
        self.measure(run_data.sweep_metrics(self._states(), lines, num_cells=self._plan.num_cells))
        for suite in sorted({line.suite for line in lines}):
            curves = sweep_curves(runs, suite=suite, name=self._plan.name)
            self._client.log_figure(self._parent_id, curves, f"{run_data.plain_name(suite)}.png")

    def _states(self) -> Iterator[TrialState]:
        stops = read_stops(self._store.sweep(self._plan.name))
        return (trial_state(trial, self._store, stops, faults=DEFAULT_FAULTS) for trial in self._plan.trials)

    def refresh_studies(self) -> None:
        """Write each finished study's points, winner and figures to the parent."""
        folder = self._store.sweep(self._plan.name)
        for study in self._plan.studies:
            record = folder.read_json(f"{SEARCH}/{study.name}/study.json")
            if record is None or record == self._studies.get(study.name):
                continue
            log_study(self._client, self._parent_id, study, record)
            self._studies[study.name] = record

    def close(self, status: str, *, is_whole: bool = True) -> None:
        """End the parent run; runs of trials that did not end become KILLED. `is_whole`: everything was sent."""
        self.refresh_studies()
        self.refresh_cells()
        for child in self._children.values():
            if child.status == "RUNNING":
                self._client.set_terminated(child.run_id, "KILLED")
                child.status = "KILLED"
        if status == "FINISHED" and is_whole:
            self._client.set_tag(self._parent_id, COMPLETE, self._results_digest())
        self._client.set_terminated(self._parent_id, status, end_time=self._end_ms(status))

    def _end_ms(self, status: str) -> int:
        """Return when the last trial ended, so that a driver that finds nothing to do makes the sweep no longer.

        A driver that was interrupted ends the sweep now.
        """
        results = [self._ended(trial) for trial in self._plan.trials if trial.key is not None]
        ends_ms = [result.ended_ms for result in results if result is not None]
        start_ms = int(self._client.get_run(self._parent_id).info.start_time)
        return now_ms() if status == "KILLED" or not ends_ms else max(start_ms, *ends_ms)
