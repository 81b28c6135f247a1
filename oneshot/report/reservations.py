"""A comparison and the runs that it used -> reasons for caution, which are shown with its verdict.

They say what was added or removed after the claims were frozen, what may have been known before, what chose, and what
in the stored results contradicts itself.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from oneshot.plan.claims import Comparison, Names, cell_key, judged_suites
from oneshot.plan.frozen import rule_changes
from oneshot.plan.leakage import choice_key
from oneshot.report.environments import differences
from oneshot.report.runs import Gathered, Grades, Run
from oneshot.report.steps import NoStepError, find_step, saturation
from oneshot.tasks.measures import suite_of

NUM_SHOWN = 3
TOLERANCE = 1e-9  # a recorded mean and the mean of the stored grades may differ by rounding


def reservations(
    comparison: Comparison,
    gathered: Gathered,
    used: Sequence[Run],
    left_out: Sequence[str],
    environments: Sequence[Mapping[str, Any]],
) -> tuple[str, ...]:
    """Return the notes on one comparison.

    `used` are the runs of the seeds that count; `left_out` says why others do not.
    """
    claim = comparison.claim
    suites = judged_suites(claim, gathered.judging.groups)
    notes = [f"left out: {reason}" for reason in left_out]
    notes += _selection(comparison, gathered)
    notes += _record(gathered)
    notes += _known_before(gathered, used)
    if len(environments) > 1:
        notes.append(f"{len(environments)} environments: {differences(environments)}")
    notes += _added_later(gathered, used, suites)
    notes += _removed_later(gathered)
    notes += _unequal_sides(comparison, used)
    for suite in suites:
        digests = {each.digest for run in used for each in run.suites if each.name == suite}
        if len(digests) > 1:
            notes.append(f"{suite} differs between runs in its problems, prompts or sampling")
    judged = list(_judged_grades(comparison, gathered, used, suites))
    notes += [*_identical(judged), *_contradicted(judged)]
    leaked = dict.fromkeys([*suites, *filter(None, [suite_of(claim.metric)])])
    notes += [f"leak: {leak}" for suite in leaked for leak in gathered.leaks.get(suite, ())]
    if "saturation" in (comparison.at_a, comparison.at_b):
        rising = {run.label for run in used if (saturated := saturation(run)) is None or not saturated.is_seen}
        if rising:
            notes.append(f"reward still rising near the end, so saturation is not certain: {', '.join(sorted(rising))}")
    return tuple(notes)


def _selection(comparison: Comparison, gathered: Gathered) -> list[str]:
    """Return that the sweep lets metrics and seeds choose and judge, and what chose by the problems of this claim."""
    if not gathered.selects_on_test:
        return []
    notes = ["allow_selection_on_test: metrics and seeds that chose may also judge"]
    if reason := gathered.choices.get(choice_key(comparison.claim)):
        notes.append(f"{comparison.claim.metric} also chose: {reason}")
    return notes


def _record(gathered: Gathered) -> list[str]:
    """Return what is wrong with the frozen record: it is missing, edited, or not the one that the trainings had."""
    frozen, notes = gathered.frozen, []
    if frozen.frozen_ms is None:
        notes.append("the claims were not frozen when the sweep began")
    elif not frozen.is_intact:
        notes.append("the frozen claims do not match their digest: somebody edited them")
    began = {(run.key, digest) for run in gathered.runs for digest in run.claims_digests if digest != frozen.digest}
    for digest, number in sorted(Counter(digest for _, digest in began).items()):
        trainings = f"{number} training{'s' if number > 1 else ''}"
        notes.append(f"the record of claims was replaced: {trainings} began under digest {digest[:16]}")
    changed = rule_changes(frozen.rules, gathered.rules) if "rules" in frozen.written else []
    if changed:
        notes.append(f"rules changed after the claims were frozen: {', '.join(changed)}")
    return notes


def _known_before(gathered: Gathered, used: Sequence[Run]) -> list[str]:
    """Return how many trainings had begun before the claims were frozen, so that their outcome may have been known.

    A training whose first attempt carries the digest of the record began after it, whatever its machine's clock says.
    """
    frozen = gathered.frozen
    if frozen.frozen_ms is None:
        return []
    runs = {run.key: run for run in used}
    times = {
        key: [time for time in (run.started_ms, run.ended_ms) if time is not None]
        for key, run in runs.items()
        if run.began_under != frozen.digest
    }
    begun = sum(min(known, default=frozen.frozen_ms) < frozen.frozen_ms for known in times.values())
    return [f"{begun} of {len(runs)} trainings had begun before the claim was frozen"] if begun else []


def _added_later(gathered: Gathered, used: Sequence[Run], suites: Sequence[str]) -> list[str]:
    """Return what was added after the claims were frozen. Somebody who sees results first may stop when they fit."""
    frozen, notes = gathered.frozen, []
    seeds = sorted({run.seed for run in used} - set(frozen.seeds)) if frozen.seeds else []
    if seeds:
        notes.append(f"seeds added after the claims were frozen: {', '.join(map(str, seeds))}")
    cells = dict.fromkeys(cell_key(run.cell) for run in used if frozen.cells)
    if added := [cell for cell in cells if cell not in frozen.num_steps]:
        notes.append(f"cells added after the claims were frozen: {_first(added)}")
    longer = {
        f"{run.num_steps} instead of {before}"
        for run in used
        if (before := frozen.num_steps.get(cell_key(run.cell), run.num_steps)) != run.num_steps
    }
    if longer:
        notes.append(f"steps added after the claims were frozen: {', '.join(sorted(longer))}")
    for suite in suites if frozen.suites else ():
        now = {each.digest for run in used for each in run.suites if each.name == suite}
        if suite not in frozen.suites:
            notes.append(f"suites added after the claims were frozen: {suite}")
        elif not frozen.suites[suite]:
            notes.append(f"the problems of {suite} were not fetched when the claims were frozen")
        elif not now <= {*frozen.suites[suite]}:
            notes.append(f"{suite} has other problems, answers or sampling than when the claims were frozen")
    return notes


def _removed_later(gathered: Gathered) -> list[str]:
    """Return the frozen seeds and cells that the sweep no longer has."""
    frozen, notes = gathered.frozen, []
    if seeds := [seed for seed in frozen.seeds if seed not in gathered.seeds]:
        notes.append(f"frozen seeds that are no longer judged: {', '.join(map(str, seeds))}")
    cells = {cell_key(cell) for cell in gathered.cells}
    if removed := [cell for cell in frozen.cells if cell not in cells]:
        notes.append(f"frozen cells that are no longer judged: {_first(removed)}")
    return notes


def _first(names: Sequence[str]) -> str:
    more = len(names) - NUM_SHOWN
    return ", ".join(names[:NUM_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _unequal_sides(comparison: Comparison, used: Sequence[Run]) -> list[str]:
    """Return how the two sides differ in their steps, unless one of them is the start or is not trained."""
    at_a, at_b = comparison.at_a, comparison.at_b
    if "start" in (at_a, at_b):
        return []
    if at_a != at_b:
        return [f"the sides are at different steps: a at {at_a}, b at {at_b}"]
    steps = [
        {run.num_steps for run in used if run.num_steps and run.cell in cells} for cells in _cells_of_sides(comparison)
    ]
    if not all(steps) or steps[0] == steps[1]:
        return []
    a, b = (" or ".join(map(str, sorted(side))) for side in steps)
    return [f"the sides have different numbers of steps: a {a}, b {b}"]


def _cells_of_sides(comparison: Comparison) -> tuple[list[Names], list[Names]]:
    pairs = comparison.pairs
    return [cell for pair in pairs for cell in pair.a], [cell for pair in pairs for cell in pair.b]


# --- stored results that contradict themselves ---


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """The stored grades of one evaluation that a comparison reads."""

    run: Run
    suite: str
    step: int
    grades: Grades


def _judged_grades(
    comparison: Comparison, gathered: Gathered, used: Sequence[Run], suites: Sequence[str]
) -> Iterator[_Judged]:
    """Yield the grades of each evaluation that a comparison reads, once."""
    done = set()
    sides = zip(_cells_of_sides(comparison), (comparison.at_a, comparison.at_b), strict=True)
    reads = [(run, at) for cells, at in sides for run in used if run.cell in cells]
    for run, at in reads:
        for suite in suites:
            for step in _steps(run, at, suite, comparison, gathered):
                if (run.label, suite, step) in done:
                    continue
                done.add((run.label, suite, step))
                if (grades := gathered.record.grades(run, suite, step)) is not None:
                    yield _Judged(run=run, suite=suite, step=step, grades=grades)


def _steps(run: Run, at: str, suite: str, comparison: Comparison, gathered: Gathered) -> list[int]:
    claim = comparison.claim
    try:
        step = find_step(run, at, suite=suite, metric=claim.metric, selects_on_test=gathered.selects_on_test)
    except NoStepError:
        return []
    return [step, 0] if claim.of == "gain" else [step]


def _identical(judged: Sequence[_Judged]) -> list[str]:
    """Return the seeds of a cell with the same grades and lengths of all completions, although they were sampled."""
    groups: dict[tuple[str, str, int], list[_Judged]] = defaultdict(list)
    for each in judged:
        suite = each.run.suite(each.suite)
        is_telling = np.ptp(each.grades.num_tokens_PK) > 0  # completions that are all cut at one length may agree
        if suite is not None and suite.temperature > 0 and is_telling:
            groups[cell_key(each.run.cell), each.suite, each.step].append(each)
    pairs = [
        (cell, suite, one.run.seed, other.run.seed)
        for (cell, suite, _), of_seeds in groups.items()
        for one, other in combinations(of_seeds, 2)
        if one.run.seed != other.run.seed and _are_equal(one.grades, other.grades)
    ]
    if not pairs:
        return []
    cell, name, seed, other_seed = pairs[0]
    more = f", and {len(pairs) - 1} more pairs" if len(pairs) > 1 else ""
    return [f"identical grades although {name} is sampled: {cell}, seeds {seed} and {other_seed}{more}"]


def _are_equal(one: Grades, other: Grades) -> bool:
    names = ("strict_PK", "lenient_PK", "num_tokens_PK", "boxed_PK")
    return one.ids == other.ids and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def _contradicted(judged: Sequence[_Judged]) -> list[str]:
    """Return the evaluations whose stored grades have another mean than the metric that was recorded with them."""
    texts = []
    for each in judged:
        recorded = each.run.measure(each.suite, each.step)
        mean = float(each.grades.strict_PK.mean())
        if recorded is not None and abs(mean - recorded) > TOLERANCE:
            texts.append(f"{each.run.label}, {each.suite} at step {each.step}: {mean:.4f}, recorded {recorded:.4f}")
    if not texts:
        return []
    more = f", and {len(texts) - 1} more" if len(texts) > 1 else ""
    return [f"stored grades contradict the recorded pass_at_1: {texts[0]}{more}"]
