"""The trained weights: what computes, and what is optimised.

In one precision they are the same tensors. With bfloat16 compute, rollout, evaluation and update all run on bfloat16
weights, and the optimiser holds float32 ones that the bfloat16 ones are rounded from after each of its steps: nothing
is cast while decoding, and the policy that samples is the policy that is trained. (Autocast would cast every weight at
every decode step, and keep a residual stream in the update that the rollout does not have.)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from oneshot.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """By name: the parameters that the model computes with, and those that the optimiser changes."""

    compute: dict[str, Parameter]
    master: dict[str, Parameter]

    def collect(self) -> None:
        """Adds the gradients of a micro-batch to the master's, and clears them."""
        for name, parameter in self.compute.items():
            master = self.master[name]
            if master is parameter or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            master.grad += parameter.grad
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Rounds the master's values into the model."""
        for name, parameter in self.compute.items():
            if self.master[name] is not parameter:
                parameter.copy_(self.master[name])


def split_weights(model: Any, config: ModelConfig) -> Weights:
    """Turns a loaded model to its compute precision, and keeps its values as the master's."""
    compute = dict(model.named_parameters())
    if config.mixed_precision == "no":
        return Weights(compute=compute, master=compute)
    master = {name: Parameter(parameter.detach().clone()) for name, parameter in compute.items()}
    # parameters alone: the buffers (rotary frequencies) stay as they are
    for parameter in compute.values():
        parameter.data = parameter.data.to(torch.bfloat16)
    return Weights(compute=compute, master=master)
