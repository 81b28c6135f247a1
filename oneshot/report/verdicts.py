"""Gathered runs and the frozen claims -> verdicts, each with effect, interval, p-value and notes of caution.

Runs are matched on seed and on problem. A claim is judged once all runs of the planned seeds have ended, or those of a
planned look; before, its verdict is `interim`. A verdict other than `inconclusive` needs an interval that excludes the
expected bound, and a p-value below 0.05 after the correction for looks and Holm's over all verdicts of the sweep
(docs/statistics.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from oneshot.config.claims import ExpectConfig
from oneshot.plan.claims import Comparison, comparisons
from oneshot.report.beside import Beside, Decision, beside
from oneshot.report.constants import LEVEL, MIN_SEEDS
from oneshot.report.decision import Verdict, holm
from oneshot.report.environments import environments_of
from oneshot.report.looks import bounds, spent_level
from oneshot.report.measuring import is_complete
from oneshot.report.parts import Part, decide
from oneshot.report.reservations import reservations
from oneshot.report.runs import Gathered, Run
from oneshot.report.values import has_failed
from oneshot.tasks.measures import is_share


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
    p_holm: float | None  # the p-value after the corrections for looks, and for all verdicts of the sweep
    num_seeds: int = 0
    num_problems: int | None = None
    test: str = "none: no seed has all its runs"
    metric: str
    of: str
    categories: str
    at: tuple[str, str]
    sides: tuple[str, str] = ("a", "b")  # the cells of both sides as the claim names them
    expect: str
    is_primary: bool = False
    is_amended: bool  # written after the sweep began
    look: dict[str, Any] | None = None  # number, of, seeds, p_bound: the planned look that the numbers are those of
    share: dict[str, Any] | None = None  # mean, low, high: a's gain as a share of b's
    between: dict[str, Any] | None = None  # num, tau, low, high: cells of `over`, SD between them, for another one
    base: dict[str, float] = field(default_factory=dict)  # shares of completions at the start: boxed, truncated
    without_failed: dict[str, Any] | None = None  # verdict, effect, low, high if failed seeds are left out
    over_settings: tuple[dict[str, Any], ...] = ()  # grader, at, verdict, effect, low, high under other settings
    notes: tuple[str, ...]  # reasons for caution, to be shown with the numbers
    environments: tuple[dict[str, Any], ...] = field(default=())  # the distinct environments of the runs that were used

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as `report --json` prints it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One claim at one planned look, before Holm's correction."""

    part: Part
    number: int  # from 1; 0 if no look is complete
    p_value: float | None  # of the whole design so far


Group = Sequence[Comparison]
"""The comparisons that make one verdict."""


def verdicts(gathered: Gathered) -> list[JudgedClaim]:
    """Return a verdict on every comparison of every claim; claims that were added later come last."""
    groups = _groups(gathered)
    looks = [_look(group, gathered) for _, group in groups]
    corrected = _corrected([is_amended for is_amended, _ in groups], looks)
    frozen, every = ([group for is_amended, group in groups if not is_amended], [group for _, group in groups])
    return [
        _judged(look, p_holm, gathered, group=group, tested=every if is_amended else frozen, is_amended=is_amended)
        for (is_amended, group), look, p_holm in zip(groups, looks, corrected, strict=True)
    ]


def decided_at(gathered: Gathered) -> int | None:
    """Return the first planned look, from 1, at which every frozen claim, or every primary one, was decided.

    None if some claim is still open.
    """
    groups = [group for is_amended, group in _groups(gathered) if not is_amended]
    numbers = range(1, len(gathered.design) + 1)
    return next((number for number in numbers if _is_decided(groups, gathered, until=number)), None)


def _is_decided(groups: Sequence[Group], gathered: Gathered, *, until: int) -> bool:
    """Return whether the claims that count were decided by a look."""
    looks = [_look(group, gathered, until=until) for group in groups]
    is_primary = [group[0].claim.primary for group in groups]
    judged = [_verdict(look, p_holm) for look, p_holm in zip(looks, _gated(looks), strict=True)]
    counting = [verdict for verdict, counts in zip(judged, is_primary, strict=True) if counts or not any(is_primary)]
    return bool(counting) and all(verdict in ("supported", "contradicted") for verdict in counting)


def _groups(gathered: Gathered) -> list[tuple[bool, Group]]:
    """Return the comparisons of each verdict, with whether its claim was added later."""
    groups: dict[tuple[bool, int, tuple[str, ...]], list[Comparison]] = {}
    for is_amended, claims in ((False, gathered.frozen.claims), (True, gathered.amended)):
        for each in comparisons(claims, gathered.cells):
            groups.setdefault((is_amended, each.number, tuple(each.cells.values())), []).append(each)
    return [(is_amended, group) for (is_amended, _, _), group in groups.items()]


def _look(group: Group, gathered: Gathered, *, until: int | None = None) -> _Look:
    """Return the claim at the planned look that has the most evidence, or at the last complete one if none decides.

    The p-value is the smallest over the looks so far, each for the whole design (looks.py), so that a claim which was
    decided stays decided. `until` is the last look that counts, from 1; absent: all.
    """
    design = gathered.design
    best: _Look | None = None
    for place, num_seeds in enumerate(design[:until]):
        seeds = gathered.seeds[:num_seeds]
        if len(seeds) < num_seeds or not all(is_complete(comparison, gathered, seeds) for comparison in group):
            break
        part = decide(group, gathered, seeds=seeds, failed=gathered.judging.failed, level=bounds(design)[place])
        p_value = None if part.p_value is None else spent_level(part.p_value, place, design)
        if best is None or (p_value or 1.0) < (best.p_value or 1.0) or _is_open(best):
            best = _Look(part=part, number=place + 1, p_value=p_value)
    if best is None:
        part = decide(group, gathered, seeds=gathered.seeds, failed=gathered.judging.failed, level=LEVEL)
        best = _Look(part=part, number=0, p_value=None)
    return best


def _is_open(look: _Look) -> bool:
    return look.p_value is None or look.p_value > LEVEL


def _corrected(are_amended: Sequence[bool], looks: Sequence[_Look]) -> list[float | None]:
    """Return the p-values after Holm's correction; that of frozen claims ignores claims that were added later.

    If some claims are primary, the others are tested once all primary ones are decided (serial gatekeeping, Dmitrienko
    et al. 2003): their p-values are at least the largest of the primary ones.
    """
    num_frozen = sum(not is_amended for is_amended in are_amended)
    corrected = _gated(looks[:num_frozen])
    return corrected + _gated(looks)[num_frozen:]


def _gated(looks: Sequence[_Look]) -> list[float | None]:
    is_primary = [look.part.comparison.claim.primary for look in looks]
    if not any(is_primary):
        return holm([look.p_value for look in looks])
    first, rest = (
        holm([look.p_value for look, is_first in zip(looks, is_primary, strict=True) if is_first == wanted])
        for wanted in (True, False)
    )
    gate = max(1.0 if p_value is None else p_value for p_value in first)
    of_first, of_rest = iter(first), iter(None if p_value is None else max(p_value, gate) for p_value in rest)
    return [next(of_first) if is_first else next(of_rest) for is_first in is_primary]


def _verdict(look: _Look, p_holm: float | None) -> Verdict:
    """Return the verdict after Holm's correction."""
    if look.number == 0:
        return "interim"
    return look.part.by_interval if p_holm is not None and p_holm <= LEVEL else "inconclusive"


def _correction(look: _Look, verdict: Verdict, tested: Sequence[Group]) -> str:
    """Return what the correction over all verdicts changed, or an empty text. `tested` are the verdicts it is over."""
    alone, is_primary = look.part.by_interval, look.part.comparison.claim.primary
    if look.number == 0 or verdict == alone:
        return ""
    num_primary = sum(group[0].claim.primary for group in tested)
    num = num_primary if is_primary else len(tested) - num_primary
    behind = f", which come after {num_primary} primary" if num_primary and not is_primary else ""
    verdicts_text = "1 verdict" if num == 1 else f"{num} verdicts"
    return f"{alone} as the only claim, but not after Holm's correction over {verdicts_text}{behind}"


def _judged(
    look: _Look, p_holm: float | None, gathered: Gathered, *, group: Group, tested: Sequence[Group], is_amended: bool
) -> JudgedClaim:
    part = look.part
    comparison, difference, claim = part.comparison, part.difference, part.comparison.claim
    verdict = _verdict(look, p_holm)
    environments = environments_of(part.used)
    notes = [
        "amended: added after the sweep began" if is_amended else "",
        _correction(look, verdict, tested),
        _failed_text(part.used, claim.metric, gathered),
        *part.notes,
        *reservations(comparison, gathered, part.used, part.left_out, environments),
    ]
    found: Beside = beside(group, part, gathered, _decision(look, gathered))
    if look.number == 0 and difference is not None:
        difference = replace(difference, test=f"{difference.test}; interim")
    return JudgedClaim(
        name=claim.name,
        cells=comparison.cells,
        verdict=verdict,
        **({} if difference is None else difference.numbers()),
        p_value=part.p_value if look.number else None,
        p_holm=p_holm,
        metric=claim.metric,
        of=claim.of,
        categories=claim.categories,
        at=(comparison.at_a, comparison.at_b),
        sides=(_side_text(claim.a) or "a", _side_text(claim.b) or "b"),
        expect=expectation(claim.expect),
        is_primary=claim.primary,
        is_amended=is_amended,
        look=_look_numbers(look, gathered),
        share=None if part.share is None else _ends(part.share.mean, part.share.low, part.share.high),
        between=part.between,
        base=found.base,
        without_failed=found.without_failed,
        over_settings=found.over_settings,
        notes=tuple(dict.fromkeys(filter(None, notes))),
        environments=tuple(environments),
    )


def _side_text(selection: Mapping[str, Any]) -> str:
    """Return the cells that a side names, such as `pi_1`, or an empty text if it names none."""
    names = [selector for axis, selector in selection.items() if axis not in ("at", "suite")]
    texts = [" or ".join(map(str, name)) if isinstance(name, list) else str(name) for name in names]
    return " / ".join(text for text in texts if not text.startswith("{"))


def _decision(look: _Look, gathered: Gathered) -> Decision:
    """Return the seeds and the level of a look, or all seeds if none is complete."""
    if not look.number:
        return Decision(seeds=gathered.seeds, level=LEVEL, is_interim=True)
    design, place = gathered.design, look.number - 1
    return Decision(seeds=gathered.seeds[: design[place]], level=bounds(design)[place], is_interim=False)


def _failed_text(used: Sequence[Run], metric: str, gathered: Gathered) -> str:
    """Return which trainings failed and count all the same, or an empty text."""
    failed = sorted({run.label for run in used if has_failed(run)})
    if not failed:
        return ""
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    how = "all wrong" if gathered.judging.failed == "worst" and is_share(metric) else "their start"
    num = len({run.label for run in used})
    return f"{len(failed)} of {num} trainings failed and count as {how}: {', '.join(failed[:3])}{more}"


def _ends(mean: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high}


def _look_numbers(look: _Look, gathered: Gathered) -> dict[str, Any] | None:
    """Return which planned look the numbers are those of, and the p-value that decides there; None without looks."""
    design = gathered.judging.looks
    if not design or not look.number:
        return None
    place = look.number - 1
    return {"number": look.number, "of": len(design), "seeds": design[place], "p_bound": bounds(design)[place]}


def expectation(expect: ExpectConfig) -> str:
    """Return the expectation of a - b as a formula."""
    if expect.greater_by is not None:
        return f"a - b > {expect.greater_by:g}"
    if expect.less_by is not None:
        return f"a - b < {-expect.less_by:g}"
    if expect.share_at_least is not None:
        return f"a > {expect.share_at_least:g} b"
    return f"|a - b| < {expect.within:g}"


def caveats(judged: Sequence[JudgedClaim]) -> Iterator[str]:
    """Yield what verdicts on so many seeds cannot rule out, for those who read the page."""
    decided = [claim for claim in judged if claim.verdict in ("supported", "contradicted")]
    seeds = [claim.num_seeds for claim in decided if claim.num_seeds >= MIN_SEEDS and "crossed" in claim.test]
    seeds += [claim.num_seeds for claim in decided if "paired t" in claim.test]
    if seeds:
        fewest = min(seeds)
        unseen = 1 - LEVEL ** (1 / fewest)
        yield (
            f"Seeds count as independent trainings. {fewest} of them cannot rule out a collapse that strikes up to "
            f"{unseen:.0%} of trainings and did not strike these."
        )
