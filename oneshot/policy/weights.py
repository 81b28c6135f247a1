"""A loaded model -> its weights: those that compute, and those that the optimiser changes (the master weights).

In one precision they are the same tensors. With bfloat16 or float16 compute, rollout, evaluation and update all run on
such weights. The optimiser holds float32 weights, which are rounded after each of its steps. Nothing is cast
while decoding, and the policy that samples is the policy that is trained. (Autocast would cast every weight at every
decode step, and its update would have a wider residual stream than the rollout.)

`Weights` keeps both in full in each process, `Sharded` (fsdp.py) keeps a part.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from oneshot.config.model import ModelConfig
from oneshot.policy.forward import Scored
from oneshot.policy.world import World


@dataclass(slots=True, kw_only=True)
class Weights:
    """The weights of a policy, in full in each process; all but `compute` concerns the trained weights only."""

    compute: Mapping[str, Parameter]  # the weights that decode and evaluate, by name
    master: Mapping[str, Parameter]  # the weights that the optimiser changes, by name
    scored: Scored  # the module that the update runs through
    loss_scale: float = 1.0
    """The factor on each process' part of the loss with which `complete` gives the sum of all parts."""
    version: int = 0  # grows whenever the weights change

    def updating(self) -> AbstractContextManager[None]:
        """Wrap the optimiser steps: weights that only decode may be freed, and have the new values at the end."""
        return nullcontext()

    def collect(self) -> None:
        """Add the gradients of a micro-batch to the master's, and clear them; autograd does so in one precision."""
        for name, master in self.master.items():
            parameter = self.compute[name]
            if master is parameter or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            master.grad += parameter.grad
            parameter.grad = None

    def complete(self, world: World) -> None:
        """Sum the master's gradients over processes, as DDP's hooks would after each backward pass."""
        for master in self.master.values():
            if master.grad is None:
                # AdamW skips a parameter without gradient, but applies moments and weight decay to a zero one
                master.grad = torch.zeros_like(master)
            master.grad = world.all_reduce(master.grad)

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the master's values into the weights that compute, rounded, after an optimiser step."""
        self.version += 1
        for name, master in self.master.items():
            if self.compute[name] is not master:
                self.compute[name].copy_(master)

    def whole_values(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and value of each weight that computes, in full; all processes must iterate."""
        for name, parameter in self.compute.items():
            yield name, parameter.detach()

    def whole(self, values: Tensor) -> Tensor:
        """Return a master or optimiser tensor in full; all processes must call it."""
        return values

    def part(self, values: Tensor, of: Tensor) -> Tensor:
        """Return the part of whole values that this process holds, laid out like `of`."""
        return values.to(of.device)


def split_weights(model: Any, config: ModelConfig) -> Weights:
    """Convert a loaded model to its compute precision, and keep the trained weights' values as the master's."""
    compute = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in compute.items() if parameter.requires_grad}
    scored = Scored(model)
    if config.mixed_precision == "no":
        return Weights(compute=compute, master=trained, scored=scored)
    master = {name: Parameter(parameter.detach().clone()) for name, parameter in trained.items()}
    # only parameters: the buffers (rotary frequencies) stay wide
    for parameter in compute.values():
        parameter.data = parameter.data.to(getattr(torch, config.compute_dtype))
    return Weights(compute=compute, master=master, scored=scored)
