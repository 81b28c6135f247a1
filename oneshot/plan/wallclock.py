"""A plan and so many GPUs -> how long it takes, and what of it a budget lets be done."""

import heapq
from dataclasses import dataclass

from oneshot.errors import UserError
from oneshot.plan.plan import Plan, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Trials in the plan's order, each begun as soon as its GPUs are free; the grid after the search."""

    gpus: float
    hours: float
    end_hours: tuple[float, ...]
    """When each training has ended, from the start."""
    gpu_hours: tuple[float, ...]
    """What all trainings up to it have held."""

    def num_within(self, *, gpu_hours: float | None, hours: float | None) -> int:
        """Trainings that are through before a budget ends."""
        return sum(
            (gpu_hours is None or held <= gpu_hours) and (hours is None or end <= hours)
            for end, held in zip(self.end_hours, self.gpu_hours, strict=True)
        )


def schedule(plan: Plan, *, gpus: float) -> Schedule | None:
    """List scheduling by the plan's costs; None where a trial's are unknown, or none asks for a GPU.

    Raises:
        UserError: a trial asks for more GPUs than there are.
    """
    paid = [trial for trial in plan.paid() if trial.resources.gpus]
    if not paid or any(trial.cost.gpu_hours is None for trial in paid):
        return None
    for trial in paid:
        if trial.resources.gpus > gpus:
            raise UserError(f"--gpus {gpus:g}: {trial.label} needs {trial.resources.gpus:g}; lower its `resources`")
    now, free, found, held = 0.0, gpus, [], [0.0]
    running: list[tuple[float, float]] = []
    for phase in ("search", "grid"):
        for trial in (trial for trial in paid if trial.phase == phase):
            need, hours = trial.resources.gpus, _hours(trial)
            while free < need - 1e-9:
                now, given_back = heapq.heappop(running)
                free += given_back
            free -= need
            heapq.heappush(running, (now + hours, need))
            found.append(now + hours)
            held.append(held[-1] + need * hours)
        while running:  # the grid waits for the search's winners
            now, given_back = heapq.heappop(running)
            free += given_back
    return Schedule(gpus=gpus, hours=max(found), end_hours=tuple(found), gpu_hours=tuple(held[1:]))


def _hours(trial: Trial) -> float:
    assert trial.cost.gpu_hours is not None
    return trial.cost.gpu_hours / trial.resources.gpus
