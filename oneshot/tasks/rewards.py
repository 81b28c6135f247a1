"""Completions of a step -> their rewards, by arm.

Only the completion is graded. (The released code grades prompt and completion together; its prompt contains
`\\boxed{}`, so that every completion would earn a format reward.) In every arm the boxed answer is graded too, for the
accuracy on the examples. None is a completion that the grader could not judge.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oneshot.config.evaluation import GraderName
from oneshot.config.trial import RewardConfig
from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.grading import Grader, Verdict

NUM_CANDIDATES = 20  # answers that can be elected; a rarer answer only counts for one that it equals
_COIN = 0xC01  # separates the coins' random stream from the completions' random table


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedCompletion:
    """One completion of an example, with the verdicts that need no other completion."""

    completion: str
    correct: Verdict
    has_answer: Verdict  # judged in the format arm only


def judge(completion: str, answer: str, config: RewardConfig, grader: Grader) -> GradedCompletion:
    """Grade a completion as soon as it has ended."""
    return GradedCompletion(
        completion=completion,
        correct=grader.verdict(config.grader, completion, answer),
        has_answer=grader.has_answer(completion) if config.kind == "format" else None,
    )


def rewards(
    group: Sequence[GradedCompletion], config: RewardConfig, grader: Grader, *, keys: Sequence[tuple[int, ...]]
) -> list[Verdict]:
    """Return the reward of each completion of one example in one step; `keys` are those of the random table."""
    if config.kind == "outcome":
        return [graded.correct for graded in group]
    if config.kind == "format":
        return [graded.has_answer for graded in group]
    if config.kind == "random":
        return [_coin(key) < config.probability for key in keys]
    elected = elect([graded.completion for graded in group], grader, config.grader)
    return [elected is not None and grader.verdict(config.grader, graded.completion, elected) for graded in group]


def elect(completions: Sequence[str], grader: Grader, name: GraderName = "strict") -> str | None:
    """Return the most common boxed answer, equal answers counted together; None if no completion has one.

    This is TTRL's label (arXiv 2504.16084), over all completions of an example in a step. The alphabet breaks ties.
    """
    boxed = (extract_boxed(completion) for completion in completions)
    counts = Counter(text.strip() for text in boxed if text is not None and text.strip())
    votes: dict[str, int] = {}
    for text, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        same = next((candidate for candidate in votes if grader.verdict(name, f"\\boxed{{{text}}}", candidate)), None)
        if same is not None:
            votes[same] += count
        elif len(votes) < NUM_CANDIDATES:
            votes[text] = count
    return min(votes, key=lambda text: (-votes[text], text)) if votes else None


def _coin(key: tuple[int, ...]) -> float:
    """Draw a uniform number in [0, 1) that depends only on the completion's key."""
    return float(np.random.Generator(np.random.Philox(np.random.SeedSequence((*key, _COIN)))).random())
