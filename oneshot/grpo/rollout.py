"""Prompts and random-table keys -> completions: what every rollout engine takes and gives.

A completion's randomness is a row of uniforms that its key alone decides, so that draws depend neither on the order of
rows nor on how many are decoded together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from oneshot.grpo.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
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
    """One sampled continuation; `token_ids` ends with the EOS token unless it was cut at `max_tokens`."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural log, of each token, at the sampling temperature (greedy: at temperature 1)."""
    truncated: bool


class Engine(Protocol):
    """Decodes with the policy's own weights; holds nothing between two calls."""

    def generate(self, policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """The completions of each request, in the order of its keys."""
        ...


def uniforms(row_keys: Sequence[tuple[int, ...]], num_positions: int) -> np.ndarray:
    """The random table of some rows: float64 in [0, 1), `[rows, num_positions]`, one Philox stream a key."""
    return np.stack(
        [np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(num_positions) for key in row_keys]
    )
