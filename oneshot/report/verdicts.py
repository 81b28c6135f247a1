"""Gathered runs and the claims that were frozen -> verdicts: effect, interval, p, and everything against them.

Runs are matched on seed and on problem. A seed counts where every run that the claim needs of it is there; what is left
out is said. The rule (docs/statistics.md): a verdict that is not `inconclusive` needs an interval that is clear of what
was expected, and a p-value that is still below 0.05 after Holm's correction over all verdicts of the sweep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot.config.sweep import ClaimConfig, ExpectConfig
from oneshot.plan.claims import Comparison, cell_key, comparisons
from oneshot.report.decision import Verdict, holm, judge
from oneshot.report.environments import differences, environments_of
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import (
    LEVEL,
    Difference,
    paired_difference,
    problem_difference,
    seed_difference,
)
from oneshot.report.steps import saturation
from oneshot.report.values import Unknown, Values, average, value_of
from oneshot.tasks.measures import suite_of

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedClaim:
    """One claim's verdict, or that of one cell of its `for_each`."""

    name: str
    cells: dict[str, str]
    """Of the axes of `for_each`."""
    verdict: Verdict
    effect: float | None
    """Mean of a - b; None where no seed has all of its runs."""
    low: float | None
    high: float | None
    p_value: float | None
    """Two-sided, of the bound that was expected."""
    p_holm: float | None
    """Corrected over all verdicts of the sweep."""
    num_seeds: int
    num_problems: int | None
    test: str
    metric: str
    of: str
    categories: str
    at: tuple[str, str]
    expect: str
    is_amended: bool
    """Written after the sweep began."""
    notes: tuple[str, ...]
    """What a reader must know beside the numbers."""
    environments: tuple[dict[str, Any], ...] = field(default=())
    """Of the runs that were used, each once."""

    def to_json(self) -> dict[str, Any]:
        """As `report --json` prints it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What is known of one comparison."""

    difference: Difference | None
    notes: tuple[str, ...]
    environments: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part(_Measured):
    """One comparison, and what its interval alone says."""

    asked: Comparison
    alone: Verdict
    p_value: float | None


def verdicts(gathered: Gathered) -> list[JudgedClaim]:
    """A verdict on every comparison of every claim, those that were added later last."""
    frozen = comparisons(gathered.frozen.claims, gathered.cells)
    later = comparisons(gathered.amended, gathered.cells)
    groups: dict[tuple[bool, int, tuple[str, ...]], list[Comparison]] = {}
    for one, is_amended in [*((one, False) for one in frozen), *((one, True) for one in later)]:
        groups.setdefault((is_amended, one.number, tuple(one.cells.values())), []).append(one)
    found = [_weakest(parts, gathered) for parts in groups.values()]
    # a claim that was added later cannot change what was written before
    num_frozen = sum(not is_amended for is_amended, _, _ in groups)
    corrected = holm([part.p_value for part in found[:num_frozen]])
    corrected += holm([part.p_value for part in found])[num_frozen:]
    return [
        _judged(part, p_holm, num=len(found) if is_amended else num_frozen, is_amended=is_amended)
        for (is_amended, _, _), part, p_holm in zip(groups, found, corrected, strict=True)
    ]


def _weakest(parts: Sequence[Comparison], gathered: Gathered) -> _Part:
    """Of the parts of a verdict the one that decides it.

    Supported where all are (the intersection-union test, whose p is the largest: Berger, Technometrics 24, 1982);
    contradicted where one is, at its p times their number.
    """
    measured = [_part(one, gathered) for one in parts]
    if len(measured) == 1:
        return measured[0]
    contradicted = [part for part in measured if part.alone == "contradicted"]
    if contradicted:
        worst = min(contradicted, key=_p_or_1)
        p_value: float | None = min(1.0, len(measured) * _p_or_1(worst))
    else:
        worst = max(measured, key=_against)
        p_value = worst.p_value
    where = ", ".join(f"{axis} {cell}" for axis, cell in worst.asked.part.items())
    notes = list(dict.fromkeys(note for part in measured for note in part.notes))
    notes.insert(0, f"the weakest of {len(measured)}, whose numbers these are: {where}")
    environments = [one for part in measured for one in part.environments]
    return replace(
        worst,
        p_value=p_value,
        notes=tuple(notes),
        environments=tuple(one for place, one in enumerate(environments) if one not in environments[:place]),
    )


def _against(part: _Part) -> float:
    """One-sided p-value, by which parts are told apart that are on the wrong side of what was expected."""
    expect, difference = part.asked.claim.expect, part.difference
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
    """What could not be judged is the weakest."""
    return 2.0 if part.p_value is None else part.p_value


def _part(asked: Comparison, gathered: Gathered) -> _Part:
    """One comparison, with the verdict by its interval alone and the p-value that goes with it."""
    found = _measure(asked, gathered)
    alone: Verdict = "inconclusive"
    p_value = None
    if found.difference is not None:
        alone, p_value = judge(found.difference, **asked.claim.expect.model_dump())
    return _Part(
        asked=asked,
        difference=found.difference,
        alone=alone,
        p_value=p_value,
        notes=found.notes,
        environments=found.environments,
    )


def _judged(part: _Part, p_holm: float | None, *, num: int, is_amended: bool) -> JudgedClaim:
    asked, notes, verdict = part.asked, list(part.notes), part.alone
    if verdict != "inconclusive" and (p_holm is None or p_holm > LEVEL):
        notes.insert(0, f"{verdict} if it were the only claim; not after Holm's correction over {num} verdicts")
        verdict = "inconclusive"
    if is_amended:
        notes.insert(0, "amended: written after the sweep began")
    difference = part.difference
    claim = asked.claim
    return JudgedClaim(
        name=claim.name,
        cells=asked.cells,
        verdict=verdict,
        effect=None if difference is None else difference.effect,
        low=None if difference is None else difference.low,
        high=None if difference is None else difference.high,
        p_value=part.p_value,
        p_holm=p_holm,
        num_seeds=0 if difference is None else difference.num_seeds,
        num_problems=None if difference is None else difference.num_problems,
        test="none: no seed has all of its runs" if difference is None else difference.test,
        metric=claim.metric,
        of=claim.of,
        categories=claim.categories,
        at=(asked.at_a, asked.at_b),
        expect=expectation(claim.expect),
        is_amended=is_amended,
        notes=tuple(notes),
        environments=part.environments,
    )


def expectation(expect: ExpectConfig) -> str:
    """What was expected of a - b, as a formula."""
    if expect.greater_by is not None:
        return f"a - b > {expect.greater_by:g}"
    if expect.less_by is not None:
        return f"a - b < {-expect.less_by:g}"
    return f"|a - b| < {expect.within:g}"


# --- from runs to differences ---


def _measure(asked: Comparison, gathered: Gathered) -> _Measured:
    by_seed: dict[int, list[tuple[Values, Values]]] = {}
    left_out: list[str] = []
    used: list[Run] = []
    for seed in gathered.seeds:
        try:
            found = [_difference(asked, pair.a, pair.b, seed, gathered) for pair in asked.pairs]
        except Unknown as unknown:
            left_out.append(f"seed {seed}: {unknown}")
            continue
        by_seed[seed] = [values for values, _ in found]
        used += [run for _, runs in found for run in runs]
    environments = environments_of(used)
    notes = _notes(asked, gathered, used, left_out, environments)
    if not by_seed:
        return _Measured(difference=None, notes=notes, environments=environments)
    differences_SP = _over_problems(list(by_seed.values()))
    if differences_SP is None:
        notes += _why_not_over_problems(asked.claim, by_seed)
        means = [float(np.mean([a.mean - b.mean for a, b in pairs])) for pairs in by_seed.values()]
        difference = seed_difference(np.array(means))
    elif asked.at_a == asked.at_b == "start" or all(run.num_steps == 0 for run in used):
        difference = problem_difference(differences_SP.mean(axis=0), num_seeds=len(by_seed))
    else:
        difference = paired_difference(differences_SP)
    return _Measured(difference=difference, notes=notes, environments=environments)


def _over_problems(seeds: Sequence[Sequence[tuple[Values, Values]]]) -> Array | None:
    """Differences [seeds, problems], each the mean over matched pairs; None where sides were asked other problems.

    Pairs may be asked different problems (of categories that *they* did not train on). Every pair weighs the same, so a
    problem weighs by the pairs that were asked it: its column is the mean m plus its weighted deviations from m,
    by which each row's mean is that seed's effect, and weights alone make no spread.
    """
    first = [(a.ids, b.ids) for a, b in seeds[0]]
    if any(a != b or not a or len(set(a)) < len(a) for a, b in first):
        return None
    if any([(a.ids, b.ids) for a, b in pairs] != first for pairs in seeds):
        return None
    found = [[_subtract(a, b) for a, b in pairs] for pairs in seeds]
    if len(set(first)) == 1:
        return np.array([np.mean(pairs, axis=0) for pairs in found])
    mean = float(np.mean([np.mean([one.mean() for one in pairs]) for pairs in found]))
    places = {name: place for place, name in enumerate(dict.fromkeys(name for ids, _ in first for name in ids))}
    differences_SP = np.full((len(seeds), len(places)), mean)
    for row_P, pairs in zip(differences_SP, found, strict=True):
        for (ids, _), one in zip(first, pairs, strict=True):
            weight = len(places) / (len(pairs) * len(ids))
            row_P[[places[name] for name in ids]] += weight * (one - mean)
    return differences_SP


def _subtract(a: Values, b: Values) -> Array:
    assert a.problems_P is not None and b.problems_P is not None, "values with ids are over problems"
    return a.problems_P - b.problems_P


def _why_not_over_problems(
    claim: ClaimConfig, by_seed: Mapping[int, Sequence[tuple[Values, Values]]]
) -> tuple[str, ...]:
    values = [one for pairs in by_seed.values() for pair in pairs for one in pair]
    if suite_of(claim.metric) is None or all(one.problems_P is None for one in values):
        return ()
    return ("not the same problems on both sides or at all seeds: compared by means, over seeds alone",)


def _difference(
    asked: Comparison,
    side_a: Sequence[Mapping[str, str]],
    side_b: Sequence[Mapping[str, str]],
    seed: int,
    gathered: Gathered,
) -> tuple[tuple[Values, Values], list[Run]]:
    """Both sides of one matched pair at one seed, each the mean over its cells."""
    used: list[Run] = []
    trained = _trained(side_a, seed, gathered) if asked.claim.categories != "all" else frozenset()

    def side(cells: Sequence[Mapping[str, str]], at: str) -> Values:
        found = []
        for cell in cells:
            run = gathered.run_of(cell, seed)
            if run is None:
                raise Unknown("no such trial")
            found.append(value_of(asked.claim, run, at, trained=trained, gathered=gathered))
            used.append(run)
        return average(found)

    return (side(side_a, asked.at_a), side(side_b, asked.at_b)), used


def _trained(cells: Sequence[Mapping[str, str]], seed: int, gathered: Gathered) -> frozenset[str]:
    runs = [gathered.run_of(cell, seed) for cell in cells]
    return frozenset(name for run in runs if run is not None for name in run.trained)


# --- what must be said beside the numbers ---


def _notes(
    asked: Comparison,
    gathered: Gathered,
    used: Sequence[Run],
    left_out: Sequence[str],
    environments: Sequence[Mapping[str, Any]],
) -> tuple[str, ...]:
    notes = [f"left out: {reason}" for reason in left_out]
    if gathered.selects_on_test:
        notes.append("allow_selection_on_test: what chose may also judge here")
    before = {run.key for run in used if _was_known(run, gathered.frozen.frozen_ms)}
    if before:
        notes.append(
            f"{len(before)} of {len({run.key for run in used})} trainings had ended before the claim was frozen"
        )
    if gathered.frozen.frozen_ms is None:
        notes.append("the claims were not frozen when the sweep began")
    elif not gathered.frozen.is_intact:
        notes.append("the frozen claims do not have the digest that they say: they were changed by hand")
    if len(environments) > 1:
        notes.append(f"{len(environments)} environments: {differences(environments)}")
    notes += _added_later(gathered, used)
    suite = suite_of(asked.claim.metric)
    digests = {facts.digest for run in used for facts in run.suites if facts.name == suite}
    if len(digests) > 1:
        notes.append(f"{suite} was not asked in the same way everywhere: other problems, prompts or sampling")
    unsure = {run.label for run in used if "saturation" in (asked.at_a, asked.at_b) and not _is_saturated(run)}
    if unsure:
        notes.append(f"still rising near the end, so not seen to saturate: {', '.join(sorted(unsure))}")
    return tuple(notes)


def _added_later(gathered: Gathered, used: Sequence[Run]) -> list[str]:
    """What was added to the sweep after its claims were frozen: who looks before adding may stop when it suits."""
    frozen, notes = gathered.frozen, []
    seeds = sorted({run.seed for run in used} - set(frozen.seeds)) if frozen.seeds else []
    if seeds:
        notes.append(f"seeds that were added after the claims were frozen: {', '.join(map(str, seeds))}")
    longer = {
        f"{run.num_steps} in place of {before}"
        for run in used
        if (before := frozen.num_steps.get(cell_key(run.cell), run.num_steps)) != run.num_steps
    }
    if longer:
        notes.append(f"steps were added after the claims were frozen: {', '.join(sorted(longer))}")
    return notes


def _is_saturated(run: Run) -> bool:
    found = saturation(run)
    return found is not None and found.is_seen


def _was_known(run: Run, frozen_ms: int | None) -> bool:
    return frozen_ms is not None and run.ended_ms is not None and run.ended_ms < frozen_ms
