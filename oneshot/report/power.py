"""A plan's claims -> what each can detect and how many seeds it needs, by the rule that will judge, before it runs.

The two-way layout of contrast.py is drawn DRAWS times: seeds, problems and the rest are normal, and their mean squares
are chi-squares. The interval is the widest of t over seeds, seeds crossed with problems, and problems without skew, at
the level that Holm's correction leaves to the first of the sweep's verdicts. The draws are the same each time.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from oneshot.config.claims import ClaimConfig, ExpectConfig, GroupConfig
from oneshot.errors import DataError
from oneshot.plan.claims import Comparison, comparisons, trained_categories
from oneshot.plan.plan import Plan
from oneshot.plan.trial import Trial
from oneshot.report.constants import LEVEL, MIN_SEEDS, Array
from oneshot.tasks.benchmarks import load_suites
from oneshot.tasks.measures import group_of, is_one_of, is_share, suite_of

DRAWS = 4_000  # the standard error of a power of 0.8 is 0.6 points
STEPS = 1_000  # the search for an effect has a resolution of a tenth of a point of accuracy
WANTED = 0.8
MOST_SEEDS = 100
MANY = 1e9  # degrees of freedom of what is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What varies in a comparison: the replicates, and the spread of differences between them."""

    num_seeds: int | None  # None if nothing is trained, so that seeds do not vary
    num_problems: int | None  # None if the metric is not counted over problems
    seed_sd: float  # SD of one seed's difference of accuracies that is due to training
    discordance: float  # share of problems on which one side is right and the other wrong, at least the effect
    rest_variance: float = 0.0  # part of the variance over problems that more seeds average out, if there are seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What varied in a comparison that has been measured."""

    seed_sd: float  # SD of one seed's difference that is due to training
    discordance: float  # mean square of a problem's difference
    rest_variance: float  # variance of one problem at one seed that is neither the seed's nor the problem's


def power(effect: float, noise: Noise, *, num_verdicts: int = 1, within: float | None = None) -> float | None:
    """Return the chance of a verdict for the claim if the true difference is `effect`; None below three seeds.

    The interval must lie on the effect's side of 0, or with `within` between -within and within. A difference of shares
    has the variance discordance - effect^2 over problems; `rest_variance` of it is chance at each seed, and the rest
    is the same at every seed, so that more seeds do not reduce its part.
    """
    num_seeds = noise.num_seeds
    if num_seeds is not None and num_seeds < MIN_SEEDS:
        return None
    effect = abs(effect)
    total = max(noise.discordance, effect) - effect**2 if noise.num_problems else 0.0
    rest = 0.0 if num_seeds is None else min(noise.rest_variance, total)
    normal, seeds, problems, residual = _draws(num_seeds, noise.num_problems)
    count, num_problems = num_seeds or 1, noise.num_problems or 1
    rest_part = rest / (count * num_problems)
    by_seed = 0.0 if num_seeds is None else noise.seed_sd**2 / count + rest_part
    by_problem = ((total - rest) / num_problems + rest_part) if noise.num_problems else 0.0
    error = np.sqrt(max(0.0, by_seed + by_problem - rest_part))
    half = _half_width(by_seed * seeds, by_problem * problems, rest_part * residual, noise, level=LEVEL / num_verdicts)
    estimate = effect + error * normal
    is_decided = estimate - half > 0 if within is None else np.abs(estimate) + half < within
    return float(np.mean(is_decided))


def _half_width(by_seed: Array, by_problem: Array, rest: Array, noise: Noise, *, level: float) -> Array:
    # takes a quarter of a second to import, and most plans have no claims
    from scipy.special import stdtrit

    seed_df = MANY if noise.num_seeds is None else noise.num_seeds - 1
    problem_df = MANY if noise.num_problems is None else max(1, noise.num_problems - 1)
    combined = np.maximum(by_seed + by_problem - rest, 0.0)
    spread = by_seed**2 / seed_df + by_problem**2 / problem_df + rest**2 / (seed_df * problem_df)
    df = np.divide(combined**2, spread, out=np.full_like(combined, MANY), where=spread > 0)
    crossed = stdtrit(np.maximum(df, min(seed_df, problem_df)), 1 - level / 2) * np.sqrt(combined)
    alone = (stdtrit(df, 1 - level / 2) * np.sqrt(part) for df, part in ((seed_df, by_seed), (problem_df, by_problem)))
    return np.asarray(np.maximum.reduce([crossed, *alone]))


@lru_cache(maxsize=256)
def _draws(num_seeds: int | None, num_problems: int | None) -> tuple[Array, Array, Array, Array]:
    """Return a normal number, and the mean squares of seeds, problems and the rest as parts of their expectation."""
    rng = np.random.default_rng(0)
    seed_df = None if num_seeds is None else num_seeds - 1
    problem_df = None if num_problems is None else max(1, num_problems - 1)
    normal = rng.standard_normal(DRAWS)
    seeds, problems = (np.ones(DRAWS) if df is None else rng.chisquare(df, DRAWS) / df for df in (seed_df, problem_df))
    rest_df = (seed_df or 1) * (problem_df or 1)
    return normal, seeds, problems, rng.chisquare(rest_df, DRAWS) / rest_df


def detectable(noise: Noise, *, num_verdicts: int = 1, wanted: float = WANTED) -> float | None:
    """Return the smallest effect that is detected with this power, rounded up to a tenth of a point.

    None below three seeds, and if no effect below 1 reaches the power.
    """
    if noise.num_seeds is not None and noise.num_seeds < MIN_SEEDS:
        return None
    chance = partial(power, noise=noise, num_verdicts=num_verdicts)
    step = bisect_left(range(STEPS), wanted, key=lambda step: chance(step / STEPS) or 0.0)
    return step / STEPS if step < STEPS else None


def seeds_needed(
    effect: float, noise: Noise, *, num_verdicts: int = 1, within: float | None = None, wanted: float = WANTED
) -> int | None:
    """Return the fewest seeds that reach this power, or None if 100 do not."""

    def chance(num_seeds: int) -> float:
        return power(effect, replace(noise, num_seeds=num_seeds), num_verdicts=num_verdicts, within=within) or 0.0

    counts = range(MIN_SEEDS, MOST_SEEDS + 1)
    place = bisect_left(counts, wanted, key=chance)
    return counts[place] if place < len(counts) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What one verdict is able to detect."""

    name: str
    cells: dict[str, str]
    num_seeds: int
    num_problems: int | None  # none if the metric is not counted over problems, or the problems are not fetched
    num_verdicts: int  # verdicts that Holm's correction counts
    is_given: bool  # whether neither side is trained, so that problems are the only replicates
    is_observed: bool  # whether the spread is that of the sweep's own results, not the claim's assumption
    seed_sd: float
    discordance: float
    bound: float  # of the claim; an effect counts from here
    within: float | None  # of a claim that two sides are alike
    share: float | None  # of a claim that one gain is a share of another
    detectable: float | None  # smallest true difference beyond the bound with power 0.8, or None if there is none
    effect: float | None
    power: float | None  # power for `effect` if the claim states one, or for no difference if the claim is `within`
    seeds_needed: int | None  # seeds that reach power 0.8 for it, or None if 100 do not


def find_prospects(
    plan: Plan,
    claims: Sequence[ClaimConfig],
    *,
    num_seeds: int,
    spread_of: Callable[[Comparison], Spread | None] = lambda _: None,
) -> list[Prospect]:
    """Return a prospect for every verdict on a share of completions, in the claims' order.

    `spread_of` measures a comparison's spread, if the sweep has results (spread.py); else it is what the claim assumes.
    """
    trials = {tuple(trial.cell.items()): trial for trial in plan.grid}
    found = comparisons(claims, list({names: dict(names) for names in trials}.values()))
    verdicts = {(each.number, tuple(each.cells.values())): each for each in reversed(found)}
    primary = [each for each in verdicts.values() if each.claim.primary]
    prospects: dict[tuple[int, tuple[str, ...]], Prospect] = {}
    for comparison in found:
        if not is_share(comparison.claim.metric):
            continue
        trial = trials[tuple(comparison.pairs[0].a[0].items())]
        verdict = (comparison.number, tuple(comparison.cells.values()))
        if verdict in prospects:
            continue
        spread = spread_of(comparison)
        prospects[verdict] = _prospect(
            comparison,
            _noise(comparison, trial, spread, plan.groups, num_seeds=num_seeds),
            is_observed=spread is not None,
            num_seeds=num_seeds,
            num_verdicts=len(primary) if comparison.claim.primary else len(verdicts) - len(primary),
        )
    return list(prospects.values())


def _noise(
    comparison: Comparison, trial: Trial, spread: Spread | None, groups: Mapping[str, GroupConfig], *, num_seeds: int
) -> Noise:
    assumed = comparison.claim.power
    is_given = comparison.at_a == comparison.at_b == "start" or trial.config.train.num_steps == 0
    return Noise(
        num_seeds=None if is_given else num_seeds,
        num_problems=_num_problems(comparison.claim, trial, groups),
        seed_sd=0.0 if is_given else assumed.seed_sd if spread is None else spread.seed_sd,
        discordance=assumed.discordance if spread is None else spread.discordance,
        rest_variance=assumed.chance * assumed.discordance if spread is None else spread.rest_variance,
    )


def _prospect(
    comparison: Comparison, noise: Noise, *, is_observed: bool, num_seeds: int, num_verdicts: int
) -> Prospect:
    claim = comparison.claim
    bound, within, effect = _bound(claim.expect, claim.power.effect), claim.expect.within, claim.power.effect
    wanted = 0.0 if within is not None else None if effect is None else _distance(claim.expect, effect)
    is_askable = wanted is not None and (within is not None or wanted > 0)
    chance = power(wanted or 0.0, noise, num_verdicts=num_verdicts, within=within) if is_askable else None
    needed = None
    if is_askable and noise.num_seeds is not None:
        needed = seeds_needed(wanted or 0.0, noise, num_verdicts=num_verdicts, within=within)
    return Prospect(
        name=claim.name,
        cells=comparison.cells,
        num_seeds=num_seeds,
        num_problems=noise.num_problems,
        num_verdicts=num_verdicts,
        is_given=noise.num_seeds is None,
        is_observed=is_observed,
        seed_sd=noise.seed_sd,
        discordance=noise.discordance,
        bound=bound,
        within=within,
        share=claim.expect.share_at_least,
        detectable=detectable(noise, num_verdicts=num_verdicts),
        effect=effect,
        power=chance,
        seeds_needed=needed,
    )


def _bound(expect: ExpectConfig, effect: float | None) -> float:
    """Return the difference from which a claim holds, in the direction that it expects."""
    if expect.share_at_least is not None:
        return -(1 - expect.share_at_least) * (effect or 0.0)
    return expect.greater_by or expect.less_by or 0.0


def _distance(expect: ExpectConfig, effect: float) -> float:
    """Return how far beyond the bound an effect is. For a share it is the gain of `b`, and `a` is taken to equal it."""
    if expect.share_at_least is not None:
        return (1 - expect.share_at_least) * effect
    return effect - _bound(expect, effect)


def _num_problems(claim: ClaimConfig, trial: Trial, groups: Mapping[str, GroupConfig]) -> int | None:
    """Return the number of problems; for a group whose suites count equally, the number with the same error."""
    group = group_of(claim.metric)
    suites = [suite_of(claim.metric)] if group is None else groups[group].suites
    sizes = [_size(claim, trial, suite) for suite in suites]
    known = [size for size in sizes if size]
    if not known or len(known) < len(sizes):
        return None
    if group is None or groups[group].weight == "problem":
        return sum(known)
    return round(len(known) ** 2 / sum(1 / size for size in known))


def _size(claim: ClaimConfig, trial: Trial, name: str | None) -> int | None:
    suite = next((suite for suite in load_suites(trial.config) if suite.name == name), None)
    if suite is None:
        return None
    if claim.categories == "all":
        return suite.count
    try:
        problems = suite.problems
    except DataError:  # not fetched yet
        return None
    is_trained = is_one_of(trained_categories(trial.labels, trial.config))
    return sum(is_trained(problem.category) == (claim.categories == "trained") for problem in problems)


def prospect_lines(prospects: Sequence[Prospect]) -> list[str]:
    """Return the prospects as text, one line for all that have the same text."""
    names: dict[str, list[str]] = {}
    for prospect in prospects:
        names.setdefault(_prospect_text(prospect), []).append(prospect.name)
    lines = [f"{text}  [{'; '.join(dict.fromkeys(claims))}]" for text, claims in names.items()]
    return ["power of the claims, by the rule that will judge (docs/statistics.md):", *lines] if lines else []


def _prospect_text(prospect: Prospect) -> str:
    problems = f" x {prospect.num_problems} problems" if prospect.num_problems is not None else ""
    source = "measured " if prospect.is_observed else ""
    assumed = f"{source}seed SD {100 * prospect.seed_sd:.3g} points, discordance {prospect.discordance:.0%}"
    among = f" among {prospect.num_verdicts} verdicts" if prospect.num_verdicts > 1 else ""
    if prospect.num_seeds < MIN_SEEDS and not prospect.is_given:
        text = "no interval with fewer than 3 seeds, so the verdict will be inconclusive"
    elif prospect.within is not None:
        chance = _percent(prospect.power)
        text = f"{_goal(prospect)} with {chance} power{among} if there is no difference"
    elif prospect.share is not None and prospect.effect is not None:
        text = f"{_goal(prospect)} with {_percent(prospect.power)} power{among} if the gains are equal"
    elif prospect.detectable is None:
        text = f"no difference can be detected{among}"
    else:
        beyond = f" beyond {100 * prospect.bound:+g}" if prospect.bound else ""
        text = f"detects {100 * prospect.detectable:.1f} points{beyond} with 80% power{among}"
        if prospect.power is not None and prospect.effect is not None:
            text += f", {_goal(prospect)} with {_percent(prospect.power)}"
    if prospect.is_given:
        return f"{prospect.num_seeds} seeds{problems} ({assumed}): {text} (nothing is trained, so seeds do not count)"
    return f"{prospect.num_seeds} seeds{problems} ({assumed}): {text}{_seeds_text(prospect, among)}"


def _goal(prospect: Prospect) -> str:
    if prospect.within is not None:
        return f"within {100 * prospect.within:g} points"
    if prospect.share is not None:
        return f"{prospect.share:.0%} of a gain of {100 * (prospect.effect or 0.0):g} points"
    return f"{100 * (prospect.effect or 0.0):g} points"


def _seeds_text(prospect: Prospect, among: str) -> str:
    """Return how many seeds reach 80% power, if it is known what for."""
    if prospect.within is None and prospect.effect is None:
        return ""
    if prospect.seeds_needed is None:
        problems = f"{MOST_SEEDS} seeds" if prospect.num_problems is None else f"{prospect.num_problems} problems"
        return f"; {_goal(prospect)} at 80%{among}: not with {problems}"
    return f"; {_goal(prospect)} at 80%{among}: {prospect.seeds_needed} seeds"


def _percent(share: float | None) -> str:
    return "no" if share is None else f"{share:.0%}"
