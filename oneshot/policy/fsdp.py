"""Weights, gradients and moments in shards, one a process (FSDP2), for models that fit no GPU by themselves.

The update runs on a sharded copy of the model, whose layers are gathered as they are needed and let go after. Decoding
would gather every layer again for every token: it runs on a whole model in the compute precision instead, which is
gathered once a step and whose memory is free while the update runs. The reference is sharded as well.

`fully_shard` is called here and not by accelerate, which takes FSDP on GPUs only, so that no test on a CPU could reach
it, and puts the head into a unit of its own, which our loss never calls (head.py reads its weights).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter
from transformers.modeling_layers import GradientCheckpointingLayer

from oneshot.config.trial import ModelConfig
from oneshot.policy.forward import Scored
from oneshot.policy.world import World

_WITHIN = "model."
"""What `Scored` puts before the model's own names."""


class Sharded:
    """A shard of the trained weights in this process, and the whole of what decodes."""

    def __init__(self, model: Any, scored: Scored, *, world: World) -> None:
        """Takes the model that decodes, at its compute precision, and the sharded one, both with their first values."""
        self.compute: Mapping[str, Parameter] = dict(model.named_parameters())
        self.scored = scored
        self._shards = {name.removeprefix(_WITHIN): parameter for name, parameter in scored.named_parameters()}
        self.master: Mapping[str, Parameter] = {n: p for n, p in self._shards.items() if p.requires_grad}
        self.loss_scale = float(world.size)
        """FSDP takes the mean over processes."""

    @contextmanager
    def updating(self) -> Iterator[None]:
        """What decodes is let go, and gathered anew: parameter after parameter, rounded first."""
        for parameter in self.compute.values():
            parameter.untyped_storage().resize_(0)
        yield
        with torch.no_grad():
            for name, parameter in self.compute.items():
                whole = self.whole(self._shards[name].detach().to(parameter.dtype).to(parameter.device))
                parameter.untyped_storage().resize_(parameter.numel() * parameter.itemsize)
                parameter.copy_(whole)

    def collect(self) -> None:
        """Nothing: the backward pass has added each shard's gradient to it."""

    def complete(self, world: World) -> None:
        """Gradients are those of all processes already."""
        for master in self.master.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)

    def publish(self) -> None:
        """Lets go of what a forward pass without a backward one has left gathered, which is old now."""
        cast(FSDPModule, self.scored).reshard()

    def whole(self, values: Tensor) -> Tensor:
        """Gathered from all processes, where its shards are."""
        return values.full_tensor() if isinstance(values, DTensor) else values

    def part(self, values: Tensor, of: Tensor) -> Tensor:
        """This process' rows, taken from what each has read for itself."""
        if not isinstance(of, DTensor) or values.dim() == 0:  # the optimiser's count of steps is of no shape
            return values.to(of.device)
        placed = distribute_tensor(
            values.to(of.device_mesh.device_type), of.device_mesh, of.placements, src_data_rank=None
        )
        return placed.to(of.device)


def shard_weights(model: Any, config: ModelConfig, *, world: World, cpu_offload: bool) -> Sharded:
    """A loaded model, on the CPU, becomes the one that decodes; what is trained are shards of its copy."""
    values = {name: parameter.data for name, parameter in model.named_parameters()}
    trained = _twin(model)
    narrow = torch.bfloat16 if config.mixed_precision == "bf16" else None
    for name, parameter in trained.named_parameters():
        # beside an adapter a weight is never optimised, and so never wider than it computes
        parameter.data = values[name] if parameter.requires_grad or narrow is None else values[name].to(narrow)
    for name, parameter in model.named_parameters():
        parameter.data = values[name].to(world.accelerator.device, narrow or values[name].dtype, copy=True)
    values.clear()  # each layer's wide weights go as it is cut
    return Sharded(model, shard(trained, config, world=world, cpu_offload=cpu_offload), world=world)


def shard_reference(model: Any, config: ModelConfig, *, world: World, cpu_offload: bool) -> Scored:
    """The frozen start of the model that decodes, in shards."""
    reference = _twin(model)
    for parameter, whole in zip(reference.parameters(), model.parameters(), strict=True):
        parameter.data = whole.detach().to("cpu", copy=True)
    scored = shard(reference.requires_grad_(False), config, world=world, cpu_offload=cpu_offload)
    cast(FSDPModule, scored).set_reshard_after_forward(True)  # no backward pass will want it again
    return scored


def _twin(model: Any) -> Any:
    """A copy of everything but the parameters' values, which two models would hardly fit a machine's memory with."""
    values = [parameter.data for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    twin = deepcopy(model)
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.data = value
    return twin


def shard(model: Any, config: ModelConfig, *, world: World, cpu_offload: bool) -> Scored:
    """A whole model, on the CPU -> the same in shards on the device, layer by layer."""
    scored = Scored(model)
    narrow = torch.bfloat16 if config.mixed_precision == "bf16" else None
    waits_elsewhere = cpu_offload and world.accelerator.device.type != "cpu"
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(world.accelerator.device.type, (world.size,)),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=narrow, reduce_dtype=None if narrow is None else torch.float32, cast_forward_inputs=False
        ),
        "offload_policy": CPUOffloadPolicy() if waits_elsewhere else OffloadPolicy(),
    }
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):  # transformers' word for a decoder layer
            fully_shard(layer, **settings)
    fully_shard(scored, **settings)
    return scored
