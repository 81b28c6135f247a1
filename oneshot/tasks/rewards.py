"""Completions of one problem -> the reward of each: the arms. Only the completion is graded, never the prompt.

(The released code graded prompt and completion together; its prompt holds `\\boxed{}`, so a format reward would pay
everyone.) NaN stands for a completion that the grader could not judge.
"""

import math
from collections.abc import Sequence

from oneshot.config import RewardConfig
from oneshot.tasks.grading import Grader, Verdict


def rewards(completions: Sequence[str], answer: str, config: RewardConfig, grader: Grader) -> list[float]:
    """One reward a completion: 1.0 paid, 0.0 not, NaN ungraded."""
    if config.kind == "format":
        return [_reward(grader.has_answer(completion)) for completion in completions]
    return [_reward(grade.strict) for grade in grader.strict(completions, answer)]


def _reward(verdict: Verdict) -> float:
    return math.nan if verdict is None else float(verdict)
