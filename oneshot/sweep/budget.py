"""A sweep's GPU-hours and the time of day -> whether it must stop."""

import time
from collections.abc import Callable, Iterable
from datetime import datetime

from oneshot.config.sweep import BudgetConfig, deadline
from oneshot.plan.trainings import Training
from oneshot.store.store import Store


class Budget:
    """A limit on GPU-hours, earlier attempts included, and a deadline."""

    def __init__(
        self,
        config: BudgetConfig,
        store: Store,
        trainings: Iterable[Training],
        *,
        now: Callable[[], datetime] = datetime.now,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._now, self._clock_s = config, now, clock_s
        self._deadline = None if config.until is None else deadline(config.until, now())
        self.gpu_hours = 0.0
        if config.gpu_hours is not None:
            held = (store.trial(t.key).spent_ms() * t.resources.gpus for t in trainings if t.resources.gpus)
            self.gpu_hours = sum(held) / 3_600_000
        self._last_s = clock_s()

    def spent(self, live: Iterable[Training]) -> str:
        """Add what live trainings used since the last call; return why the sweep must stop, or an empty string."""
        now_s = self._clock_s()
        self.gpu_hours += sum(training.resources.gpus for training in live) * (now_s - self._last_s) / 3600
        self._last_s = now_s
        limit = self._config.gpu_hours
        if limit is not None and self.gpu_hours >= limit:
            return f"the budget of {limit:g} GPU-hours is used up"
        if self._deadline is not None and self._now() >= self._deadline:
            return f"the budget ends at {self._config.until}"
        return ""
