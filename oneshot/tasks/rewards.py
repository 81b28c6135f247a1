"""A completion of one problem -> its reward: the arms. Only the completion is graded, never the prompt.

(The released code graded prompt and completion together; its prompt holds `\\boxed{}`, so a format reward would pay
everyone.) NaN stands for a completion that the grader could not judge.
"""

import math

from oneshot.config import RewardConfig
from oneshot.tasks.grading import Grader


def reward(completion: str, answer: str, config: RewardConfig, grader: Grader) -> float:
    """1.0 paid, 0.0 not, NaN ungraded."""
    verdict = grader.has_answer(completion) if config.kind == "format" else grader.strict(completion, answer)
    return math.nan if verdict is None else float(verdict)
