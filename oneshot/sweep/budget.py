"""A sweep's GPU-hours, their price and the time of day -> whether it must stop."""

import time
from collections.abc import Callable, Iterable
from datetime import datetime

from oneshot.config.resources import BudgetConfig, deadline
from oneshot.plan.trainings import Training
from oneshot.store.lease import holder
from oneshot.store.store import Store


class Budget:
    """Limits on GPU-hours and their cost, earlier attempts included, and a deadline."""

    def __init__(
        self,
        config: BudgetConfig,
        store: Store,
        trainings: Iterable[Training],
        *,
        now: Callable[[], datetime] = datetime.now,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._store, self._now, self._clock_s = config, store, now, clock_s
        self._deadline = None if config.until is None else deadline(config.until, now())
        self._live: dict[str, tuple[float, str]] = {}  # key -> GPUs that the running attempt holds, and their type
        self.gpu_hours = self.cost = 0.0
        if config.gpu_hours is not None or config.cost is not None:
            for training in trainings:
                for held in store.trial(training.key).held() if training.resources.gpus else ():
                    gpus = training.resources.gpus if held.gpus is None else held.gpus
                    self._add(gpus * held.ms / 3_600_000, held.accelerator)
        self._last_s = clock_s()

    @property
    def shown_cost(self) -> float | None:
        """Return what has been spent, or None if there are no prices."""
        return self.cost if self._config.price_per_gpu_hour else None

    def _add(self, gpu_hours: float, accelerator: str) -> None:
        self.gpu_hours += gpu_hours
        self.cost += gpu_hours * self._config.price(accelerator)

    def spent(self, live: Iterable[Training]) -> str:
        """Add what live trainings used since the last call; return why the sweep must stop, or an empty string."""
        now_s = self._clock_s()
        on_gpus = [training for training in live if training.resources.gpus]
        begun = {training.key: begun for training in on_gpus if (begun := self._begun(training)) is not None}
        for training in on_gpus:
            gpus, accelerator = begun.get(training.key, (training.resources.gpus, ""))
            self._add(gpus * (now_s - self._last_s) / 3600, accelerator)
        self._live = begun
        self._last_s = now_s
        config = self._config
        if config.gpu_hours is not None and self.gpu_hours >= config.gpu_hours:
            return f"the budget of {config.gpu_hours:g} GPU-hours is used up"
        if config.cost is not None and self.cost >= config.cost:
            return f"the budget's cost of {config.cost:g} is reached"
        if self._deadline is not None and self._now() >= self._deadline:
            return f"the budget ends at {config.until}"
        return ""

    def _begun(self, training: Training) -> tuple[float, str] | None:
        """Return the GPUs of a running training and their type, or None before its attempt has recorded them."""
        if training.key in self._live:
            return self._live[training.key]
        folder = self._store.trial(training.key)
        last_holder = holder(folder)
        if last_holder is None:  # its worker is starting
            return None
        attempt = folder.attempt(last_holder.attempt)
        return attempt.get("gpus", training.resources.gpus), attempt.get("accelerator", "")
