"""The Python API: its names, its tables, and the same errors as the command line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
from api import page, signatures
from builders import sweep_run, tiny_trial
from conftest import PROJECT
from synthetic import SMALL, make_store, put_on_record
from verbs import oneshot as verb

import oneshot
from oneshot.api.notebook import NotebookProgress, is_notebook
from oneshot.config.source import parse_yaml
from oneshot.report.bundle import write_bundle
from oneshot.report.runs import gather
from oneshot.store.records import Result
from oneshot.sweep.events import Event

GOLDEN = PROJECT / "tests" / "golden" / "api.json"
CLAIMS = """\
claims:
  - {name: lifts, metric: eval/arithmetic/pass_at_1, a: {arm: outcome}, b: {at: start}, expect: {greater_by: 0}}
"""
TRIAL = tiny_trial(num_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of a sweep in `runs`, and its bundle."""
    made = tmp_path_factory.mktemp("api")
    put_on_record(made, SMALL + CLAIMS)
    run = make_store(made, SMALL + CLAIMS, failed=["tiny-llama/format seed 2"])
    write_bundle(gather(sweep_run(*run)), made / "small.oneshot.zip")
    return made


@pytest.fixture(scope="module")
def lab(folder: Path) -> oneshot.Lab:
    return oneshot.open("small", storage=str(folder / "runs"))


# what is public


def test_names_and_signatures_change_only_on_purpose() -> None:
    assert signatures() == json.loads(GOLDEN.read_text()), f"update {GOLDEN.name} and the changelog"


def test_the_committed_page_is_the_generated_one() -> None:
    assert (PROJECT / "docs" / "api.md").read_text() == page(), "run `make docs`"


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "ray", "mlflow", "optuna", "pandas", "scipy", "transformers", "matplotlib")
    code = f"import sys, oneshot; oneshot.UserError; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_opening_results_imports_no_torch_ray_or_mlflow(folder: Path) -> None:
    heavy = ("torch", "ray", "mlflow", "optuna", "transformers")
    code = f"import sys, oneshot; oneshot.open('small').verdicts(); print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n", said.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'laod_sweep'"):
        oneshot.laod_sweep  # type: ignore[attr-defined]  # noqa: B018
    assert set(oneshot.__all__) <= set(dir(oneshot))


# results


def test_the_tables_agree_with_each_other(lab: oneshot.Lab) -> None:
    results = lab.results(suite="arithmetic")
    finished = results[results["state"] == "finished"]
    last = finished[finished["step"] == 12].groupby(["cell.model", "cell.arm"])["pass_at_1"].mean()
    cells = lab.cells().set_index(["cell.model", "cell.arm"])["last"]
    pd.testing.assert_series_equal(last.sort_index(), cells.sort_index(), check_names=False)
    assert list(lab.failures()["reason"]) == ["TrialError: the loss is not finite"]
    assert lab.metrics()["step"].max() == 12
    assert (lab.metrics().groupby("key")["time_s"].min() == 0).all()


def test_verdicts_are_those_of_the_report(lab: oneshot.Lab, folder: Path) -> None:
    said = json.loads(verb("report", "small", "--json", "--no-publish", cwd=folder).out)
    (row,) = lab.verdicts().to_dict("records")
    assert {name: row[name] for name in ("name", "verdict", "effect", "low", "high", "p_holm")} == {
        name: said[0][name] for name in ("name", "verdict", "effect", "low", "high", "p_holm")
    }


def test_a_bundle_opens_to_the_same_numbers(lab: oneshot.Lab, folder: Path) -> None:
    bundled = oneshot.open(folder / "small.oneshot.zip")
    for table in ("results", "cells", "metrics", "problems", "verdicts", "failures"):
        pd.testing.assert_frame_equal(getattr(bundled, table)(), getattr(lab, table)())


def test_a_storage_with_one_sweep_opens_without_its_name(lab: oneshot.Lab, folder: Path, tmp_path: Path) -> None:
    for storage in (folder / "runs", f"file://{folder / 'runs'}"):
        pd.testing.assert_frame_equal(oneshot.open(storage).results(), lab.results())
    shutil.copytree(folder / "runs", tmp_path / "two")
    shutil.copytree(tmp_path / "two" / "sweeps" / "small", tmp_path / "two" / "sweeps" / "large")
    with pytest.raises(oneshot.UserError, match=r"it has the sweeps large, small; open one by name"):
        oneshot.open(tmp_path / "two")
    (tmp_path / "none" / "sweeps").mkdir(parents=True)
    with pytest.raises(oneshot.UserError, match="it has no sweep"):
        oneshot.open(tmp_path / "none")


def test_completions_show_problem_label_and_grade(lab: oneshot.Lab) -> None:
    table = lab.completions("arithmetic", step=12)
    assert {"prompt", "answer", "completion", "strict"} <= set(table)
    assert len(table) == 11 * 60


def test_figures_are_matplotlibs_and_the_page_is_written(lab: oneshot.Lab, tmp_path: Path) -> None:
    assert lab.figure("curves").axes
    with pytest.raises(oneshot.UserError, match="small has no figure 'curvs'; did you mean 'curves'"):
        lab.figure("curvs")
    assert lab.report(tmp_path / "out").read_text().startswith("<!doctype html>")


def test_a_notebook_shows_the_verdicts(lab: oneshot.Lab) -> None:
    shown = lab._repr_html_()
    assert "lifts" in shown and "supported" in shown and "<table" in shown
    assert repr(lab).startswith("<Lab small: Verdict: ")


def test_a_sweep_that_is_not_there_is_the_command_lines_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(oneshot.UserError, match="has no sweep of this name; it has small"):
        oneshot.open("tinier", storage=str(folder / "runs"))
    with pytest.raises(oneshot.UserError, match="no such folder"):
        oneshot.open("small", storage=str(tmp_path / "nothing"))


# sweeps


def test_a_dict_is_the_same_sweep_as_its_file(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL + CLAIMS)
    data, _ = parse_yaml(SMALL + CLAIMS, "small.yaml")
    from_file = oneshot.load_sweep(path).plan(storage=str(tmp_path / "runs")).trials()
    from_dict = oneshot.Sweep.from_dict(json.loads(json.dumps(data))).plan(storage=str(tmp_path / "runs")).trials()
    pd.testing.assert_frame_equal(from_file, from_dict)
    assert list(from_file["key"].str.len().unique()) == [16]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"seeds": []}, "seeds: needs at least one seed"),
        ({"trial": {"optim": {"lrr": 1.0}}}, "unknown key"),
        ({"claims": [{"name": "c"}]}, "claims.0.metric: missing; add it"),
    ],
)
def test_a_wrong_dict_names_the_place(changes: dict[str, Any], error: str, tmp_path: Path) -> None:
    data = {"version": 1, "name": "s", "question": "?", "trial": TRIAL, "seeds": [0], **changes}
    with pytest.raises(oneshot.SweepFileError, match=error):
        oneshot.Sweep.from_dict(data).plan(storage=str(tmp_path / "runs"))


def test_a_file_that_is_not_there_says_how_to_find_one() -> None:
    with pytest.raises(oneshot.UserError, match="`oneshot sweeps` lists"):
        oneshot.load_sweep("quickstat")


@pytest.fixture
def _own_environment() -> Iterator[None]:
    """Ray sets variables, which later tests must not inherit."""
    with patch.dict(os.environ):
        yield


@pytest.mark.ray
@pytest.mark.slow  # no two Rays run side by side
@pytest.mark.usefixtures("_own_environment")
def test_a_sweep_runs_to_its_verdict_and_again_does_nothing(tmp_path: Path) -> None:
    data = {
        "version": 1,
        "name": "from_python",
        "question": "Does it run?",
        "trial": {**TRIAL, "eval": {"suites": {"arithmetic": {"num_problems": 4}}}},
        "axes": {"arm": {"outcome": {}, "format": {"set": {"reward.kind": "format"}}}},
        "seeds": [0],
        "claims": [
            {
                "name": "lifts",
                "metric": "eval/arithmetic/pass_at_1",
                "a": {"arm": "outcome"},
                "b": {"at": "start"},
                "expect": {"greater_by": 0.0},
            }
        ],
        "storage": str(tmp_path / "runs"),
    }
    sweep = oneshot.Sweep.from_dict(data)
    lab = sweep.run(progress=False)
    assert list(lab.verdicts()["verdict"]) == ["inconclusive"]
    assert sorted(lab.results()["step"].unique()) == [0, 2]
    assert list(sweep.status()["state"]) == ["finished", "finished"]
    pd.testing.assert_frame_equal(sweep.run(progress=False).results(), lab.results())


def test_the_bar_of_a_notebook_counts_trainings_and_names_failures(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result(
        outcome="failed",
        attempt=1,
        steps_done=1,
        evaluations=frozenset(),
        reason="the loss is not finite",
        traceback="",
        log_path="",
        checkpoint="none",
        started_ms=0,
        ended_ms=1,
        kind="nan",
    )
    with NotebookProgress(sweep="small") as progress:
        progress(Event(kind="message", text="2 trials", num_left=2))
        progress(Event(kind="step", key="a", label="one", step=1, num_steps=2, num_left=2))
        assert (progress._bar.n, progress._bar.total) == (0.5, 2)
        progress(Event(kind="ended", key="a", label="one", result=result, num_left=1))
        assert (progress._bar.n, progress._bar.total) == (1.0, 2)
    assert "one failed: the loss is not finite" in capsys.readouterr().out
    assert not is_notebook()


# training and grading


def test_training_yields_each_step_and_frees_the_model() -> None:
    steps = list(oneshot.train(TRIAL, seed=0))
    assert [step.step for step in steps] == [1, 2]
    again = next(iter(oneshot.train(TRIAL, seed=0)))
    assert again.metrics["reward/mean"] == steps[0].metrics["reward/mean"]


def test_grades_are_those_of_the_command() -> None:
    assert oneshot.grade("So \\boxed{85}", "85").strict is True
    assert oneshot.grade("So it is 85.", "85").strict is False
    assert oneshot.grade("So it is 85.", "85").lenient is True


def test_a_history_is_ranked(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(json.dumps({"0": [0.0, 1.0, 0.0], "1": [0.5, 0.5, 0.5]}))
    ranked = oneshot.rank(tmp_path / "history.json")
    assert list(ranked["example"]) == ["dsr_sub:0", "dsr_sub:1"]
    assert ranked["variance"].is_monotonic_decreasing
    with pytest.raises(oneshot.UserError):
        oneshot.rank("nothing", storage=str(tmp_path / "runs"))
