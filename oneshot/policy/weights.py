"""The trained weights: what computes, and what is optimised.

In one precision they are the same tensors. With bfloat16 compute, rollout, evaluation and update all run on bfloat16
weights, and the optimiser holds float32 ones that the bfloat16 ones are rounded from after each of its steps: nothing
is cast while decoding, and the policy that samples is the policy that is trained. (Autocast would cast every weight at
every decode step, and keep a residual stream in the update that the rollout does not have.)

`Whole` keeps all of both in each process, `Sharded` (sharded.py) a part.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from oneshot.config.trial import ModelConfig
from oneshot.policy.forward import Scored
from oneshot.policy.world import World


class Weights(Protocol):
    """What a step does with the weights, in its order; everything but `compute` is the trained ones' alone."""

    @property
    def compute(self) -> Mapping[str, Parameter]:
        """By name: what decodes and evaluates."""
        ...

    @property
    def master(self) -> Mapping[str, Parameter]:
        """By name: what the optimiser changes."""
        ...

    @property
    def scored(self) -> Scored:
        """The policy as a `Scored`: what the update runs through."""
        ...

    @property
    def loss_scale(self) -> float:
        """What each process multiplies its part of the loss by, for `complete` to give the sum of all parts."""
        ...

    def updating(self) -> AbstractContextManager[None]:
        """Around optimiser steps: what only decodes may be let go, and holds the new values at the end."""
        ...

    def collect(self) -> None:
        """Adds the gradients of a micro-batch to the master's, and clears them."""
        ...

    def complete(self, world: World) -> None:
        """Makes the master's gradients those of all processes' parts; zero where nobody has one."""
        ...

    def publish(self) -> None:
        """Rounds the master's values into what computes, after an optimiser step."""
        ...

    def whole(self, values: Tensor) -> Tensor:
        """A master's tensor, or one of its shape of the optimiser's, as one process would hold it; all call it."""
        ...

    def part(self, values: Tensor, of: Tensor) -> Tensor:
        """Whole values -> what this process holds of them, laid out as `of` is."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Everything in every process."""

    compute: dict[str, Parameter]
    master: dict[str, Parameter]
    scored: Scored
    loss_scale: float = 1.0

    def updating(self) -> AbstractContextManager[None]:
        """Nothing: what decodes is what is trained."""
        return nullcontext()

    def collect(self) -> None:
        """In one precision, nothing: gradients add up where they are."""
        for name, master in self.master.items():
            parameter = self.compute[name]
            if master is parameter or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            master.grad += parameter.grad
            parameter.grad = None

    def complete(self, world: World) -> None:
        """Once an optimiser step, in the master's precision: what DDP's hooks do after each backward pass."""
        for master in self.master.values():
            if master.grad is None:
                # no gradient is not the same as a gradient of zero: moments and weight decay go on
                master.grad = torch.zeros_like(master)
            master.grad = world.all_reduce(master.grad)

    @torch.no_grad()
    def publish(self) -> None:
        """A copy in another precision; in one, nothing."""
        for name, master in self.master.items():
            if self.compute[name] is not master:
                self.compute[name].copy_(master)

    def whole(self, values: Tensor) -> Tensor:
        """As it is."""
        return values

    def part(self, values: Tensor, of: Tensor) -> Tensor:
        """All of it."""
        return values.to(of.device)


def split_weights(model: Any, config: ModelConfig) -> Whole:
    """Turns a loaded model to its compute precision, and keeps the values of what is trained as the master's."""
    compute = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in compute.items() if parameter.requires_grad}
    scored = Scored(model)
    if config.mixed_precision == "no":
        return Whole(compute=compute, master=trained, scored=scored)
    master = {name: Parameter(parameter.detach().clone()) for name, parameter in trained.items()}
    # parameters alone: the buffers (rotary frequencies) stay as they are
    for parameter in compute.values():
        parameter.data = parameter.data.to(torch.bfloat16)
    return Whole(compute=compute, master=master, scored=scored)


def named_moments(weights: Weights, optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """`<parameter>/<moment>` of everything that the optimiser keeps, whole; all processes call it."""
    for name, parameter in weights.master.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}/{key}", weights.whole(value)
