"""Whatever dies, `run` again: every training is done exactly once, and MLflow has neither gap nor double.

Trials are scripted (oneshot/scripted.py), drivers are real ones (tests/drivers.py) on a real Ray.
"""

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers import PATIENCE_S, Cluster, Driver, Moment, make_cluster, start
from scripted import Lab, make_database, make_lab, nothing_lost, runs_of, steps_of, sweep_text

from oneshot.lease import holder
from oneshot.store import TrialFolder

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def scratch() -> Iterator[str]:
    """A folder for Ray, whose sockets need a short path."""
    folder = tempfile.mkdtemp(prefix="os", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(scratch: str) -> Iterator[Cluster]:
    made = make_cluster(scratch)
    yield made
    made.close()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("mlflow") / "mlflow.db")


@pytest.fixture
def lab(tmp_path: Path, database: Path) -> Lab:
    return make_lab(tmp_path / "lab", database)


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


def until(there: Callable[[], object], why: str) -> None:
    """Waits until something is the case."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not there():
        assert time.monotonic() < deadline_s, why
        time.sleep(0.02)


def only(lab: Lab, name: str = "s") -> TrialFolder:
    (folder,) = lab.trainings(name).values()
    return folder


# --- the driver is killed ---

STORIES: dict[str, tuple[tuple[Moment, ...], dict[int, list[int]]]] = {
    "until its first checkpoint counts": (
        (
            Moment(function="write", about="trial.json"),  # before anything is on record
            Moment(function="write_segment"),  # before the first report
            Moment(function="put_folder", when="after"),  # between checkpoint and report
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


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_torn_segment_is_made_whole(lab: Lab, drive: Start, when: Any) -> None:
    lab.write(sweep_text())
    assert drive(moment=Moment(function="put_folder", nth=2, when=when)).wait() == -signal.SIGKILL
    segment = Path(only(lab).path) / "metrics" / "0001-00000003.jsonl"  # of steps 3 and 4
    os.truncate(segment, segment.stat().st_size * 3 // 4)
    run(drive)
    nothing_lost(lab)


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
    assert "0 trainings to run now" in again.stderr
    nothing_lost(lab, failed=failed)


@pytest.mark.slow
def test_a_sweep_whose_first_trainings_die_alike_stops_and_says_why(lab: Lab, drive: Start) -> None:
    faults = "faults: {retries: 0, alike: 3}\nresources: {max_concurrent: 1}\n"
    lab.write(sweep_text(script="faults: [{at: 4, do: crash}]", seeds="[0, 1, 2, 3, 4, 5]", rest=faults))
    driver = run(drive, code=1)
    assert "the first 3 trainings failed alike (RuntimeError: the script says: crash)" in driver.stderr
    assert "0 finished, 3 failed, 3 missing" in driver.stdout
    assert [folder.last_attempt() for folder in lab.trainings().values()] == [1, 1, 1, 0, 0, 0]


# --- others ---


@pytest.mark.slow
def test_a_second_driver_is_refused_and_the_first_is_undisturbed(lab: Lab, drive: Start) -> None:
    lab.write(sweep_text(script="step_s: 0.3"))
    first = drive()
    until(lambda: "started" in first.stderr, "the first driver does not begin")
    second = run(drive, code=2)
    assert f"s is being run by {socket.gethostname()}:{first.process.pid}" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert first.wait() == 0, first.stderr
    assert only(lab).last_attempt() == 1
    nothing_lost(lab)


@pytest.mark.slow
def test_a_training_that_another_live_sweep_is_at_is_waited_for(lab: Lab, drive: Start) -> None:
    for name in ("one", "two"):
        lab.write(sweep_text(name=name, script="step_s: 0.4"), f"{name}.yaml")
    drivers = [drive(f"{name}.yaml") for name in ("one", "two")]
    for driver in drivers:
        assert driver.wait() == 0, driver.stderr
    assert only(lab, "one").path == only(lab, "two").path
    assert only(lab, "one").last_attempt() == 1
    assert sum("waits: " in driver.stderr for driver in drivers) == 1
    (child,) = (run for name in ("one", "two") for run in nothing_lost(lab, name).values() if _is_reused(run))
    assert {child.data.tags["sweep"], child.data.tags["reused.from"]} == {"one", "two"}


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
