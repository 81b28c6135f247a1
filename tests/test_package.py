"""The wheel without the clone: what is in it, and what a new user does with it in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import PROJECT
from verbs import oneshot

from oneshot.config.shipped import shipped_sweeps


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is unpacked, as pip would; its libraries are those of this environment."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    made = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", code, str(made)], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    name = built.stdout.split()[-1]
    assert name.startswith("oneshot_lab-")
    with zipfile.ZipFile(made / name) as wheel:
        wheel.extractall(made / "site")
    return made / "site"


def installed(site: Path, folder: Path, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command of the wheel in a folder outside of the clone."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "oneshot", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def test_the_wheel_has_the_sweeps_the_tiny_models_and_the_types(site: Path) -> None:
    shipped = {path.name for path in (site / "oneshot" / "shipped").glob("*.yaml")}
    assert shipped == {path.name for path in (PROJECT / "sweeps").glob("*.yaml")}
    for name in ("py.typed", "config/starter.yaml", "report/page.html.j2", "models/shapes.json"):
        assert (site / "oneshot" / name).is_file(), name
    assert list((site / "oneshot" / "tiny").rglob("*.safetensors"))
    assert not list(site.rglob("tests"))


def test_a_new_user_lists_copies_and_plans_sweeps_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    listed = installed(site, tmp_path, "sweeps")
    assert listed.returncode == 0, listed.stderr
    assert "quickstart" in listed.stdout and "main_table8" in listed.stdout
    written = installed(site, tmp_path, "init", "mine")
    assert written.stdout.splitlines()[0] == "wrote mine.yaml"
    planned = installed(site, tmp_path, "plan", "mine.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "2 cells, 6 trials" in planned.stdout
    by_name = installed(site, tmp_path, "plan", "quickstart")
    assert "6 cells, 18 trials" in by_name.stdout, by_name.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


@pytest.mark.ray
@pytest.mark.slow
def test_from_the_wheel_to_a_verdict(site: Path, tmp_path: Path) -> None:
    assert installed(site, tmp_path, "init", "mine").returncode == 0
    ran = installed(site, tmp_path, "run", "mine.yaml", timeout_s=500)
    assert ran.returncode == 0, ran.stderr
    assert "one sum beats the base" in ran.stdout
    judged = installed(site, tmp_path, "report", "mine", "--no-publish")
    assert judged.returncode == 0, judged.stderr
    assert (tmp_path / "runs" / "sweeps" / "mine" / "report" / "report.html").is_file()


def test_the_starter_is_a_sweep_under_its_new_name(tmp_path: Path) -> None:
    assert oneshot("init", "first_try", cwd=tmp_path).code == 0
    text = (tmp_path / "first_try.yaml").read_text()
    assert "\nname: first_try\n" in text and text.count("#") > 15
    said = oneshot("plan", "first_try.yaml", "--json", cwd=tmp_path)
    assert '"name": "first_try"' in said.out


def test_a_shipped_sweep_is_copied_with_its_comments(tmp_path: Path) -> None:
    assert oneshot("init", "mine", "--from", "main_table8", cwd=tmp_path).code == 0
    copied, shipped = (tmp_path / "mine.yaml").read_text(), shipped_sweeps()["main_table8"].read_text()
    assert copied == shipped.replace("name: main_table8\n", "name: mine\n", 1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["init", "taken"], "oneshot: taken.yaml: the file exists; choose another name, or remove it\n"),
        (["init", "no/name"], "oneshot: 'no/name' is not a valid name of a sweep; use letters, digits, _ and -\n"),
        (
            ["init", "mine", "--from", "quickstrat"],
            "oneshot: --from quickstrat: no shipped sweep has this name; did you mean 'quickstart'?\n",
        ),
        (["plan", "quickstrat"], "oneshot: quickstrat: no such file; did you mean quickstart?\n"),
    ],
)
def test_a_wrong_name_is_one_line(tmp_path: Path, arguments: list[str], error: str) -> None:
    (tmp_path / "taken.yaml").write_text("mine")
    said = oneshot(*arguments, cwd=tmp_path)
    assert (said.code, said.err) == (2, error)
    assert (tmp_path / "taken.yaml").read_text() == "mine"


def test_a_file_of_this_name_goes_before_the_shipped_sweep(tmp_path: Path) -> None:
    text = shipped_sweeps()["quickstart"].read_text().replace("seeds: [0, 1, 2]", "seeds: [0]")
    (tmp_path / "quickstart").write_text(text)
    assert "6 cells, 6 trials" in oneshot("plan", "quickstart", cwd=tmp_path).out


def test_versions_are_shown_without_importing_what_they_are_of(tmp_path: Path) -> None:
    said = oneshot("--version", cwd=tmp_path)
    first, second = said.out.splitlines()
    assert first.startswith("oneshot 0.") and "torch 2." in second and "ray 2." in second


def test_completion_of_the_shell_is_one_option(tmp_path: Path) -> None:
    said = oneshot("--help", cwd=tmp_path)
    assert "--install-completion" in said.out
