"""The command line: what is printed where, exit codes, and that nothing heavy is imported for light verbs."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import PROJECT
from test_sweepfile import BASE
from verbs import oneshot

from oneshot.cli.find import experiment_path, from_here

COMPLETIONS = """\
{"completion": "So \\\\boxed{12.8}", "answer": "12.8"}
{"completion": "It is 12.8.", "answer": 12.8}
{"completion": "I do not know.", "answer": "12.8"}
"""

HEAVY = ("torch", "transformers", "ray", "optuna", "mlflow", "scipy.stats", "matplotlib")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(BASE)
    return path


def test_the_summary_of_every_verb_fits_on_a_line_of_80_columns() -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", "oneshot", "--help"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
    summaries = done.stdout.partition("Commands:")[2].splitlines()[1:]
    assert len(summaries) == 22
    assert [line for line in summaries if line.endswith("...") or not line.endswith(".")] == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "sweeps/quickstart.yaml", "--json"], ["plan", "sweeps/quickstart.yaml"]]
)
def test_light_verbs_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    if "plan" in arguments:  # the spread of results that are there would be measured, with SciPy
        arguments = [*arguments, "--storage", str(tmp_path / "runs")]
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
    done = oneshot("plan", "sweeps/quickstart.yaml", "--json", cwd=PROJECT)
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert (made["num_cells"], made["num_trials"]) == (6, 18)
    assert set(made["trials"][0]) == {
        "key",
        "cell",
        "seed",
        "num_steps",
        "strategy",
        "num_processes",
        "engine",
        "memory_gib",
        "bytes_by_kind",
    }
    assert {tuple(trial["cell"]) for trial in made["trials"]} == {("model", "example", "arm")}
    assert len({trial["key"] for trial in made["trials"]}) == 18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file or directory"),
        (["plan", "{sweep}", "--set", "optim.lr=[1"], "--set optim.lr=[1:1: not YAML: a list is not closed; add ]"),
        (["trial", "{sweep}", "--set", "train.num_steps=99999999999"], "must be at most 1,000,000, not 99999999999"),
        (["run", "quickstrat"], "quickstrat: no such file; did you mean sweeps/quickstart.yaml?"),
        (["plan", "sweeps/quikstart.yaml"], "no such file; did you mean sweeps/quickstart.yaml?"),
        (["plan", "{sweep}", "--set", "loss.kl_coeff=1"], "did you mean 'loss.kl_coef'?"),
        (["trial", "{sweep}", "--cell", "arms=outcome"], "expected axis=name; did you mean 'arm'?"),
        (["trial", "{sweep}", "--cell", "arm=outcome"], "matches 2 cells; choose one of"),
        (["trial", "{sweep}", "--cell", "arm=no"], "matches no cell of the grid; choose one of"),
        (["ui", "--storage", "nowhere"], "nowhere/mlflow.db: no such database"),
        (["run", "{sweep}", "--storage", "memory://x"], "set mlflow.tracking_uri to a server"),
        (["run", "{sweep}", "--storage", "{folder}/per%20cent"], "MLflow's database cannot be in a path with %"),
        (["run", "{sweep}", "--storage", "{folder}/q?x=1"], "MLflow's database cannot be in a path with ?"),
        (
            ["run", "{sweep}", "--mlflow", "localhost:5000"],
            "--mlflow: 'localhost:5000' is no address of MLflow; name a",
        ),
        (["run", "{sweep}", "--mlflow", "./mlruns"], "--mlflow: './mlruns' is no address of MLflow; name a server"),
        (["plan", "{sweep}", "--set", "loss.kl_coef=x"], "loss.kl_coef: must be a number"),
        (["run", "{sweep}", "--storage", "{sweep}"], "s.yaml is a file; name a folder"),
        (["run", "{sweep}", "--storage", "{sweep}/runs"], "s.yaml is a file; name a folder"),
        (["status", "--storage", "{folder}/none"], "none: no such folder; name the --storage of a sweep that has run"),
        (["status", "quickstart", "--storage", "{folder}/none"], "none: no such folder"),
        (["report", "quickstart", "--storage", "{folder}/none"], "none: no such folder"),
        (["gc", "--storage", "{folder}/none"], "none: no such folder"),
        (["plan", "{sweep}", "--set", "rollout.max_tokens=256"], "lower rollout.max_tokens"),
    ],
)
def test_the_users_mistake_is_one_line_and_exit_2(sweep: Path, arguments: list[str], message: str) -> None:
    done = oneshot(*(argument.format(sweep=sweep, folder=sweep.parent) for argument in arguments), cwd=PROJECT)
    assert done.code == 2
    assert done.out == ""
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.err.startswith("oneshot: ")


def test_a_port_that_is_taken_is_said_before_mlflow_starts(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = oneshot("ui", "--storage", str(tmp_path), "--port", str(port), cwd=tmp_path)
    assert done.code == 2
    assert f"--port {port}: Address already in use; choose another, such as --port {port + 1}" in done.err


def test_ui_opens_the_charts_of_the_sweep_that_it_is_asked_for(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE runs (run_uuid, experiment_id, lifecycle_stage)")
        connection.execute("CREATE TABLE tags (run_uuid, key, value)")
        connection.execute("INSERT INTO runs VALUES ('r', 7, 'active')")
        connection.execute("INSERT INTO tags VALUES ('r', 'sweep', 's')")
        connection.commit()
    query = "workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey=oneshot-s-cells"
    assert experiment_path(database, "s") == f"/#/experiments/7/runs?{query}"
    assert experiment_path(database, "another") == ""
    assert experiment_path(database, None) == ""


def test_warnings_go_to_stderr_and_do_not_fail(sweep: Path) -> None:
    sweep.write_text(BASE.replace("train.num_steps: 2", "train.num_steps: 2\n  loss.clip_low: 0.1"))
    done = oneshot("plan", str(sweep), "--json", cwd=PROJECT)
    assert done.code == 0
    assert "warning: loss.clip_low has no effect" in done.err
    assert json.loads(done.out)["warnings"]


def test_trial_runs_in_a_fresh_folder_and_prints_every_step(sweep: Path, tmp_path: Path) -> None:
    arguments = ["trial", str(sweep), "--cell", "example=sum,arm=outcome", "--seed", "5", "--json"]
    done = oneshot(*arguments, "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.code == 0, done.err
    steps = [json.loads(line) for line in done.out.splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert "reward/mean" in steps[1]["metrics"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s.yaml"]
    again = oneshot(*arguments, "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert again.code == 2
    assert "the folder is not empty; name a new one" in again.err


def test_a_trial_that_fails_says_why_and_exits_1(sweep: Path, tmp_path: Path) -> None:
    done = oneshot(
        "trial", str(sweep), "--cell", "example=sum,arm=outcome", "--set", "rollout.max_tokens=250", cwd=tmp_path
    )
    assert done.code == 1
    assert "failed: DataError" in done.err
    assert "log: " in done.err


def test_completions_made_elsewhere_are_graded_by_both_graders(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(COMPLETIONS)
    done = oneshot("grade", "c.jsonl", cwd=tmp_path)
    assert done.out.splitlines() == ["strict   0.3333  (1 of 3)", "lenient  0.6667  (2 of 3)"]
    lines = oneshot("grade", "c.jsonl", "--json", cwd=tmp_path).out.splitlines()
    assert [json.loads(line)["strict"] for line in lines] == [True, False, False]
    assert [json.loads(line)["lenient"] for line in lines] == [True, True, False]


def test_a_file_without_completions_says_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "x"}')
    done = oneshot("grade", "c.jsonl", cwd=tmp_path)
    assert done.code == 2
    assert done.err == "oneshot: c.jsonl: row 0: it needs `completion` (text) and `answer`; it has text\n"


def test_a_history_is_ranked(tmp_path: Path) -> None:
    # variances: 0.25, 0 and 1/16
    (tmp_path / "h.json").write_text('{"7": [0.0, 1.0], "3": [0.5, 0.5], "5": [0.5, 1.0]}')
    done = oneshot("rank", "--history", "h.json", "--json", cwd=tmp_path)
    assert [(one["index"], one["variance"], one["num_visits"]) for one in json.loads(done.out)] == [
        (7, 0.25, 2),
        (5, 0.0625, 2),
        (3, 0.0, 2),
    ]
    done = oneshot("rank", "--history", "h.json", "--by", "pass_rate_variance", "--json", cwd=tmp_path)
    assert [(one["index"], one["score"]) for one in json.loads(done.out)] == [(3, 0.25), (5, 0.25), (7, 0.0)]
    done = oneshot("rank", "--history", "h.json", "--by", "answer_entropy", cwd=tmp_path)
    assert done.code == 2
    assert "oneshot: answer_entropy: the history has no entropies of answers for 3 of 3 examples" in done.err
    done = oneshot("rank", "--history", "nowhere", cwd=tmp_path)
    assert done.code == 2
    assert "run it first" in done.err
    done = oneshot("rank", "--history", "h.json", "--by", "historical-variance", cwd=tmp_path)
    assert "'historical-variance' is no ranking rule; did you mean 'historical_variance'?" in done.err
    assert done.err.startswith("oneshot: --by historical-variance: ")


def test_a_path_is_not_fetched(tmp_path: Path) -> None:
    done = oneshot("fetch", "here.jsonl", cwd=tmp_path)
    assert done.code == 2
    assert done.err == "oneshot: here.jsonl: a path on this machine; there is nothing to fetch\n"


def test_what_the_head_prints_is_shown_as_it_is_from_here() -> None:
    output = "s: watch it with `oneshot status s --storage '/a b/runs'`\nreport: /a b/runs/report.html\n"
    assert from_here(output, root="/a b/runs", address="http://head:8265") == (
        "s: watch it with `oneshot status s --address http://head:8265`\n"
        "report: /a b/runs/report.html (on the cluster; in MLflow it is an artifact)\n"
    )


def test_a_sweep_that_is_not_there_is_not_evaluated(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    done = oneshot("eval", "nowhere", "--suite", "arithmetic", cwd=tmp_path)
    assert done.code == 2
    assert "nowhere: runs has no sweep of this name" in done.err
