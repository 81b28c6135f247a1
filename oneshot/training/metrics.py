"""The results of a step: metrics, evaluations and completions. Needs no torch, since the recorder has none."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from oneshot.tasks.grading import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Forcing:
    """How the thinking of one completion went under its suite's budget."""

    thinking_tokens: int
    waits: int
    forced_end: bool  # thinking used up its budget
    no_final_answer: bool  # the answer is blank, or has all its tokens and no box


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedCompletion:
    """One completion of an evaluation, with its grades."""

    problem_id: str
    category: str
    level: str
    problem: str
    answer: str
    completion: str
    strict: Verdict
    lenient: Verdict
    reason: str
    released: Verdict  # None also if the released grader was not asked
    num_tokens: int
    truncated: bool
    family: str = ""
    others: Mapping[str, Verdict] = field(default_factory=dict)  # of graders that are not ours, by name
    forcing: Forcing | None = None  # only in suites with a budget of thinking


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
    """One training completion, as it is recorded."""

    example_id: str
    completion: str
    reward: float
    num_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """Results of one step; step 0 is the evaluation before training and has no completions."""

    step: int
    metrics: dict[str, float]
    evaluations: tuple[Evaluation, ...]
    sampled: tuple[Sampled, ...]
    visits: dict[str, float]  # accuracy on each example that the step trained on: the history for ranking examples
    answer_entropies: dict[str, float] = field(default_factory=dict)  # nats, of the examples that it visited first
