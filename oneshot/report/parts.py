"""The comparisons of one verdict -> the difference that decides it, and the verdict by its interval alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from oneshot.config.claims import ExpectConfig
from oneshot.plan.claims import Comparison
from oneshot.plan.leakage import MIN_CELLS
from oneshot.report.decision import Verdict, judge
from oneshot.report.evidence import Difference
from oneshot.report.measuring import Failed, Measured, measure
from oneshot.report.random_effects import random_effects
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import Interval
from oneshot.report.values import has_failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The difference of one comparison, or of all that `over` combines, and the verdict by its interval alone."""

    comparison: Comparison
    difference: Difference | None
    share: Interval | None
    between: dict[str, Any] | None  # num, tau, low, high: cells of `over`, SD between them, interval for another cell
    used: tuple[Run, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    by_interval: Verdict
    p_value: float | None


def decide(
    group: Sequence[Comparison], gathered: Gathered, *, seeds: Sequence[int], failed: Failed, level: float
) -> Part:
    """Measure the comparisons of one verdict over some seeds, and return what decides it at a level.

    A claim that two sides are alike, or that one is no worse, must also hold without the seeds that failed: these make
    sides alike if they count as their start.
    """
    part = _decide(group, gathered, seeds=seeds, failed=failed, level=level)
    counts_failed = failed != "leave_out" and any(map(has_failed, part.used))
    if part.by_interval != "supported" or not counts_failed or not _is_of_likeness(group[0].claim.expect):
        return part
    without = _decide(group, gathered, seeds=seeds, failed="leave_out", level=level)
    if without.by_interval == "supported":
        return part
    return replace(part, by_interval="inconclusive", notes=(*part.notes, "not supported without the seeds that failed"))


def _is_of_likeness(expect: ExpectConfig) -> bool:
    """Return whether a claim says that sides are alike, or that one is not much worse."""
    margins = (expect.greater_by, expect.less_by)
    is_no_worse = any(margin is not None and margin < 0 for margin in margins)
    return is_no_worse or expect.within is not None or expect.share_at_least is not None


def _decide(
    group: Sequence[Comparison], gathered: Gathered, *, seeds: Sequence[int], failed: Failed, level: float
) -> Part:
    """Return what decides a verdict, with failed seeds counted in one way.

    With `for_all` the verdict is supported if all parts are: the intersection-union test, with the largest p-value
    (Berger, Technometrics 24, 1982). It is contradicted if one part is, with that part's p-value times their number.
    """
    measured = [measure(comparison, gathered, seeds=seeds, failed=failed) for comparison in group]
    if group[0].claim.over is not None:
        return _combined(measured, level=level)
    parts = [_part(each, each.difference, level=level) for each in measured]
    if len(parts) == 1:
        return parts[0]
    contradicted = [part for part in parts if part.by_interval == "contradicted"]
    if contradicted:
        worst = min(contradicted, key=_p_or_2)
        p_value: float | None = min(1.0, len(parts) * _p_or_2(worst))
    else:
        worst = max(parts, key=_against)
        p_value = worst.p_value
    where = ", ".join(f"{axis} {cell}" for axis, cell in worst.comparison.part.items())
    weakest = f"the numbers are those of the weakest of {len(parts)} cells: {where}"
    return replace(worst, p_value=p_value, **_gathered_from(measured, weakest))


def _gathered_from(measured: Sequence[Measured], *notes: str) -> dict[str, Any]:
    """Return the runs, the seeds left out and the notes of several comparisons, each once."""
    return {
        "used": tuple(run for each in measured for run in each.used),
        "left_out": tuple(dict.fromkeys(text for each in measured for text in each.left_out)),
        "notes": tuple(dict.fromkeys([*notes, *(note for each in measured for note in each.notes)])),
    }


def _part(measured: Measured, difference: Difference | None, *, level: float, **changes: Any) -> Part:
    by_interval: Verdict = "inconclusive"
    p_value = None
    fields = {"used": measured.used, "left_out": measured.left_out, "notes": measured.notes, **changes}
    if difference is not None:
        difference = difference.at_level(level)
        if all(map(has_failed, fields["used"])):  # starts would be compared with starts, and are alike
            fields["notes"] = ("no training finished, so nothing is judged", *fields["notes"])
        else:
            by_interval, p_value = judge(difference, measured.comparison.claim.expect)
    is_of_share = measured.comparison.claim.expect.share_at_least is not None
    if is_of_share and measured.share is None and by_interval == "supported":
        by_interval = "inconclusive"  # b gained nothing, of which any share is had
    return Part(
        comparison=measured.comparison,
        difference=difference,
        share=measured.share,
        between=fields.pop("between", None),
        by_interval=by_interval,
        p_value=p_value,
        **fields,
    )


def _combined(measured: Sequence[Measured], *, level: float) -> Part:
    """Return the mean over the cells of `over`, which count as a sample of all that could have been taken."""
    axis = measured[0].comparison.claim.over
    differences = [each.difference for each in measured if each.difference is not None]
    errors = [_error(difference) for difference in differences]
    known = [error for error in errors if error is not None]
    if len(known) < len(measured) or len(known) < MIN_CELLS:
        why = f"over {axis}: needs {MIN_CELLS} cells with an interval each, and has {len(known)}"
        plain = _mean(differences, test=f"no interval over {axis}") if len(differences) == len(measured) else None
        return replace(_part(measured[0], plain, level=level), share=None, **_gathered_from(measured, why))
    effects = random_effects([difference.effect for difference in differences], known)
    low, high = effects.prediction
    between = {"num": effects.num, "tau": effects.tau, "low": low, "high": high}
    whole = Difference.of(
        [effects.mean],
        effect=effects.mean.effect,
        num_seeds=min(difference.num_seeds for difference in differences),
        num_problems=differences[0].num_problems,
        test=f"random effects over {effects.num} cells of {axis}, Hartung-Knapp",
        error=effects.mean.error,
        df=effects.mean.df,
    )
    combined = _part(measured[0], whole, level=level, between=between, **_gathered_from(measured))
    return replace(combined, share=None)


def _mean(differences: Sequence[Difference], *, test: str) -> Difference:
    """Return the plain mean of the cells' effects, without an interval."""
    return Difference(
        effect=fmean(difference.effect for difference in differences),
        num_seeds=min(difference.num_seeds for difference in differences),
        num_problems=differences[0].num_problems,
        test=test,
    )


def _error(difference: Difference) -> float | None:
    """Return the standard error of one cell's difference, or a quarter of its interval if a bound made it."""
    if difference.low is None or difference.high is None:
        return None
    return (difference.high - difference.low) / 4 if difference.error is None else difference.error


def _against(part: Part) -> float:
    """Return the one-sided p-value, which orders parts also if they are on the wrong side of the expected bound."""
    if part.difference is None or part.p_value is None:
        return 2.0
    is_on_side = _is_on_side(part.difference.effect, part.comparison.claim.expect)
    return part.p_value / 2 if is_on_side else 1 - part.p_value / 2


def _is_on_side(effect: float, expect: ExpectConfig) -> bool:
    if expect.greater_by is not None:
        return effect > expect.greater_by
    if expect.less_by is not None:
        return effect < -expect.less_by
    if expect.share_at_least is not None:
        return effect > 0
    return abs(effect) < (expect.within or 0.0)


def _p_or_2(part: Part) -> float:
    """Return the p-value, or a larger number for a part that could not be judged, which is then the weakest."""
    return 2.0 if part.p_value is None else part.p_value
