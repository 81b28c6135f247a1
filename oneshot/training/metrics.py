"""What a step gave: metrics, evaluations, completions to look at. No torch: whoever records a trial needs none."""

from dataclasses import dataclass

from oneshot.tasks.grading import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedCompletion:
    """One evaluated completion."""

    problem_id: str
    category: str
    level: str
    problem: str
    answer: str
    completion: str
    strict: Verdict
    lenient: Verdict
    reason: str
    num_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One suite at one step; `metrics` are named `eval/<suite>/...`."""

    suite: str
    digest: str
    step: int
    metrics: dict[str, float]
    records: tuple[EvaluatedCompletion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One training completion, as it is shown to people."""

    example_id: str
    completion: str
    reward: float
    num_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one step gave; step 0 is the evaluation before training and has no completions."""

    step: int
    metrics: dict[str, float]
    evaluations: tuple[Evaluation, ...]
    sampled: tuple[Sampled, ...]
    visits: dict[str, float]
    """Accuracy on each example that the step visited: the history that examples are ranked by."""
