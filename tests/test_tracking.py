"""The store as MLflow shows it, without Ray: retries, longer requests, outages; a real sqlite store."""

import json
import logging
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import begin_attempt, located, sweep_run
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from synthetic import SMALL, make_store
from test_sweepfile import BASE

from oneshot.config.file import load
from oneshot.errors import DataError, UserError
from oneshot.plan.loader import begun_sweep, pin_known
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.trainings import Training, trainings
from oneshot.report.runs import gather
from oneshot.report.verdicts import JudgedClaim
from oneshot.store.records import Result
from oneshot.store.store import Store
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.run import run as run_sweep
from oneshot.sweep.status import sweep_status
from oneshot.sweep.tracking.relocate import relocate
from oneshot.sweep.tracking.run_data import CUT, claim_metrics
from oneshot.sweep.tracking.server import forget
from oneshot.sweep.tracking.thread import TrackingThread
from oneshot.sweep.tracking.tracker import NOTE, Tracker
from oneshot.tasks.benchmarks import load_suites
from oneshot.tasks.grading import Grader
from oneshot.trial.recorder import record
from oneshot.trial.state import standing

pytest_plugins = ["labs"]

TEXT = BASE.replace("seeds: [0, 1]", "grid: [{example: sum, arm: outcome}]\nseeds: [0]")


class Lab:
    """One sweep of one trial, its store and its MLflow."""

    def __init__(self, folder: Path, grader: Grader) -> None:
        self.folder, self.grader = folder, grader
        self.store = Store(str(folder / "runs"))

    def sweep(self, *changes: tuple[str, str]) -> PinnedSweep:
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

    def agenda(self, sweep: PinnedSweep, plan: Plan) -> Agenda:
        quiet: Any = lambda *_: None  # noqa: E731 - nobody watches
        return Agenda(sweep_run(sweep, plan, self.store), listen=quiet, replanned=quiet)

    def run(self, sweep: PinnedSweep) -> Any:
        plan = make_plan(sweep)
        summary, _ = run_sweep(sweep_run(sweep, plan, self.store), launch=self.launch, listen=lambda event: None)
        return summary

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder}/runs/mlflow.db")

    def child(self) -> Any:
        experiment = self.client.get_experiment_by_name("base")
        assert experiment is not None
        (child,) = self.client.search_runs([experiment.experiment_id], "tags.phase = 'grid'")
        return child

    def parent(self) -> Any:
        experiment = self.client.get_experiment_by_name("base")
        assert experiment is not None
        (run,) = self.client.search_runs([experiment.experiment_id], "tags.phase = 'sweep'")
        return run

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
    attempt = begin_attempt(folder, {"sweep": "base", "started_ms": 1, "gpu": "", "env_digest": "d"})
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


def test_the_sweeps_run_shows_counts_gains_and_settings(lab: Lab) -> None:
    lab.run(lab.sweep())
    shown = lab.parent().data
    counts = {name: value for name, value in shown.metrics.items() if name.startswith("trials/")}
    expected = {"all": 1, "finished": 1, "failed": 0, "stopped": 0, "missing": 0}
    assert counts == {f"trials/{state}": number for state, number in expected.items()}
    child = lab.child().data
    gain = child.metrics["eval/arithmetic/gain"]
    assert shown.metrics["gains/arithmetic/sum outcome"] == gain
    assert (child.metrics["last/arithmetic"], child.metrics["gain/arithmetic"]) == (
        child.metrics["eval/arithmetic/pass_at_1"], gain,
    )  # fmt: skip
    assert (shown.params["model.path"], shown.params["rollout.num_groups"]) == ("tiny:qwen2", "4")
    assert not any(name.startswith(("eval.", "train.num_steps")) for name in shown.params)
    assert (shown.tags["axis.arm"], shown.tags["seeds"], shown.tags["steps"]) == ("outcome", "0", "2")
    lab.run(lab.sweep(("train.num_steps: 2", "train.num_steps: 3"), ("seeds: [0]", "seeds: [0, 1]")))
    longer = lab.parent().data
    assert (longer.tags["seeds"], longer.tags["steps"], longer.metrics["trials/finished"]) == ("0, 1", "3", 2)


def test_a_driver_that_finds_nothing_to_do_makes_the_sweep_no_longer(lab: Lab) -> None:
    sweep = lab.sweep()
    lab.run(sweep)
    before, last = lab.parent().info, lab.child().info
    assert (before.start_time, before.end_time) == (last.start_time, last.end_time)
    again = Tracker(make_plan(sweep), lab.store, sweep_run(sweep, make_plan(sweep), lab.store).mlflow())
    again.open(question="?", sweep_yaml="")
    again.close("FAILED")
    assert (lab.parent().info.start_time, lab.parent().info.end_time) == (before.start_time, before.end_time)
    again.close("KILLED")
    assert lab.parent().info.end_time > before.end_time


def test_a_finished_sweep_is_known_by_a_tag_of_its_run(lab: Lab) -> None:
    sweep = lab.sweep()
    plan = make_plan(sweep)

    def fresh() -> Tracker:
        return Tracker(plan, lab.store, sweep_run(sweep, plan, lab.store).mlflow())

    assert not fresh().is_complete()
    lab.run(sweep)
    tracker = fresh()
    assert tracker.is_complete()
    assert "_children" not in vars(tracker), "the runs of thousands of trials are not asked for"
    folder = lab.store.trial(only(plan).key)
    begin_attempt(folder, {"sweep": "base", "started_ms": 1, "gpu": "", "env_digest": "d"})
    folder.write_result(failed(2))
    assert not fresh().is_complete()


def test_what_could_not_be_sent_is_sent_by_the_next_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = lab.sweep()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", refuse)
        assert "no space left" in lab.run(sweep).tracking_error
    assert lab.run(sweep).tracking_error == ""
    assert lab.points()["reward/mean"] == [1, 2]


def test_every_run_says_whose_it_is(lab: Lab) -> None:
    lab.run(lab.sweep(("version: 1\n", "version: 1\nuser: ada\nproject: transfer\n")))
    for run in (lab.parent(), lab.child()):
        assert (run.data.tags["mlflow.user"], run.data.tags["project"]) == ("ada", "transfer")


def test_names_of_claims_and_cells_give_metrics_that_mlflow_takes(tracker: Tracker) -> None:
    judged = JudgedClaim(
        name='../up: "50 %" / é', cells={"model": ".."}, verdict="inconclusive", effect=0.25, low=-0.5,
        p_value=None, p_holm=None, metric="m", of="value", categories="all", at=("last", "last"), expect="",
        is_amended=False, notes=(),
    )  # fmt: skip
    tracker.measure(claim_metrics([judged]))
    tracker.measure(claim_metrics([judged]))
    metrics = parent(tracker).data.metrics
    assert sorted(metrics.values()) == [-0.5, 0.25]
    assert all(name.startswith("claims/") and name.endswith(("/effect", "/low")) for name in metrics)
    (effect,) = [name for name in metrics if name.endswith("effect")]
    assert len(tracker._client.get_metric_history(tracker._parent_id, effect)) == 1


@pytest.mark.slow
def test_an_outage_stops_nothing_and_the_next_run_catches_up(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    sweep = lab.sweep()
    plan = make_plan(sweep)
    training = only(plan)
    nowhere = {"mlflow": sweep.config.mlflow.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})}
    unreachable = replace(sweep, config=sweep.config.model_copy(update=nowhere))
    down = TrackingThread(sweep_run(unreachable, plan, lab.store))
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


def test_a_store_that_was_moved_keeps_its_artifacts_where_it_is(lab: Lab, grader: Grader) -> None:
    lab.run(lab.sweep())
    before = lab.child().info
    moved = Lab(lab.folder.parent / f"{lab.folder.name} moved", grader)
    shutil.copytree(lab.folder, moved.folder)
    shutil.rmtree(lab.folder / "runs" / "mlartifacts")
    _artifact_repos_cache.clear()  # MLflow's, by run, in this process
    # another suite writes artifacts
    longer = moved.sweep(("num_problems: 4", "num_problems: 3"))
    assert moved.run(longer).finished == 1
    after = moved.child().info
    assert after.run_id == before.run_id
    assert after.artifact_uri == before.artifact_uri.replace(lab.folder.name, f"{lab.folder.name}%20moved")
    assert moved.client.list_artifacts(after.run_id)
    assert not (lab.folder / "runs" / "mlartifacts").exists()
    relocate(moved.folder / "runs")  # nothing is left to do
    assert moved.child().info.artifact_uri == after.artifact_uri


@pytest.mark.parametrize("there", ["nothing", "another file of this name"])
def test_a_store_answers_from_its_record_where_its_data_are_not(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    monkeypatch.chdir(lab.folder)
    Path("own.jsonl").write_text('{"problem": "40+2=?", "answer": "42"}\n{"problem": "1+1=?", "answer": "2"}\n')
    sweep = lab.sweep(("{arithmetic: {num_problems: 4}}", "{mine: {source: own.jsonl}}"))
    assert lab.run(sweep).finished == 1
    (key,) = lab.store.trainings()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if there != "nothing":
        Path("own.jsonl").write_text('{"problem": "5+5=?", "answer": "10"}\n')
    assert [trial.key for trial in begun_sweep(lab.store, "base").plan.trials] == [key]
    assert sweep_status(lab.store, "base").counts["finished"] == 1
    (run,) = gather(begun_sweep(lab.store, "base")).runs
    assert [(suite.name, suite.num_problems) for suite in run.suites] == [("mine", 2)]
    # a file's sweep is of the data that are here
    if there == "nothing":
        with pytest.raises(UserError, match=r"own\.jsonl: no such file"):
            make_plan(pin_known(sweep, lab.store))
    else:
        (trial,) = make_plan(pin_known(sweep, lab.store)).trials
        assert load_suites(trial.config)[0].count == 1


def test_a_sweep_is_forgotten_with_all_its_runs(lab: Lab) -> None:
    lab.run(lab.sweep())
    uri = f"sqlite:///{lab.folder}/runs/mlflow.db"
    assert forget(uri, "another") == 0
    assert forget(uri, "base") == 2
    experiment = lab.client.get_experiment_by_name("base")
    assert experiment is not None
    assert not lab.client.search_runs([experiment.experiment_id])


def test_missing_data_is_found_before_mlflow_hears_of_a_run(lab: Lab) -> None:
    assert lab.run(lab.sweep()).finished == 1
    experiment = lab.client.get_experiment_by_name("base")
    assert experiment is not None
    states = {run.info.run_id: run.info.status for run in lab.client.search_runs([experiment.experiment_id])}
    with pytest.raises(DataError):
        lab.run(lab.sweep(("{arithmetic: {num_problems: 4}}", "{arithmetic: {num_problems: 4}, math500: {}}")))
    after = {run.info.run_id: run.info.status for run in lab.client.search_runs([experiment.experiment_id])}
    assert after == states


@pytest.fixture
def tracker(lab: Lab, database: Path) -> Tracker:
    """Of a sweep that has begun, in an experiment of its own."""
    shutil.copy(database, lab.folder / "m.db")
    plan = make_plan(lab.sweep())
    return _opened(lab, plan, experiment=plan.name)


def _opened(lab: Lab, plan: Plan, *, experiment: str) -> Tracker:
    uri, artifacts = f"sqlite:///{lab.folder}/m.db", (lab.folder / "artifacts").as_uri()
    made = Tracker(plan, lab.store, located(uri, experiment=experiment, artifacts=artifacts))
    made.open(question="Is it so?", sweep_yaml="")
    return made


def parent(tracker: Tracker) -> Any:
    return tracker._client.get_run(tracker._parent_id)


def experiment_tags(tracker: Tracker) -> dict[str, str]:
    return dict(tracker._client.get_experiment(tracker._experiment_id).tags)


def test_a_description_too_long_for_mlflow_is_cut_between_lines_and_says_so(tracker: Tracker) -> None:
    lines = [f"| claim {number} | holds |" for number in range(1000)]
    tracker.describe("\n".join(["**Held.**", "", "| claim | verdict |", "|---|---|", *lines]))
    note = parent(tracker).data.tags[NOTE]
    assert len(note) <= 8000
    kept, cut, links = note.rsplit("\n\n", 2)
    assert kept.startswith("**Held.**")
    assert set(kept.splitlines()[4:]) < set(lines)
    assert (cut, links[:8]) == (CUT, "Charts: ")
    tracker.describe("**Held.**")
    assert parent(tracker).data.tags[NOTE] == f"**Held.**\n\n{links}"


def test_the_first_paragraph_stands_over_the_runs_of_an_experiment_that_is_the_sweeps_alone(
    lab: Lab, tracker: Tracker
) -> None:
    assert experiment_tags(tracker)[NOTE].startswith("Is it so? [The sweep's run](")
    tracker.describe("**Held.**\n\nAnd more.")
    assert experiment_tags(tracker)[NOTE].startswith("**Held.** [The sweep's run](")
    shared = _opened(lab, make_plan(lab.sweep()), experiment="many sweeps")
    assert NOTE not in experiment_tags(shared)


def test_what_a_person_wrote_of_an_experiment_stays(tracker: Tracker) -> None:
    tracker._client.set_experiment_tag(tracker._experiment_id, NOTE, "Mine.")
    tracker.describe("**Held.**")
    assert experiment_tags(tracker)[NOTE] == "Mine."


def test_files_are_published_under_report_and_sent_again_only_where_they_changed(lab: Lab, tracker: Tracker) -> None:
    tracker.publish({"report.html": "<p>ä</p>", "figures/one.png": b"\x89PNG"})
    (page,) = lab.folder.rglob("artifacts/report/report.html")
    assert page.read_text() == "<p>ä</p>"
    assert (page.parent / "figures" / "one.png").read_bytes() == b"\x89PNG"
    page.write_text("as it was")
    tracker.publish({"report.html": "<p>ä</p>", "figures/one.png": b"other"})
    assert page.read_text() == "as it was"
    assert (page.parent / "figures" / "one.png").read_bytes() == b"other"


def test_views_of_cells_and_trials_are_offered(tracker: Tracker) -> None:
    tags = experiment_tags(tracker)
    views = [json.loads(value) for name, value in tags.items() if name.startswith("mlflow.sharedViewState.")]
    assert sorted(view["name"] for view in views) == ["base: cells", "base: trials"]
    states = {view["name"]: json.loads(view["state"]) for view in views}
    assert states["base: cells"]["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "cell"}]
    columns = [name.removeprefix("metrics.`") for name in states["base: trials"]["selectedColumns"]]
    assert "last/arithmetic`" in columns and "gain/arithmetic`" in columns
    assert len({name[:8] for name in columns if not name.startswith("params")}) == 2  # what a header shows
    assert states["base: trials"]["orderByKey"] == "metrics.`eval/arithmetic/pass_at_1`"
    assert all(len(value) < 5000 for value in tags.values())  # what older servers take


def test_more_points_than_mlflow_takes_at_once_all_arrive(tmp_path: Path, database: Path) -> None:
    shutil.copy(database, tmp_path / "m.db")
    text = SMALL.replace("num_steps: 12", "num_steps: 120").replace("[0, 1, 2]", "[0]")
    _, plan, store = make_store(tmp_path, text)
    location = located(f"sqlite:///{tmp_path}/m.db", experiment="e", artifacts=(tmp_path / "a").as_uri())
    tracker = Tracker(plan, store, location)
    tracker.open(question="?", sweep_yaml="")
    tracker.sync(plan.trials[0])
    (child,) = tracker._children.values()
    for name, steps in (("reward/mean", range(1, 121)), ("eval/arithmetic/pass_at_1", range(0, 121, 4))):
        points = tracker._client.get_metric_history(child.run_id, name)
        assert sorted(point.step for point in points) == list(steps)


def test_of_very_many_tables_the_latest_are_listed(tracker: Tracker) -> None:
    assert tracker._parent_id is not None
    tracker._list_tables(tracker._parent_id, [f"eval/arithmetic/step_{step}.json" for step in range(500)])
    tag = parent(tracker).data.tags["mlflow.loggedArtifacts"]
    assert len(tag) <= 8000
    assert json.loads(tag)[0]["path"] == "eval/arithmetic/step_499.json"  # what MLflow shows first
    assert "step_0.json" not in tag
