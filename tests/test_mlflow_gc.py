"""`oneshot gc --mlflow`: runs that were deleted in a real sqlite MLflow go with their artifacts, and no others."""

import json
import shutil
from pathlib import Path

import pytest
from builders import located
from mlflow import MlflowClient
from mlflow.entities import ViewType
from synthetic import SMALL, make_store
from verbs import oneshot

from oneshot.plan.plan import Plan
from oneshot.store.store import Store
from oneshot.sweep.tracking.tracker import Tracker

pytest_plugins = ["labs"]


@pytest.fixture
def shown(tmp_path: Path, database: Path) -> tuple[Plan, Store, MlflowClient]:
    """A store with six trials in its MLflow, in the folder of the test."""
    _, plan, store = make_store(tmp_path, SMALL.replace("[0, 1, 2]", "[0]").replace("num_steps: 12", "num_steps: 4"))
    root = tmp_path / "runs"
    shutil.copy(database, root / "mlflow.db")
    uri, artifacts = f"sqlite:///{root}/mlflow.db", (root / "mlartifacts").as_uri()
    tracker = Tracker(plan, store, located(uri, experiment="small", artifacts=artifacts))
    tracker.open(question="?", sweep_yaml="")
    for trial in plan.trials:
        tracker.sync(trial)
    return plan, store, MlflowClient(uri)


def runs_of(client: MlflowClient, view: int = ViewType.ALL) -> dict[str, str]:
    experiments = [each.experiment_id for each in client.search_experiments(view_type=ViewType.ALL)]
    return {run.info.run_name: run.info.run_id for run in client.search_runs(experiments, run_view_type=view)}


def folders(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "runs" / "mlartifacts").glob("*")}


def test_only_deleted_runs_go_and_only_when_told_to(shown: tuple[Plan, Store, MlflowClient], tmp_path: Path) -> None:
    plan, _, client = shown
    runs = runs_of(client)
    assert len(runs) == 1 + len(plan.trials)
    name, run_id = next((name, run_id) for name, run_id in runs.items() if name != "small")
    client.delete_run(run_id)
    files = (tmp_path / "runs" / "mlartifacts" / run_id).rglob("*")
    size = sum(path.stat().st_size for path in files if path.is_file())
    assert size > 0
    (found,) = json.loads(oneshot("gc", "--mlflow", "--json", cwd=tmp_path).out)["mlflow"]
    assert found == {"run_id": run_id, "name": name, "experiment": "small", "num_bytes": size}
    said = oneshot("gc", "--mlflow", cwd=tmp_path).out.splitlines()
    assert said[-2].endswith(f"MLflow: small, {name}: deleted there")
    assert said[-1].endswith("can be removed; use --remove to remove it")
    assert runs_of(client) == runs
    assert oneshot("gc", "--remove", cwd=tmp_path).code == 0
    assert runs_of(client) == runs, "without --mlflow, MLflow keeps what was deleted in it"
    done = oneshot("gc", "--mlflow", "--remove", cwd=tmp_path)
    assert done.code == 0, done.err
    assert runs_of(client) == {other: each for other, each in runs.items() if other != name}
    assert folders(tmp_path) == {*runs.values()} - {run_id}
    assert oneshot("gc", "--mlflow", cwd=tmp_path).out.splitlines()[-1] == "0 B can be removed"


def test_a_sweep_that_is_removed_leaves_nothing_in_mlflow(
    shown: tuple[Plan, Store, MlflowClient], tmp_path: Path
) -> None:
    _, store, client = shown
    before = (tmp_path / "runs" / "mlflow.db").stat().st_size
    done = oneshot("gc", "--sweep", "small", "--mlflow", "--remove", cwd=tmp_path)
    assert done.code == 0, done.err
    assert store.trainings() == []
    assert runs_of(client) == {}
    assert folders(tmp_path) == set()
    assert (tmp_path / "runs" / "mlflow.db").stat().st_size < before


def test_a_copied_store_leaves_the_artifacts_of_the_first(
    shown: tuple[Plan, Store, MlflowClient], tmp_path: Path
) -> None:
    _, _, client = shown
    runs = runs_of(client)
    client.delete_run(runs["small"])
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    assert oneshot("gc", "--mlflow", "--remove", "--storage", "copy", cwd=tmp_path).code == 0
    assert folders(tmp_path) == {*runs.values()}
    assert {path.name for path in (tmp_path / "copy" / "mlartifacts").glob("*")} == {*runs.values()} - {runs["small"]}


@pytest.mark.parametrize(
    ("addition", "variable", "where"),
    [
        ("mlflow: {tracking_uri: http://server:5000}\n", "", "are on http://server:5000"),
        ("", "http://server:5000", "are on http://server:5000"),
        ("", "", "their server has them"),
    ],
)
def test_a_server_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addition: str, variable: str, where: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    make_store(tmp_path, SMALL + addition)
    said = oneshot("gc", "--mlflow", "--remove", cwd=tmp_path)
    assert said.code == 2
    assert len(said.err.splitlines()) == 1
    assert where in said.err
    uri = "http://server:5000" if addition or variable else "URI"
    assert f"MLFLOW_TRACKING_URI={uri} mlflow gc --backend-store-uri DATABASE" in said.err
