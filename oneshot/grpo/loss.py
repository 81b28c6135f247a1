"""Log-probabilities and advantages of a step's completions -> one differentiable number.

`loss = pg_coef * pg + kl_coef * kl - entropy_coef * entropy`, each of the three aggregated over tokens in the same
way. Differs from the paper's text, as its released code does: the ratio is per token (its Eq. 4 writes one a sequence),
and by default the mean runs over all tokens of the step (its code: of a micro-batch, so that packing changed results).

Shapes: G completions, T token positions; `mask_GT` is 1.0 on completion tokens, EOS included. All log-probabilities are
natural, of the sampled token, at the sampling temperature.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from oneshot.config import LossConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTotals:
    """What a mean is over: the whole step, of which one call may see a micro-batch."""

    num_tokens: int
    num_sequences: int
    max_tokens: int
    """Longest completion that the rollout allows (`constant` divides by it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """The loss, and its detached parts by metric name; parts of micro-batches add up to those of the step."""

    loss: Tensor
    metrics: dict[str, Tensor]


def ratio(logprobs_GT: Tensor, old_logprobs_GT: Tensor | None) -> Tensor:
    """`policy / old` per token; None is on-policy: all ones, with the gradient of the log-probabilities."""
    old_GT = logprobs_GT.detach() if old_logprobs_GT is None else old_logprobs_GT
    return (logprobs_GT - old_GT).exp()


def surrogate(ratio_GT: Tensor, advantages_G: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """PPO's clipped surrogate per token, `[G, T], [G] -> [G, T]`, to be minimised (arXiv 1707.06347, Eq. 7)."""
    advantages_G1 = advantages_G[:, None]
    clipped_GT = ratio_GT.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio_GT * advantages_G1, clipped_GT * advantages_G1)


def k3(logprobs_GT: Tensor, ref_logprobs_GT: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy | reference) per token, joschu.net/blog/kl-approx.html."""
    # k3: unbiased like k1, but never negative and less noisy
    log_ratio_GT = ref_logprobs_GT - logprobs_GT
    return log_ratio_GT.exp() - log_ratio_GT - 1


def aggregate(values_GT: Tensor, mask_GT: Tensor, *, config: LossConfig, totals: BatchTotals) -> Tensor:
    """Per-token values -> this batch's part of the step's mean: `[G, T], [G, T] -> []`."""
    # a masked position may hold inf or NaN: padding must not reach the sum
    values_GT = values_GT.where(mask_GT.bool(), torch.zeros_like(values_GT))
    if config.aggregation == "token_mean":
        return values_GT.sum() / totals.num_tokens
    if config.aggregation == "sequence_mean":
        return (values_GT.sum(dim=1) / mask_GT.sum(dim=1).clamp(min=1)).sum() / totals.num_sequences
    return values_GT.sum() / (totals.num_sequences * totals.max_tokens)


def grpo_loss(
    logprobs_GT: Tensor,
    old_logprobs_GT: Tensor | None,
    ref_logprobs_GT: Tensor | None,
    advantages_G: Tensor,
    mask_GT: Tensor,
    config: LossConfig,
    *,
    entropy_GT: Tensor | None = None,
    totals: BatchTotals | None = None,
) -> LossOutput:
    """The GRPO objective (DeepSeekMath, arXiv 2402.03300, Eq. 3) with an entropy bonus (arXiv 2504.20571, Eq. 3).

    Args:
        logprobs_GT: of the policy, with gradient.
        old_logprobs_GT: of the policy that sampled; None where that is the policy itself.
        ref_logprobs_GT: of the frozen reference; None only at `kl_coef: 0`.
        advantages_G: one a completion.
        mask_GT: 1.0 on completion tokens.
        config: coefficients, clip and aggregation.
        entropy_GT: of the policy's distribution, nats; needed where `entropy_coef` is not 0.
        totals: of the whole step, where these rows are a part of it; None: these rows are the whole step.

    Returns:
        The loss and `loss/total`, `loss/pg`, `loss/kl`, `loss/entropy`, `loss/clip_fraction`.

    Raises:
        ValueError: `ref_logprobs_GT` or `entropy_GT` is None though its coefficient is not 0.
    """
    if ref_logprobs_GT is None and config.kl_coef != 0:
        raise ValueError(f"ref_logprobs_GT is None, but kl_coef is {config.kl_coef}")
    if entropy_GT is None and config.entropy_coef != 0:
        raise ValueError(f"entropy_GT is None, but entropy_coef is {config.entropy_coef}")
    if totals is None:
        totals = BatchTotals(num_tokens=int(mask_GT.sum()), num_sequences=mask_GT.shape[0], max_tokens=mask_GT.shape[1])

    def mean(values_GT: Tensor) -> Tensor:
        return aggregate(values_GT, mask_GT, config=config, totals=totals)

    ratio_GT = ratio(logprobs_GT, old_logprobs_GT)
    pg = mean(surrogate(ratio_GT, advantages_G, clip_low=config.clip_low, clip_high=config.clip_high))
    loss = config.pg_coef * pg
    metrics = {"loss/pg": pg, "loss/clip_fraction": mean(_is_clipped(ratio_GT, advantages_G, config))}
    if ref_logprobs_GT is not None:
        metrics["loss/kl"] = kl = mean(k3(logprobs_GT, ref_logprobs_GT))
        loss = loss + config.kl_coef * kl
    if entropy_GT is not None:
        metrics["loss/entropy"] = entropy = mean(entropy_GT)
        loss = loss - config.entropy_coef * entropy
    metrics["loss/total"] = loss
    return LossOutput(loss=loss, metrics={name: value.detach() for name, value in metrics.items()})


def _is_clipped(ratio_GT: Tensor, advantages_G: Tensor, config: LossConfig) -> Tensor:
    """1.0 where the clip takes a token's gradient away."""
    advantages_G1 = advantages_G[:, None]
    too_high_GT = (ratio_GT > 1 + config.clip_high) & (advantages_G1 > 0)
    too_low_GT = (ratio_GT < 1 - config.clip_low) & (advantages_G1 < 0)
    return (too_high_GT | too_low_GT).to(ratio_GT.dtype)
