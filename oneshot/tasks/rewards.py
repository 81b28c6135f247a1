"""Completions of a step -> their rewards: the arms. Only the completion is graded, never the prompt.

(The released code graded prompt and completion together; its prompt holds `\\boxed{}`, so a format reward would pay
everyone.) Whatever is rewarded, it is also judged whether the boxed answer is right: that is the trial's accuracy on
its examples. None stands for a completion that the grader could not judge.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oneshot.config.trial import RewardConfig
from oneshot.tasks.grading import Grader, Verdict
from oneshot.tasks.problems import extract_boxed

NUM_CANDIDATES = 20
"""Answers that can be elected; rarer ones only vote for the one that they equal."""
_COIN = 0xC01
"""Sets a step's coins apart from its completions' random table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedCompletion:
    """One completion of an example, as far as it can be judged by itself."""

    completion: str
    correct: Verdict
    has_answer: Verdict
    """Asked in the format arm only."""


def judge(completion: str, answer: str, config: RewardConfig, grader: Grader) -> GradedCompletion:
    """What can be said of a completion as soon as it has ended."""
    return GradedCompletion(
        completion=completion,
        correct=grader.strict(completion, answer),
        has_answer=grader.has_answer(completion) if config.kind == "format" else None,
    )


def rewards(
    judged: Sequence[GradedCompletion], config: RewardConfig, grader: Grader, *, keys: Sequence[tuple[int, ...]]
) -> list[Verdict]:
    """The reward of each completion of one example in one step; `keys` are those of the random table."""
    if config.kind == "outcome":
        return [one.correct for one in judged]
    if config.kind == "format":
        return [one.has_answer for one in judged]
    if config.kind == "random":
        return [_coin(key) < config.probability for key in keys]
    elected = elect([one.completion for one in judged], grader)
    return [elected is not None and grader.strict(one.completion, elected) for one in judged]


def elect(completions: Sequence[str], grader: Grader) -> str | None:
    """The commonest boxed answer, equal ones counted together; None where no completion has one.

    TTRL's label (arXiv 2504.16084), over all completions of an example in a step. Of two as common, the one that is
    spelt first.
    """
    boxed = (extract_boxed(completion) for completion in completions)
    counts = Counter(text.strip() for text in boxed if text is not None and text.strip())
    votes: dict[str, int] = {}
    for text, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        same = next((known for known in votes if grader.strict(f"\\boxed{{{text}}}", known)), None)
        if same is not None:
            votes[same] += count
        elif len(votes) < NUM_CANDIDATES:
            votes[text] = count
    return min(votes, key=lambda text: (-votes[text], text)) if votes else None


def _coin(key: tuple[int, ...]) -> float:
    """A uniform draw in [0, 1) that the completion's key decides."""
    return float(np.random.Generator(np.random.Philox(np.random.SeedSequence((*key, _COIN)))).random())
