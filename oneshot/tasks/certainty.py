"""The sampler's numbers for the tokens of a completion -> a reward for certainty, without any label.

With p_t the distribution that token y_t was drawn from (at the sampling temperature), V the size of the vocabulary and
T the number of tokens, an EOS token included:

- self_certainty: mean_t KL(uniform | p_t) = mean_t (-log V - mean_v log p_t(v)). Intuitor, arXiv 2505.19590. The
  released code leaves out log V, which cancels within a group.
- token_entropy: -mean_t H(p_t). RENT, arXiv 2505.22660. EM-RL-token, arXiv 2505.15134, also rewards these entropies.
- sequence_entropy: sum_t log p_t(y_t); minus its expectation is the entropy of the whole sequence. EM-RL-sequence,
  arXiv 2505.15134. URLVR's released code takes the mean over tokens.
- probability: exp(sum_t log p_t(y_t)), the probability of the completion. URLVR, arXiv 2603.08660, as in its
  released code. For long completions it is nearly 0, or 0 in float32, so a group of them gives almost no signal.

V counts all logits of the model, including those beyond the tokenizer's entries. Logarithms are natural.
"""

import math
from collections.abc import Sequence
from statistics import fmean

from oneshot.config.reward import Certainty


def certainty(
    by: Certainty, *, logprobs: Sequence[float], entropies: Sequence[float] = (), uniform_kls: Sequence[float] = ()
) -> float:
    """Return the reward of a completion of at least one token, from one number for each of its tokens.

    `entropies`, H(p_t), are needed for `token_entropy` only, and `uniform_kls`, KL(uniform | p_t), for
    `self_certainty` only.
    """
    if by == "self_certainty":
        return fmean(uniform_kls)
    if by == "token_entropy":
        return -fmean(entropies)
    total = math.fsum(logprobs)
    return total if by == "sequence_entropy" else math.exp(total)
