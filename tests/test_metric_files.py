"""A sweep's numbers as tables, and as files of other tools: read back by those tools."""

from pathlib import Path

import pandas as pd
import pytest
from builders import sweep_run
from synthetic import SMALL, make_store
from verbs import oneshot

from oneshot.report.frames import failures_frame, problems_frame, results_frame
from oneshot.report.runs import Gathered, gather

CLAIMS = """\
claims:
  - {name: lifts, metric: eval/arithmetic/pass_at_1, a: {arm: outcome}, b: {at: start}, expect: {greater_by: 0}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("metrics")
    (made / "small.yaml").write_text(SMALL + CLAIMS)
    make_store(made, SMALL + CLAIMS, failed=["tiny-llama/format seed 2"])
    return made


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    return gather(sweep_run(*make_store(tmp_path_factory.mktemp("frames"), SMALL + CLAIMS)))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_are_read_back(folder: Path, form: str) -> None:
    said = oneshot("export-metrics", "small", "--to", form, cwd=folder)
    assert said.code == 0, said.err
    read = pd.read_csv if form == "csv" else pd.read_parquet
    tables = {path.stem: read(path) for path in (folder / "small-metrics").glob(f"*.{form}")}
    assert sorted(tables) == ["cells", "metrics", "results", "verdicts"]
    assert set(tables["cells"]["cell.arm"]) == {"outcome", "format"}
    assert list(tables["verdicts"]["name"]) == ["lifts"]
    # 11 finished trials, 4 evaluations each
    assert len(tables["results"][tables["results"]["state"] == "finished"]) == 44


def test_tensorboard_reads_a_folder_for_each_trial(folder: Path) -> None:
    said = oneshot("export-metrics", "small", "--to", "tensorboard", "--out", "events", cwd=folder)
    assert said.code == 0, said.err
    trial = folder / "events" / "tiny-qwen2" / "outcome" / "seed_0"
    (file,) = trial.glob("events.out.tfevents.*")
    data = file.read_bytes()
    assert b"eval/arithmetic/pass_at_1" in data and b"reward/mean" in data


def test_a_sweep_without_a_search_has_no_journal(folder: Path) -> None:
    said = oneshot("export-metrics", "small", "--to", "optuna", cwd=folder)
    assert said.code == 2
    assert said.err == "oneshot: small: the sweep has no search, so it has no study to write\n"


def test_a_row_for_each_problem_and_sample(gathered: Gathered) -> None:
    table = problems_frame(gathered, suite="arithmetic")
    # 12 trials, first and last step, 60 problems, 1 sample
    assert len(table) == 12 * 2 * 60
    assert {"cell.model", "cell.arm", "seed", "suite", "step", "problem", "sample", "strict"} <= set(table)
    last = table[(table["step"] == 12) & (table["cell.arm"] == "outcome")].groupby(["cell.model", "seed"])["strict"]
    results = results_frame(gathered)
    by_metric = results[(results["step"] == 12) & (results["cell.arm"] == "outcome")]
    by_metric = by_metric.set_index(["cell.model", "seed"])["pass_at_1"]
    pd.testing.assert_series_equal(last.mean().sort_index(), by_metric.sort_index(), check_names=False)


def test_an_empty_table_has_its_columns(gathered: Gathered) -> None:
    assert list(failures_frame(gathered).columns) == ["seed", "key", "state", "reason", "spent_h", "gpus"]
    assert len(problems_frame(gathered, suite="nothing")) == 0
