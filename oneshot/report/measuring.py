"""A comparison of a claim and the gathered runs -> its difference over some of the planned seeds, and what was used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from oneshot.plan.claims import Comparison, Pair
from oneshot.report.constants import Array
from oneshot.report.contrast import FEW_CARRIERS, paired_difference, problem_difference, seed_difference, share_of
from oneshot.report.evidence import Difference
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import Interval
from oneshot.report.values import Measure, Part, Sides, Unknown, Values, has_ended, mean_of, tables, value_of
from oneshot.tasks.measures import is_share, suite_of

# Of 40,000 sweeps of 4, 5 and 10 seeds (SD 3 points), these note 1.5, 2.4 and 1.6% (0.05 instead of 0.1: 7, 9, 3%), and
# if one seed loses 25 points 48, 54 and 64%. With three seeds no distance stands out.
MIN_FOR_OUTLIER, FAR, FAR_POINTS = 4, 5.0, 0.1
NORMAL = 1.4826  # SD of normal numbers with a median absolute deviation of 1

Failed = Literal["start", "worst", "leave_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The difference of one comparison, and the runs that it is made of."""

    comparison: Comparison
    difference: Difference | None  # none if no seed has all its runs
    share: Interval | None  # a's gain as a share of b's, if the claim is about it
    used: tuple[Run, ...]
    left_out: tuple[str, ...]  # seeds that do not count, each with the reason
    notes: tuple[str, ...]


def ratio_of(comparison: Comparison) -> float:
    """Return the factor of `b`: the share of its gain that the claim is about, or else 1."""
    return comparison.claim.expect.share_at_least or 1.0


def is_complete(comparison: Comparison, gathered: Gathered, seeds: Sequence[int]) -> bool:
    """Return whether all runs that a comparison needs at these seeds have ended, or their start if it needs no more."""
    sides = ("a", comparison.at_a, comparison.claim.metric), ("b", comparison.at_b, comparison.metric_b)
    return all(
        run is not None and (has_ended(run) or (at == "start" and 0 in run.measured.get(suite_of(metric) or "", {})))
        for side, at, metric in sides
        for pair in comparison.pairs
        for cell in getattr(pair, side)
        for run in (gathered.run_of(cell, seed) for seed in seeds)
    )


def measure(comparison: Comparison, gathered: Gathered, *, seeds: Sequence[int], failed: Failed) -> Measured:
    """Return the difference of one comparison over some seeds. `failed` says how a failed run counts."""
    by_seed: list[list[Sides]] = []
    left_out: list[str] = []
    used: list[Run] = []
    for seed in seeds:
        try:
            pairs = [sides_of(comparison, pair, seed, gathered, failed=failed) for pair in comparison.pairs]
        except Unknown as unknown:
            left_out.append(f"seed {seed}: {unknown}")
            continue
        by_seed.append([sides for sides, _ in pairs])
        used += [run for _, runs in pairs for run in runs]
    notes: list[str] = []
    difference, share = None, None
    if by_seed:
        difference = _difference(comparison, by_seed, used, notes)
        share = _share(comparison, by_seed, difference, notes)
    return Measured(
        comparison=comparison,
        difference=difference,
        share=share,
        used=tuple(used),
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def sides_of(
    comparison: Comparison, pair: Pair, seed: int, gathered: Gathered, *, failed: Failed
) -> tuple[Sides, list[Run]]:
    """Return the values of both sides of one matched pair at one seed, and the runs that they are of."""
    claim = comparison.claim
    runs_a = [gathered.run_of(cell, seed) for cell in pair.a] if claim.categories != "all" else []
    trained = frozenset(name for run in runs_a if run is not None for name in run.trained)
    used: list[Run] = []

    def side(cells: Sequence[Mapping[str, str]], metric: str, at: str) -> list[Values]:
        values = []
        for cell in cells:
            if (run := gathered.run_of(cell, seed)) is None:
                raise Unknown("no such trial")
            wanted = Measure(claim=claim, metric=metric, at=at, trained=trained, failed=failed)
            values.append(value_of(wanted, run, gathered))
            used.append(run)
        return values

    sides = side(pair.a, claim.metric, comparison.at_a), side(pair.b, comparison.metric_b, comparison.at_b)
    return sides, used


def _difference(
    comparison: Comparison, by_seed: Sequence[Sequence[Sides]], used: Sequence[Run], notes: list[str]
) -> Difference:
    ratio = ratio_of(comparison)
    by_suite = tables(by_seed, ratio=ratio)
    if by_suite is None:
        if suite_of(comparison.claim.metric) is not None and any(
            values.parts for pairs in by_seed for pair in pairs for side in pair for values in side
        ):
            notes.append("a cell has other problems at other seeds, so means over seeds are compared")
        return _in_bounds(
            comparison,
            seed_difference([float(np.mean([mean_of(pair, ratio=ratio) for pair in pairs])) for pairs in by_seed]),
        )
    weights = _weights(by_seed[0], by_suite)
    num_problems = len({(part.suite, name) for part in _parts(by_seed[0]) for name in part.ids})
    is_given = comparison.at_a == comparison.at_b == "start" or all(run.num_steps == 0 for run in used)
    if is_given:
        means = [table_SP.mean(axis=0) for table_SP in by_suite.values()]
        difference = problem_difference(*means, num_seeds=len(by_seed), weights=weights)
    else:
        difference = paired_difference(*by_suite.values(), weights=weights)
    num_columns = sum(table.shape[1] for table in by_suite.values())
    if num_columns < num_problems:
        families = f"{num_columns} families of {num_problems} problems"
        test = difference.test.replace(f"{num_columns} problems", families)
        test += "" if families in test else f", {families}"
        difference = replace(difference, num_problems=num_problems, test=test)
    if difference.carriers and difference.carriers < FEW_CARRIERS < num_problems:
        notes.append(
            f"about {max(1, round(difference.carriers))} of {num_problems} problems carry the difference, so the "
            "interval may be too narrow"
        )
    is_trained_share = not is_given and is_share(comparison.claim.metric)
    if is_trained_share and (seed := _outlier(np.sum([table_SP.mean(1) for table_SP in by_suite.values()], axis=0))):
        notes.append(f"{seed}, so the interval may be too narrow")
    if len(by_suite) > 1 and difference.low is not None:
        difference = replace(difference, test=f"{difference.test} in {len(by_suite)} suites")
    return _in_bounds(comparison, difference)


def _outlier(effects_S: Array) -> str:
    """Return that one seed's share is far from all others, or an empty text. A training that collapsed looks so."""
    if len(effects_S) < MIN_FOR_OUTLIER:
        return ""
    distances = np.abs(effects_S - np.median(effects_S))
    typical = NORMAL * float(np.median(distances))
    if float(distances.max()) <= max(FAR * typical, FAR_POINTS):
        return ""
    return f"one of {len(effects_S)} seeds is {100 * distances.max():.1f} points from the middle one"


def _parts(pairs: Sequence[Sides]) -> list[Part]:
    return [part for pair in pairs for side in pair for values in side for part in values.parts]


def _weights(pairs: Sequence[Sides], by_suite: Mapping[str, Array]) -> list[float]:
    """Return the weight of each suite in the difference: 1 for each side that has it alone."""
    weight_of = {part.suite: part.weight for part in _parts(pairs)}
    return [weight_of[suite] for suite in by_suite]


def _in_bounds(comparison: Comparison, difference: Difference) -> Difference:
    """Cut the interval of a difference of shares, or of their gains, where no true value can be."""
    if not is_share(comparison.claim.metric):
        return difference
    most = 1.0 if comparison.claim.of == "value" else 1 + ratio_of(comparison)
    return difference.within((-most, most))


def _share(
    comparison: Comparison, by_seed: Sequence[Sequence[Sides]], difference: Difference, notes: list[str]
) -> Interval | None:
    """Return a's gain as a share of b's, with an interval if b's gain is clearly above 0; None if it is not above 0."""
    if comparison.claim.expect.share_at_least is None:
        return None
    of_a = float(np.mean([mean_of(pair, ratio=0.0) for pairs in by_seed for pair in pairs]))
    of_b = of_a - float(np.mean([mean_of(pair, ratio=1.0) for pairs in by_seed for pair in pairs]))
    base = tables([[((), side_b) for _, side_b in pairs] for pairs in by_seed], ratio=-1.0)
    gain_of_b = None if base is None or difference.low is None else paired_difference(*base.values())
    if gain_of_b is None or gain_of_b.low is None or gain_of_b.low <= 0:
        notes.append(f"the gain of b ({100 * of_b:+.1f} points) is not clearly above 0, so a share of it says little")
        return Interval(mean=of_a / of_b, low=None, high=None, num=len(by_seed)) if of_b > 0 else None

    def difference_at(ratio: float) -> Difference:
        by_suite = tables(by_seed, ratio=ratio)
        assert by_suite is not None, "they exist for every ratio or for none"
        return paired_difference(*by_suite.values())

    return share_of(difference_at, of_a / of_b)
