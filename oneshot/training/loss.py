"""Log-probabilities and advantages of a step's completions -> one differentiable number.

`loss = pg_coef * pg + kl_coef * kl - entropy_coef * entropy`; the three terms are aggregated over tokens in the same
way. Like the released code, it differs from the paper's text: by default the ratio is per token (the paper's Eq. 4 has
one per sequence). By default the mean is over all tokens of the step; the released code's is over a micro-batch, so
that its results depend on the packing.

Shapes: G completions. Tensors without a suffix are per token in any arrangement. All log-probabilities are natural, of
the sampled token, at the sampling temperature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oneshot.config.loss import LossConfig
from oneshot.policy.output_head import LossOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTotals:
    """Denominators of the means: those of the whole step, even if a call sees only a micro-batch."""

    num_tokens: int
    num_sequences: int
    max_tokens: int  # largest length of a completion (`constant` divides by it)


def ratio(logprobs: Tensor, old_logprobs: Tensor | None) -> Tensor:
    """Return `policy / old` per token; None is on-policy: all ones, with the gradient of the log-probabilities."""
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    return (logprobs - old).exp()


def sequence_old(logprobs_M: Tensor, old_M: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return values to use as the old log-probabilities, with which each token's ratio is that of its completion.

    GSPO's ratio (arXiv 2507.18071, Eq. 7) is `s = exp(mean over the completion's tokens of log(policy / old))`. A
    slice of a micro-batch lacks some of these tokens. So the mean is taken beforehand, from `logprobs_M` without
    gradient, and each token has the ratio of GSPO-token (Eq. 14), `sg[s] * policy / sg[policy]`, whose value is s.
    If all tokens of a completion have one advantage and one weight, the gradient of their sum is that of GSPO (Eq. 10).

    The completions are in a row, `lengths` tokens each.
    """
    log_ratio_M = logprobs_M - old_M
    means = [log_ratio.mean().expand(len(log_ratio)) for log_ratio in log_ratio_M.split(list(lengths))]
    return logprobs_M - torch.cat(means)


def surrogate(ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Return PPO's clipped surrogate per token, to be minimised (arXiv 1707.06347, Eq. 7).

    With `clip_low: 1` the clip is one-sided, since no ratio is below 0: advantages above 0 have the upper bound, and
    those below 0 have none. (PPO's minimum never bounds a ratio above 1 whose advantage is below 0.)
    """
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def cispo(logprobs: Tensor, ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Return CISPO's surrogate per token, to be minimised (MiniMax-M1, arXiv 2506.13585, Eq. 4-5).

    The clipped ratio is a weight without gradient, whatever the advantage's sign, so that no token loses its gradient.
    With `clip_low: 1` the clip is one-sided: the weight has an upper bound only, as in the paper's runs and in
    truncated importance sampling.
    """
    return -ratio.detach().clamp(1 - clip_low, 1 + clip_high) * advantages * logprobs


CORRECTION_CAP = 2.0
"""Largest weight of a token that corrects for a sampler that differs from the trainer (as in TRL and verl)."""


def correction(logprobs: Tensor, sampled_logprobs: Tensor) -> Tensor:
    """Return truncated importance weights `min(trainer / sampler, 2)` per token, without gradient."""
    return (logprobs.detach() - sampled_logprobs).exp().clamp(max=CORRECTION_CAP)


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return Schulman's k3 estimate of KL(policy | reference) per token (joschu.net/blog/kl-approx.html).

    It is unbiased like k1, but never negative and less noisy.
    """
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - log_ratio - 1


def token_weights(num_tokens_G: Tensor, config: LossConfig, totals: BatchTotals) -> Tensor:
    """Return the weight of one token of each completion in the step's mean: `[G] -> [G]`."""
    if config.aggregation == "token_mean":
        return torch.full_like(num_tokens_G, 1 / max(1, totals.num_tokens))
    if config.aggregation == "sequence_mean":
        return 1 / (num_tokens_G.clamp(min=1) * totals.num_sequences)
    return torch.full_like(num_tokens_G, 1 / (totals.num_sequences * totals.max_tokens))


def token_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    config: LossConfig,
    *,
    entropy: Tensor | None = None,
) -> LossOutput:
    """Compute GRPO's objective (DeepSeekMath, arXiv 2402.03300, Eq. 3) with an entropy bonus (arXiv 2504.20571, Eq. 3).

    Tokens may have any arrangement, padded or packed: all tensors have one shape. `weights` are those of
    `token_weights`, and 0 on padding, whose values are ignored, even inf and NaN. `old_logprobs` is None if the policy
    itself sampled. The metrics are `loss/total`, `loss/pg`, `loss/kl`, `loss/entropy` and `loss/clip_fraction`.

    Raises ValueError: `ref_logprobs` or `entropy` is None, but its coefficient is not 0.
    """
    if ref_logprobs is None and config.kl_coef != 0:
        raise ValueError(f"ref_logprobs is None, but kl_coef is {config.kl_coef}")
    if entropy is None and config.entropy_coef != 0:
        raise ValueError(f"entropy is None, but entropy_coef is {config.entropy_coef}")
    # inf or NaN on padding must reach neither the sums nor their gradients
    is_token = weights > 0
    logprobs = logprobs.where(is_token, 0.0)
    old_logprobs = None if old_logprobs is None else old_logprobs.where(is_token, 0.0)
    ref_logprobs = None if ref_logprobs is None else ref_logprobs.where(is_token, 0.0)

    def mean(values: Tensor) -> Tensor:
        return (values * weights).sum()

    ratios = ratio(logprobs, old_logprobs)
    is_above, is_below = ratios > 1 + config.clip_high, ratios < 1 - config.clip_low
    # on-policy, both have one gradient; so one setting's trial is the other's, in its metrics, too
    if config.surrogate == "ppo" or old_logprobs is None:
        pg = mean(surrogate(ratios, advantages, clip_low=config.clip_low, clip_high=config.clip_high))
        is_clipped = is_above & (advantages > 0) | is_below & (advantages < 0)  # they lose their gradient
    else:
        pg = mean(cispo(logprobs, ratios, advantages, clip_low=config.clip_low, clip_high=config.clip_high))
        is_clipped = is_above | is_below
    loss = config.pg_coef * pg
    metrics = {"loss/pg": pg, "loss/clip_fraction": mean(is_clipped.to(ratios.dtype))}
    if ref_logprobs is not None:
        metrics["loss/kl"] = kl = mean(k3(logprobs, ref_logprobs))
        loss = loss + config.kl_coef * kl
    if entropy is not None:
        metrics["loss/entropy"] = mean_entropy = mean(entropy.where(is_token, 0.0))
        loss = loss - config.entropy_coef * mean_entropy
    metrics["loss/total"] = loss
    return LossOutput(loss=loss, metrics={name: value.detach() for name, value in metrics.items()})
