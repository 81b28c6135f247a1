"""Prompts and random-table keys -> completions: what every rollout engine takes and gives.

A completion's randomness is a row of uniforms that its key alone decides, so that draws depend neither on the order of
rows nor on how many are decoded together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from oneshot.policy.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """One prompt, and the key of each completion that is wanted of it."""

    prompt_ids: tuple[int, ...]
    row_keys: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled continuation, of at least one token; ends with the EOS token unless it was cut at `max_tokens`."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural log, of each token, at the sampling temperature (greedy: at temperature 1)."""
    truncated: bool


Ended = Callable[[int, int, Completion], None]
"""Called once for each completion, as soon as it has ended, with its request's and its key's index."""


def ignore(request: int, row: int, completion: Completion) -> None:
    """Waits for the end of all."""


class Engine(Protocol):
    """Decodes with the policy's own weights; what it keeps between two calls is memory, never what a call computed."""

    def generate(
        self, policy: Policy, requests: Sequence[PromptRequest], sampling: Sampling, ended: Ended = ignore
    ) -> list[list[Completion]]:
        """The completions of each request, in the order of its keys."""
        ...
