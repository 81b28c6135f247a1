"""Metrics of steps -> broken guards; errors -> failure classes, which decide whether a training is tried again."""

import errno
import math
from collections import Counter

from oneshot.config.sweep import GuardConfig
from oneshot.errors import DataError, DeadProcessError, GuardError, TrialError, UserError
from oneshot.store.records import FailureKind


class Guards:
    """The sweep's `guards`, and for how many steps each has been broken."""

    def __init__(self, guards: tuple[GuardConfig, ...]) -> None:
        self._guards = guards
        self._broken: Counter[int] = Counter()

    def check(self, metrics: dict[str, float]) -> None:
        """Check a step's metrics.

        Raises GuardError: a metric has been out of bounds for as many steps as its guard allows.
        """
        for place, guard in enumerate(self._guards):
            value = metrics.get(guard.metric)
            if value is None:
                continue
            self._broken[place] = self._broken[place] + 1 if _breaks(guard, value) else 0
            if self._broken[place] >= guard.for_steps:
                for_steps = f" for {guard.for_steps} steps" if guard.for_steps > 1 else ""
                raise GuardError(f"{guard.metric} is {value:g}, {_bound(guard)}{for_steps}")


def _breaks(guard: GuardConfig, value: float) -> bool:
    if guard.is_ is not None:
        return not math.isfinite(value)
    return (guard.above is not None and value > guard.above) or (guard.below is not None and value < guard.below)


def _bound(guard: GuardConfig) -> str:
    if guard.is_ is not None:
        return "not a finite number"
    return f"above {guard.above:g}" if guard.above is not None else f"below {guard.below:g}"


def failure_kind(error: Exception) -> FailureKind:
    """Return the class of a failure."""
    # torch's OutOfMemoryError, recognised without importing torch
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom"
    # torch's allocator on a CPU, NCCL
    if isinstance(error, RuntimeError) and any(text in str(error) for text in ("not enough memory", "out of memory")):
        return "oom"
    if isinstance(error, DataError):
        return "data"
    if isinstance(error, UserError):
        return "config"
    if isinstance(error, GuardError):
        return "guard"
    if isinstance(error, DeadProcessError):
        return "crash"
    if isinstance(error, TrialError):
        return "nan"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return "storage"
    return "crash"
