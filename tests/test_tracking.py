"""The store as MLflow shows it, without Ray: retries, longer requests, outages; a real sqlite store."""

import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from test_sweepfile import BASE

from oneshot.plan import Plan, make_plan
from oneshot.runner import record
from oneshot.standing import standing
from oneshot.store import Result, Store
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.background import TrackingThread
from oneshot.sweep.run import run as run_sweep
from oneshot.sweep.tracking import Tracker
from oneshot.sweepfile import Sweep, load
from oneshot.tasks.grading import Grader
from oneshot.trainings import Training, trainings

TEXT = BASE.replace("seeds: [0, 1]", "grid: [{example: sum, arm: outcome}]\nseeds: [0]")


class Lab:
    """One sweep of one trial, its store and its MLflow."""

    def __init__(self, folder: Path, grader: Grader) -> None:
        self.folder, self.grader = folder, grader
        self.store = Store(str(folder / "runs"))

    def sweep(self, *changes: tuple[str, str]) -> Sweep:
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (self.folder / "s.yaml").write_text(text)
        return load(self.folder / "s.yaml")

    def launch(self, agenda: Agenda, tracking: TrackingThread) -> bool:
        while not isinstance(turn := agenda.next(), str):
            training = turn.training
            for _ in record(training, self.store.trial(training.key), grader=self.grader, origin="base"):
                tracking.wake(training.key, ended=False)
            tracking.wake(training.key, ended=agenda.ended(training.key))
        return False

    def agenda(self, sweep: Sweep, plan: Plan) -> Agenda:
        folder = self.store.sweep(plan.name)
        quiet: Any = lambda *_: None  # noqa: E731 - nobody watches
        return Agenda(sweep, plan, self.store, folder=folder, listen=quiet, replanned=quiet)

    def run(self, sweep: Sweep) -> Any:
        plan = make_plan(sweep)
        summary, _ = run_sweep(sweep, plan, self.store, launch=self.launch, listen=lambda event: None)
        return summary

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder}/runs/mlflow.db")

    def child(self) -> Any:
        experiment = self.client.get_experiment_by_name("base")
        assert experiment is not None
        (child,) = self.client.search_runs([experiment.experiment_id], "tags.phase = 'grid'")
        return child

    def points(self) -> dict[str, list[int]]:
        child = self.child()
        return {
            name: sorted(m.step for m in self.client.get_metric_history(child.info.run_id, name))
            for name in child.data.metrics
        }


@pytest.fixture
def lab(tmp_path: Path, grader: Grader) -> Lab:
    return Lab(tmp_path, grader)


def only(plan: Plan) -> Training:
    (training,) = trainings(plan.trials)
    return training


def failed(attempt: int) -> Result:
    return Result(
        outcome="failed", attempt=attempt, steps_done=0, evaluations=frozenset(), reason="E: it broke", traceback="t",
        log_path="l", checkpoint="none", started_ms=1, ended_ms=2,
    )  # fmt: skip


def test_a_retried_trial_is_finished_in_mlflow_too(lab: Lab) -> None:
    sweep = lab.sweep()
    folder = lab.store.trial(only(make_plan(sweep)).key)
    attempt = folder.begin_attempt({"sweep": "base", "started_ms": 1, "gpu": "", "env_digest": "d"})
    folder.write_result(failed(attempt))
    assert lab.run(sweep).failed == 1
    assert lab.child().info.status == "FAILED"
    assert lab.child().data.tags["state.reason"] == "E: it broke"
    folder.remove("result.json")  # what `oneshot retry` does
    assert lab.run(sweep).finished == 1
    child = lab.child()
    assert child.info.status == "FINISHED"
    assert child.data.tags["attempt"] == "2"
    assert "state.reason" not in child.data.tags
    assert lab.points()["reward/mean"] == [1, 2]


def test_a_longer_request_and_another_suite_reach_the_same_run_without_gap_or_double(lab: Lab) -> None:
    assert lab.run(lab.sweep()).finished == 1
    first = lab.child().info.run_id
    longer = lab.sweep(
        ("train.num_steps: 2", "train.num_steps: 4"),
        ("{num_problems: 4}", "{num_problems: 4}, two: {source: tests/cases/two.jsonl}"),
    )
    (asked,) = trainings(make_plan(longer).trials)
    assert standing(asked, lab.store.trial(asked.key)) == "missing"
    assert lab.run(longer).finished == 1
    assert lab.child().info.run_id == first
    assert lab.child().info.status == "FINISHED"
    points = lab.points()
    assert points["reward/mean"] == [1, 2, 3, 4]
    assert points["eval/two/pass_at_1"] == [0, 4]
    assert all(count == 1 for steps in points.values() for count in Counter(steps).values())
    assert lab.run(longer).num_started == 0


def test_an_outage_stops_nothing_and_the_next_run_catches_up(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    sweep = lab.sweep()
    plan = make_plan(sweep)
    training = only(plan)
    down = TrackingThread(sweep, plan, lab.store, uri="http://127.0.0.1:9", artifacts=None)
    start_s = time.monotonic()
    with caplog.at_level(logging.WARNING):
        lab.launch(lab.agenda(sweep, plan), down)
        assert lab.store.trial(training.key).result() is not None
        down.finish("FINISHED")
    assert down.error
    assert time.monotonic() - start_s < 120
    assert sum("MLflow is behind" in message for message in caplog.messages) < 4
    summary = lab.run(sweep)
    assert (summary.num_started, summary.finished, summary.tracking_error) == (0, 1, "")
    assert lab.points()["reward/mean"] == [1, 2]


def test_of_very_many_tables_the_latest_are_listed(lab: Lab) -> None:
    sweep = lab.sweep()
    plan = make_plan(sweep)
    tracker = Tracker(
        plan, lab.store, tracking_uri=f"sqlite:///{lab.folder}/m.db", experiment="e", artifacts=lab.folder.as_uri()
    )
    tracker.open(question="?", sweep_yaml="")
    assert tracker._parent_id is not None
    tracker._list_tables(tracker._parent_id, [f"eval/arithmetic/step_{step}.json" for step in range(500)])
    tag = tracker._client.get_run(tracker._parent_id).data.tags["mlflow.loggedArtifacts"]
    assert len(tag) <= 8000
    assert "step_499.json" in tag
    assert "step_0.json" not in tag
