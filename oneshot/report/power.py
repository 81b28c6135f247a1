"""A plan's claims -> the smallest difference that each can detect, under stated assumptions, before the sweep runs."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt

from oneshot.config.claims import ClaimConfig
from oneshot.errors import DataError
from oneshot.plan.claims import Comparison, comparisons, trained_categories
from oneshot.plan.plan import Plan
from oneshot.plan.trial import Trial
from oneshot.tasks.benchmarks import load_suites
from oneshot.tasks.measures import is_one_of, is_share, suite_of

LEVEL = 0.05  # of the two-sided test
MIN_SEEDS = 3
STEPS = 100_000  # the search for an effect has a resolution of a thousandth of a point of accuracy
CLEAR = 30.0  # standard errors beyond which power is 1 to nine digits, and SciPy's tails underflow to NaN
GIVEN = 10_000  # number of replicates that stands for "no training": t is normal with so many


def power(
    effect: float, *, num_seeds: int, num_problems: int | None, seed_sd: float, discordance: float
) -> float | None:
    """Return the chance that the t interval over seeds lies on the effect's side of zero; None below three seeds.

    The standard error of a difference is sqrt(seed_sd^2 / S + (discordance - effect^2) / P). `seed_sd` is the SD of one
    seed's difference of accuracies that is due to training. `discordance` is the share of problems that one cell gets
    right and the other wrong, at least `effect`; more seeds do not reduce its part. Without `num_problems` only seeds
    count.
    """
    if num_seeds < MIN_SEEDS:
        return None
    return _power(abs(effect), num_seeds=num_seeds, num_problems=num_problems, seed_sd=seed_sd, discordance=discordance)


def detectable(
    *, num_seeds: int, num_problems: int | None, seed_sd: float, discordance: float, power: float = 0.8
) -> float | None:
    """Return the smallest effect that is detected with this power, rounded up to a thousandth of a point.

    None below three seeds, and if no effect below 1 reaches the power.
    """
    if num_seeds < MIN_SEEDS:
        return None
    chance = partial(_power, num_seeds=num_seeds, num_problems=num_problems, seed_sd=seed_sd, discordance=discordance)
    step = bisect_left(range(STEPS), power, key=lambda step: chance(step / STEPS))
    return step / STEPS if step < STEPS else None


def _power(effect: float, *, num_seeds: int, num_problems: int | None, seed_sd: float, discordance: float) -> float:
    # takes a quarter of a second to import, and most plans have no claims
    from scipy.special import nctdtr, stdtrit

    by_seed = seed_sd**2 / num_seeds
    by_problem = (max(discordance, effect) - effect**2) / num_problems if num_problems else 0.0
    error = sqrt(by_seed + by_problem)
    if error == 0.0:
        return float(effect > 0)
    df = num_seeds - 1
    return float(1 - nctdtr(df, min(effect / error, CLEAR), stdtrit(df, 1 - LEVEL / 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """The difference that one verdict is able to detect."""

    name: str
    cells: dict[str, str]
    num_seeds: int
    num_problems: int | None  # none if the metric is not counted over problems, or the problems are not fetched
    is_given: bool  # whether neither side is trained, so that problems are the only replicates
    seed_sd: float
    discordance: float
    detectable: float | None  # smallest true difference that is detected with power 0.8, or None if there is none
    effect: float | None
    power: float | None  # power for `effect`, if the claim states one


def find_prospects(plan: Plan, claims: Sequence[ClaimConfig], *, num_seeds: int) -> list[Prospect]:
    """Return a prospect for every verdict on a share of completions, in the claims' order."""
    trials = {tuple(trial.cell.items()): trial for trial in plan.grid}
    prospects: dict[tuple[int, tuple[str, ...]], Prospect] = {}
    for comparison in comparisons(claims, list({names: dict(names) for names in trials}.values())):
        if not is_share(comparison.claim.metric):
            continue
        trial = trials[tuple(comparison.pairs[0].a[0].items())]
        verdict = (comparison.number, tuple(comparison.cells.values()))
        prospects.setdefault(verdict, _prospect(comparison, trial, num_seeds=num_seeds))
    return list(prospects.values())


def _prospect(comparison: Comparison, trial: Trial, *, num_seeds: int) -> Prospect:
    claim = comparison.claim
    num_problems, assumed, effect = _num_problems(claim, trial), claim.power, claim.power.effect
    is_given = comparison.at_a == comparison.at_b == "start" or trial.config.train.num_steps == 0
    model = {"seed_sd": 0.0 if is_given else assumed.seed_sd, "discordance": assumed.discordance}
    replicates = GIVEN if is_given else num_seeds
    return Prospect(
        name=claim.name,
        cells=comparison.cells,
        num_seeds=num_seeds,
        num_problems=num_problems,
        is_given=is_given,
        seed_sd=model["seed_sd"],
        discordance=assumed.discordance,
        detectable=detectable(num_seeds=replicates, num_problems=num_problems, **model),
        effect=effect,
        power=None if effect is None else power(effect, num_seeds=replicates, num_problems=num_problems, **model),
    )


def _num_problems(claim: ClaimConfig, trial: Trial) -> int | None:
    suite = next((suite for suite in load_suites(trial.config) if suite.name == suite_of(claim.metric)), None)
    if suite is None:
        return None
    try:
        problems = suite.problems
    except DataError:  # not fetched yet
        return None
    trained = trained_categories(trial.labels, trial.config) if claim.categories != "all" else frozenset()
    is_trained = is_one_of(trained)
    is_wanted = {"all": True, "trained": True, "untrained": False}[claim.categories]
    return sum(claim.categories == "all" or is_trained(problem.category) == is_wanted for problem in problems)


def prospect_lines(prospects: Sequence[Prospect]) -> list[str]:
    """Return the prospects as text, one line for all that have the same text."""
    names: dict[str, list[str]] = {}
    for prospect in prospects:
        names.setdefault(_prospect_text(prospect), []).append(prospect.name)
    lines = [f"{text}  [{'; '.join(dict.fromkeys(claims))}]" for text, claims in names.items()]
    return ["power of the claims, by a conservative model (docs/statistics.md):", *lines] if lines else []


def _prospect_text(prospect: Prospect) -> str:
    problems = f" x {prospect.num_problems} problems" if prospect.num_problems is not None else ""
    if prospect.num_seeds < MIN_SEEDS and not prospect.is_given:
        text = "no interval with fewer than 3 seeds, so the verdict will be inconclusive"
    elif prospect.detectable is None:
        text = "no difference can be detected"
    else:
        text = f"detects {100 * prospect.detectable:.1f} points with 80% power"
    if prospect.is_given:
        text += " (nothing is trained, so seeds do not count)"
    if prospect.power is not None and prospect.effect is not None:
        text += f", {100 * prospect.effect:g} points with {prospect.power:.0%}"
    assumed = f"seed SD {100 * prospect.seed_sd:g} points, discordance {prospect.discordance:.0%}"
    return f"{prospect.num_seeds} seeds{problems} ({assumed}): {text}"
