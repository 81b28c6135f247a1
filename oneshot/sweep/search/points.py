"""What is known of a study's points -> the best of them, and their record. No Optuna: most sweeps need none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Mode = Literal["max", "min"]
State = Literal["complete", "pruned", "infeasible", "pending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a study, as far as it is known."""

    params: Mapping[str, Any]  # path -> value, of the searched paths alone
    state: State  # infeasible: it has no value and will have none (not a number, out of memory, a guard)
    value: float | None = None  # mean over cells and seeds, of a complete point; without a finite one it is infeasible
    violation: float | None = None  # above 0 breaks the constraint; None: there is none, or it is not known
    steps: Mapping[int, float] = field(default_factory=dict)  # of a pruned point: what it was judged by


def as_record(points: Point) -> dict[str, Any]:
    """A point as JSON."""
    return {**asdict(points), "steps": {str(step): value for step, value in points.steps.items()}}


def read_points(record: Mapping[str, Any]) -> list[Point]:
    """The points of a study's record."""
    return [
        Point(**{**point, "steps": {int(step): value for step, value in point["steps"].items()}})
        for point in record["points"]
    ]


def best(points: Sequence[Point], mode: Mode) -> int | None:
    """Index of the best complete point that keeps the constraint, of equals the earliest; None where there is none."""
    sign = 1 if mode == "max" else -1
    values = {index: sign * value for index, point in enumerate(points) if (value := value_of(point)) is not None}
    able = [index for index in values if not breaks(points[index])]
    return max(able, key=lambda index: values[index]) if able else None


def value_of(point: Point) -> float | None:
    """Of a complete point, where it is finite."""
    value = point.value if point.state == "complete" else None
    return value if value is not None and math.isfinite(value) else None


def breaks(point: Point) -> bool:
    """Whether it is known to break the constraint."""
    return point.violation is not None and point.violation > 0
