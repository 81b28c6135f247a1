"""Sweeps whose trials are of two processes, on a local Ray: the shipped one, in few steps, and one that is killed."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_processes import members
from test_run import Place, make_place

from oneshot.store.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROJECT = Path(__file__).parent.parent
SHIPPED = (PROJECT / "sweeps" / "two-processes.yaml").read_text()
FEW = SHIPPED.replace("train.num_steps: 16", "train.num_steps: 2").replace("num_problems: 30", "num_problems: 2")
COPIES_AND_AN_ADAPTER_IN_SHARDS = "grid: [{model: tiny-qwen2, weights: whole}, {model: tiny-llama, weights: adapter}]\n"


def test_the_tiny_models_train_in_two_processes_under_ray(tmp_path: Path) -> None:
    made = make_place(tmp_path / "two", FEW.replace("seeds:", f"{COPIES_AND_AN_ADAPTER_IN_SHARDS}seeds:"))
    done = made.run("run", "s.yaml")
    assert done.returncode == 0, done.stderr
    assert "2 finished, 0 failed, 0 missing" in done.stdout
    children = [run for run in made.runs("two-processes") if run.data.tags["phase"] == "grid"]
    seen = {
        run.data.tags["cell.model"]: (run.data.tags["num_processes"], run.data.tags["strategy"]) for run in children
    }
    assert seen == {"tiny-qwen2": ("2", "ddp"), "tiny-llama": ("2", "fsdp")}
    for run in children:
        assert run.info.status == "FINISHED"
        assert [point.step for point in made.client.get_metric_history(run.info.run_id, "reward/mean")] == [1, 2]


def wait_for(what: Callable[[], bool], timeout_s: float = 180) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def test_a_trial_whose_child_or_worker_is_killed_is_tried_again_and_leaves_no_orphan(tmp_path: Path) -> None:
    text = SHIPPED.replace("train.num_steps: 16", "train.num_steps: 18\n  checkpoint.every_steps: 4")
    made = make_place(tmp_path / "kill", text.replace("seeds:", "grid: [{model: tiny-llama, weights: whole}]\nseeds:"))
    (trial,) = made.plan().trials
    assert trial.key is not None
    folder = Store(str(made.folder / "runs")).trial(trial.key)
    driver = subprocess.Popen(made.command("run", "s.yaml"), cwd=made.folder, env=made.environment)
    try:
        _kill_one_of(driver.pid, after=lambda: len(folder.rows()) > 5, whom=lambda found: found[1])
        # the second time the worker, whose children have to notice
        _kill_one_of(
            driver.pid,
            after=lambda: folder.last_attempt() == 2 and len(folder.rows()) > 9,
            whom=lambda found: psutil.Process(found[0].ppid()),
        )
        assert driver.wait(timeout=400) == 0
    finally:
        if driver.poll() is None:
            os.kill(driver.pid, signal.SIGKILL)
    result = folder.result()
    assert result is not None
    assert (result.outcome, result.steps_done) == ("finished", 18)
    assert [row.step for row in folder.rows()] == list(range(19))


def _kill_one_of(
    driver: int, *, after: Callable[[], bool], whom: Callable[[list[psutil.Process]], psutil.Process]
) -> None:
    wait_for(after)
    wait_for(lambda: len(members(driver)) == 2)
    before = members(driver)
    whom(before).kill()
    _, alive = psutil.wait_procs(before, timeout=30)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


def test_the_shipped_sweep_says_what_it_is(tmp_path: Path) -> None:
    made: Place = make_place(tmp_path / "plan", SHIPPED)
    assert {trial.resources.processes for trial in made.plan().trials} == {2}
