"""Gathered runs and the frozen claims -> verdicts, each with effect, interval, p-value and notes of caution.

Runs are matched on seed and on problem. A seed counts if it has every run that the claim needs; notes name the seeds
that are left out. A verdict other than `inconclusive` needs an interval that excludes the expected bound, and a p-value
below 0.05 after Holm's correction over all verdicts of the sweep (docs/statistics.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from oneshot.config.claims import ExpectConfig
from oneshot.plan.claims import Comparison, cell_key, comparisons
from oneshot.report.decision import Verdict, holm, judge
from oneshot.report.environments import differences, environments_of
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import (
    CHANGE,
    LEVEL,
    Array,
    Difference,
    paired_difference,
    problem_difference,
    seed_difference,
)
from oneshot.report.steps import saturation
from oneshot.report.values import Unknown, Values, average, value_of
from oneshot.tasks.measures import is_share, suite_of


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedClaim:
    """The verdict on one claim, or on one cell of its `for_each`."""

    name: str
    cells: dict[str, str]  # cells on the axes of `for_each`
    verdict: Verdict
    effect: float | None = None  # mean of a - b, or None if no seed has all its runs
    low: float | None = None
    high: float | None = None
    p_value: float | None  # two-sided p-value of the expected bound
    p_holm: float | None  # the p-value after Holm's correction over all verdicts of the sweep
    num_seeds: int = 0
    num_problems: int | None = None
    test: str = "none: no seed has all its runs"
    metric: str
    of: str
    categories: str
    at: tuple[str, str]
    expect: str
    is_amended: bool  # written after the sweep began
    notes: tuple[str, ...]  # reasons for caution, to be shown with the numbers
    environments: tuple[dict[str, Any], ...] = field(default=())  # the distinct environments of the runs that were used

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as `report --json` prints it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The difference of one comparison with its notes, and the verdict by its interval alone."""

    comparison: Comparison
    difference: Difference | None
    notes: tuple[str, ...]
    environments: tuple[dict[str, Any], ...]
    by_interval: Verdict
    p_value: float | None


def verdicts(gathered: Gathered) -> list[JudgedClaim]:
    """Return a verdict on every comparison of every claim; claims that were added later come last."""
    groups: dict[tuple[bool, int, tuple[str, ...]], list[Comparison]] = {}
    for is_amended, claims in ((False, gathered.frozen.claims), (True, gathered.amended)):
        for each in comparisons(claims, gathered.cells):
            groups.setdefault((is_amended, each.number, tuple(each.cells.values())), []).append(each)
    parts = [_deciding_part(group, gathered) for group in groups.values()]
    # the correction of frozen claims ignores claims that were added later
    num_frozen = sum(not is_amended for is_amended, _, _ in groups)
    corrected = holm([part.p_value for part in parts[:num_frozen]])
    corrected += holm([part.p_value for part in parts])[num_frozen:]
    return [
        _judged(part, p_holm, num=len(parts) if is_amended else num_frozen, is_amended=is_amended)
        for (is_amended, _, _), part, p_holm in zip(groups, parts, corrected, strict=True)
    ]


def _deciding_part(group: Sequence[Comparison], gathered: Gathered) -> _Part:
    """Return the part of a verdict that decides it.

    The verdict is supported if all parts are: the intersection-union test, with the largest p-value (Berger,
    Technometrics 24, 1982). It is contradicted if one part is, with that part's p-value times the number of parts.
    """
    measured = [_part(comparison, gathered) for comparison in group]
    if len(measured) == 1:
        return measured[0]
    contradicted = [part for part in measured if part.by_interval == "contradicted"]
    if contradicted:
        worst = min(contradicted, key=_p_or_1)
        p_value: float | None = min(1.0, len(measured) * _p_or_1(worst))
    else:
        worst = max(measured, key=_against)
        p_value = worst.p_value
    where = ", ".join(f"{axis} {cell}" for axis, cell in worst.comparison.part.items())
    notes = list(dict.fromkeys(note for part in measured for note in part.notes))
    notes.insert(0, f"the numbers are those of the weakest of {len(measured)} cells: {where}")
    environments = [each for part in measured for each in part.environments]
    return replace(
        worst,
        p_value=p_value,
        notes=tuple(notes),
        environments=tuple(each for place, each in enumerate(environments) if each not in environments[:place]),
    )


def _against(part: _Part) -> float:
    """Return the one-sided p-value, which orders parts also if they are on the wrong side of the expected bound."""
    expect, difference = part.comparison.claim.expect, part.difference
    if difference is None or part.p_value is None:
        return 2.0
    if expect.greater_by is not None:
        is_on_side = difference.effect > expect.greater_by
    elif expect.less_by is not None:
        is_on_side = difference.effect < -expect.less_by
    else:
        is_on_side = abs(difference.effect) < (expect.within or 0.0)
    return part.p_value / 2 if is_on_side else 1 - part.p_value / 2


def _p_or_1(part: _Part) -> float:
    """Return the p-value, or a larger number for a part that could not be judged, which is then the weakest."""
    return 2.0 if part.p_value is None else part.p_value


def _part(comparison: Comparison, gathered: Gathered) -> _Part:
    """Measure one comparison, and judge it by its interval alone."""
    difference, notes, environments = _measure(comparison, gathered)
    by_interval: Verdict = "inconclusive"
    p_value = None
    if difference is not None:
        by_interval, p_value = judge(difference, **comparison.claim.expect.model_dump())
    return _Part(
        comparison=comparison,
        difference=difference,
        notes=notes,
        environments=environments,
        by_interval=by_interval,
        p_value=p_value,
    )


def _judged(part: _Part, p_holm: float | None, *, num: int, is_amended: bool) -> JudgedClaim:
    comparison, notes, verdict = part.comparison, list(part.notes), part.by_interval
    if verdict != "inconclusive" and (p_holm is None or p_holm > LEVEL):
        notes.insert(0, f"{verdict} as the only claim, but not after Holm's correction over {num} verdicts")
        verdict = "inconclusive"
    if is_amended:
        notes.insert(0, "amended: added after the sweep began")
    claim, difference = comparison.claim, part.difference
    return JudgedClaim(
        name=claim.name,
        cells=comparison.cells,
        verdict=verdict,
        **({} if difference is None else difference.numbers()),
        p_value=part.p_value,
        p_holm=p_holm,
        metric=claim.metric,
        of=claim.of,
        categories=claim.categories,
        at=(comparison.at_a, comparison.at_b),
        expect=expectation(claim.expect),
        is_amended=is_amended,
        notes=tuple(notes),
        environments=part.environments,
    )


def expectation(expect: ExpectConfig) -> str:
    """Return the expectation of a - b as a formula."""
    if expect.greater_by is not None:
        return f"a - b > {expect.greater_by:g}"
    if expect.less_by is not None:
        return f"a - b < {-expect.less_by:g}"
    return f"|a - b| < {expect.within:g}"


# --- from runs to differences ---


def _measure(
    comparison: Comparison, gathered: Gathered
) -> tuple[Difference | None, tuple[str, ...], tuple[dict[str, Any], ...]]:
    """Return the difference of one comparison, the notes on it, and the environments of the runs that were used."""
    by_seed: dict[int, list[tuple[Values, Values]]] = {}
    left_out: list[str] = []
    used: list[Run] = []
    for seed in gathered.seeds:
        try:
            pairs = [_difference(comparison, pair.a, pair.b, seed, gathered) for pair in comparison.pairs]
        except Unknown as unknown:
            left_out.append(f"seed {seed}: {unknown}")
            continue
        by_seed[seed] = [values for values, _ in pairs]
        used += [run for _, runs in pairs for run in runs]
    environments = environments_of(used)
    notes = _notes(comparison, gathered, used, left_out, environments)
    if not by_seed:
        return None, notes, environments
    differences_SP = _over_problems(list(by_seed.values()))
    if differences_SP is None:
        sides = [side for pairs in by_seed.values() for pair in pairs for side in pair]
        if suite_of(comparison.claim.metric) is not None and any(side.problems_P is not None for side in sides):
            notes += ("the problems differ between the sides or the seeds, so means over seeds are compared",)
        means = [float(np.mean([a.mean - b.mean for a, b in values])) for values in by_seed.values()]
        difference = seed_difference(np.array(means))
    elif comparison.at_a == comparison.at_b == "start" or all(run.num_steps == 0 for run in used):
        difference = problem_difference(differences_SP.mean(axis=0), num_seeds=len(by_seed))
    else:
        difference = paired_difference(differences_SP)
    is_of_shares = is_share(comparison.claim.metric) and comparison.claim.of == "value"
    return difference.within(CHANGE) if is_of_shares else difference, notes, environments


def _over_problems(seeds: Sequence[Sequence[tuple[Values, Values]]]) -> Array | None:
    """Return differences [seeds, problems], each the mean over matched pairs; None if two sides have other problems.

    Pairs may have different problems (those of categories that they did not train on). Every pair has the same weight,
    so a problem's weight depends on the pairs that have it. Its column is the mean m plus its weighted deviations from
    m. The mean of each row is then that seed's effect, and unequal weights alone add no spread.
    """
    first = [(a.ids, b.ids) for a, b in seeds[0]]
    if any(a != b or not a or len(set(a)) < len(a) for a, b in first):
        return None
    if any([(a.ids, b.ids) for a, b in pairs] != first for pairs in seeds):
        return None
    differences = [[_subtract(a, b) for a, b in pairs] for pairs in seeds]
    if len(set(first)) == 1:
        return np.array([np.mean(pairs, axis=0) for pairs in differences])
    mean = float(np.mean([np.mean([pair_P.mean() for pair_P in pairs]) for pairs in differences]))
    places = {name: place for place, name in enumerate(dict.fromkeys(name for ids, _ in first for name in ids))}
    differences_SP = np.full((len(seeds), len(places)), mean)
    for row_P, pairs in zip(differences_SP, differences, strict=True):
        for (ids, _), pair_P in zip(first, pairs, strict=True):
            weight = len(places) / (len(pairs) * len(ids))
            row_P[[places[name] for name in ids]] += weight * (pair_P - mean)
    return differences_SP


def _subtract(a: Values, b: Values) -> Array:
    assert a.problems_P is not None and b.problems_P is not None, "values with ids are by problem"
    return a.problems_P - b.problems_P


def _difference(
    comparison: Comparison,
    side_a: Sequence[Mapping[str, str]],
    side_b: Sequence[Mapping[str, str]],
    seed: int,
    gathered: Gathered,
) -> tuple[tuple[Values, Values], list[Run]]:
    """Return both sides of one matched pair at one seed, each the mean over its cells, and the runs that were used."""
    used: list[Run] = []
    runs_a = [gathered.run_of(cell, seed) for cell in side_a] if comparison.claim.categories != "all" else []
    trained = frozenset(name for run in runs_a if run is not None for name in run.trained)

    def side(cells: Sequence[Mapping[str, str]], at: str) -> Values:
        values = []
        for cell in cells:
            if (run := gathered.run_of(cell, seed)) is None:
                raise Unknown("no such trial")
            values.append(value_of(comparison.claim, run, at, trained=trained, gathered=gathered))
            used.append(run)
        return average(values)

    return (side(side_a, comparison.at_a), side(side_b, comparison.at_b)), used


# --- notes ---


def _notes(
    comparison: Comparison,
    gathered: Gathered,
    used: Sequence[Run],
    left_out: Sequence[str],
    environments: Sequence[Mapping[str, Any]],
) -> tuple[str, ...]:
    notes = [f"left out: {reason}" for reason in left_out]
    if gathered.selects_on_test:
        notes.append("allow_selection_on_test: metrics and seeds that chose may also judge")
    frozen_ms = gathered.frozen.frozen_ms
    ended = {run.key for run in used if frozen_ms is not None and run.ended_ms is not None and run.ended_ms < frozen_ms}
    if ended:
        notes.append(
            f"{len(ended)} of {len({run.key for run in used})} trainings had ended before the claim was frozen"
        )
    if frozen_ms is None:
        notes.append("the claims were not frozen when the sweep began")
    elif not gathered.frozen.is_intact:
        notes.append("the frozen claims do not match their digest: somebody edited them")
    if len(environments) > 1:
        notes.append(f"{len(environments)} environments: {differences(environments)}")
    notes += _added_later(gathered, used)
    suite = suite_of(comparison.claim.metric)
    digests = {each.digest for run in used for each in run.suites if each.name == suite}
    if len(digests) > 1:
        notes.append(f"{suite} differs between runs in its problems, prompts or sampling")
    if "saturation" in (comparison.at_a, comparison.at_b):
        rising = {run.label for run in used if (saturated := saturation(run)) is None or not saturated.is_seen}
        if rising:
            notes.append(f"reward still rising near the end, so saturation is not certain: {', '.join(sorted(rising))}")
    return tuple(notes)


def _added_later(gathered: Gathered, used: Sequence[Run]) -> list[str]:
    """Return what was added after the claims were frozen. Somebody who sees results first may stop when they fit."""
    frozen, notes = gathered.frozen, []
    seeds = sorted({run.seed for run in used} - set(frozen.seeds)) if frozen.seeds else []
    if seeds:
        notes.append(f"seeds added after the claims were frozen: {', '.join(map(str, seeds))}")
    longer = {
        f"{run.num_steps} instead of {before}"
        for run in used
        if (before := frozen.num_steps.get(cell_key(run.cell), run.num_steps)) != run.num_steps
    }
    if longer:
        notes.append(f"steps added after the claims were frozen: {', '.join(sorted(longer))}")
    return notes


# STUB: to be replaced by the rewritten statistics.
def decided_at(gathered: Gathered) -> int | None:
    """Return the number of the look, from 1, at which every claim that counts was decided; None so far."""
    raise NotImplementedError(f"{gathered.name}: looks are not judged yet")
