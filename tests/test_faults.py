"""Whatever dies, `run` again: every training is done exactly once, and MLflow has neither gap nor double.

Trials are scripted (oneshot/scripted.py), drivers are real ones (tests/drivers.py) on a real Ray.
"""

import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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

MOMENTS = {
    "before anything is on record": (Moment(function="write", about="trial.json"), 1),
    "before the first report": (Moment(function="write_segment"), 1),
    "between checkpoint and report": (Moment(function="put_folder", when="after"), 3),
    "while a checkpoint is made to count": (Moment(function="_rename", about="/checkpoint.json", nth=2), 3),
    "after the last report": (Moment(function="put_folder", nth=3), 5),
    "before the result": (Moment(function="write_result"), 7),
    "during the result's write": (Moment(function="_rename", about="/result.json"), 7),
    "after the result": (Moment(function="write_result", when="after"), 7),
}
"""... and the step that the next attempt begins with; 7 is past the last."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_a_driver_killed_at_a_bad_moment_loses_nothing(lab: Lab, drive: Start, name: str) -> None:
    moment, goes_on = MOMENTS[name]
    lab.write(sweep_text())
    assert drive(moment=moment).wait() == -signal.SIGKILL
    run(drive)
    nothing_lost(lab)
    made = steps_of(only(lab))
    assert made.get(2, []) == list(range(goes_on, 7))
    assert only(lab).last_attempt() == (1 if name == "after the result" else 2)
