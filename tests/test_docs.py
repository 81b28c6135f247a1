"""The documents' examples work as shown; `make site` checks their links."""

import re
from pathlib import Path

import pytest
from conftest import PROJECT

from oneshot.config.file import load
from oneshot.errors import SweepFileError
from oneshot.plan.plan import make_plan
from oneshot.tasks.columns import ANSWER, CATEGORY, CHOICES, CONTEXT, QUESTION
from oneshot.tasks.problems import load_file

README = (PROJECT / "README.md").read_text()


def readme_sweep() -> str:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    return str(text)


def test_the_readmes_sweep_plans(tmp_path: Path) -> None:
    path = tmp_path / "temperature.yaml"
    path.write_text(readme_sweep())
    made = make_plan(load(path))
    assert (made.num_cells, len(made.trials)) == (6, 30)
    assert not made.warnings


def test_the_readmes_mistake_is_answered_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("temperature.yaml").write_text(readme_sweep().replace("optim.lr:", "optim.lrr:"))
    with pytest.raises(SweepFileError) as caught:
        make_plan(load(Path("temperature.yaml")))
    assert f"oneshot: {caught.value}\n" in README


def test_the_three_lines_of_data_are_three_problems(tmp_path: Path) -> None:
    text = (PROJECT / "docs" / "data.md").read_text()
    (rows,) = re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "mine.jsonl").write_text(rows)
    problems = load_file(str(tmp_path / "mine.jsonl"))
    assert [problem.answer for problem in problems] == ["84", "3", r"\frac{3}{4}"]
    assert [problem.category for problem in problems] == ["arithmetic", "algebra", "arithmetic"]
    assert all(f"`{column}`" in text for column in (*QUESTION, *CONTEXT, *CHOICES, *ANSWER, *CATEGORY))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_target_that_a_document_names_is_in_the_makefile(document: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\$ make ([\w-]+)", (PROJECT / document).read_text()))
    assert named
    assert named <= targets


@pytest.mark.parametrize("document", ["README.md", "docs/grpo.md"])
def test_the_engines_example_runs_as_it_stands(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.*?)```", (PROJECT / document).read_text(), flags=re.DOTALL)[0]
    exec(code, {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2"]


def test_the_shelf_s_costs_are_those_of_the_sweeps() -> None:
    """docs/papers.md repeats GPU-hours that docs/sweeps.md, which is generated, has."""
    listed = (PROJECT / "docs" / "sweeps.md").read_text().splitlines()
    rows = [row.split(" | ") for row in listed if row.startswith("| [")]
    hours = {row[0].removeprefix("| [").partition(".yaml]")[0]: row[4] for row in rows}
    shelf = [line for line in (PROJECT / "docs" / "papers.md").read_text().splitlines() if "](../sweeps/" in line]
    rows = [line.split(" | ") for line in shelf if line.count(" | ") == 5]
    assert len(rows) > 15
    for row in rows:
        names = [link.split("](")[0] for link in row[3].split("[")[1:]]
        assert row[4] == ", ".join(hours[name] for name in names), row[0]
