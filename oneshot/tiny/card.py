"""A shipped organism -> its model card with measurements: `python -m oneshot.tiny.card`."""

from dataclasses import dataclass
from pathlib import Path

from accelerate.accelerator import Accelerator
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from oneshot.config.evaluation import SuiteConfig
from oneshot.config.model import ModelConfig
from oneshot.config.trial import PromptConfig, RolloutConfig, TrialConfig
from oneshot.models.source import SHIPPED
from oneshot.policy.loading import load_policy
from oneshot.policy.world import World
from oneshot.rollout.lockstep import Lockstep
from oneshot.tasks.benchmarks import load_suite
from oneshot.tasks.grading import Grader
from oneshot.tiny.make import ORGANISMS, Organism
from oneshot.training.evaluate import evaluate

MAX_TOKENS = 56


@dataclass(frozen=True, slots=True, kw_only=True)
class CardNumbers:
    """Metrics on held-out problems, sampled at temperature 1 and greedy."""

    num_problems: int
    num_parameters: int
    sampled: dict[str, float]
    greedy: dict[str, float]


def measure(name: str, *, num_problems: int = 100) -> CardNumbers:
    """Evaluate an organism on at most `num_problems` held-out problems per category, seed 0."""
    config = TrialConfig(
        model=ModelConfig(path=f"tiny:{name}"),
        prompt=PromptConfig(template="plain"),
        examples=["arithmetic:47+38"],
        rollout=RolloutConfig(max_tokens=MAX_TOKENS),
    )
    policy = load_policy(config.model)
    metrics, count = [], 0
    with Grader() as grader:
        for temperature in (1.0, 0.0):
            suite = load_suite("arithmetic", SuiteConfig(num_problems=num_problems, temperature=temperature), config)
            evaluation = evaluate(
                policy,
                suite,
                engine=Lockstep(kv_gib=1.0),
                grader=grader,
                seed=0,
                step=0,
                world=World(Accelerator(cpu=True)),
            )
            metrics.append({key.removeprefix("eval/arithmetic/"): value for key, value in evaluation.metrics.items()})
            count = len(suite.problems)
    return CardNumbers(
        num_problems=count, num_parameters=policy.model.num_parameters(), sampled=metrics[0], greedy=metrics[1]
    )


def card(organism: Organism, measured: CardNumbers) -> str:
    """Return the model card's text."""
    mixture = organism.mixture
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    return templates.get_template("card.md.j2").render(
        organism=organism,
        measured=measured,
        mixture=mixture,
        percent="{:.0%}".format,
        kind=organism.config_class.__name__.removesuffix("Config"),
        can_do=bool(mixture.worked_boxed + mixture.worked_words),
        no_answer=1 - mixture.worked_boxed - mixture.worked_words - mixture.guess,
        max_tokens=MAX_TOKENS,
    )


def main() -> None:
    """Write the card of every organism."""
    for name, organism in ORGANISMS.items():
        (SHIPPED / name / "README.md").write_text(card(organism, measure(name)))


if __name__ == "__main__":
    main()
