"""Whatever dies, `run` again: every training is done exactly once, and MLflow has neither gap nor double.

Trials are scripted (oneshot/trial/scripted.py), drivers are real ones (tests/drivers.py) on a real Ray.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from drivers import Cluster, Driver, Moment, end, make_cluster, start, until
from mlflow import MlflowClient
from scripted import Lab, files, make_lab, nothing_lost, runs_of, steps_of, sweep_text

from oneshot.store.lease import holder
from oneshot.store.trial_folder import TrialFolder
from oneshot.trial.requests import read_stops

pytest_plugins = ["labs"]
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster(scratch: str) -> Iterator[Cluster]:
    made = make_cluster(scratch)
    yield made
    made.close()


Start = Callable[..., Driver]


@pytest.fixture
def drive(lab: Lab, cluster: Cluster) -> Iterator[Start]:
    """Starts `oneshot run FILE` in the lab on the cluster; whatever a test leaves running is killed."""
    started: list[Driver] = []

    def begin(file: str = "s.yaml", *, moment: Moment | None = None) -> Driver:
        arguments = ["run", file, "--address", cluster.address]
        started.append(start(arguments, folder=lab.folder, scratch=cluster.scratch, moment=moment))
        return started[-1]

    yield begin
    for driver in started:
        driver.process.kill()
        driver.process.join()


def run(drive: Start, file: str = "s.yaml", *, code: int = 0) -> Driver:
    """A driver that has ended by itself."""
    driver = drive(file)
    assert driver.wait() == code, driver.stderr
    return driver


def only(lab: Lab, name: str = "s") -> TrialFolder:
    (folder,) = lab.trainings(name).values()
    return folder


# --- the driver is killed ---

BETWEEN = Moment(function="put_folder", when="after")
"""Between checkpoint and report."""
STORIES: dict[str, tuple[tuple[Moment, ...], dict[int, list[int]]]] = {
    "until its first checkpoint counts": (
        (
            Moment(function="write", about="trial.json"),  # before anything is on record
            Moment(function="write_segment"),  # before the first report
            BETWEEN,
            Moment(function="_rename", about="/checkpoint.json"),  # the next one does not count yet
        ),
        {3: [1, 2], 4: [3, 4], 5: [3, 4, 5, 6]},
    ),
    "from the last report on": (
        (
            Moment(function="put_folder", nth=3),  # after the last report
            Moment(function="write_result"),
            Moment(function="_rename", about="/result.json"),
        ),
        {1: [1, 2, 3, 4, 5, 6], 2: [5, 6]},
    ),
    "when all is done, which it has not heard": (
        (Moment(function="write_result", when="after"),),
        {1: [1, 2, 3, 4, 5, 6]},
    ),
}
"""Moments at which one driver after the other is killed; then, by attempt, the steps on record."""


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES)
def test_drivers_killed_at_bad_moments_lose_nothing(lab: Lab, drive: Start, story: str) -> None:
    moments, made = STORIES[story]
    lab.write(sweep_text())
    for moment in moments:
        assert drive(moment=moment).wait() == -signal.SIGKILL, moment
    run(drive)
    nothing_lost(lab)
    assert steps_of(only(lab)) == made


@pytest.mark.slow  # it starts a Ray, and another one
def test_a_driver_killed_together_with_its_own_ray_loses_nothing(lab: Lab, scratch: str) -> None:
    lab.write(sweep_text(script="step_s: 0.5"))
    killed = start(["run", "s.yaml"], folder=lab.folder, scratch=scratch, moment=BETWEEN)
    until(lambda: "started" in killed.stderr, "it does not begin")
    left = killed.children()
    assert killed.wait() == -signal.SIGKILL
    end(left)
    again = start(["run", "s.yaml"], folder=lab.folder, scratch=scratch)
    assert again.wait() == 0, again.stderr
    nothing_lost(lab)
    assert steps_of(only(lab)) == {1: [1, 2], 2: [3, 4, 5, 6]}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_torn_segment_is_made_whole(lab: Lab, drive: Start, when: Any) -> None:
    lab.write(sweep_text())
    assert drive(moment=Moment(function="put_folder", nth=2, when=when)).wait() == -signal.SIGKILL
    segment = Path(only(lab).path) / "metrics" / "0001-00000003.jsonl"  # of steps 3 and 4
    os.truncate(segment, segment.stat().st_size * 3 // 4)
    run(drive)
    nothing_lost(lab)


@pytest.mark.slow
def test_workers_that_die_before_they_begin_are_not_tried_for_ever(lab: Lab, drive: Start) -> None:
    lab.write(sweep_text(rest="faults: {retries: 2}\n"))
    driver = drive(moment=Moment(function="last_attempt", dies=True))
    assert driver.wait() == 1, driver.stderr
    result = only(lab).current_result()
    assert result is not None and result.failures == {"crash": 3} and result.attempt == 3
    assert "the worker died" in driver.stderr


@pytest.mark.slow
def test_a_worker_whose_gpu_is_broken_ends_with_its_trial(lab: Lab, drive: Start) -> None:
    crash = "{at: 4, do: crash, attempts: 1}"
    lab.write(sweep_text(script=f"faults: [{crash}]", seeds="[0, 1, 2]", rest="resources: {max_concurrent: 1}\n"))
    driver = drive(moment=Moment(function="end_attempt", breaks_gpu=True))
    assert driver.wait() == 0, driver.stderr
    nothing_lost(lab)
    folders = lab.trainings("s").values()
    assert [folder.last_attempt() for folder in folders] == [2, 2, 2]  # a crash, and the second attempt: none is lost
    pids = [folder.attempt(number)["pid"] for folder in folders for number in (1, 2)]
    assert len(set(pids)) == len(pids)


# --- a training dies ---

DEATHS = {
    # fault: (what the script does, attempts, failures by class, how the reason begins)
    "crash": ("{at: 4, do: crash}", 3, {"crash": 3}, "RuntimeError: the script says: crash"),
    "crash-once": ("{at: 4, do: crash, attempts: 1}", 2, {"crash": 1}, ""),
    "status-9": ("{at: 4, do: exit, code: 9, attempts: 1}", 2, {"crash": 1}, ""),
    "sigkill": ("{at: 4, do: exit, code: -9, attempts: 1}", 2, {"crash": 1}, ""),
    "hang": ("{at: 4, do: hang, attempts: 1}", 2, {"stall": 1}, ""),
    "memory": ("{at: 4, do: oom, attempts: 1}", 2, {"oom": 1}, ""),
    "no-memory": ("{at: 4, do: oom}", 3, {"oom": 3}, "MemoryError: the script says: out of memory"),
    "nan": ("{at: 4, do: nan}", 1, {"nan": 1}, "TrialError: the script says: the loss is not finite"),
    "config": ("{at: 4, do: config}", 1, {"config": 1}, "UserError: the script says: wrong settings"),
    "data": ("{at: 4, do: data}", 1, {"data": 1}, "DataError: the script says: wrong data"),
}


@pytest.mark.slow
def test_a_worker_that_ray_ends_for_memory_is_tried_again_with_fewer_beside_it(lab: Lab, scratch: str) -> None:
    leak = "{at: 4, do: leak, mib: 3000, attempts: 1}"
    lab.write(sweep_text(script=f"step_s: 0.3, faults: [{leak}]", rest="resources: {max_concurrent: 1}\n"))
    memory = psutil.virtual_memory()
    limit = {"RAY_memory_usage_threshold": f"{(memory.total - memory.available + 2 * 2**30) / memory.total:.3f}",
             "RAY_memory_monitor_refresh_ms": "50"}  # fmt: skip
    command = [sys.executable, "-m", "oneshot", "run", "s.yaml"]
    environment = {**os.environ, **limit, "HOME": str(lab.folder), "RAY_TMPDIR": scratch}
    done = subprocess.run(command, cwd=lab.folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = only(lab).result()
    assert result is not None
    assert (result.attempt, result.failures) == (2, {"host_oom": 1})
    told = [line.partition("  ")[2] for line in done.stderr.splitlines() if "memory" in line]
    assert [line.partition("trial seed 0  ")[2] for line in told] == [
        "Ray ended it because the machine is short of memory; 1 at a time from now on",
        "host_oom: the machine was short of memory, and Ray ended the worker; retrying",
    ]
    assert "Traceback" not in done.stderr
    log = only(lab).read("log/1.txt") or ""
    assert "running low on memory" in log
    nothing_lost(lab)


@pytest.mark.slow  # test_agenda.py has each class without Ray
def test_what_dies_is_tried_again_by_its_class_and_no_more(lab: Lab, scratch: str) -> None:
    scripts = {name: f"faults: [{what}]" for name, (what, *_) in DEATHS.items()}
    # m1 is the step's number, above 3 for the second time at 5; so far from its best value the bowl overflows
    scripts |= {"guard": "metrics: 2", "infinite": "bowl: {optim.lr: 5.0e-324}"}
    cells = "".join(f"    {name}: {{set: {{script: {{{script}}}}}}}\n" for name, script in scripts.items())
    guards = "guards: [{metric: script/m1, above: 3, for_steps: 2}, {metric: script/bowl, is: nan}]\n"
    faults = "faults: {retries: 2, oom_retries: 2, stall_s: 6}\n"
    lab.write(sweep_text(axes=f"  fault:\n{cells}", rest=f"{guards}{faults}resources: {{max_concurrent: 2}}\n"))
    driver = start(["run", "s.yaml"], folder=lab.folder, scratch=scratch)
    assert driver.wait() == 1, driver.stderr
    failed = {f"{name} seed 0": reason for name, (_, _, _, reason) in DEATHS.items() if reason}
    failed["guard seed 0"] = "GuardError: script/m1 is 5, above 3 for 2 steps"
    failed["infinite seed 0"] = "GuardError: script/bowl is -inf, not a finite number"
    runs = nothing_lost(lab, failed=failed)
    trainings = lab.trainings()
    for name, (_, attempts, failures, _) in DEATHS.items():
        result = trainings[f"{name} seed 0"].result()
        assert result is not None
        assert (name, result.attempt, result.failures) == (name, attempts, failures)
    assert "computes in portions of 1/2" in (trainings["memory seed 0"].read("log/2.txt") or "")
    assert "computes in portions of 1/4" in (trainings["no-memory seed 0"].read("log/3.txt") or "")
    for label, reason in failed.items():
        assert runs[label].data.tags["state.reason"].startswith(reason)
        assert f"{label} failed: {reason}" in driver.stderr
    again = start(["run", "s.yaml"], folder=lab.folder, scratch=scratch)
    assert again.wait() == 1
    assert "0 trainings to run" in again.stderr
    nothing_lost(lab, failed=failed)


@pytest.mark.slow
def test_a_sweep_whose_first_trainings_die_alike_stops_and_says_why(lab: Lab, drive: Start) -> None:
    faults = "faults: {retries: 0, same_failure_limit: 3}\nresources: {max_concurrent: 1}\n"
    lab.write(sweep_text(script="faults: [{at: 4, do: crash}]", seeds="[0, 1, 2, 3, 4, 5]", rest=faults))
    driver = run(drive, code=1)
    assert "the first 3 trainings failed for the same reason (RuntimeError: the script says: crash)" in driver.stderr
    assert "0 finished, 3 failed, 3 missing" in driver.stdout
    assert [folder.last_attempt() for folder in lab.trainings().values()] == [1, 1, 1, 0, 0, 0]


# --- others ---


@pytest.mark.slow
def test_a_second_driver_is_refused_and_the_first_is_undisturbed(lab: Lab, drive: Start) -> None:
    lab.write(sweep_text(script="step_s: 0.3"))
    first = drive()
    until(lambda: "started" in first.stderr, "the first driver does not begin")
    second = run(drive, code=2)
    assert f"s is already running on {socket.gethostname()}:{first.process.pid}" in second.stderr
    assert "watch it with `oneshot status s --storage " in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert first.wait() == 0, first.stderr
    assert only(lab).last_attempt() == 1
    nothing_lost(lab)


@pytest.mark.slow
def test_a_training_that_another_live_sweep_is_at_is_waited_for(lab: Lab, drive: Start) -> None:
    for name in ("one", "two"):
        # long enough for the second driver to come before the first is through, on a machine that is busy
        lab.write(sweep_text(name=name, script="step_s: 1.5"), f"{name}.yaml")
    first = drive("one.yaml")
    # not at once: two forks of one server that join Ray at the same moment may seal the same object, and one ends
    until(lambda: "started" in first.stderr, "it does not begin")
    drivers = [first, drive("two.yaml")]
    for driver in drivers:
        assert driver.wait() == 0, driver.stderr
    assert only(lab, "one").path == only(lab, "two").path
    assert only(lab, "one").last_attempt() == 1
    assert sum("waiting: held by " in driver.stderr for driver in drivers) == 1
    (child,) = (run for name in ("one", "two") for run in nothing_lost(lab, name).values() if _is_reused(run))
    assert (child.data.tags["sweep"], child.data.tags["reused.from"]) == ("two", "one")


def _is_reused(run: Any) -> bool:
    return "reused.from" in run.data.tags


# --- somebody ends it ---


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_sweep_with_a_checkpoint_of_the_last_step(
    lab: Lab, drive: Start, number: signal.Signals
) -> None:
    lab.write(sweep_text(script="step_s: 0.3", trial="  checkpoint.every_steps: 100\n"))
    driver = drive()
    until(lambda: "started" in driver.stderr, "it does not begin")
    time.sleep(1.0)
    driver.send(number)
    assert driver.wait() == 130, driver.stderr
    num_done = only(lab).rows()[-1].step
    assert 0 < num_done < 6
    assert only(lab).read_json("checkpoint.json") is not None
    assert only(lab).result() is None
    assert holder(only(lab)) is None
    assert {found.info.status for found in runs_of(lab.client, "s")} == {"KILLED"}
    run(drive)
    nothing_lost(lab)
    assert steps_of(only(lab)) == {1: list(range(1, num_done + 1)), 2: list(range(num_done + 1, 7))}


# --- MLflow is away ---


@dataclass(frozen=True)
class Server:
    """An MLflow server over HTTP, with its children, which may be stopped or killed."""

    folder: Path
    port: int
    processes: list[subprocess.Popen[bytes]]

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "HOME": str(self.folder)}
        with (self.folder / "server.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            )
        until(self.answers, "the MLflow server does not start")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        """To all of its processes."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        self.processes.clear()


@pytest.fixture
def server(tmp_path: Path, database: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Server(folder=folder, port=port, processes=[])
    yield made
    made.kill()


LONG = 24
STEP_S = 0.25


def long_sweep(server: Server) -> str:
    return sweep_text(
        script=f"step_s: {STEP_S}, metrics: 4",
        trial=f"  train.num_steps: {LONG}\n  checkpoint.every_steps: 4\n",
        seeds="[0, 1]",
        rest=f"resources: {{max_concurrent: 2}}\nmlflow: {{tracking_uri: '{server.uri}'}}\n",
    )


def took_s(folder: TrialFolder) -> float:
    """From the first step to the last."""
    rows = folder.rows()
    return (rows[-1].time_ms - rows[0].time_ms) / 1000


@pytest.mark.slow
def test_mlflow_stopped_for_half_a_minute_slows_no_trial_and_catches_up(lab: Lab, drive: Start, server: Server) -> None:
    lab.write(long_sweep(server))
    server.start()
    driver = drive()
    until(lambda: driver.stderr.count("started") == 2, "it does not begin")
    time.sleep(1.0)
    server.send(signal.SIGSTOP)
    time.sleep(30.0)
    assert [folder.current_result() is not None for folder in lab.trainings().values()] == [True, True]
    server.send(signal.SIGCONT)
    assert driver.wait() == 0, driver.stderr
    nothing_lost(lab, client=MlflowClient(server.uri))
    assert all(took_s(folder) < 2 * LONG * STEP_S for folder in lab.trainings().values())


@pytest.mark.slow
def test_mlflow_away_for_the_whole_run_is_caught_up_with_by_the_next(lab: Lab, drive: Start, server: Server) -> None:
    lab.write(long_sweep(server))
    driver = run(drive)
    assert "2 finished, 0 failed, 0 missing" in driver.stdout
    assert "MLflow is behind" in driver.stderr
    assert all(took_s(folder) < 2 * LONG * STEP_S for folder in lab.trainings().values())
    server.start()
    again = run(drive)
    assert "0 trainings to run" in again.stderr
    nothing_lost(lab, client=MlflowClient(server.uri))


# --- the store is full, or cannot be written ---


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a disk that is soon full")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def on_disk(lab: Lab, disk: Path, **given: str) -> Lab:
    """A lab whose store is on that disk, and whose MLflow is not."""
    (lab.folder / "runs" / "mlflow.db").rename(lab.folder / "mlflow.db")
    (lab.folder / "runs").rmdir()
    (lab.folder / "runs").symlink_to(disk)
    lab.write(sweep_text(**given, rest=f"mlflow: {{tracking_uri: 'sqlite:///{lab.folder}/mlflow.db'}}\n"))
    return lab


@pytest.mark.slow
def test_a_disk_that_fills_up_is_named_and_after_it_has_room_the_sweep_goes_on(
    lab: Lab, drive: Start, disk: Path
) -> None:
    on_disk(lab, disk, script="step_s: 0.3", seeds="[0, 1]")
    driver = drive()
    until(lambda: "started" in driver.stderr, "it does not begin")
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    assert driver.wait() == 1, driver.stderr
    assert "No space left on device" in driver.stderr
    assert "Traceback" not in driver.stderr.rpartition("store cannot be written")[2]
    remount(disk, "size=4m")
    again = drive()
    assert again.wait() == 0, again.stderr
    nothing_lost(lab, client=MlflowClient(f"sqlite:///{lab.folder}/mlflow.db"))


def test_a_store_that_cannot_be_written_is_refused_in_one_line(lab: Lab, disk: Path, scratch: str) -> None:
    on_disk(lab, disk)
    remount(disk, "ro")
    driver = start(["run", "s.yaml"], folder=lab.folder, scratch=scratch)
    assert driver.wait() == 2
    (line,) = driver.stderr.splitlines()
    assert re.search("storage: runs: cannot be written: .*Read-only file system.*; choose a folder", line)


# --- a search is interrupted ---

SEARCH = """search:
  on: {{example: x}}
  seeds: [100]
  num_trials: 14
  parallel: {parallel}
  objective: {{metric: script/bowl}}
  space: {{optim.lr: {{low: 1.0e-6, high: 1.0e-2, log: true}}, loss.kl_coef: {{choice: [0.0, 1.0e-3, 1.0e-2]}}}}
  sampler: {{kind: tpe, seed: 7, num_startup: 4}}
resources: {{max_concurrent: {parallel}}}
"""
EXAMPLES = "  example: {x: {set: {rollout.num_groups: 8}}, y: {set: {rollout.num_groups: 16}}}\n"
BOWL = "bowl: {optim.lr: 1.0e-4, loss.kl_coef: 1.0e-2}, noise: 0.01"


def search_sweep(*, parallel: int, rest: str = "") -> str:
    return sweep_text(
        script=BOWL, trial="  train.num_steps: 2\n", axes=EXAMPLES, rest=SEARCH.format(parallel=parallel) + rest
    )


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2])
def test_14_points_interrupted_at_5_and_at_12_equal_the_uninterrupted(
    tmp_path: Path, lab: Lab, drive: Start, cluster: Cluster, database: Path, parallel: int
) -> None:
    whole = make_lab(tmp_path / "whole", database)
    for one in (whole, lab):
        one.write(search_sweep(parallel=parallel))
    alone = start(["run", "s.yaml", "--address", cluster.address], folder=whole.folder, scratch=cluster.scratch)
    interrupted = (
        Moment(function="write", about="/point-0005.json", when="after", of="driver"),
        Moment(function="write", about="/point-0012.json", of="driver"),
    )
    for moment in interrupted:
        assert drive(moment=moment).wait() == -signal.SIGKILL, moment
    run(drive)
    assert alone.wait() == 0, alone.stderr
    nothing_lost(lab)
    nothing_lost(whole)
    expected = files(whole.store.sweep("s"), "search/all")
    assert len(expected) == 14 + 2  # points, study.json and winner.json
    assert files(lab.store.sweep("s"), "search/all") == expected
    winner = json.loads(expected["winner.json"])
    assert {trial.config.optim.lr for trial in lab.plan().grid} == {winner["params"]["optim.lr"]}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_rungs_survive_a_restart(lab: Lab, drive: Start, when: Any) -> None:
    """Killed when the first point is judged to stop: before that is kept as a stop, and after."""
    early = "early_stop: {kind: asha, grace_steps: 3, factor: 2}\n"
    text = search_sweep(parallel=2, rest=early).replace("num_steps: 2\n", "num_steps: 9\n")
    lab.write(text.replace("num_trials: 14", "num_trials: 5").replace("noise: 0.01", "noise: 0.01, step_s: 0.05"))
    folder = lab.store.sweep("s")
    moment = Moment(function="write", about="stops.json", when=when, of="driver")
    assert drive(moment=moment).wait() == -signal.SIGKILL
    judged, stopped = files(folder, "rungs"), read_stops(folder).early
    assert any(json.loads(text)["stop"] for text in judged.values())
    assert bool(stopped) == (when == "after")
    attempts = {key: lab.store.trial(key).last_attempt() for key in stopped}
    run(drive)
    nothing_lost(lab)
    assert files(folder, "rungs").items() >= judged.items()
    assert read_stops(folder).early.items() >= stopped.items()
    assert read_stops(folder).early
    arrivals = [(one["key"], one["rung"]) for one in map(json.loads, files(folder, "rungs").values())]
    assert len(set(arrivals)) == len(arrivals), "nobody is judged twice at a rung"
    assert {key: lab.store.trial(key).last_attempt() for key in stopped} == attempts, "who was stopped stays so"


# --- people ---


@pytest.fixture
def ask(lab: Lab, scratch: str) -> Callable[..., str]:
    """`oneshot ARGUMENTS` in another process: what it prints."""

    def asking(*arguments: str) -> str:
        done = start(list(arguments), folder=lab.folder, scratch=scratch)
        assert done.wait() == 0, done.stderr
        return done.stdout

    return asking


def counts(ask: Callable[..., str]) -> dict[str, int]:
    found = json.loads(ask("status", "s", "--json"))
    return {state: found[state] for state in ("finished", "failed", "stopped", "running", "pending") if found[state]}


@pytest.mark.slow
def test_a_running_sweep_shows_where_it_stands_and_heeds_a_stop(
    lab: Lab, drive: Start, ask: Callable[..., str]
) -> None:
    rest = "resources: {max_concurrent: 1}\n"
    lab.write(sweep_text(script="step_s: 0.6", trial="  checkpoint.every_steps: 1\n", seeds="[0, 1, 2]", rest=rest))
    driver = drive()
    until(lambda: "started" in driver.stderr, "it does not begin")
    until(lambda: counts(ask) == {"running": 1, "pending": 2}, "the first one is not shown as running")
    found = json.loads(ask("status", "s", "--json"))
    assert found["driver"].startswith(f"{socket.gethostname()}:{driver.process.pid} ")
    until(lambda: driver.stderr.count("started") == 2, "the first one does not end")
    time.sleep(1.0)
    ask("stop", "s")
    assert driver.wait() == 1, driver.stderr
    assert "stopped by hand" in driver.stderr
    assert counts(ask) == {"finished": 1, "pending": 2}
    run(drive)
    nothing_lost(lab)
    assert counts(ask) == {"finished": 3}
    assert [folder.last_attempt() for folder in lab.trainings().values()] == [1, 2, 1]


@pytest.mark.slow
def test_stop_now_kills_and_what_was_killed_goes_on_from_its_checkpoint(
    lab: Lab, drive: Start, ask: Callable[..., str]
) -> None:
    lab.write(sweep_text(script="faults: [{at: 5, do: hang, attempts: 1}]"))
    driver = drive()
    until(lambda: (lab.folder / "runs" / "trials").is_dir() and steps_of(only(lab)) == {1: [1, 2, 3, 4]}, "no 4 steps")
    ask("stop", "s", "--now")
    assert driver.wait() == 1, driver.stderr
    assert only(lab).result() is None, "a kill by hand is no failure"
    run(drive)
    nothing_lost(lab)
    assert steps_of(only(lab)) == {1: [1, 2, 3, 4], 2: [5, 6]}


@pytest.mark.slow
def test_a_stopped_cell_ends_alone_and_retry_brings_it_back(lab: Lab, drive: Start, ask: Callable[..., str]) -> None:
    axes = "  speed:\n    slow: {set: {script: {step_s: 2}}}\n    fast: {set: {script: {step_s: 0.1}}}\n"
    lab.write(sweep_text(axes=axes, seeds="[0, 1]", rest="resources: {max_concurrent: 2}\n"))
    driver = drive()
    until(lambda: driver.stderr.count("started") >= 2, "it does not begin")
    ask("stop", "s", "--cell", "speed=slow")
    assert driver.wait() == 0, driver.stderr
    assert "2 finished, 0 failed, 2 stopped, 0 missing" in driver.stdout
    assert counts(ask) == {"finished": 2, "stopped": 2}
    assert run(drive).stderr.count("started") == 0
    ask("retry", "s", "--cell", "speed=slow")
    run(drive)
    assert counts(ask) == {"finished": 4}
    nothing_lost(lab)


@pytest.mark.slow
def test_retry_runs_what_failed_once_more_from_its_checkpoint(lab: Lab, drive: Start, ask: Callable[..., str]) -> None:
    lab.write(sweep_text(script="faults: [{at: 4, do: nan, attempts: 1}]"))
    assert "TrialError: the script says" in run(drive, code=1).stderr
    assert counts(ask) == {"failed": 1}
    assert "no failed training and no stopped trial matches" in ask("retry", "s", "--reason", "out of memory")
    assert "1 failed training will run again" in ask("retry", "s", "--reason", "not finite")
    run(drive)
    nothing_lost(lab)
    assert steps_of(only(lab)) == {1: [1, 2, 3], 2: [3, 4, 5, 6]}
    assert holder(lab.store.sweep("s")) is None
