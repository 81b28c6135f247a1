"""The example package: its own test, its registered names, and each example of docs/own-parts.md."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT
from verbs import oneshot as verb

from oneshot.tasks import foreign

LAB = PROJECT / "examples" / "my_lab"
PAGE = (PROJECT / "docs" / "own-parts.md").read_text()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(foreign.FOLDER, "")
    foreign.forget()
    yield
    foreign.forget()  # other files' tests know no such package


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as an installer leaves it: a folder of modules, and one that says what it registers."""
    site = tmp_path / "site"
    info = site / "my_lab-0.1.0.dist-info"
    info.mkdir(parents=True)
    (site / "my_lab").symlink_to(LAB / "my_lab")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 0.1.0\n")
    points = tomllib.loads((LAB / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{n} = {c}\n" for n, c in names.items()) for group, names in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(PROJECT)]))
    foreign.forget()
    return tmp_path


NAMES = {
    "my_lab.templates:BARE": "bare",
    "my_lab.sets:hard": "hard_sums",
    "my_lab.graders:exact": "exact",
    "my_lab.rewards:length_bonus": "length_bonus",
}


def test_the_examples_own_test_passes() -> None:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(LAB), str(PROJECT)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(LAB / "tests")]
    ended = subprocess.run(command, cwd=LAB, env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_names_that_a_package_registers_do_what_its_functions_do(installed: Path) -> None:
    text = (LAB / "sweep.yaml").read_text()
    (installed / "calls.yaml").write_text(text)
    for call, name in NAMES.items():
        text = text.replace(call, name)
    (installed / "names.yaml").write_text(text)
    plans = {}
    for file in ("calls.yaml", "names.yaml"):
        said = verb("plan", file, "--json", cwd=installed)
        assert said.code == 0, said.err
        plans[file] = json.loads(said.out)
    assert len(plans["names.yaml"]["trials"]) == len(plans["calls.yaml"]["trials"]) == 6
    shown = [line for line in plans["names.yaml"]["warnings"] if "runs foreign code" in line]
    assert all(any(f"{name}, {call} of" in line for line in shown) for call, name in NAMES.items()), shown


@pytest.mark.parametrize(
    ("setting", "wrong", "nearest", "word"),
    [
        ("reward.call", "lenght_bonus", "length_bonus", "reward"),
        ("reward.grader", "exakt", "exact", "grader"),
        ("prompt.template", "bear", "bare", "template"),
    ],
)
def test_a_name_that_is_nobodys_gives_the_nearest(
    installed: Path, setting: str, wrong: str, nearest: str, word: str
) -> None:
    (installed / "s.yaml").write_text((LAB / "sweep.yaml").read_text())
    kind = ["--set", "reward.kind=python"] if setting == "reward.call" else []
    said = verb("plan", "s.yaml", "--set", f"{setting}={wrong}", *kind, cwd=installed)
    expected = f"--set.{setting}: {wrong!r} is no {word}; did you mean {nearest!r}?"
    assert said.code == 2
    assert expected in said.err.replace("--set: ", "--set.").replace("--set ", "--set."), said.err


def test_two_packages_with_one_name_are_told_apart(installed: Path) -> None:
    info = installed / "site" / "other-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[oneshot.rewards]\nlength_bonus = other.rewards:length_bonus\n")
    foreign.forget()
    with pytest.raises(
        foreign.DataError, match=r"write one of my_lab\.rewards:length_bonus, other\.rewards:length_bonus"
    ):
        foreign.resolve("length_bonus", "rewards")


# docs/own-parts.md


def test_the_pages_functions_are_those_of_the_package() -> None:
    code = "\n".join(path.read_text() for path in (LAB / "my_lab").glob("*.py"))
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 5
    assert all(block in code for block in blocks)


def test_the_pages_settings_plan(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 6
    (tmp_path / "my_lab").symlink_to(LAB / "my_lab")
    (tmp_path / "history.json").write_text('{"0": [0.5, 1.0], "1": [0.0, 0.5]}')
    for block in blocks:
        indented = "".join(f"  {line}\n" for line in block.splitlines())
        is_trial = not block.startswith("axes")
        examples = "" if "examples:" in block or "axes" in block else '  examples: ["arithmetic:47+38"]\n'
        (tmp_path / "s.yaml").write_text(
            "version: 1\nname: page\nquestion: Does it plan?\nseeds: [0]\n"
            + ("" if is_trial else block)
            + "trial:\n  model.path: tiny:qwen2\n  rollout: {num_groups: 25, max_tokens: 56}\n"
            + examples
            + (indented if is_trial else "")
        )
        said = verb("plan", "s.yaml", "--trust-code", cwd=tmp_path)
        assert said.code == 0, (block, said.err)
