"""A plan and a number of GPUs -> its wall-clock time, and the trainings that fit a budget."""

import heapq
from dataclasses import dataclass

from oneshot.config.resources import BudgetConfig
from oneshot.errors import UserError
from oneshot.plan.plan import Plan
from oneshot.plan.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The times of trials that start in the plan's order as soon as their GPUs are free, the grid after the search."""

    gpus: float
    hours: float
    end_hours: tuple[float, ...]  # end of each training, from the start of the sweep
    gpu_hours: tuple[float, ...]  # GPU-hours of each training and all before it

    def num_within(self, *, gpu_hours: float | None, hours: float | None) -> int:
        """Return the number of trainings that end within a budget."""
        return sum(
            (gpu_hours is None or held <= gpu_hours) and (hours is None or end <= hours)
            for end, held in zip(self.end_hours, self.gpu_hours, strict=True)
        )


def schedule(plan: Plan, *, gpus: float) -> Schedule | None:
    """Schedule the plan's trainings by their costs. None if a cost is unknown, or no trial needs a GPU.

    Raises UserError: a trial needs more than `gpus` GPUs.
    """
    paid = [trial for trial in plan.paid() if trial.resources.gpus]
    if not paid or any(trial.cost.gpu_hours is None for trial in paid):
        return None
    for trial in paid:
        if trial.resources.gpus > gpus:
            raise UserError(f"--gpus {gpus:g}: {trial.label} needs {trial.resources.gpus:g}; lower its `resources`")
    now, free, ends, held = 0.0, gpus, [], [0.0]
    running: list[tuple[float, float]] = []
    for phase in ("search", "grid"):
        for trial in (trial for trial in paid if trial.phase == phase):
            need, hours = trial.resources.gpus, (trial.cost.gpu_hours or 0.0) / trial.resources.gpus
            while free < need - 1e-9:
                now, given_back = heapq.heappop(running)
                free += given_back
            free -= need
            heapq.heappush(running, (now + hours, need))
            ends.append(now + hours)
            held.append(held[-1] + need * hours)
        while running:  # the grid waits for the search's winners
            now, given_back = heapq.heappop(running)
            free += given_back
    return Schedule(gpus=gpus, hours=max(ends), end_hours=tuple(ends), gpu_hours=tuple(held[1:]))


def planned_cost(plan: Plan, budget: BudgetConfig) -> float | None:
    """Return the price of a plan's GPU-hours; None without prices, or if the hours are unknown."""
    if not budget.price_per_gpu_hour or plan.gpu_hours is None:
        return None
    return sum((trial.cost.gpu_hours or 0.0) * budget.price(_type(trial)) for trial in plan.paid())


def _type(trial: Trial) -> str:
    """Return the only accelerator type that a trial accepts; an empty string if there are none or several."""
    types = trial.resources.accelerator or ()
    return types[0] if len(types) == 1 else ""
