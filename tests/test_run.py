"""Whole sweeps on a real local Ray into a real MLflow store: what a person gets from `oneshot run`."""

import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import pytest
from conftest import PROJECT
from mlflow import MlflowClient

from oneshot.config.file import load
from oneshot.plan.plan import Plan, make_plan
from oneshot.store.store import Store

pytestmark = pytest.mark.ray

SWEEP = """
version: 1
name: small
question: Does a sweep run?
trial:
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}
  optim.lr: 1e-4
  train.num_steps: 3
  eval: {every_steps: 2, suites: {arithmetic: {num_problems: 5, temperature: 1.0}, two: {source: two.jsonl}}}
axes:
  model:
    qwen2: {set: {model.path: tiny:qwen2}}
    llama: {set: {model.path: tiny:llama}}
  arm: {outcome: {}, format: {set: {reward.kind: format}}}
grid: [{arm: outcome}, {arm: format, model: llama}]
seeds: [0, 1]
resources: {cpus: 1, max_concurrent: 2}
"""
EXAMPLES = '  examples: ["arithmetic:47+38"]\n'


@dataclass(frozen=True)
class Place:
    """A folder with a sweep file, and a Ray of its own."""

    folder: Path
    environment: dict[str, str]

    @property
    def file(self) -> Path:
        return self.folder / "s.yaml"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "oneshot", *arguments]

    def run(self, *arguments: str, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def plan(self) -> Plan:
        with contextlib.chdir(self.folder):
            return make_plan(load(self.file))

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder}/runs/mlflow.db")

    def table(self, experiment_id: str, name: str, run_id: str) -> Any:
        """A table as a person loads it; MLflow looks its run up under the process-wide address."""
        mlflow.set_tracking_uri(self.client.tracking_uri)
        try:
            return self.client.load_table(experiment_id, name, run_ids=[run_id])
        finally:
            mlflow.set_tracking_uri(None)  # any other is kept in the environment, of which drivers take pop_requests

    def runs(self, experiment: str = "small") -> list[Any]:
        found = self.client.get_experiment_by_name(experiment)
        assert found is not None
        return list(self.client.search_runs([found.experiment_id]))


def make_place(folder: Path, text: str) -> Place:
    folder.mkdir(exist_ok=True)
    # Ray's sockets need a short path
    scratch = tempfile.mkdtemp(prefix="os", dir="/tmp")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    environment = {**os.environ, "HOME": str(folder), "RAY_TMPDIR": scratch}
    (folder / "s.yaml").write_text(text)
    # a path from the working directory: workers must find it, too
    shutil.copy(PROJECT / "tests" / "cases" / "two.jsonl", folder)
    return Place(folder, environment)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, subprocess.CompletedProcess[str]]:
    made = make_place(tmp_path_factory.mktemp("run"), SWEEP.replace("trial:\n", f"trial:\n{EXAMPLES}"))
    return made, made.run("run", "s.yaml")


Ran = tuple[Place, subprocess.CompletedProcess[str]]


def test_a_sweep_runs_to_its_end(place: Ran) -> None:
    made, done = place
    assert done.returncode == 0, done.stderr
    assert "6 finished, 0 failed, 0 missing" in done.stdout
    assert done.stderr.count("finished: 3 steps") == 6
    store = Store(str(made.folder / "runs"))
    for trial in made.plan().trials:
        assert trial.key is not None
        result = store.trial(trial.key).result()
        assert result is not None
        assert (result.outcome, result.steps_done) == ("finished", 3)


def test_mlflow_has_one_parent_and_one_child_a_trial_all_finished(place: Ran) -> None:
    made, _ = place
    runs = made.runs()
    assert Counter((run.data.tags["phase"], run.info.status) for run in runs) == {
        ("sweep", "FINISHED"): 1,
        ("grid", "FINISHED"): 6,
    }
    experiment = made.client.get_experiment_by_name("small")
    assert experiment is not None
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "eval/arithmetic/pass_at_1"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    (parent,) = (run for run in runs if run.data.tags["phase"] == "sweep")
    children = {run.data.tags["trial.key"]: run for run in runs if run.data.tags["phase"] == "grid"}
    assert set(children) == {trial.key for trial in made.plan().trials}
    for child in children.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["sweep"] == "small"
        assert {"cell.model", "cell.arm", "seed", "phase", "attempt", "env.digest", "gpu"} <= set(child.data.tags)
        assert child.data.params["optim.lr"] == "0.0001"
        assert child.data.params["cell.arm"] == child.data.tags["cell.arm"]
        contexts = [tag.value for given in child.inputs.dataset_inputs for tag in given.tags]
        assert contexts == ["training", "eval", "eval"]


def test_a_trials_metrics_are_the_stores_one_point_a_step(place: Ran) -> None:
    made, _ = place
    store = Store(str(made.folder / "runs"))
    for run in made.runs():
        if run.data.tags["phase"] == "sweep":
            continue
        rows = store.trial(run.data.tags["trial.key"]).rows()
        assert [row.step for row in rows] == [0, 1, 2, 3]
        for name in ("reward/mean", "loss/total", "loss/kl", "eval/arithmetic/pass_at_1", "perf/step_s"):
            history = made.client.get_metric_history(run.info.run_id, name)
            expected = [(row.step, row.metrics[name], row.time_ms) for row in rows if name in row.metrics]
            assert sorted((m.step, m.value, m.timestamp) for m in history) == expected


METRICS = {
    *(
        "reward/mean",
        "reward/frac_groups_zero_std",
        "loss/total",
        "loss/pg",
        "loss/kl",
        "loss/entropy",
        "loss/grad_norm",
    ),
    *("rollout/entropy", "rollout/length_mean", "rollout/truncated", "rollout/boxed", "eval/arithmetic/pass_at_1"),
    *("eval/arithmetic/pass_at_1_lenient", "eval/arithmetic/gain", "eval/arithmetic/addition/pass_at_1"),
    *("perf/tokens_per_s", "perf/step_s", "perf/rollout_s", "perf/update_s", "perf/efficiency"),
}


def test_metrics_have_the_names_of_the_design_and_are_not_too_many(place: Ran) -> None:
    made, _ = place
    for run in made.runs():
        if run.data.tags["phase"] == "grid":
            assert set(run.data.metrics) >= METRICS
            assert len(run.data.metrics) < 60


def test_completions_are_tables_and_curves_are_figures(place: Ran) -> None:
    made, _ = place
    (experiment,) = {run.info.experiment_id for run in made.runs()}
    child = next(run for run in made.runs() if run.data.tags["phase"] == "grid")
    for step in (0, 2, 3):
        table = made.table(experiment, f"eval/arithmetic/step_{step}.json", child.info.run_id)
        assert list(table.columns) == ["problem", "completion", "answer", "strict", "lenient"]
        assert len(table) == 15
    assert "curve.png" in [artifact.path for artifact in made.client.list_artifacts(child.info.run_id)]


def test_the_parent_holds_plan_file_and_cells(place: Ran) -> None:
    made, _ = place
    parent = next(run for run in made.runs() if run.data.tags["phase"] == "sweep")
    names = {artifact.path for artifact in made.client.list_artifacts(parent.info.run_id)}
    assert {"plan.json", "sweep.yaml", "cells.json", "arithmetic.png"} <= names
    cells = made.table(parent.info.experiment_id, "cells.json", parent.info.run_id)
    assert list(cells["n"]) == [2] * 6
    assert {"model", "arm", "start", "last", "gain", "gain_low", "gain_high"} <= set(cells.columns)


def points(made: Place, run: Any) -> int:
    return sum(len(made.client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics)


def test_running_again_starts_nothing_and_changes_nothing(place: Ran) -> None:
    made, first = place
    before = {run.info.run_id: (run.info.end_time, points(made, run)) for run in made.runs()}
    done = made.run("run", "s.yaml")
    assert done.returncode == 0
    assert "0 trainings to run" in done.stderr
    assert "started" not in done.stderr
    assert done.stdout == first.stdout
    assert {run.info.run_id: (run.info.end_time, points(made, run)) for run in made.runs()} == before


class Hook(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    received: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.mark.slow
def test_the_end_of_a_sweep_is_posted_to_its_webhook(place: Ran) -> None:
    made, _ = place
    (made.folder / "hook.yaml").write_text(made.file.read_text() + "notify: {webhook_env: SMALL_HOOK}\n")
    unset = made.run("run", "hook.yaml")
    assert unset.returncode == 2
    assert "notify.webhook_env: the environment variable SMALL_HOOK is not set" in unset.stderr
    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.environment["SMALL_HOOK"] = f"http://127.0.0.1:{server.server_port}/"
    done = made.run("run", "hook.yaml")
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    (message,) = Hook.received
    assert (message["sweep"], message["finished"], message["failed"]) == ("small", 6, 0)


@pytest.mark.slow
def test_a_trial_that_fits_no_node_is_refused_with_its_need(place: Ran) -> None:
    made, _ = place
    text = made.file.read_text().replace("name: small", "name: big").replace("seeds: [0, 1]", "seeds: [9]")
    (made.folder / "big.yaml").write_text(text.replace("cpus: 1,", "cpus: 1000, memory_gib: 2,"))
    done = made.run("run", "big.yaml")
    assert done.returncode == 2
    assert re.search(r"seed 9 needs 1000 CPU, 2 GiB memory on one node; the largest node has \d+ CPU", done.stderr)


def exact(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(("perf/", "system/"))}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2", "llama"])
def test_a_trial_without_ray_gives_the_same_floats(place: Ran, tmp_path: Path, model: str) -> None:
    made, _ = place
    chosen = next(t for t in made.plan().trials if t.cell == {"model": model, "arm": "outcome"} and t.seed == 1)
    assert chosen.key is not None
    alone = make_place(tmp_path / "alone", made.file.read_text())
    done = alone.run("trial", "s.yaml", "--cell", f"model={model},arm=outcome", "--seed", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    rows = Store(str(made.folder / "runs")).trial(chosen.key).rows()
    assert [(step["step"], exact(step["metrics"])) for step in found] == [
        (row.step, exact(row.metrics)) for row in rows
    ]
    assert not (alone.folder / "runs").exists()


@pytest.mark.slow
def test_another_sweep_reuses_finished_trainings_and_says_from_where(place: Ran) -> None:
    made, _ = place
    text = made.file.read_text().replace("name: small", "name: other").replace("{arm: format, model: llama}", "{}")
    (made.folder / "other.yaml").write_text(text.replace("seeds: [0, 1]", "seeds: [0]").replace(", {}]", "]"))
    done = made.run("run", "other.yaml")
    assert done.returncode == 0, done.stderr
    assert "0 trainings to run" in done.stderr
    children = [run for run in made.runs("other") if run.data.tags["phase"] == "grid"]
    assert len(children) == 2
    for child in children:
        assert child.data.tags["reused.from"] == "small"
        assert child.info.status == "FINISHED"
        assert len(made.client.get_metric_history(child.info.run_id, "reward/mean")) == 3


@pytest.mark.slow
def test_a_trial_that_fails_is_kept_and_turns_the_exit_code(tmp_path: Path) -> None:
    axis = '  example:\n    good: {set: {examples: ["arithmetic:47+38"]}}\n'
    axis += '    bad: {set: {examples: ["arithmetic:47+38"], rollout.max_tokens: 250}}\n'
    text = SWEEP.replace("axes:\n", f"axes:\n{axis}").replace(
        "grid: [{arm: outcome}, {arm: format, model: llama}]\n", ""
    )
    text = text.replace("seeds: [0, 1]", "seeds: [0]")
    text = text.replace("seeds: [0]", "grid: [{arm: outcome, model: llama}]\nseeds: [0]")
    made = make_place(tmp_path / "fail", text)
    done = made.run("run", "s.yaml")
    assert done.returncode == 1, done.stderr
    assert "1 finished, 1 failed, 0 missing" in done.stdout
    (log,) = re.findall(r"bad/llama/outcome seed 0 failed: DataError: .*; log: (\S+)", done.stderr)[-1:]
    assert "Traceback (most recent call last)" in Path(log).read_text()
    failed = next(run for run in made.runs() if run.info.status == "FAILED" and run.data.tags["phase"] == "grid")
    assert failed.data.tags["state.reason"].startswith("DataError")
    assert "traceback.txt" in [artifact.path for artifact in made.client.list_artifacts(failed.info.run_id)]
    again = made.run("run", "s.yaml")
    assert again.returncode == 1
    assert "0 trainings to run" in again.stderr
    assert "1 failed training will run again" in made.run("retry", "s.yaml").stdout


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_nothing_running_and_goes_on(tmp_path: Path) -> None:
    text = SWEEP.replace("trial:\n", f"trial:\n{EXAMPLES}").replace("seeds: [0, 1]", "seeds: [0]")
    text = text.replace("train.num_steps: 3", "train.num_steps: 40").replace("every_steps: 2", "every_steps: 40")
    made = make_place(tmp_path / "stop", text.replace("{arm: outcome}, ", ""))
    process = subprocess.Popen(
        made.command("run", "s.yaml"), cwd=made.folder, env=made.environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    store = Store(str(made.folder / "runs"))
    (trial,) = made.plan().trials
    assert trial.key is not None
    deadline = time.monotonic() + 120
    while not store.trial(trial.key).rows() and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 130, messages
    assert store.trial(trial.key).result() is None
    assert {run.info.status for run in made.runs()} == {"KILLED"}
    num_done = store.trial(trial.key).rows()[-1].step
    assert 0 < num_done < 40
    done = made.run("run", "s.yaml")
    assert done.returncode == 0, done.stderr
    assert {run.info.status for run in made.runs()} == {"FINISHED"}
    child = next(run for run in made.runs() if run.data.tags["phase"] == "grid")
    steps = [metric.step for metric in made.client.get_metric_history(child.info.run_id, "reward/mean")]
    assert sorted(steps) == list(range(1, 41))
    assert "resumes from step" in (store.trial(trial.key).read("log/2.txt") or "")
