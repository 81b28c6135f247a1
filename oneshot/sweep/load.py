"""How much of a sweep is done and how much is running, as gauges show it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much of a sweep is done, and how much is running."""

    trials: Mapping[str, int]  # number of trials by state
    tokens_per_s: float
    gpu_hours_used: float  # since this driver began; with a budget, of all attempts
    gpu_hours_left: float | None  # the plan's estimate for open trials; None without an estimate
