"""The command line: what is printed where, exit codes, and that nothing heavy is imported for light verbs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT
from test_sweepfile import BASE

HEAVY = ("torch", "transformers", "ray", "optuna", "mlflow", "scipy", "matplotlib")


def oneshot(*arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "oneshot", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "sweeps/quickstart.yaml", "--json"], ["plan", "sweeps/quickstart.yaml"]]
)
def test_light_verbs_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom oneshot.cli import main\n"
        f"sys.argv = ['oneshot', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert not exit.code, exit.code\n"
        f"print('IMPORTED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "IMPORTED []"


def test_plan_json_lists_every_trial() -> None:
    done = oneshot("plan", "sweeps/quickstart.yaml", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["num_cells"], made["num_trials"]) == (6, 18)
    assert set(made["trials"][0]) == {"key", "cell", "seed"}
    assert {tuple(trial["cell"]) for trial in made["trials"]} == {("model", "example", "arm")}
    assert len({trial["key"] for trial in made["trials"]}) == 18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file or directory"),
        (["plan", "{sweep}", "--set", "loss.kl_coeff=1"], "did you mean 'loss.kl_coef'?"),
        (["trial", "{sweep}", "--cell", "arms=outcome"], "write it as axis=name; did you mean 'arm'?"),
        (["trial", "{sweep}", "--cell", "arm=outcome"], "names 2 cells; choose one of"),
        (["trial", "{sweep}", "--cell", "arm=no"], "names no cell of the grid; choose one of"),
        (["ui", "--storage", "nowhere"], "nowhere/mlflow.db: no such database"),
        (["run", "{sweep}", "--storage", "memory://x"], "set mlflow.tracking_uri to a server"),
    ],
)
def test_the_users_mistake_is_one_line_and_exit_2(sweep: Path, arguments: list[str], message: str) -> None:
    done = oneshot(*(argument.format(sweep=sweep) for argument in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("oneshot: ")


def test_warnings_go_to_stderr_and_do_not_fail(sweep: Path) -> None:
    sweep.write_text(BASE.replace("train.num_steps: 2", "train.num_steps: 2\n  loss.clip_low: 0.1"))
    done = oneshot("plan", str(sweep), "--json")
    assert done.returncode == 0
    assert "warning: loss.clip_low and clip_high change nothing" in done.stderr
    assert json.loads(done.stdout)["warnings"]


def test_trial_runs_in_a_fresh_folder_and_prints_every_step(sweep: Path, tmp_path: Path) -> None:
    arguments = ["trial", str(sweep), "--cell", "example=sum,arm=outcome", "--seed", "5", "--json"]
    done = oneshot(*arguments, "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert "reward/mean" in steps[1]["metrics"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s.yaml"]
    again = oneshot(*arguments, "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert again.returncode == 2
    assert "not empty; name a new folder" in again.stderr


def test_a_trial_that_fails_says_why_and_exits_1(sweep: Path, tmp_path: Path) -> None:
    done = oneshot(
        "trial", str(sweep), "--cell", "example=sum,arm=outcome", "--set", "rollout.max_tokens=300", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "failed: DataError" in done.stderr
    assert "log: " in done.stderr
