"""Commands of the launcher -> answers: one of a trial's processes, run as `python -m oneshot.training.worker`.

It answers each command, and a failure with the error and its traceback. After a failure it stays alive: if it ended,
processes that wait for it in a collective would fail too and might report first. When its parent is gone, it kills its
whole process group.
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
from typing import Any

import torch
from torch import distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]  # torch leaves it out of its `__all__`

from oneshot.errors import UserError
from oneshot.tasks.grading import Grader
from oneshot.training.launcher import Begin
from oneshot.training.metrics import StepMetrics
from oneshot.training.trainer import LocalTrainer

STUCK = timedelta(hours=6)
"""Time-out of a collective. Rollouts may differ much in length; the sweep's watchdog finds trials that hang."""


def _join(begin: Begin) -> None:
    """Join the other processes in a process group, which accelerate will use."""
    on_gpu = begin.config.model.device != "cpu" and torch.cuda.is_available()
    if on_gpu and torch.cuda.device_count() < begin.resources.processes:
        raise UserError(
            f"resources: {begin.resources.processes} processes, but torch sees {torch.cuda.device_count()} GPUs here; "
            "set `gpus` to the number of processes, or model.device to cpu"
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
    """A handler that sends log records, and answers, to the launcher; threads may share it."""

    def __init__(self, connection: Connection, *, level: int) -> None:
        super().__init__(level)
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, *message: Any) -> None:
        data = pickle.dumps(message)  # outside the lock: pickling may log
        with self._sending:
            self._connection.send_bytes(data)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, and this process will be killed
            self.send("log", (record.name, record.levelno, self.format(record)))


def _end_with(life: int) -> None:
    """Wait on a pipe to which nobody writes, which closes when the parent ends; then kill the process group."""
    os.read(life, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def portable(error: BaseException) -> BaseException:
    """Return the error if it can be pickled, else a RuntimeError with the same text."""
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:  # libraries' errors can raise anything here
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy if str(copy) == str(error) else RuntimeError(f"{type(error).__name__}: {error}")


def _serve(begin: Begin, connection: Connection, sender: _Sender) -> None:
    """Load the trial, and answer commands: a trainer's methods with its step, and `next` with the step that it ran.

    Only the first process sends whole steps; the others send True. After the last step, all send None.
    """
    _join(begin)
    trainer = LocalTrainer(
        begin.config,
        seed=begin.seed,
        resources=begin.resources,
        grader=Grader(timeout_s=begin.grader_timeout_s),
        halvings=begin.halvings,
        rank=begin.rank,
        sampled=begin.sampled,
        start=begin.start,
    )
    sender.send("done", dict(trainer.sampled))
    steps: Iterator[StepMetrics] = iter(())
    while True:
        name, arguments, options = connection.recv()
        if name == "next":
            step = next(steps, None)
            sender.send("done", True if step is not None and begin.rank else step)
            continue
        made = getattr(trainer, name)(*arguments, **options)
        steps = steps if made is None else made
        sender.send("done", trainer.step)


def main() -> None:
    """Take the file descriptors of the connection and of the parent's pipe from the command line."""
    connection, life = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    faulthandler.enable()
    begin: Begin = connection.recv()
    sender = _Sender(connection, level=logging.INFO if begin.rank == 0 else logging.WARNING)
    logging.getLogger().addHandler(sender)
    logging.getLogger("oneshot").setLevel(logging.INFO)
    try:
        _serve(begin, connection, sender)
    except BaseException as error:  # the parent records it; exiting could hang in a collective
        sender.send("failed", (portable(error), traceback.format_exc()))
        threading.Event().wait()


if __name__ == "__main__":
    main()
