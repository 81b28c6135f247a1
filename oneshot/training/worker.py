"""One of the processes that share a trial, run as `python -m oneshot.training.worker` and driven by the launcher.

It answers each command, and a failure with the error and its traceback. After a failure it stays, since whoever waits
for it in a collective would fail too, and say so first. It ends, and its whole group with it, when its parent is gone.
"""

import contextlib
import faulthandler
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]  # torch leaves it out of its `__all__`

from oneshot.errors import UserError
from oneshot.tasks.grading import Grader
from oneshot.training.launcher import Begin
from oneshot.training.metrics import StepMetrics
from oneshot.training.trainer import GrpoTrainer

STUCK = timedelta(hours=6)
"""After which a collective gives up. Rollouts of very different length are no error; who is stuck for less is the
sweep's watchdog's to find."""


class Member:
    """The trial in this process, and what can be asked of it: the methods are the commands."""

    def __init__(self, begin: Begin) -> None:
        _join(begin)
        self._is_first = begin.rank == 0
        self._trainer = GrpoTrainer(
            begin.config,
            seed=begin.seed,
            resources=begin.resources,
            grader=Grader(timeout_s=begin.grader_timeout_s),
            halvings=begin.halvings,
            rank=begin.rank,
        )
        self._steps: Iterator[StepMetrics] = iter(())

    def set_baseline(self, baseline: dict[str, float]) -> None:
        """As the work does."""
        self._trainer.set_baseline(baseline)

    def load(self, checkpoint: Path) -> int:
        """Goes to where a checkpoint was saved; its step."""
        self._trainer.load(checkpoint)
        return self._trainer.step

    def save(self, folder: Path, with_optimizer: bool) -> None:
        """All gather, the first writes."""
        self._trainer.save(folder, with_optimizer=with_optimizer)

    def train(self) -> None:
        """Makes ready for the steps that are left."""
        self._steps = self._trainer.train()

    def evaluate(self, checkpoint: Path | None, done: set[tuple[str, int]]) -> None:
        """Makes ready for the evaluations that are left."""
        self._steps = self._trainer.evaluate(checkpoint, done=done)

    def next(self) -> StepMetrics | bool:
        """What the next step gave, from the first process; False after the last."""
        step = next(self._steps, None)
        if step is None:
            return False
        return step if self._is_first else True


def _join(begin: Begin) -> None:
    """Agrees with the other members on a process group, which accelerate takes as it finds it."""
    on_gpu = begin.config.model.device != "cpu" and torch.cuda.is_available()
    if on_gpu and torch.cuda.device_count() < begin.resources.processes:
        raise UserError(
            f"resources: {begin.resources.processes} processes, but torch sees {torch.cuda.device_count()} GPUs here; "
            "ask for as many `gpus`, or set model.device: cpu"
        )
    if on_gpu:
        torch.cuda.set_device(begin.rank)
    store = FileStore(begin.store, begin.resources.processes)
    store.set_timeout(STUCK)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=begin.rank,
        world_size=begin.resources.processes,
        timeout=STUCK,
    )


class _Sender(logging.Handler):
    """Answers and log records, from whichever thread."""

    def __init__(self, connection: Connection, *, level: int) -> None:
        super().__init__(level)
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, *message: Any) -> None:
        data = pickle.dumps(message)  # outside the lock: what is pickled may log
        with self._sending:
            self._connection.send_bytes(data)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, and so are we in a moment
            self.send("log", (record.name, record.levelno, self.format(record)))


def _end_with(life: int) -> None:
    """Reads from a pipe that nobody writes to: it ends when the parent does, however that came."""
    os.read(life, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def portable(error: BaseException) -> BaseException:
    """The error, if it survives pickling; else one that says the same."""
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a library's error lacks
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy if str(copy) == str(error) else RuntimeError(f"{type(error).__name__}: {error}")


def main() -> None:
    """Takes the file descriptors of the connection and of the parent's life."""
    connection, life = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    faulthandler.enable()
    begin: Begin = connection.recv()
    sender = _Sender(connection, level=logging.INFO if begin.rank == 0 else logging.WARNING)
    logging.getLogger().addHandler(sender)
    logging.getLogger("oneshot").setLevel(logging.INFO)
    try:
        member = Member(begin)
        sender.send("done", None)
        while True:
            name, arguments = connection.recv()
            sender.send("done", getattr(member, name)(*arguments))
    except BaseException as error:  # the parent records it, whatever it is; to exit might hang in a collective
        sender.send("failed", (portable(error), traceback.format_exc()))
        threading.Event().wait()


if __name__ == "__main__":
    main()
