"""Completions of a step -> their rewards, by arm.

Only the completion is graded. (The released code grades prompt and completion together; its prompt contains
`\\boxed{}`, so that every completion would earn a format reward.) In every arm the boxed answer is graded too, for the
accuracy on the examples. None is a completion that the grader could not judge.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oneshot.config.evaluation import GraderName
from oneshot.config.reward import Certainty, RewardConfig, RewardTerm
from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.foreign import resolve
from oneshot.tasks.grading import Grader, Verdict
from oneshot.tasks.normalise import normalise

NUM_CANDIDATES = 20  # answers that others are compared with
_COIN = 0xC01  # separates the coins' random stream from the completions' random table


Reward = float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """The example of a group, as functions see it."""

    id: str
    problem: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedCompletion:
    """One completion of an example, with the verdicts that need no other completion."""

    completion: str
    correct: Verdict
    has_answer: Verdict  # judged for a format reward only
    lenient: Verdict = None  # judged for functions only
    token_ids: tuple[int, ...] = ()  # for functions and certainty only
    certainties: Mapping[Certainty, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRewards:
    """The rewards of the completions of one example in one step."""

    values: list[Reward]  # of the whole rule; None if a part of it could not be judged
    terms: dict[str, list[Reward]]  # of each term of a sum, before its weight
    errors: tuple[str, ...] = ()  # what functions raised, and why they gave no rewards


def judge(
    completion: str,
    answer: str,
    config: RewardConfig,
    grader: Grader,
    *,
    token_ids: Sequence[int] = (),
    certainties: Mapping[Certainty, float] | None = None,
) -> GradedCompletion:
    """Grade a completion as soon as it has ended; `certainties` are those that the config rewards."""
    kinds = {rule.kind for rule in config.rules.values()}
    return GradedCompletion(
        completion=completion,
        correct=grader.verdict(config.grader, completion, answer),
        has_answer=grader.has_answer(completion) if "format" in kinds else None,
        lenient=grader.grade(completion, answer).lenient if config.calls else None,
        token_ids=tuple(token_ids) if config.calls or config.certainties else (),
        certainties=certainties or {},
    )


def rewards(
    group: Sequence[GradedCompletion],
    config: RewardConfig,
    grader: Grader,
    *,
    keys: Sequence[tuple[int, ...]],
    example: Example | None = None,
) -> GroupRewards:
    """Return the reward of each completion of one example in one step; `keys` are those of the random table.

    A function that raises, or gives something else than one number or None for each completion, rewards nothing: its
    completions count as ungraded, and what went wrong is returned.
    """
    terms: dict[str, list[Reward]] = {}
    errors: list[str] = []
    for name, rule in config.rules.items():
        if rule.call is None:
            terms[name] = [
                None if each is None else float(each) for each in _by_kind(rule, group, config, grader, keys)
            ]
            continue
        values, error = _called(rule, group, grader, example)
        terms[name] = values
        errors += [error] if error else []
    weights = [rule.weight for rule in config.rules.values()]
    return GroupRewards(
        values=[_weighted(row, weights) for row in zip(*terms.values(), strict=True)],
        terms=terms if config.terms else {},
        errors=tuple(errors),
    )


def _weighted(row: Sequence[Reward], weights: Sequence[float]) -> Reward:
    known = [value for value in row if value is not None]
    if len(known) < len(row):
        return None
    return sum(weight * value for weight, value in zip(weights, known, strict=True))


def _by_kind(
    rule: RewardTerm,
    group: Sequence[GradedCompletion],
    config: RewardConfig,
    grader: Grader,
    keys: Sequence[tuple[int, ...]],
) -> Sequence[Reward]:
    if rule.by is not None:
        return _certain(rule.by, group)
    if rule.kind == "outcome":
        return [graded.correct for graded in group]
    if rule.kind == "format":
        return [graded.has_answer for graded in group]
    if rule.kind == "random":
        return [_coin(key) < rule.probability for key in keys]
    elected = elect([graded.completion for graded in group], grader, config.grader)
    return [elected is not None and grader.verdict(config.grader, graded.completion, elected) for graded in group]


def _certain(by: Certainty, group: Sequence[GradedCompletion]) -> list[float]:
    """Return how certain each completion was. Equal ones have the number of the first, so that rounding, which may
    depend on what was decoded beside them, gives none of them an advantage."""
    first: dict[tuple[int, ...], float] = {}
    return [first.setdefault(graded.token_ids, graded.certainties[by]) for graded in group]


def _called(
    rule: RewardTerm, group: Sequence[GradedCompletion], grader: Grader, example: Example | None
) -> tuple[list[Reward], str]:
    """Return what a function rewards, and why not if it fails."""
    assert rule.call is not None, "only functions are called"
    arguments = {
        "completions": [graded.completion for graded in group],
        "token_ids": [list(graded.token_ids) for graded in group],
        "strict": [graded.correct for graded in group],
        "lenient": [graded.lenient for graded in group],
        "example": {} if example is None else {"problem": example.problem, "answer": example.answer, "id": example.id},
        **rule.with_,
    }
    values, error = grader.call(resolve(rule.call, "rewards"), arguments)
    if not error:
        error = _fault(values, len(group))
    if error:
        return [None] * len(group), f"{rule.call}: {error}"
    return [None if value is None else float(value) for value in values], ""


def _fault(values: Any, num: int) -> str:
    """Return what is wrong with the return value of a function, or an empty text."""
    if not isinstance(values, list) or len(values) != num:
        return f"returned {type(values).__name__} instead of a list of {num} numbers"
    if any(value is not None and not (isinstance(value, int | float) and math.isfinite(value)) for value in values):
        return "returned something that is neither a finite number nor None"
    return ""


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


def answer_entropy(completions: Sequence[str], correct: Sequence[Verdict]) -> float:
    """Return the Shannon entropy, in nats, of the final answers among the completions of one example.

    Right completions have one answer, and so have others whose boxed answers are the same text once normalised (to
    grade each against each other would take longer than the step). Completions without a boxed answer have one answer,
    too: none. SGAC (arXiv 2605.01823) ranks examples by such an entropy.
    """
    others = [extract_boxed(text) or "" for text, is_right in zip(completions, correct, strict=True) if not is_right]
    num, counts = len(completions), Counter(map(normalise, others))
    # sorted, so that equal counts have equal entropies
    shares = sorted(count / num for count in (num - len(others), *counts.values()) if count)
    return sum(share * -math.log(share) for share in shares)


def _coin(key: tuple[int, ...]) -> float:
    """Draw a uniform number in [0, 1) that depends only on the completion's key."""
    return float(np.random.Generator(np.random.Philox(np.random.SeedSequence((*key, _COIN)))).random())
