"""What the trial store keeps of a training: steps and results."""

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["finished", "failed"]
FailureKind = Literal["", "crash", "node", "oom", "host_oom", "nan", "guard", "stall", "config", "data", "storage"]
"""Kind of a failure, which decides whether it is retried; empty if it is unknown."""

EVALUATION_COLUMNS = (
    *("problem", "answer", "completion", "strict", "lenient", "category", "reason", "id", "num_tokens", "released"),
    "family",
)
FORCING_COLUMNS = ("thinking_tokens", "waits", "forced_end", "no_final_answer")
"""Further columns of suites with a budget of thinking."""
SAMPLED_COLUMNS = ("example", "completion", "reward", "num_tokens", "truncated")
"""Columns of the tables under rollouts/."""
MAX_SAMPLED = 64  # largest number of training completions recorded per step


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The metrics of one step, with their time stamp."""

    step: int
    time_ms: int
    metrics: dict[str, float]
    visits: dict[str, float] = field(default_factory=dict)  # accuracy on each example of the step
    answer_entropies: dict[str, float] = field(default_factory=dict)  # nats, of examples first visited by the step


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The end of a training's attempt."""

    outcome: Outcome
    attempt: int
    steps_done: int
    evaluations: frozenset[tuple[str, int]]  # (suite digest, step) of every recorded evaluation
    reason: str  # why it failed, in one line; empty if it finished
    traceback: str
    log_path: str
    checkpoint: Literal["none", "weights", "full"]
    started_ms: int
    ended_ms: int
    kind: FailureKind = ""  # the kind of failure
    failures: dict[str, int] = field(default_factory=dict)  # failed attempts since the last retry, by kind
