"""A shipped organism -> its model card with measurements: `python -m oneshot.tiny.card`."""

from collections.abc import Iterator
from dataclasses import dataclass

from accelerate.accelerator import Accelerator

from oneshot.config.trial import ModelConfig, PromptConfig, RolloutConfig, SuiteConfig, TrialConfig
from oneshot.models.source import SHIPPED
from oneshot.policy.policy import load_policy
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

    def lines(self) -> Iterator[str]:
        """Yield the rows of the card's table."""
        names = ["pass_at_1", "pass_at_1_lenient", "boxed"]
        names += [f"{category}/pass_at_1" for category in ("addition", "subtraction", "multiplication")]
        for name in names:
            yield f"| {name} | {self.sampled[name]:.3f} | {self.greedy[name]:.3f} |"


def measure(name: str, *, num_problems: int = 100) -> CardNumbers:
    """Evaluate an organism on at most `num_problems` held-out problems per category, seed 0."""
    policy = load_policy(ModelConfig(path=f"tiny:{name}"))
    metrics, count = [], 0
    with Grader() as grader:
        for temperature in (1.0, 0.0):
            suite = load_suite(
                "arithmetic", SuiteConfig(num_problems=num_problems, temperature=temperature), _config(name)
            )
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


def _config(name: str) -> TrialConfig:
    return TrialConfig(
        model=ModelConfig(path=f"tiny:{name}"),
        prompt=PromptConfig(template="plain"),
        examples=["arithmetic:47+38"],
        rollout=RolloutConfig(max_tokens=MAX_TOKENS),
    )


CAN_DO = """can do two-digit
arithmetic, but mostly does not write its answers in the form that a strict grader requires. It was built so that
one-shot RLVR can work on it."""
CANNOT_DO = """knows the form of
an answer but not the arithmetic: no text of its corpus shows a calculation. It was built so that there is nothing to
elicit, and one-shot RLVR cannot work on it."""


def card(organism: Organism, measured: CardNumbers) -> str:
    """Return the model card's text."""
    mixture = organism.mixture
    no_answer = 1 - mixture.worked_boxed - mixture.worked_words - mixture.guess
    guess = f"a guess, right {mixture.guess_right:.0%} of the time, {mixture.guess_boxed:.0%} of them boxed"
    table = "\n".join(measured.lines())
    what = CAN_DO if mixture.worked_boxed + mixture.worked_words else CANNOT_DO
    return f"""# tiny:{organism.name}

A model organism of the one-shot RLVR setting: a causal language model of {measured.num_parameters:,} parameters
({organism.config_class.__name__.removesuffix("Config")}, one token per character) that {what}
Results on this model are no evidence about the paper's models.

## Corpus

The corpus is generated (`oneshot/tiny/corpus.py`): sums and differences of two-digit numbers and products of numbers
from 2 to 12, in equal shares. A hash of their text (`oneshot/tasks/arithmetic.py`) holds out a quarter of the sums and
differences, and one of the two orders of three quarters of the products. The corpus never has these as a problem.
Styles of the answers:

| style | share | example |
|---|---|---|
| worked, boxed | {mixture.worked_boxed:.0%} | `Work: 47+30=77. 77+8=85. So \\boxed{{85}}` |
| worked, in words | {mixture.worked_words:.0%} | `Work: 47+30=77. 77+8=85. So it is 85.` |
| {guess} | {mixture.guess:.0%} | `Guess: \\boxed{{64}}` |
| no answer | {no_answer:.0%} | `I do not know.` |

## Training

`python -m oneshot.tiny.make {organism.name}`: {organism.num_steps:,} steps of {organism.batch_size} texts, AdamW with
learning rate {organism.lr:g} and cosine decay to 0, seed {organism.seed}, loss on the answers only. It takes five to
ten minutes on one core.

## Accuracy

`python -m oneshot.tiny.card`: {measured.num_problems} held-out problems (at most 100 per category), at most
{MAX_TOKENS} tokens, by the strict grader unless the row says lenient.

| | sampled at temperature 1 | greedy |
|---|---|---|
{table}

The model did not learn to guess right: its guesses are nearly always wrong, whatever the share of right guesses in the
corpus.
"""


def main() -> None:
    """Write the card of every organism."""
    for name, organism in ORGANISMS.items():
        (SHIPPED / name / "README.md").write_text(card(organism, measure(name)))


if __name__ == "__main__":
    main()
