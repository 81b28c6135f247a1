"""Logits and a table of uniforms -> tokens, by inverse CDF.

Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from oneshot.policy.output_head import log_normaliser, row_dot


def uniforms(row_keys: Sequence[tuple[int, ...]], num_positions: int) -> np.ndarray:
    """Return the random table of some rows: float64 in [0, 1), `[rows, num_positions]`, one Philox stream per key."""
    return np.stack(
        [np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(num_positions) for key in row_keys]
    )


def below_one(table: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uniforms in the dtype of the logits, still below 1 after rounding."""
    return table.to(dtype).clamp(max=1 - torch.finfo(dtype).eps / 2)


def sample(logits_BV: Tensor, uniforms_B: Tensor, *, cdf_BV: Tensor, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw a token per row; return it and its log-probability, `[B]` each. Overwrites the logits and `cdf_BV`.

    With `top_p` below 1 only the nucleus is drawn from; log-probabilities stay those of the whole distribution.

    The uniform, below 1, is scaled by the last cumulative sum, so that rounding leaves no gap at the end. A token of
    probability 0 is never drawn. Where logits are NaN or infinite, so is the log-probability.
    """
    probs_BV = torch.softmax(logits_BV, dim=-1, out=logits_BV)
    if top_p < 1.0:
        tokens_B1 = nucleus(probs_BV, uniforms_B, top_p=top_p, cdf_BV=cdf_BV)
        return tokens_B1.squeeze(1), probs_BV.gather(1, tokens_B1).squeeze(1).log()
    torch.cumsum(probs_BV, dim=-1, out=cdf_BV)
    targets_B1 = uniforms_B[:, None] * cdf_BV[:, -1:]
    # nothing is above NaN: without the clamp, a GPU's index would be out of range, which breaks its whole context
    tokens_B1 = torch.searchsorted(cdf_BV, targets_B1, right=True).clamp_(max=logits_BV.shape[1] - 1)
    return tokens_B1.squeeze(1), probs_BV.gather(1, tokens_B1).squeeze(1).log()


def nucleus(probs_BV: Tensor, uniforms_B: Tensor, *, top_p: float, cdf_BV: Tensor) -> Tensor:
    """Draw a token per row, `[B, 1]`, from the fewest most likely ones whose probability reaches `top_p`.

    Overwrites `cdf_BV`. Source: Holtzman et al. 2020, arXiv 1904.09751.
    """
    sorted_BV, token_of_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    torch.cumsum(sorted_BV, dim=-1, out=cdf_BV)
    last = probs_BV.shape[1] - 1  # the largest index, also where probabilities are NaN
    last_B1 = torch.searchsorted(cdf_BV, top_p * cdf_BV[:, -1:]).clamp_(max=last)
    targets_B1 = uniforms_B[:, None] * cdf_BV.gather(1, last_B1)
    places_B1 = torch.searchsorted(cdf_BV, targets_B1, right=True).minimum(last_B1)
    return token_of_BV.gather(1, places_B1)


def distribution(logits_BV: Tensor, *, probs_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the entropy of each row's softmax and its KL(uniform | softmax), `[B]` each, in nats. Fills `probs_BV`.

    With Z the normaliser: H = log Z - sum_v p_v z_v, and KL = log Z - mean_v z_v - log V. Rounding takes neither below
    0. Every logit counts, also those beyond the tokenizer's entries.
    """
    log_normaliser_B = log_normaliser(logits_BV, probs_BV)
    entropy_B = log_normaliser_B - row_dot(probs_BV, logits_BV)
    uniform_kl_B = log_normaliser_B - logits_BV.mean(dim=-1) - math.log(logits_BV.shape[-1])
    return entropy_B.clamp(min=0), uniform_kl_B.clamp(min=0)


def likeliest(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token of the highest logit and its log-probability, `[B]` each."""
    highest_B, tokens_B = logits_BV.max(dim=-1)
    return tokens_B, highest_B - logits_BV.logsumexp(dim=-1)
