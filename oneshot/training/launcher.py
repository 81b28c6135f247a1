"""A trial of several processes, as whoever records it drives it: each does its part, and one answers for all.

The children are a process group of their own: a signal to the parent's group does not reach them, and they are ended
together, at once and by force, when one of them fails or dies, when the trial is over, or when the parent is gone.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NoReturn

from oneshot.config.sweep import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DeadProcessError
from oneshot.training.metrics import StepMetrics

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
"""All are on one machine, whose name need not lead anywhere."""
GRACE_S = 1.0
"""An error may be the echo of another process' death, which is then known within this time."""
NUM_LINES = 50
"""Last lines of a child's output that are told if it dies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """What a child needs to begin its trial."""

    config: TrialConfig
    seed: int
    resources: ResourceConfig
    grader_timeout_s: float
    halvings: int
    store: str
    """A file through which the children find each other."""
    rank: int


class Processes:
    """The children of one trial, and the trial's work by them."""

    def __init__(
        self,
        config: TrialConfig,
        *,
        seed: int,
        resources: ResourceConfig,
        grader_timeout_s: float,
        halvings: int = 0,
    ) -> None:
        """Starts the children, each with its share of the cores, and has them load what the trial needs."""
        self._step = 0
        self._folder = TemporaryDirectory(prefix="oneshot-", ignore_cleanup_errors=True)
        life, end_of_life = os.pipe()
        self._ends: tuple[int, ...] = (life, end_of_life)
        self._children: list[_Child] = []
        try:
            for rank in range(resources.processes):
                begin = Begin(
                    config=config,
                    seed=seed,
                    resources=resources,
                    grader_timeout_s=grader_timeout_s,
                    halvings=halvings,
                    store=str(Path(self._folder.name) / "store"),
                    rank=rank,
                )
                group = self._children[0].pid if self._children else 0
                self._children.append(_Child(begin, life=life, group=group))
            self._answers()
        except BaseException:
            self.close()
            raise

    @property
    def step(self) -> int:
        """Steps that the trial has behind it."""
        return self._step

    @staticmethod
    def can_continue(checkpoint: Path) -> bool:
        """Whether a checkpoint holds what training needs, and not weights alone."""
        return (checkpoint / "optimizer.safetensors").is_file()

    def set_baseline(self, baseline: Mapping[str, float]) -> None:
        """Takes accuracies at the start from the record, that of a suite by its name in this trial."""
        self._ask("set_baseline", dict(baseline))

    def load(self, checkpoint: Path) -> None:
        """Goes to where a checkpoint was saved."""
        self._step = self._ask("load", checkpoint)

    def save(self, folder: Path, *, with_optimizer: bool) -> None:
        """Writes a checkpoint into an empty folder."""
        self._ask("save", folder, with_optimizer)

    def train(self) -> Iterator[StepMetrics]:
        """The steps that are left."""
        self._ask("train")
        yield from self._steps()

    def evaluate(self, checkpoint: Path | None, *, done: Collection[tuple[str, int]]) -> Iterator[StepMetrics]:
        """Evaluations at start and end that are not done yet, with kept weights."""
        self._ask("evaluate", checkpoint, set(done))
        yield from self._steps()

    def _steps(self) -> Iterator[StepMetrics]:
        while step := self._ask("next"):
            self._step = step.step
            yield step

    def close(self) -> None:
        """Ends the children, whatever they are at."""
        if self._children:
            with suppress(ProcessLookupError):
                os.killpg(self._children[0].pid, signal.SIGKILL)
        for child in self._children:
            child.close()
        self._children = []
        ends, self._ends = self._ends, ()  # closed once: their numbers are others' then
        for end in ends:
            os.close(end)
        self._folder.cleanup()

    def _ask(self, command: str, *arguments: Any) -> Any:
        """Has all do it; the first one's answer."""
        for child in self._children:
            with suppress(OSError):  # one that is gone is found below
                child.connection.send((command, arguments))
        return self._answers()

    def _answers(self) -> Any:
        """Waits for all; the first one's answer."""
        waiting = {child.connection: rank for rank, child in enumerate(self._children)}
        answer = None
        while waiting:
            for connection in wait(list(waiting)):
                assert isinstance(connection, Connection), "we wait for nothing else"
                rank = waiting[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    self._tell_of_death(rank)
                if kind == "log":
                    self._log(rank, *content)
                elif kind == "failed":
                    self._tell_of_failure(rank, *content)
                else:
                    answer = content if rank == 0 else answer
                    del waiting[connection]
        return answer

    def _log(self, rank: int, name: str, level: int, text: str) -> None:
        logging.getLogger(name).log(level, "%s%s", f"process {rank}: " if rank else "", text)

    def _tell_of_failure(self, rank: int, error: BaseException, trace: str) -> NoReturn:
        """Ends all and raises what one of them met, unless that is how it noticed that another was gone."""
        others = {child.connection: place for place, child in enumerate(self._children) if place != rank}
        deadline_s = time.monotonic() + GRACE_S
        while others and (left_s := deadline_s - time.monotonic()) > 0:
            for connection in wait(list(others), timeout=left_s):
                assert isinstance(connection, Connection), "we wait for nothing else"
                try:
                    connection.recv()
                except (EOFError, OSError):
                    self._tell_of_death(others[connection])
        number = len(self._children)
        self.close()
        raise error from _ChildError(f"in process {rank} of {number}:\n{trace}")

    def _tell_of_death(self, rank: int) -> NoReturn:
        """Ends all and says how one of them ended, with the last that it wrote."""
        number, child = len(self._children), self._children[rank]
        how = child.how_it_ended()
        self.close()
        message = f"process {rank} of {number} {how}"
        raise DeadProcessError(message) from _ChildError(f"its last output:\n{child.last_output()}")


class _ChildError(Exception):
    """Shows a child's traceback above the parent's."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = text

    def __str__(self) -> str:
        return f'\n"""\n{self._text}"""'


class _Child:
    """One process: its connection, and what it writes."""

    def __init__(self, begin: Begin, *, life: int, group: int) -> None:
        self.connection, theirs = Pipe()
        rank, size = str(begin.rank), str(begin.resources.processes)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "oneshot.training.worker", str(theirs.fileno()), str(life)],
            pass_fds=(theirs.fileno(), life),
            process_group=group,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={
                "GLOO_SOCKET_IFNAME": LOOPBACK,
                "NCCL_SOCKET_IFNAME": LOOPBACK,
                **os.environ,
                # what accelerate reads; the process group itself is found through a file
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "LOCAL_WORLD_SIZE": size,
                "OMP_NUM_THREADS": str(begin.resources.threads),
            },
        )
        theirs.close()
        self.pid = self._process.pid
        self._lines: deque[str] = deque(maxlen=NUM_LINES)
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        with suppress(OSError):  # one that is gone is found when it is to answer
            self.connection.send(begin)

    def _read(self, output: IO[str]) -> None:
        """Passes on what the child writes; results are the parent's, so that all of it goes to stderr."""
        for line in output:
            self._lines.append(line)
            with suppress(OSError, ValueError):  # nobody reads ours: the child's has to be read all the same
                sys.stderr.write(line)

    def how_it_ended(self) -> str:
        try:
            status = self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def last_output(self) -> str:
        self._reader.join(timeout=GRACE_S)
        return "".join(self._lines)

    def close(self) -> None:
        """Of a child that has been killed."""
        self._process.wait()
        self.connection.close()
