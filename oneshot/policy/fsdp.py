"""A loaded model -> shards of weights, gradients and moments, one per process (FSDP2), for models too large for a GPU.

The update runs on a sharded copy of the model, which gathers a layer when it is needed and frees it afterwards.
Decoding would gather every layer again for every token. It runs on a whole model in the compute precision instead,
which is gathered once a step and uses no memory during the update. The reference is sharded as well.

This module calls `fully_shard` itself. Accelerate supports FSDP on GPUs only, so that no test on a CPU could reach it,
and gives the head a unit of its own, which our loss never calls (output_head.py reads its weights).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from oneshot.config.model import ModelConfig
from oneshot.policy.forward import Scored
from oneshot.policy.weights import Weights
from oneshot.policy.world import World

_PREFIX = "model."  # Prefix of the model's parameter names within `Scored`


class Sharded(Weights):
    """Weights of which this process holds a shard, and a whole model that decodes."""

    def __init__(self, model: Any, scored: Scored, *, world: World) -> None:
        """Take the model that decodes, in its compute precision, and the sharded one, both with their first values."""
        self._decodes = True
        self._shards = {name.removeprefix(_PREFIX): parameter for name, parameter in scored.named_parameters()}
        super().__init__(
            compute=dict(model.named_parameters()),
            master={name: shard for name, shard in self._shards.items() if shard.requires_grad},
            scored=scored,
            loss_scale=float(world.size),  # FSDP averages over processes
        )

    def stop_decoding(self) -> None:
        """Free the whole model for good, because an engine has weights of its own; its parameters keep their shapes."""
        self._decodes = False
        self._free()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Free the decoding weights, and afterwards gather and round them again, one parameter at a time."""
        self._free()
        yield
        if not self._decodes:
            return
        with torch.no_grad():
            for name, whole in self.whole_values():
                parameter = self.compute[name]
                parameter.untyped_storage().resize_(parameter.numel() * parameter.itemsize)
                parameter.copy_(whole)

    def whole_values(self) -> Iterator[tuple[str, Tensor]]:
        """Gather each weight from all processes, one at a time, and round it to the compute precision."""
        for name, parameter in self.compute.items():
            yield name, self.whole(self._shards[name].detach().to(parameter.dtype).to(parameter.device))

    def _free(self) -> None:
        for parameter in self.compute.values():
            parameter.untyped_storage().resize_(0)

    def collect(self) -> None:
        """Do nothing: the backward pass adds to each shard's gradient."""

    def complete(self, world: World) -> None:
        """Fill in missing gradients; the others are already those of all processes."""
        for master in self.master.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)

    def publish(self) -> None:
        """Free weights that a forward pass without a backward pass has left gathered: they are outdated."""
        self.version += 1
        cast(FSDPModule, self.scored).reshard()

    def whole(self, values: Tensor) -> Tensor:
        """Gather a tensor from all processes if it is sharded."""
        return values.full_tensor() if isinstance(values, DTensor) else values

    def part(self, values: Tensor, of: Tensor) -> Tensor:
        """Return this process' rows of values that each process has read for itself."""
        if not isinstance(of, DTensor) or values.dim() == 0:  # the optimiser's step count has no dimensions
            return values.to(of.device)
        placed = distribute_tensor(
            values.to(of.device_mesh.device_type), of.device_mesh, of.placements, src_data_rank=None
        )
        return placed.to(of.device)


def shard_weights(model: Any, config: ModelConfig, *, world: World, cpu_offload: bool) -> Sharded:
    """Turn a loaded model on the CPU into the one that decodes, and shard a copy of it for training."""
    values = {name: parameter.data for name, parameter in model.named_parameters()}
    trained = _twin(model)
    narrow = None if config.mixed_precision == "no" else getattr(torch, config.compute_dtype)
    for name, parameter in trained.named_parameters():
        # with an adapter the model's own weights are not optimised, and so need no wide copy
        parameter.data = values[name] if parameter.requires_grad or narrow is None else values[name].to(narrow)
    for name, parameter in model.named_parameters():
        parameter.data = values[name].to(world.accelerator.device, narrow or values[name].dtype, copy=True)
    values.clear()  # so that sharding a layer frees its wide weights
    return Sharded(model, shard(trained, config, world=world, cpu_offload=cpu_offload), world=world)


def shard_reference(model: Any, config: ModelConfig, *, world: World, cpu_offload: bool) -> Scored:
    """Return the frozen start of the model that decodes, in shards."""
    reference = _twin(model)
    for parameter, whole in zip(reference.parameters(), model.parameters(), strict=True):
        parameter.data = whole.detach().to("cpu", copy=True)
    scored = shard(reference.requires_grad_(False), config, world=world, cpu_offload=cpu_offload)
    cast(FSDPModule, scored).set_reshard_after_forward(True)  # there is no backward pass
    return scored


def _twin(model: Any) -> Any:
    """Copy everything but the parameters' values: two copies of those may not fit into the host's memory."""
    values = [parameter.data for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    twin = deepcopy(model)
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.data = value
    return twin


def shard(model: Any, config: ModelConfig, *, world: World, cpu_offload: bool) -> Scored:
    """Shard a whole model on the CPU onto the device, layer by layer."""
    scored = Scored(model)
    narrow = None if config.mixed_precision == "no" else getattr(torch, config.compute_dtype)
    offloads = cpu_offload and world.accelerator.device.type != "cpu"
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(world.accelerator.device.type, (world.size,)),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=narrow, reduce_dtype=None if narrow is None else torch.float32, cast_forward_inputs=False
        ),
        "offload_policy": CPUOffloadPolicy() if offloads else OffloadPolicy(),
    }
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):  # transformers' base class of decoder layers
            fully_shard(layer, **settings)
    fully_shard(scored, **settings)
    return scored
