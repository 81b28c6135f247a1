"""Calls of some functions -> the seconds spent in each; a process -> its peak memory."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ATOMIC = ("reference",)
"""Names whose inner calls are not counted separately."""


class Stopwatch:
    """The total time within calls of some functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._is_atomic = False

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the block as `name`."""
        if self._is_atomic:
            yield
            return
        self._is_atomic = name in ATOMIC
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._is_atomic = False
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start_s

    def wrap(self, owner: Any, function: str, name: str) -> None:
        """Count each call of `owner.function` as `name`."""
        inner: Callable[..., Any] = getattr(owner, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                return inner(*args, **kwargs)

        setattr(owner, function, timed)


def peak_gib() -> float:
    """Return this process' peak memory as the kernel counts it (`getrusage` would include its parent's)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 2**20
