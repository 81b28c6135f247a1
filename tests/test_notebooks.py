"""The notebooks of docs/notebooks, executed. That of the quickstart's own results is in test_quickstart.py."""

import json
from pathlib import Path

import pytest
from conftest import PROJECT
from notebooks import executed
from synthetic import make_store, put_on_record

FILES = sorted((PROJECT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_notebooks_have_no_outputs(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


def test_the_analysis_runs_on_a_store_of_the_quickstart(tmp_path: Path) -> None:
    text = (PROJECT / "sweeps" / "quickstart.yaml").read_text()
    put_on_record(tmp_path, text)
    make_store(tmp_path, text)
    shown = json.dumps(executed("analysis", tmp_path))
    assert "one-shot beats base" in shown
    assert shown.count("image/png") == 2  # the report's figure, and one that pandas draws


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_is_written_run_and_judged_from_python(tmp_path: Path) -> None:
    shown = json.dumps(executed("from_python", tmp_path))
    assert "one sum beats the base" in shown and "image/png" in shown
    assert (tmp_path / "runs" / "sweeps" / "from_python").is_dir()
