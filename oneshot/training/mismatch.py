"""Log-probabilities of the sampler and of the update's forward pass, with equal weights -> how far apart they are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oneshot.policy.packing import Pack
from oneshot.policy.world import World
from oneshot.rollout.engine import Completion
from oneshot.training.loss import k3

NOTABLE = 1e-3  # a token's k3 above this is counted


class Mismatch:
    """The distances of a step's tokens between sampler and trainer."""

    def __init__(self, completions: Sequence[Completion], device: torch.device) -> None:
        """Take all completions of the step."""
        self._completions = completions
        self._num = 0
        self._sum, self._num_notable, self._largest = torch.zeros(3, dtype=torch.float64, device=device).unbind()

    def sampled(self, batch: Pack, *, like: Tensor) -> Tensor:
        """Return the sampler's log-probabilities of a pack's tokens, `[M]`, on the device of `like`."""
        values = [value for member in batch.members for value in self._completions[member].logprobs]
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def add(self, sampled_n: Tensor, logprobs_n: Tensor) -> None:
        """Count some tokens, `[n]` each: k3 estimates KL(sampler | trainer), since the sampler drew the tokens."""
        # in float64: a difference of 1e-5 has a k3 of 5e-11, below what float32 resolves beside 1
        k3_n = k3(sampled_n.double(), logprobs_n.detach().double()).clamp(min=0)  # rounding may give less
        self._num += len(k3_n)
        self._sum += k3_n.sum()
        self._num_notable += (k3_n > NOTABLE).sum()
        self._largest = torch.maximum(self._largest, k3_n.max())

    def metrics(self, world: World) -> dict[str, float]:
        """Return mean, maximum and share above `NOTABLE` over all processes; nothing if no token had a forward pass."""
        sums = world.sums({"num": self._num, "k3": self._sum.item(), "notable": self._num_notable.item()})
        largest = world.largest(self._largest.item())
        if not sums["num"]:
            return {}
        return {
            "rollout/mismatch_kl": sums["k3"] / sums["num"],
            "rollout/mismatch_max": largest,
            "rollout/mismatch_share": sums["notable"] / sums["num"],
        }
