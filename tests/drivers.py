"""Drivers of sweeps in processes of their own, which may be killed at a chosen call; and a Ray for them to join.

Importing Ray and MLflow takes longer than a scripted sweep. So one server imports them once, and forks each driver.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import psutil

from oneshot.store.folder import Folder
from oneshot.store.trial_folder import TrialFolder

PATIENCE_S = 120.0
"""For what takes seconds, on a machine that is busy with other things."""

OPEN = {"RAY_AUTH_MODE": "disabled"}
"""Ray asks for a token by default, of which every driver would have to know."""
LEAN = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
"""No worker that nobody has asked for: each takes seconds to start."""

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["oneshot.cli", "oneshot.sweep.run", "oneshot.sweep.cluster.tuner", "oneshot.sweep.notify"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The `nth` call of a store's function, in one process, with an argument that ends in `about`: it is killed there.

    `of`: whose calls. A worker that comes to the moment kills its driver and goes no further, or finds its GPU broken,
    or dies.
    """

    function: str
    about: str = ""
    nth: int = 1
    when: Literal["before", "after"] = "before"
    of: Literal["worker", "driver"] = "worker"
    breaks_gpu: bool = False
    dies: bool = False


def _forked(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A process of the server's that runs `target`.

    Ray reads RAY_AUTH_MODE once, when it is imported, so the server needs the drivers' value. A process that started
    a Ray has another one, because Ray sets it. A driver that has both refuses its cluster's questions and loses every
    worker.
    """
    with patch.dict(os.environ, OPEN):
        forkserver.ensure_running()
    process = _forks.Process(target=target, args=args)
    process.start()
    return process


def act_at(moment: Moment, act: Callable[[], None]) -> None:
    """Has this process do something at a moment."""
    owner = TrialFolder if moment.function in vars(TrialFolder) else Folder
    function = getattr(owner, moment.function)
    calls = count(1)

    def acting(*args: Any, **kwargs: Any) -> Any:
        is_about = not moment.about or any(str(a).endswith(moment.about) for a in args if isinstance(a, str | Path))
        is_it = is_about and next(calls) == moment.nth
        if is_it and moment.when == "before":
            act()
        result = function(*args, **kwargs)
        if is_it:
            act()
        return result

    setattr(owner, moment.function, acting)


def _worker_with(moment: Moment, driver: int) -> Any:
    """A trainable that kills its driver at a moment."""
    from oneshot.sweep.cluster import trainable
    from oneshot.sweep.cluster.trainable import TrialTrainable

    def break_gpu() -> None:
        trainable.gpu_is_broken = lambda: True

    def kill_driver() -> None:
        os.kill(driver, signal.SIGKILL)
        while True:  # until Ray ends this worker, whose driver is gone
            time.sleep(60)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    act = break_gpu if moment.breaks_gpu else die if moment.dies else kill_driver

    class Killing(TrialTrainable):
        """One that acts at the moment."""

        def setup(self, config: dict[str, Any]) -> None:
            """Lies in wait."""
            act_at(moment, act)
            super().setup(config)

    return Killing


def _drive(arguments: list[str], folder: str, scratch: str, log: str, moment: Moment | None) -> None:
    """The process of a driver: `oneshot ARGUMENTS` in a folder."""
    os.chdir(folder)
    os.environ |= {**OPEN, "HOME": folder, "RAY_TMPDIR": scratch}
    for number, name in ((1, f"{log}.out"), (2, f"{log}.err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    import oneshot.sweep.cluster.tuner
    from oneshot.cli import main

    if moment is not None and moment.of == "driver":
        act_at(moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif moment is not None:
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker does not find the tests' modules
        oneshot.sweep.cluster.tuner.TrialTrainable = _worker_with(moment, os.getpid())
    sys.argv = ["oneshot", *arguments]
    main()


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """One `oneshot ...` that has been started."""

    process: BaseProcess
    log: str

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code; below 0, the signal that killed it."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"it has not ended: {self.stderr}"
        return self.process.exitcode

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def children(self) -> list[psutil.Process]:
        """What it has started, Ray's processes among them: they may outlive it."""
        assert self.process.pid is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    @property
    def stdout(self) -> str:
        return Path(f"{self.log}.out").read_text()

    @property
    def stderr(self) -> str:
        return Path(f"{self.log}.err").read_text()


_numbers = count(1)


def start(arguments: list[str], *, folder: Path, scratch: str, moment: Moment | None = None) -> Driver:
    """Starts `oneshot ARGUMENTS` in a folder."""
    log = str(folder / f"driver-{next(_numbers)}")
    for end in ("out", "err"):
        Path(f"{log}.{end}").touch()
    process = _forked(_drive, arguments, str(folder), scratch, log, moment)
    _started.append(Driver(process=process, log=log))
    return _started[-1]


_started: list[Driver] = []


def until(there: Callable[[], object], why: str) -> None:
    """Waits until something is the case; a failure shows what the last driver said."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not there():
        assert time.monotonic() < deadline_s, f"{why}: {_started[-1].stderr if _started else ''}"
        time.sleep(0.02)


# --- a Ray ---


def _be_cluster(scratch: str, num_cpus: int, line: Connection) -> None:
    os.environ |= {**OPEN, **LEAN, "RAY_TMPDIR": scratch}
    import ray

    context = ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    line.send(context.address_info["gcs_address"])
    line.recv()  # until it is closed, here or by the end of the tests
    ray.shutdown()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Ray that drivers join, so that each of them need not start its own."""

    address: str
    process: BaseProcess
    line: Connection
    scratch: str

    def close(self) -> None:
        assert self.process.pid is not None
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.line.send("end")
        self.process.join(30)
        end(processes)


def end(processes: list[psutil.Process]) -> None:
    """Kills those that are still there."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def make_cluster(scratch: str, *, num_cpus: int = 4) -> Cluster:
    """Starts a Ray in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = _forked(_be_cluster, scratch, num_cpus, theirs)
    theirs.close()
    assert ours.poll(PATIENCE_S), "Ray does not start"
    return Cluster(address=ours.recv(), process=process, line=ours, scratch=scratch)
