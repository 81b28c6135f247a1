"""Metrics of steps -> broken guards; errors -> failure classes, which decide whether a training is tried again."""

import errno
import math
from collections import Counter

from oneshot.config.sweep import GuardConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, DeadProcessError, GuardError, OneshotError, TrialError, UserError
from oneshot.store.records import FailureKind

SAMPLER = "rollout/mismatch_kl"
FARTHEST, FARTHEST_NARROW = 1e-4, 0.1
"""A sampler this far from the trainer is broken. In float32, two correct ones agree to 1e-7, and one with the weights
of an earlier step or another temperature does not (docs/rollout.md). 16-bit precision and fp8 add rounding to it."""


class Guards:
    """The sweep's `guards` and the default ones, and for how many steps each has been broken."""

    def __init__(self, guards: tuple[GuardConfig, ...], config: TrialConfig) -> None:
        is_set = any(guard.metric == SAMPLER for guard in guards)
        precisions = (config.model.compute_dtype, config.rollout.vllm.quantization)
        is_narrow = any(name in precisions for name in ("bfloat16", "float16", "fp8"))
        farthest = GuardConfig(metric=SAMPLER, above=FARTHEST_NARROW if is_narrow else FARTHEST)
        self._guards = guards if is_set else (*guards, farthest)
        self._broken: Counter[int] = Counter()

    def check(self, metrics: dict[str, float]) -> None:
        """Check a step's metrics.

        Raises GuardError: a metric has been out of bounds for as many steps as its guard allows.
        """
        for place, guard in enumerate(self._guards):
            value = metrics.get(guard.metric)
            if value is None:
                continue
            breach = _breach(guard, value)
            self._broken[place] = self._broken[place] + 1 if breach else 0
            if self._broken[place] >= guard.for_steps:
                for_steps = f" for {guard.for_steps} steps" if guard.for_steps > 1 else ""
                raise GuardError(f"{guard.metric} is {value:g}, {breach}{for_steps}")


def _breach(guard: GuardConfig, value: float) -> str:
    """Return how a value breaks the guard's one bound, or an empty string."""
    if guard.is_ is not None and not math.isfinite(value):
        return "not a finite number"
    if guard.above is not None and value > guard.above:
        return f"above {guard.above:g}"
    return f"below {guard.below:g}" if guard.below is not None and value < guard.below else ""


_KINDS: tuple[tuple[type[OneshotError], FailureKind], ...] = (
    (DataError, "data"),
    (UserError, "config"),
    (GuardError, "guard"),
    (DeadProcessError, "crash"),
    (TrialError, "nan"),
)


def failure_kind(error: Exception) -> FailureKind:
    """Return the class of a failure."""
    # torch's OutOfMemoryError, recognised without importing torch
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom"
    # torch's allocator on a CPU, NCCL
    if isinstance(error, RuntimeError) and any(text in str(error) for text in ("not enough memory", "out of memory")):
        return "oom"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return "storage"
    return next((kind for of, kind in _KINDS if isinstance(error, of)), "crash")
