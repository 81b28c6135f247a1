"""Whatever dies, `run` again: every training is done exactly once, and MLflow has neither gap nor double.

Trials are scripted (oneshot/scripted.py), drivers are real ones (tests/drivers.py) on a real Ray.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers import PATIENCE_S, Cluster, Driver, Moment, make_cluster, start
from scripted import Lab, make_database, make_lab, nothing_lost, steps_of, sweep_text

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
