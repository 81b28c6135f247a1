"""A run, a step and a claim's metric -> its value, and its values by problem if the metric has them.

A metric of a group of suites has a part for each suite. P: problems. `Unknown` says what a run lacks.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from oneshot.config.claims import ClaimConfig
from oneshot.report.constants import Array
from oneshot.report.contrast import clustered
from oneshot.report.runs import Gathered, Grades, Run
from oneshot.report.steps import NoStepError, find_step
from oneshot.tasks.measures import category_key, group_of, is_one_of, is_share, measure_of, pass_at_k, suite_of
from oneshot.trial.requests import DECIDED
from oneshot.trial.state import TrialState


def has_ended(run: Run) -> bool:
    """Return whether a run has ended, well or not; not if it never ran since an earlier look decided the claims."""
    return run.state == TrialState.FINISHED or has_failed(run)


def has_failed(run: Run) -> bool:
    """Return whether a run failed, or was stopped other than because a look had decided the claims."""
    return run.state == TrialState.FAILED or (run.state == TrialState.STOPPED and not run.reason.startswith(DECIDED))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The values of a metric on the problems of one suite."""

    suite: str
    weight: float  # of the suite in the metric; 1 without a group
    values_P: Array
    ids: tuple[str, ...]
    families: tuple[str, ...]  # of problems that belong together; the ids if none do

    def times(self, values_P: Array) -> "Part":
        """Return the part with other values of the same problems."""
        return replace(self, values_P=values_P)


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """The value of a metric in one run: its mean, and its values by problem if it has them."""

    mean: float
    parts: tuple[Part, ...] = ()


class Unknown(Exception):  # noqa: N818 - not a failure: the run may not have come so far
    """A value that a claim needs and a run does not have. The message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a claim measures in a run on one of its sides."""

    claim: ClaimConfig
    metric: str  # the claim's, or that of the other suite which `b` names
    at: str
    trained: frozenset[str]  # categories of the examples of `a`
    failed: Literal["start", "worst", "leave_out"]  # how a run counts that failed


def value_of(measure: Measure, run: Run, gathered: Gathered) -> Values:
    """Return the metric in one run, or its change since the start.

    A run that failed counts as the sweep's `failed` says, so that leaving it out flatters no arm (intention to treat).

    Raises Unknown: the run has not come so far, or lacks the metric at that step.
    """
    if run.key is None:
        raise Unknown(f"{run.label} waits for {run.reason}")
    counts_as_failed = has_failed(run) and measure.failed != "leave_out" and suite_of(measure.metric) is not None
    if measure.at == "start":
        start = _start_of_failed(measure, run, gathered) if counts_as_failed else _at(measure, run, 0, gathered)
        return start if measure.claim.of == "value" else _minus(start, start)
    if counts_as_failed:
        return _of_failed(measure, run, gathered)
    if run.state != "finished":
        raise Unknown(f"{run.label} is {run.state}" + (f" ({run.reason})" if run.reason else ""))
    suite, selects_on_test = suite_of(measure.metric), gathered.selects_on_test
    try:
        step = find_step(run, measure.at, suite=suite, metric=measure.metric, selects_on_test=selects_on_test)
    except NoStepError as error:
        raise Unknown(f"{run.label}: {error}") from error
    values = _at(measure, run, step, gathered)
    return values if measure.claim.of == "value" else _minus(values, _at(measure, run, 0, gathered))


def _of_failed(measure: Measure, run: Run, gathered: Gathered) -> Values:
    """Return the value of a run that failed: that of its start, or 0 if it counts as the worst."""
    start = _start_of_failed(measure, run, gathered)
    is_worst = measure.failed == "worst" and is_share(measure.metric)
    if not is_worst:
        return start if measure.claim.of == "value" else _minus(start, start)
    worst = Values(mean=0.0, parts=tuple(part.times(np.zeros_like(part.values_P)) for part in start.parts))
    return worst if measure.claim.of == "value" else _minus(worst, start)


def _start_of_failed(measure: Measure, run: Run, gathered: Gathered) -> Values:
    """Return the start of a run that failed, or that of another seed of its cell if it failed before."""
    try:
        return _at(measure, run, 0, gathered)
    except Unknown as unknown:
        for other in gathered.runs:
            if other.cell == run.cell and other.key is not None:
                try:
                    return _at(measure, other, 0, gathered)
                except Unknown:
                    continue
        raise Unknown(f"{run.label} is {run.state} ({run.reason}), and its cell has no evaluation at the start") from (
            unknown
        )


def _minus(end: Values, start: Values) -> Values:
    """Return the change from one value to another, by problem if both have the same problems."""
    is_whole = [(part.suite, part.ids) for part in end.parts] == [(part.suite, part.ids) for part in start.parts]
    pairs = zip(end.parts, start.parts, strict=True) if is_whole else ()
    return Values(
        mean=end.mean - start.mean,
        parts=tuple(after.times(after.values_P - before.values_P) for after, before in pairs),
    )


def _at(measure: Measure, run: Run, step: int, gathered: Gathered) -> Values:
    if (group := group_of(measure.metric)) is None:
        return _on_suite(measure, run, suite_of(measure.metric), step, gathered)
    if (config := gathered.judging.groups.get(group)) is None:
        raise Unknown(f"the sweep has no group @{group}")
    values = [_on_suite(measure, run, suite, step, gathered) for suite in config.suites]
    weights = [1.0] * len(values)
    if config.weight == "problem":
        weights = [float(sum(len(part.ids) for part in each.parts)) for each in values]
        if not all(weights):
            raise Unknown(f"{run.label} has no grades by problem on a suite of @{group}, which weighs by problem")
    shares = [weight / sum(weights) for weight in weights]
    parts = [replace(part, weight=share) for share, each in zip(shares, values, strict=True) for part in each.parts]
    return Values(
        mean=sum(share * each.mean for share, each in zip(shares, values, strict=True)),
        parts=tuple(parts) if len(parts) == len(values) else (),
    )


def _on_suite(measure: Measure, run: Run, suite: str | None, step: int, gathered: Gathered) -> Values:
    claim, metric, trained = measure.claim, measure.metric, measure.trained
    if suite is None:
        rows = [row for row in run.rows if metric in row.metrics and row.step >= step]
        if not rows:
            raise Unknown(f"{run.label} has no {metric} at step {step}")
        return _number(rows[0].metrics[metric], f"{run.label} has no {metric} at step {step}")
    name = measure_of(metric)
    grades = gathered.record.grades(run, suite, step)
    if grades is not None and claim.categories != "all" and not any(map(is_one_of(trained), grades.categories)):
        raise Unknown(
            f"{suite} has no problem in the categories trained on ({', '.join(sorted(trained)) or 'unknown'})"
        )
    if grades is not None and (chosen := over_problems(grades, name, categories=claim.categories, trained=trained)):
        values_P, ids = chosen
        if not ids:
            which = f"{claim.categories} categories ({', '.join(sorted(trained))})"
            raise Unknown(f"{suite} has no problem for {name}" + ("" if claim.categories == "all" else f", {which}"))
        family_of = dict(zip(grades.ids, grades.families or grades.ids, strict=True))
        families = tuple(family_of[each] for each in ids)
        part = Part(suite=suite, weight=1.0, values_P=values_P, ids=ids, families=families)
        return Values(mean=float(values_P.mean()), parts=(part,))
    number = run.measure(suite, step, name)
    if number is None or claim.categories != "all":
        raise Unknown(f"{run.label} has no eval/{suite}/{name} at step {step}")
    return _number(number, f"{run.label} has no eval/{suite}/{name} at step {step}")


def _number(number: float, complaint: str) -> Values:
    """Return a recorded number as a value. Raises Unknown: it is not finite, as after a loss that diverged."""
    if not math.isfinite(number):
        raise Unknown(f"{complaint}: it is {number}")
    return Values(mean=number)


# --- sides of a comparison -> tables ---

Sides = tuple[Sequence[Values], Sequence[Values]]
"""The values of the cells of `a` and of `b`, at one seed."""


def mean_of(sides: Sides, *, ratio: float) -> float:
    """Return the mean over the cells of `a`, minus `ratio` times that over `b`."""
    of_a, of_b = (float(np.mean([values.mean for values in side])) for side in sides)
    return of_a - ratio * of_b


def tables(seeds: Sequence[Sequence[Sides]], *, ratio: float) -> dict[str, Array] | None:
    """Return a table [seeds, families of problems] for each suite of the mean over matched pairs of a - ratio * b.

    The sum of the tables' means is that mean, with the suites' weights. None if a value has no problems, or if a cell
    was asked other problems at another seed.
    """
    cells = [[part for pair in pairs for side in pair for values in side for part in values.parts] for pairs in seeds]
    has_all = all(values.parts for pairs in seeds for pair in pairs for side in pair for values in side)
    asked = [[(part.suite, part.ids) for part in parts] for parts in cells]
    if not has_all or any(each != asked[0] for each in asked) or any(len(set(ids)) < len(ids) for _, ids in asked[0]):
        return None
    suites = dict.fromkeys(part.suite for part in cells[0])
    return {suite: _table(seeds, suite, ratio=ratio) for suite in suites}


def _table(seeds: Sequence[Sequence[Sides]], suite: str, *, ratio: float) -> Array:
    signed = [
        [
            [
                [sign * part.weight * part.values_P for values in side for part in values.parts if part.suite == suite]
                for sign, side in zip((1.0, -ratio), pair, strict=True)
            ]
            for pair in pairs
        ]
        for pairs in seeds
    ]
    parts = [
        part for pair in seeds[0] for side in pair for values in side for part in values.parts if part.suite == suite
    ]
    family_of = {name: family for part in parts for name, family in zip(part.ids, part.families, strict=True)}
    if len({part.ids for part in parts}) == 1:
        sums = [[np.sum([np.mean(side, axis=0) for side in pair if side], axis=0) for pair in row] for row in signed]
        return clustered(np.array([np.mean(row, axis=0) for row in sums]), [family_of[name] for name in parts[0].ids])
    # a cell's share in the mean is 1 / (pairs x cells of its side)
    terms_SC = [[cell / len(side) / len(row) for pair in row for side in pair for cell in side] for row in signed]
    table = _union(terms_SC, [part.ids for part in parts], list(family_of))
    return clustered(table, list(family_of.values()))


def _union(terms_SC: Sequence[Sequence[Array]], ids_C: Sequence[tuple[str, ...]], names: Sequence[str]) -> Array:
    """Return differences [seeds, problems] of cells that were asked other problems than each other.

    A cell's weight is spread over its problems. A column is the mean m plus the weighted deviations of each cell that
    has the problem from that cell's own mean. So each row keeps its mean, and unequal weights alone add no spread.
    """
    means_C = [float(np.mean([row[place] for row in terms_SC])) for place in range(len(ids_C))]
    places = {name: place for place, name in enumerate(names)}
    table_SP = np.full((len(terms_SC), len(names)), sum(means_C))
    for row_P, terms in zip(table_SP, terms_SC, strict=True):
        for term_P, ids, mean in zip(terms, ids_C, means_C, strict=True):
            row_P[[places[name] for name in ids]] += len(names) / len(ids) * (term_P - mean)
    return table_SP


# --- grades -> values by problem ---

_MEASURES: dict[str, Callable[[Grades], Array]] = {
    "pass_at_1": lambda grades: grades.strict_PK.mean(axis=1),
    "avg_at_k": lambda grades: grades.strict_PK.mean(axis=1),
    "pass_at_1_lenient": lambda grades: grades.lenient_PK.mean(axis=1),
    "pass_at_k": lambda grades: _any_of(grades, grades.strict_PK.shape[1]),
    "length_mean": lambda grades: grades.num_tokens_PK.mean(axis=1),
    "boxed": lambda grades: grades.boxed_PK.mean(axis=1),
}
"""Measures that have a value for each problem."""


def _any_of(grades: Grades, k: int) -> Array:
    samples = grades.strict_PK.shape[1]
    return np.array([pass_at_k(samples, int(right), k) for right in grades.strict_PK.sum(axis=1)])


def over_problems(
    grades: Grades,
    measure: str,
    *,
    categories: Literal["all", "trained", "untrained"] = "all",
    trained: Collection[str] = (),
) -> tuple[Array, tuple[str, ...]] | None:
    """Return a measure by problem, [problems], with the problems' ids; None if the measure has no value by problem.

    `<category>/pass_at_1` covers only the problems of that category.
    """
    category, _, name = measure.rpartition("/")
    power = name.removeprefix("pass_at_")
    if name in _MEASURES:
        values_P = _MEASURES[name](grades)
    elif power.isdigit() and int(power) <= grades.strict_PK.shape[1]:
        values_P = _any_of(grades, int(power))
    else:
        return None
    if category.startswith("level "):
        return None
    is_trained = is_one_of(trained)
    chosen = [
        (not category or category_key(name) == category)
        and (categories == "all" or is_trained(name) == (categories == "trained"))
        for name in grades.categories
    ]
    ids = tuple(name for name, is_chosen in zip(grades.ids, chosen, strict=True) if is_chosen)
    return values_P[np.array(chosen, dtype=bool)], ids
