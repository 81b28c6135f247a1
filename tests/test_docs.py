"""What the documents show is so."""

import re
from pathlib import Path

import pytest
from conftest import PROJECT

from oneshot.config.file import load
from oneshot.errors import SweepFileError
from oneshot.plan.plan import make_plan

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


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/claims.md",
        "docs/design.md",
        "docs/export.md",
        "docs/grpo.md",
        "docs/log.md",
        "docs/memory.md",
        "docs/mlflow.md",
        "docs/operations.md",
        "docs/paper.md",
        "docs/security.md",
        "docs/statistics.md",
        "docs/sweeps.md",
        "cluster/README.md",
    ],
)
def test_every_file_that_a_document_links_to_is_there(document: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (PROJECT / document).read_text())
    for link in links:
        assert ((PROJECT / document).parent / link).exists(), link


def test_every_target_that_the_readme_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"\$ make ([\w-]+)", README)) <= targets


def test_the_engines_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "grpo.md").read_text(), flags=re.DOTALL)
    exec(code, {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2"]
