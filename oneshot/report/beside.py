"""A judged claim -> what stands beside its verdict: the base, other settings, and the verdict without failed seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import Any

from oneshot.plan.claims import Comparison
from oneshot.report.measuring import Failed
from oneshot.report.parts import Part, decide
from oneshot.report.runs import Gathered
from oneshot.report.values import has_failed
from oneshot.tasks.measures import suite_of

LENIENT = "_lenient"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a reader needs beside a verdict. None of it changes the verdict."""

    base: dict[str, float]  # shares of completions at the start that have a box, and that were cut off
    without_failed: dict[str, Any] | None  # verdict, effect, low, high; None if it makes no difference
    over_settings: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The seeds and the level by which a claim is decided, or will be if it is interim."""

    seeds: Sequence[int]
    level: float
    is_interim: bool


def beside(group: Sequence[Comparison], part: Part, gathered: Gathered, decision: Decision) -> Beside:
    """Measure the claim's base, its other settings, and the claim without the seeds that failed."""
    without = None
    if gathered.judging.failed != "leave_out" and any(map(has_failed, part.used)):
        without = _numbers(group, gathered, decision, failed="leave_out")
        if without["effect"] == (None if part.difference is None else part.difference.effect):
            without = None
    return Beside(
        base=_base(part), without_failed=without, over_settings=tuple(_under_settings(group, gathered, decision))
    )


def _numbers(group: Sequence[Comparison], gathered: Gathered, decision: Decision, *, failed: Failed) -> dict[str, Any]:
    """Return the verdict by its interval alone, as the claim's own is decided, and its numbers."""
    part = decide(group, gathered, seeds=decision.seeds, failed=failed, level=decision.level)
    numbers = {} if part.difference is None else part.difference.numbers()
    shown = {name: numbers.get(name) for name in ("effect", "low", "high", "num_seeds")}
    return {"verdict": "interim" if decision.is_interim else part.by_interval, **shown}


def _base(part: Part) -> dict[str, float]:
    """Return boxed and truncated shares at the start, for a claim that compares with the start.

    A base that seldom writes its answer in a box, or is cut off before, can be beaten by format alone.
    """
    comparison = part.comparison
    suite = suite_of(comparison.claim.metric)
    if suite is None or (comparison.at_b != "start" and comparison.claim.of != "gain"):
        return {}
    runs = {(run.label, run.seed): run for run in part.used}.values()
    shares: dict[str, float] = {}
    for name in ("boxed", "truncated"):
        numbers = [number for run in runs if (number := run.measure(suite, 0, name)) is not None]
        if numbers:
            shares[name] = fmean(numbers)
    return shares


def _under_settings(group: Sequence[Comparison], gathered: Gathered, decision: Decision) -> list[dict[str, Any]]:
    """Return the claim's verdict by its interval alone under each combination of its `over_settings`."""
    settings = group[0].claim.over_settings
    if not settings.grader and not settings.at:
        return []
    found = []
    graders: Sequence[str | None] = settings.grader or (None,)
    steps: Sequence[str | None] = settings.at or (None,)
    for grader, at in product(graders, steps):
        changed = [_changed(comparison, grader=grader, at=at) for comparison in group]
        numbers = _numbers(changed, gathered, decision, failed=gathered.judging.failed)
        names: Mapping[str, str | None] = {"grader": grader, "at": at}
        found.append({**{name: value for name, value in names.items() if value is not None}, **numbers})
    return found


def _changed(comparison: Comparison, *, grader: str | None, at: str | None) -> Comparison:
    """Return the comparison by another grader, and at another step; a side at the start stays there."""
    claim, metric_b = comparison.claim, comparison.metric_b
    if grader is not None:
        claim = claim.model_copy(update={"metric": _graded(claim.metric, grader)})
        metric_b = _graded(metric_b, grader)
    at_a, at_b = (each if at is None or each == "start" else at for each in (comparison.at_a, comparison.at_b))
    return replace(comparison, claim=claim, metric_b=metric_b, at_a=at_a, at_b=at_b)


def _graded(metric: str, grader: str) -> str:
    strict = metric.removesuffix(LENIENT)
    return strict + LENIENT if grader == "lenient" else strict
