"""Rewards of a step's groups -> the advantage of each completion.

Shapes: G completions of the step, group after group; N groups of K completions. A NaN reward is a completion that the
grader could not judge: its advantage is 0, and it does not count in its group's mean and standard deviation.
"""

import torch
from torch import Tensor

from oneshot.config.advantage import AdvantageConfig


def advantages(rewards_G: Tensor, *, group_size: int, config: AdvantageConfig) -> Tensor:
    """Return advantages `[G] -> [G]`: relative to the group, or `2 * reward - 1`; each sign times its weight.

    Without a baseline, a negative weight of 0 gives positive sample reinforcement (PSR), a positive weight of 0
    negative (NSR), and one of 0.1 W-REINFORCE (arXiv 2506.01347).
    """
    if config.baseline == "group":
        raw_G = group_advantages(rewards_G, group_size=group_size, config=config)
    else:
        raw_G = (2 * rewards_G - 1).where(rewards_G.isfinite(), torch.zeros_like(rewards_G))
    if config.positive_weight == config.negative_weight == 1:
        return raw_G
    return config.positive_weight * raw_G.clamp(min=0) + config.negative_weight * raw_G.clamp(max=0)


def group_advantages(rewards_G: Tensor, *, group_size: int, config: AdvantageConfig) -> Tensor:
    """Return `(reward - mean) / (std + eps)` within each group: `[G] -> [G]`, std with ddof 1.

    GRPO (Shao et al., arXiv 2402.03300), as One-Shot-RLVR's verl computes it. A group whose rewards are all equal, or
    that has fewer than two graded completions, has advantages of exactly 0.
    """
    rewards_NK = rewards_G.view(-1, group_size)
    graded_NK = rewards_NK.isfinite()
    num_graded_N1 = graded_NK.sum(dim=1, keepdim=True)
    values_NK = rewards_NK.where(graded_NK, torch.zeros_like(rewards_NK))
    mean_N1 = values_NK.sum(dim=1, keepdim=True) / num_graded_N1.clamp(min=1)
    centred_NK = (values_NK - mean_N1).where(
        graded_NK & ~zero_std_groups(rewards_NK)[:, None], torch.zeros_like(values_NK)
    )
    if not config.normalize_std:
        return centred_NK.flatten()
    variance_N1 = centred_NK.square().sum(dim=1, keepdim=True) / (num_graded_N1 - 1).clamp(min=1)
    # eps may be 0: a group without variance then gives 0 / 1, not 0 / 0
    scale_N1 = (variance_N1.sqrt() + config.eps).where(variance_N1 > 0, torch.ones_like(variance_N1))
    return (centred_NK / scale_N1).flatten()


def zero_std_groups(rewards_NK: Tensor) -> Tensor:
    """Return which groups have equal rewards: `[N, K] -> [N]` bool. Equality is exact, so that rounding is no
    signal."""
    graded_NK = rewards_NK.isfinite()
    highest_N = rewards_NK.where(graded_NK, torch.full_like(rewards_NK, -torch.inf)).amax(dim=1)
    lowest_N = rewards_NK.where(graded_NK, torch.full_like(rewards_NK, torch.inf)).amin(dim=1)
    return (highest_N == lowest_N) | (graded_NK.sum(dim=1) < 2)
