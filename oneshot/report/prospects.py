"""A sweep's claims, before it runs -> how small a difference each could show, under assumptions that are said."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from oneshot.config.sweep import ClaimConfig
from oneshot.errors import DataError
from oneshot.plan.claims import Comparison, comparisons, trained_categories
from oneshot.plan.plan import Plan, Trial
from oneshot.report.power import detectable, power
from oneshot.tasks.benchmarks import load_suites
from oneshot.tasks.measures import is_one_of, is_share, suite_of

GIVEN = 10_000
"""Replicates that leave t normal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What one verdict may be able to say."""

    name: str
    cells: dict[str, str]
    num_seeds: int
    num_problems: int | None
    """None: the metric is not counted over problems, or they are not at hand."""
    is_given: bool
    """Whether nothing is trained between both sides: problems alone are the replicates."""
    seed_sd: float
    discordance: float
    detectable: float | None
    """Smallest true difference that is told from the bound with power 0.8; None: none is."""
    effect: float | None
    power: float | None
    """Of `effect`, where the claim states one."""

    def to_json(self) -> dict[str, Any]:
        """As `plan --json` prints it."""
        return asdict(self)


def prospects(plan: Plan, claims: Sequence[ClaimConfig], *, num_seeds: int) -> list[Prospect]:
    """One for every verdict to be on a share of completions, in the claims' order."""
    trials = {tuple(trial.cell.items()): trial for trial in plan.grid}
    found: dict[tuple[int, tuple[str, ...]], Prospect] = {}
    for one in comparisons(claims, list({names: dict(names) for names in trials}.values())):
        if not is_share(one.claim.metric):
            continue
        trial = trials[tuple(one.pairs[0].a[0].items())]
        found.setdefault((one.number, tuple(one.cells.values())), _prospect(one, trial, num_seeds=num_seeds))
    return list(found.values())


def _prospect(asked: Comparison, trial: Trial, *, num_seeds: int) -> Prospect:
    claim = asked.claim
    num_problems, assumed, effect = _num_problems(claim, trial), claim.power, claim.power.effect
    is_given = asked.at_a == asked.at_b == "start" or trial.config.train.num_steps == 0
    model = {"seed_sd": 0.0 if is_given else assumed.seed_sd, "discordance": assumed.discordance}
    replicates = GIVEN if is_given else num_seeds
    return Prospect(
        name=claim.name,
        cells=asked.cells,
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
    suite = next((one for one in load_suites(trial.config) if one.name == suite_of(claim.metric)), None)
    if suite is None:
        return None
    try:
        problems = suite.problems
    except DataError:  # not fetched yet
        return None
    trained = trained_categories(trial.labels, trial.config) if claim.categories != "all" else frozenset()
    is_trained = is_one_of(trained)
    is_wanted = {"all": True, "trained": True, "untrained": False}[claim.categories]
    return sum(claim.categories == "all" or is_trained(one.category) == is_wanted for one in problems)


def _told(detectable: float) -> str:
    return f"{100 * detectable:.1f} points or more are told in 4 sweeps of 5"


def prospect_lines(found: Sequence[Prospect]) -> list[str]:
    """A line for all that are alike."""
    said: dict[str, list[str]] = {}
    for one in found:
        over = f" x {one.num_problems} problems" if one.num_problems is not None else ""
        if one.is_given:
            says = "nothing is trained between, so seeds do not count: "
            says += "nothing could be told" if one.detectable is None else _told(one.detectable)
        elif one.num_seeds < 3:
            says = "fewer than 3 seeds give no interval: the verdict will be inconclusive"
        elif one.detectable is None:
            says = "no difference could be told"
        else:
            says = _told(one.detectable)
        if one.power is not None and one.effect is not None:
            says += f", {100 * one.effect:g} points in {one.power:.0%}"
        assumed = f"seed SD {100 * one.seed_sd:g} points, discordance {one.discordance:.0%}"
        said.setdefault(f"{one.num_seeds} seeds{over} ({assumed}): {says}", []).append(one.name)
    lines = [f"{text}  [{'; '.join(dict.fromkeys(names))}]" for text, names in said.items()]
    return ["claims, by a cautious model (docs/statistics.md):", *lines] if lines else []
