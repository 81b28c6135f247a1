"""The critic of PPO: a value for each token, its advantages and its loss.

The value of a token is the expected reward just before the policy samples that token. A linear head computes it from
the hidden state that predicts the token, of the critic's own model or of the policy. Rewards come with the last token.

Shapes: G completions of the step; M completion tokens of a micro-batch; T positions of the longest completion; H hidden
size.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear

from oneshot.config.advantage import AdvantageConfig, CriticConfig
from oneshot.config.trial import TrialConfig
from oneshot.policy.forward import Scored
from oneshot.policy.output_head import wide
from oneshot.policy.packing import Pack
from oneshot.policy.weights import Weights, split_weights
from oneshot.training.optimizer import adamw

WHITEN_EPS = 1e-8
"""Added to the variance by which advantages are whitened, as in TRL and verl."""
HEAD = "value_head"


@dataclass(slots=True, kw_only=True)
class Critic:
    """A critic between two steps."""

    config: CriticConfig
    weights: Weights  # what its optimiser changes: the value head and, with `share: none`, a model
    reader: Scored  # the model whose hidden states the head reads: its own, or the policy's
    head: Linear
    optimizer: Any

    @property
    def has_body(self) -> bool:
        """Return whether the critic has a model of its own."""
        return self.config.share == "none"

    def values(self, hidden_MH: Tensor) -> Tensor:
        """Return the value of each token, `[M]`, in float32 or wider."""
        values_M: Tensor = self.head(hidden_MH.to(self.head.weight.dtype)).squeeze(-1)
        return values_M

    @torch.no_grad()
    def estimate(self, batch: Pack) -> Tensor:
        """Return the value of each completion token, `[M]`, without gradient."""
        return self.values(self.reader.hidden(batch))


def new_body(config: TrialConfig, model: Any) -> Any | None:
    """Return a copy of a loaded policy without its output head, if the critic trains a model of its own."""
    has_body = config.trains_critic and config.critic is not None and config.critic.share == "none"
    return deepcopy(model.base_model) if has_body else None


def new_critic(config: TrialConfig, body: Any | None, policy: Weights, *, device: torch.device) -> Critic:
    """Return a critic whose head is zero, so that every value begins at 0; `body` is that of `new_body`."""
    assert config.critic is not None, "the trial has a critic"
    parameter = next(iter(policy.compute.values()))
    size = policy.scored.model.get_output_embeddings().weight.shape[1]
    head = Linear(size, 1, device=device, dtype=wide(parameter.dtype))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    own = {f"{HEAD}.{name}": value for name, value in head.named_parameters()}
    weights = Weights(compute=own, master=own, scored=policy.scored)
    if body is not None:
        weights = split_weights(body.to(device), config.model)
        weights.compute, weights.master = {**weights.compute, **own}, {**weights.master, **own}
        if config.train.activation_checkpointing:
            weights.scored.checkpoint_activations()
    optimizer = adamw(weights.master.values(), config.optim, lr=config.critic.lr)
    return Critic(config=config.critic, weights=weights, reader=weights.scored, head=head, optimizer=optimizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """The critic's estimates for a step's completions, before its updates; one tensor per completion, `[tokens]`."""

    values: Sequence[Tensor]
    returns: Sequence[Tensor]  # what the values should be
    advantages: Sequence[Tensor]
    graded_G: Tensor  # whether a completion has a reward; the others do not count

    def metrics(self) -> dict[str, float]:
        """Return means over tokens, and the explained variance: 1 - Var(return - value) / Var(return)."""
        graded = self.graded_G.nonzero().flatten().tolist()
        if not graded:
            return {}
        values, returns = (torch.cat([what[place] for place in graded]) for what in (self.values, self.returns))
        spread = returns.var(correction=0)
        explained = 1 - (returns - values).var(correction=0) / spread if spread > 0 else spread
        return {
            "critic/value": values.mean().item(),
            "critic/return": returns.mean().item(),
            "critic/explained_variance": explained.item(),
        }


def estimates(rewards_G: Tensor, values: Mapping[int, Tensor], *, config: TrialConfig) -> Estimates:
    """Return advantages and returns of a step's completions from their rewards and their values by completion.

    A completion that could not be graded has a NaN reward: its advantages are 0, and it does not count.
    """
    assert config.critic is not None, "the trial has a critic"
    lengths = [len(values[place]) for place in range(len(rewards_G))]
    values_GT = torch.nn.utils.rnn.pad_sequence([values[place] for place in range(len(rewards_G))], batch_first=True)
    graded_G = rewards_G.isfinite()
    rewards_GT = torch.zeros_like(values_GT)
    for place, (length, is_graded) in enumerate(zip(lengths, graded_G.tolist(), strict=True)):
        if length and is_graded:
            rewards_GT[place, length - 1] = rewards_G[place]
    raw_GT = gae(rewards_GT, values_GT, gamma=config.critic.gamma, gae_lambda=config.critic.gae_lambda)
    position_T = torch.arange(values_GT.shape[1], device=graded_G.device)
    counts_GT = position_T < torch.tensor(lengths, device=graded_G.device)[:, None]
    counts_GT &= graded_G[:, None]
    advantages_GT = signed(raw_GT, counts_GT, config=config.advantage)
    rows = {"values": values_GT, "returns": raw_GT + values_GT, "advantages": advantages_GT}
    parts = {name: [row[:length] for row, length in zip(table, lengths, strict=True)] for name, table in rows.items()}
    return Estimates(**parts, graded_G=graded_G)


def gae(rewards_GT: Tensor, values_GT: Tensor, *, gamma: float, gae_lambda: float) -> Tensor:
    """Return generalised advantage estimates (Schulman et al., arXiv 1506.02438, Eq. 16): `[G, T] -> [G, T]`.

    `A_t = delta_t + gamma lambda A_(t+1)` with `delta_t = r_t + gamma V_(t+1) - V_t`, and V = 0 after the last token.
    Rewards and values of padding, on the right, must be 0; so are its advantages.
    """
    next_GT = torch.nn.functional.pad(values_GT[:, 1:], (0, 1))
    delta_GT = rewards_GT + gamma * next_GT - values_GT
    advantages_GT = torch.zeros_like(delta_GT)
    running_G = torch.zeros_like(delta_GT[:, 0]) if delta_GT.shape[1] else delta_GT.new_zeros(len(delta_GT))
    for position in reversed(range(delta_GT.shape[1])):
        running_G = delta_GT[:, position] + gamma * gae_lambda * running_G
        advantages_GT[:, position] = running_G
    return advantages_GT


def signed(raw_GT: Tensor, counts_GT: Tensor, *, config: AdvantageConfig) -> Tensor:
    """Return advantages, whitened over the tokens that count (unless `normalize_std` is off) and weighted by sign.

    Whitening subtracts the mean and divides by `sqrt(variance + 1e-8)`, with ddof 1. Tokens that do not count get 0.
    """
    zero = torch.zeros_like(raw_GT)
    chosen = raw_GT[counts_GT]
    if config.normalize_std and len(chosen) > 1:
        raw_GT = (raw_GT - chosen.mean()) * torch.rsqrt(chosen.var() + WHITEN_EPS)
    raw_GT = raw_GT.where(counts_GT, zero)
    return config.positive_weight * raw_GT.clamp(min=0) + config.negative_weight * raw_GT.clamp(max=0)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Return half the squared error of each token's value or of its clipped value, whichever is larger.

    This is PPO's clipped value loss, as in TRL and verl: the clipped value is at most `clip` from `old_values`.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
