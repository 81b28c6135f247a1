"""A study's points, the best of them, and their record. Needs no Optuna, as most sweeps do not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Mode = Literal["max", "min"]
State = Literal["complete", "pruned", "infeasible", "pending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a study, with what is known of it so far."""

    params: Mapping[str, Any]  # path -> value, for searched paths only
    state: State  # infeasible: it will never have a value (not a number, out of memory, a guard)
    value: float | None = None  # of a complete point: mean over cells and seeds; infeasible if it is not finite
    violation: float | None = None  # above 0 breaks the constraint; None: no constraint, or unknown
    steps: Mapping[int, float] = field(default_factory=dict)  # of a pruned point: the values it was judged by


def as_record(point: Point) -> dict[str, Any]:
    """Return a point as JSON."""
    return {**asdict(point), "steps": {str(step): value for step, value in point.steps.items()}}


def read_points(record: Mapping[str, Any]) -> list[Point]:
    """Return the points of a study's record."""
    return [
        Point(**{**point, "steps": {int(step): value for step, value in point["steps"].items()}})
        for point in record["points"]
    ]


def best(points: Sequence[Point], mode: Mode) -> int | None:
    """Return the index of the best complete point within the constraint, the earliest of equals; None without one."""
    sign = 1 if mode == "max" else -1
    values = {index: sign * value for index, point in enumerate(points) if (value := value_of(point)) is not None}
    feasible = [index for index in values if not breaks(points[index])]
    return max(feasible, key=lambda index: values[index]) if feasible else None


def value_of(point: Point) -> float | None:
    """Return the value of a complete point if it is finite, else None."""
    value = point.value if point.state == "complete" else None
    return value if value is not None and math.isfinite(value) else None


def breaks(point: Point) -> bool:
    """Return whether a point is known to break the constraint."""
    return point.violation is not None and point.violation > 0
