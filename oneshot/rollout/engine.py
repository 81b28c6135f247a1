"""Prompts and random-table keys -> completions: the interface of every rollout engine.

A completion's key alone decides its row of uniforms, so that draws depend neither on the order of rows nor on how many
are decoded together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from oneshot.errors import TrialError
from oneshot.policy.policy import Policy
from oneshot.policy.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """One prompt, and one key for each of its completions."""

    prompt_ids: tuple[int, ...]
    row_keys: tuple[tuple[int, ...], ...]
    max_tokens: int
    """Largest number of tokens in each completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn, and which texts end a completion; temperature 0 takes the most likely token."""

    temperature: float
    top_p: float = 1.0
    """Only the fewest most likely tokens whose probability reaches it are drawn."""
    stop: tuple[str, ...] = ()
    """A completion ends at the token that completes one of these."""
    with_distribution: bool = False
    """Also return each token's entropy and KL from uniform. vLLM refuses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled continuation of at least one token; it ends with an EOS token, at a stop string, or truncated."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # natural log per token, at the sampling temperature (greedy: at temperature 1)
    truncated: bool
    stopped: bool = False  # its last token completes a stop string
    # of the distribution that each token was drawn from, before `top_p`, if `Sampling.with_distribution`; else empty
    entropies: tuple[float, ...] = ()  # nats
    uniform_kls: tuple[float, ...] = ()  # KL(uniform | distribution) over all logits of the model, nats


class NotFiniteError(TrialError):
    """Logits that are NaN or infinite, from which no token can be drawn."""


Ended = Callable[[int, int, Completion], None]
"""Called with the index of the request, the index of the key and the completion, as soon as it has ended."""


def ignore(request: int, row: int, completion: Completion) -> None:
    """Do nothing when a completion ends."""


class Engine(Protocol):
    """A decoder that keeps no results between calls."""

    def wake(self, policy: Policy, weights: Weights) -> None:
        """Prepare to generate with these weights; all processes of a trial must call it."""

    def rest(self) -> None:
        """Free what is not needed until the next `wake`."""

    def release(self) -> None:
        """Free what lasts between calls."""

    def generate(
        self, policy: Policy, requests: Sequence[PromptRequest], sampling: Sampling, ended: Ended = ignore
    ) -> list[list[Completion]]:
        """Return the completions of each request, in the order of its keys. Raises NotFiniteError."""
