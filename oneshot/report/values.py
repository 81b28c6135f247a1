"""A run, a step and a claim's metric -> its value, over problems where it has one for each.

P: problems. What a run lacks of a claim is `Unknown`, with the reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oneshot.config.sweep import ClaimConfig
from oneshot.report.runs import Gathered, Grades, Run
from oneshot.report.steps import NoStepError, find_step
from oneshot.tasks.measures import category_key, is_one_of, pass_at_k, suite_of

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """A metric of one run: over problems where it can be, else one number."""

    mean: float
    problems_P: Array | None
    ids: tuple[str, ...]


class Unknown(Exception):  # noqa: N818 - nothing went wrong: a run has not come so far
    """A run lacks what a claim needs of it; says what."""


def average(values: Sequence[Values]) -> Values:
    """Their mean; over problems where all have the same ones."""
    problems = [one.problems_P for one in values if one.problems_P is not None]
    ids = {one.ids for one in values}
    is_whole = len(problems) == len(values) and len(ids) == 1
    return Values(
        mean=float(np.mean([one.mean for one in values])),
        problems_P=np.mean(problems, axis=0) if is_whole else None,
        ids=ids.pop() if is_whole else (),
    )


def value_of(claim: ClaimConfig, run: Run, at: str, *, trained: frozenset[str], gathered: Gathered) -> Values:
    """The claim's metric of one run, or its change since the start.

    Raises:
        Unknown: the run has not come so far, or lacks the metric there.
    """
    suite = suite_of(claim.metric)
    if run.key is None:
        raise Unknown(f"{run.label} waits for {run.reason}")
    if at != "start" and run.state != "finished":
        raise Unknown(f"{run.label} is {run.state}" + (f" ({run.reason})" if run.reason else ""))
    try:
        step = find_step(run, at, suite=suite, metric=claim.metric, selects_on_test=gathered.selects_on_test)
    except NoStepError as error:
        raise Unknown(f"{run.label}: {error}") from error
    found = _at(claim, run, step, trained=trained, gathered=gathered)
    if claim.of == "value":
        return found
    start = _at(claim, run, 0, trained=trained, gathered=gathered)
    is_whole = found.problems_P is not None and start.problems_P is not None and found.ids == start.ids
    return Values(
        mean=found.mean - start.mean,
        problems_P=found.problems_P - start.problems_P if is_whole else None,  # type: ignore[operator]
        ids=found.ids if is_whole else (),
    )


def _at(claim: ClaimConfig, run: Run, step: int, *, trained: frozenset[str], gathered: Gathered) -> Values:
    suite = suite_of(claim.metric)
    if suite is None:
        rows = [row for row in run.rows if claim.metric in row.metrics and row.step >= step]
        if not rows:
            raise Unknown(f"{run.label} has no {claim.metric} at step {step}")
        return Values(mean=rows[0].metrics[claim.metric], problems_P=None, ids=())
    measure = claim.metric.split("/", 2)[2]
    grades = gathered.record.grades(run, suite, step)
    if grades is not None and claim.categories != "all" and not any(map(is_one_of(trained), grades.categories)):
        raise Unknown(
            f"{suite} has no problem of the categories trained on ({', '.join(sorted(trained)) or 'not said'})"
        )
    if grades is not None and (values := over_problems(grades, measure, categories=claim.categories, trained=trained)):
        problems_P, ids = values
        if not ids:
            which = f"{claim.categories} categories ({', '.join(sorted(trained))})"
            raise Unknown(f"{suite} has no problem for {measure}" + ("" if claim.categories == "all" else f", {which}"))
        return Values(mean=float(problems_P.mean()), problems_P=problems_P, ids=ids)
    number = run.measure(suite, step, measure)
    if number is None or claim.categories != "all":
        raise Unknown(f"{run.label} has no {claim.metric} at step {step}")
    return Values(mean=number, problems_P=None, ids=())


_MEASURES: dict[str, Callable[[Grades], Array]] = {
    "pass_at_1": lambda grades: grades.strict_PK.mean(axis=1),
    "avg_at_k": lambda grades: grades.strict_PK.mean(axis=1),
    "pass_at_1_lenient": lambda grades: grades.lenient_PK.mean(axis=1),
    "pass_at_k": lambda grades: _any_of(grades, grades.strict_PK.shape[1]),
    "length_mean": lambda grades: grades.num_tokens_PK.mean(axis=1),
    "boxed": lambda grades: grades.boxed_PK.mean(axis=1),
}
"""What has a value for each problem."""


def _any_of(grades: Grades, k: int) -> Array:
    samples = grades.strict_PK.shape[1]
    return np.array([pass_at_k(samples, int(right), k) for right in grades.strict_PK.sum(axis=1)])


def over_problems(
    grades: Grades, measure: str, *, categories: Literal["all", "trained", "untrained"], trained: frozenset[str]
) -> tuple[Array, tuple[str, ...]] | None:
    """A measure of each problem, [problems], with their ids; None where it has no value for one problem.

    `<category>/pass_at_1` is of that category's problems alone.
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
        (not category or category_key(one) == category)
        and (categories == "all" or is_trained(one) == (categories == "trained"))
        for one in grades.categories
    ]
    ids = tuple(name for name, is_chosen in zip(grades.ids, chosen, strict=True) if is_chosen)
    return values_P[np.array(chosen, dtype=bool)], ids
