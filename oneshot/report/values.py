"""A run, a step and a claim's metric -> its value, with one value for each problem if the metric has them.

P: problems. `Unknown` says what a run lacks.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from oneshot.config.claims import ClaimConfig
from oneshot.report.runs import Gathered, Grades, Run
from oneshot.report.stats import Array
from oneshot.report.steps import NoStepError, find_step
from oneshot.tasks.measures import category_key, is_one_of, measure_of, pass_at_k, suite_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """The value of a metric in one run: its mean, and its values by problem if it has them."""

    mean: float
    problems_P: Array | None
    ids: tuple[str, ...]


class Unknown(Exception):  # noqa: N818 - not a failure: the run may not have come so far
    """A value that a claim needs and a run does not have. The message says which."""


def average(values: Sequence[Values]) -> Values:
    """Return the mean of several values, by problem if all have the same problems."""
    problems = [each.problems_P for each in values if each.problems_P is not None]
    ids = {each.ids for each in values}
    is_whole = len(problems) == len(values) and len(ids) == 1
    return Values(
        mean=float(np.mean([each.mean for each in values])),
        problems_P=np.mean(problems, axis=0) if is_whole else None,
        ids=ids.pop() if is_whole else (),
    )


def value_of(claim: ClaimConfig, run: Run, at: str, *, trained: frozenset[str], gathered: Gathered) -> Values:
    """Return the claim's metric in one run, or its change since the start.

    Raises Unknown: the run has not come so far, or lacks the metric at that step.
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
    values = _at(claim, run, step, trained=trained, gathered=gathered)
    if claim.of == "value":
        return values
    start = _at(claim, run, 0, trained=trained, gathered=gathered)
    is_whole = values.problems_P is not None and start.problems_P is not None and values.ids == start.ids
    return Values(
        mean=values.mean - start.mean,
        problems_P=values.problems_P - start.problems_P if is_whole else None,  # type: ignore[operator]
        ids=values.ids if is_whole else (),
    )


def _at(claim: ClaimConfig, run: Run, step: int, *, trained: frozenset[str], gathered: Gathered) -> Values:
    suite = suite_of(claim.metric)
    if suite is None:
        rows = [row for row in run.rows if claim.metric in row.metrics and row.step >= step]
        if not rows:
            raise Unknown(f"{run.label} has no {claim.metric} at step {step}")
        return Values(mean=rows[0].metrics[claim.metric], problems_P=None, ids=())
    measure = measure_of(claim.metric)
    grades = gathered.record.grades(run, suite, step)
    if grades is not None and claim.categories != "all" and not any(map(is_one_of(trained), grades.categories)):
        raise Unknown(
            f"{suite} has no problem in the categories trained on ({', '.join(sorted(trained)) or 'unknown'})"
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
