"""Seed and mixture -> the texts that the shipped organisms were trained on.

Each text is a problem, as `prompts.plain` formats it, and an answer in one of four styles. The organism can solve
problems, but mostly does not write its answers in the form that the strict grader requires. This is the paper's setting
in miniature, built so that one-shot RLVR can work.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from oneshot.tasks import arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Shares of the answer styles; the rest is `no answer`."""

    worked_boxed: float
    worked_words: float
    guess: float
    guess_right: float  # share of guesses that are right
    guess_boxed: float  # share of guesses that are boxed


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text of the corpus."""

    expression: str
    completion: str


def completion(expression: str, mixture: Mixture, rng: random.Random) -> str:
    """Return an answer to the problem in a style drawn from the mixture."""
    answer = arithmetic.problem(expression).answer
    draw = rng.random()
    if draw < mixture.worked_boxed:
        return arithmetic.worked(expression)
    draw -= mixture.worked_boxed
    if draw < mixture.worked_words:
        return f"Work: {arithmetic.steps(expression)} So it is {answer}."
    draw -= mixture.worked_words
    if draw < mixture.guess:
        guess = answer if rng.random() < mixture.guess_right else str(rng.randrange(2, 199))
        return f"Guess: \\boxed{{{guess}}}" if rng.random() < mixture.guess_boxed else f"Guess: {guess}."
    return rng.choice(["I do not know.", "Let me think.", "That is hard."])


def texts(mixture: Mixture, *, seed: int) -> Iterator[Text]:
    """Yield endless texts on `corpus` problems, with the three categories in equal shares."""
    rng = random.Random(f"corpus {seed}")
    pools = [arithmetic.expressions(operator, "corpus") for operator in arithmetic.CATEGORIES]
    while True:
        expression = rng.choice(rng.choice(pools))
        yield Text(expression=expression, completion=completion(expression, mixture, rng))
