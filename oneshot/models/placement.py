"""A trial and its resources -> its strategy, each process's GPU memory, and alternatives that would fit."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oneshot.config.model import AdapterConfig
from oneshot.config.resources import PackedResources, ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.models.memory import DTYPE_BYTES, Memory, Strategy, footprint
from oneshot.models.shapes import model_shape
from oneshot.tasks.benchmarks import load_suites

GPU_GIB: dict[str, float] = json.loads(Path(__file__).with_name("gpus.json").read_text())
"""Usable memory of a GPU (GiB), by Ray's name for its type: 79 of a GPU that is sold with 80 GB."""
USUAL_GPU_GIB = 79
HEADROOM = 0.1  # share of a GPU that a plan leaves free: CUDA context, libraries' workspaces, fragmentation
SHARES_GIB = (2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)  # shares of a GPU that a hint names
_WAYS: tuple[tuple[float, Strategy], ...] = ((1, "single"), (2, "ddp"), (2, "fsdp"), (4, "fsdp"), (8, "fsdp"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One way to run a trial: its resources, strategy and adapter, and the memory that it needs."""

    resources: ResourceConfig
    strategy: Strategy
    memory: Memory  # of each process
    adapter: AdapterConfig | None

    @property
    def usable_gib(self) -> float | None:
        """Return what a process may use of its GPU; None without one."""
        return usable_gib(self.resources)

    @property
    def fits(self) -> bool:
        """Return whether each process fits into its GPU; always true without GPUs."""
        return self.usable_gib is None or self.memory.peak_gib <= self.usable_gib


def usable_gib(resources: ResourceConfig) -> float | None:
    """Return what a process may use of its GPU, without the headroom; None without a GPU."""
    if not resources.gpus:
        return None
    sizes = [GPU_GIB[name] for name in resources.accelerator or () if name in GPU_GIB]
    own = resources.gpu_gib or min(sizes, default=USUAL_GPU_GIB) * min(resources.gpus, 1.0)
    return own * (1 - HEADROOM)


def with_share(resources: ResourceConfig) -> ResourceConfig:
    """Return resources in which `gpu_gib` without `gpus` is a share of the GPU that a plan assumes.

    That is the smallest of `accelerator` with enough memory, else one of 79 GiB, else the smallest type with enough.

    Raises UserError: no such GPU has enough, or `gpus` states a share, too.
    """
    need = resources.gpu_gib
    if 0 < resources.gpus < 1 and need is not None:
        raise UserError(f"gpu_gib: {need:g} and gpus: {resources.gpus:g} both state a share of a GPU; remove one")
    if resources.gpus or need is None:
        return resources
    usual = () if resources.accelerator or need > USUAL_GPU_GIB else (USUAL_GPU_GIB,)
    sizes = usual or [size for name, size in GPU_GIB.items() if name in (resources.accelerator or GPU_GIB)]
    size = min((size for size in sizes if size >= need), default=None)
    if size is None:
        largest = f"the largest has {max(sizes):g}" if sizes else "the memory of these types is unknown"
        raise UserError(f"gpu_gib: {need:g} GiB of one GPU, but {largest}; lower it, or set gpus")
    return PackedResources(**{**resources.model_dump(), "gpus": share_of(need, size)})


def share_of(need_gib: float, whole_gib: float) -> float:
    """Return a share of a GPU that is large enough, in the steps of 0.0001 that Ray counts in."""
    return math.ceil(need_gib / whole_gib * 10_000 - 1e-6) / 10_000


def trial_memory(config: TrialConfig, resources: ResourceConfig, *, strategy: Strategy | None = None) -> Memory | None:
    """Return what each process of a trial needs; None if the model's shape is unknown."""
    if config.script is not None or (shape := model_shape(config)) is None:
        return None
    return footprint(
        config,
        shape,
        strategy=strategy or choose_strategy(config, resources),
        num_processes=resources.processes,
        cpu_offload=resources.cpu_offload,
        gpu_gib=None if config.model.device == "cpu" else usable_gib(resources),
        suites=load_suites(config),
    )


def host_gib(config: TrialConfig, resources: ResourceConfig) -> float | None:
    """Return the host memory that all processes of a trial need for loading; None without GPUs or a known shape."""
    if config.script is not None or not resources.gpus or (shape := model_shape(config)) is None:
        return None
    size = DTYPE_BYTES[config.model.dtype]
    loaded = resources.processes * size * shape.num_params / 2**30
    if not resources.cpu_offload or choose_strategy(config, resources) != "fsdp":
        return loaded
    return max(loaded, 4 * size * shape.num_params / 2**30)  # all shards: weights, gradients, two moments


def choose_strategy(config: TrialConfig, resources: ResourceConfig) -> Strategy:
    """Return the strategy that the resources name, else the fastest that fits.

    A model of unknown shape gets fsdp on several GPUs, which needs the least memory.
    """
    if resources.processes == 1:
        return "single"
    if resources.strategy != "auto":
        return resources.strategy
    usable = usable_gib(resources)
    if usable is None or config.critic is not None:  # which cannot be sharded
        return "ddp"
    whole = trial_memory(config, resources, strategy="ddp")
    return "ddp" if whole is not None and whole.peak_gib <= usable else "fsdp"


def place_trial(
    config: TrialConfig, resources: ResourceConfig, *, strategy: Strategy | None = None
) -> Placement | None:
    """Return how a trial will run; None if its model's shape is unknown."""
    chosen = strategy or choose_strategy(config, resources)
    memory = trial_memory(config, resources, strategy=chosen)
    if memory is None:
        return None
    return Placement(resources=resources, strategy=chosen, memory=memory, adapter=config.model.adapter)


def alternatives(config: TrialConfig, resources: ResourceConfig) -> Iterator[Placement]:
    """Yield other ways to run a trial on such GPUs: with more of one, alone, on several, or with an adapter."""
    if resources.is_packed:
        types = resources.accelerator or GPU_GIB
        most = max((GPU_GIB[name] for name in types if name in GPU_GIB), default=0.0)
        for gib in (gib for gib in SHARES_GIB if (resources.gpu_gib or 0.0) < gib <= most):
            share = with_share(resources.model_copy(update={"gpu_gib": gib, "gpus": 0.0}))
            if (placement := place_trial(config, share)) is not None:
                yield placement
        resources = resources.model_copy(update={"gpu_gib": None})
    for num_gpus, strategy in _WAYS:
        if strategy == "fsdp" and config.critic is not None:
            continue
        need = resources.model_copy(update={"gpus": num_gpus, "num_processes": None, "strategy": "auto"})
        if (placement := place_trial(config, need, strategy=strategy)) is not None:
            yield placement
    if config.model.adapter is None and config.train.num_steps:
        model = config.model.model_copy(update={"adapter": AdapterConfig()})
        alone = resources.model_copy(update={"gpus": 1.0, "num_processes": None, "cpu_offload": False})
        if (placement := place_trial(config.model_copy(update={"model": model}), alone, strategy="single")) is not None:
            yield placement
