"""A trial's config and resources -> a trainer that runs the trial in several child processes.

The children have their own process group, so that a signal to the parent's group does not reach them. They are killed
together when one of them fails or dies, when the trial is over, or when the parent is gone.
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

from oneshot.children import command
from oneshot.config.resources import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DeadProcessError
from oneshot.tasks.solutions import Sampled
from oneshot.training.metrics import StepMetrics

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
"""All processes are on one machine, whose host name may not resolve."""
GRACE_S = 1.0  # time to wait for news of a dead process, which can be the cause of another process' error
NUM_LINES = 50  # last lines of a dead child's output that are reported


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """What a child needs to start its part of the trial."""

    config: TrialConfig
    seed: int
    resources: ResourceConfig
    grader_timeout_s: float
    halvings: int
    store: str  # path of the file through which the children find each other
    rank: int
    sampled: Sampled | None  # solutions of an earlier attempt
    start: Path | None  # checkpoint with the weights to begin from


class Processes:
    """A trainer whose trial runs in child processes; the first one's answers count."""

    def __init__(
        self,
        config: TrialConfig,
        *,
        seed: int,
        resources: ResourceConfig,
        grader_timeout_s: float,
        halvings: int = 0,
        sampled: Sampled | None = None,
        start: Path | None = None,
    ) -> None:
        """Start the children, each with its share of the cores, and wait until they have loaded the trial."""
        self.step = 0
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
                    sampled=sampled,
                    start=start,
                )
                group = self._children[0].pid if self._children else 0
                self._children.append(_Child(begin, life=life, group=group))
            self.sampled: Sampled = self._wait_for_answers()
        except BaseException:
            self.close()
            raise

    def set_baseline(self, baseline: Mapping[str, float]) -> None:
        """Set the accuracies at the start, by suite name."""
        self._command("set_baseline", dict(baseline))

    def load(self, checkpoint: Path) -> None:
        """Load a checkpoint's weights, optimiser and step."""
        self.step = self._command("load", checkpoint)

    def save(self, folder: Path, *, with_optimizer: bool) -> None:
        """Write a checkpoint into an empty folder: all processes gather, the first writes."""
        self._command("save", folder, with_optimizer=with_optimizer)

    def train(self) -> Iterator[StepMetrics]:
        """Run the remaining steps."""
        return self._steps("train")

    def evaluate(self, kept: Mapping[int, Path], *, done: Collection[tuple[str, int]]) -> Iterator[StepMetrics]:
        """Run the evaluations at the start and at steps with `kept` weights that are not in `done`."""
        return self._steps("evaluate", dict(kept), done=set(done))

    def _steps(self, name: str, *arguments: Any, **options: Any) -> Iterator[StepMetrics]:
        self._command(name, *arguments, **options)
        while step := self._command("next"):
            self.step = step.step
            yield step

    def close(self) -> None:
        """Kill the children."""
        if self._children:
            with suppress(ProcessLookupError):
                os.killpg(self._children[0].pid, signal.SIGKILL)
        for child in self._children:
            child.close()
        self._children = []
        ends, self._ends = self._ends, ()  # close once only: the numbers are reused afterwards
        for end in ends:
            os.close(end)
        self._folder.cleanup()

    def _command(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Have all children execute a command; return the first one's answer."""
        for child in self._children:
            with suppress(OSError):  # a dead child is noticed below
                child.connection.send((name, arguments, options))
        return self._wait_for_answers()

    def _wait_for_answers(self) -> Any:
        waiting = {child.connection: rank for rank, child in enumerate(self._children)}
        answer = None
        while waiting:
            for connection in wait(list(waiting)):
                assert isinstance(connection, Connection), "only connections are waited for"
                rank = waiting[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    self._raise_death(rank)
                if kind == "log":
                    name, level, text = content
                    logging.getLogger(name).log(level, "%s%s", f"process {rank}: " if rank else "", text)
                elif kind == "failed":
                    self._raise_failure(rank, *content)
                else:
                    answer = content if rank == 0 else answer
                    del waiting[connection]
        return answer

    def _raise_failure(self, rank: int, error: BaseException, trace: str) -> NoReturn:
        """Kill all children and raise one's error, unless another child's death can have caused it."""
        others = {child.connection: place for place, child in enumerate(self._children) if place != rank}
        deadline_s = time.monotonic() + GRACE_S
        while others and (left_s := deadline_s - time.monotonic()) > 0:
            for connection in wait(list(others), timeout=left_s):
                assert isinstance(connection, Connection), "only connections are waited for"
                try:
                    connection.recv()
                except (EOFError, OSError):
                    self._raise_death(others[connection])
        number = len(self._children)
        self.close()
        raise error from _ChildError(f'\n"""\nin process {rank} of {number}:\n{trace}"""')

    def _raise_death(self, rank: int) -> NoReturn:
        """Kill all children and raise an error that says how one of them ended, with its last output."""
        child = self._children[rank]
        message = f"process {rank} of {len(self._children)} {child.how_it_ended()}"
        self.close()
        raise DeadProcessError(message) from _ChildError(f'\n"""\nits last output:\n{child.last_output()}"""')


class _ChildError(Exception):
    """A cause that shows a child's traceback or output above the parent's traceback."""


class _Child:
    """One child process, its connection and its output."""

    def __init__(self, begin: Begin, *, life: int, group: int) -> None:
        self.connection, child_end = Pipe()
        rank, size = str(begin.rank), str(begin.resources.processes)
        self._process = subprocess.Popen(
            command("oneshot.training.worker", str(child_end.fileno()), str(life)),
            pass_fds=(child_end.fileno(), life),
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
                # for accelerate; the processes find each other through a file
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "LOCAL_WORLD_SIZE": size,
                "OMP_NUM_THREADS": str(begin.resources.threads),
            },
        )
        child_end.close()
        self.pid = self._process.pid
        self._lines: deque[str] = deque(maxlen=NUM_LINES)
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        with suppress(OSError):  # a dead child is noticed when it should answer
            self.connection.send(begin)

    def _read(self, output: IO[str]) -> None:
        """Pass the child's output on to stderr: stdout is for the parent's results."""
        for line in output:
            self._lines.append(line)
            with suppress(OSError, ValueError):  # even with stderr closed, the child's pipe must be emptied
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
        """Clean up after a child that has been killed."""
        self._process.wait()
        self.connection.close()
