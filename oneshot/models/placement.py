"""A trial and its resources -> how it is spread over processes, what each needs of its GPU, and what else would fit."""

from collections.abc import Iterator
from dataclasses import dataclass

from oneshot.config.sweep import ResourceConfig
from oneshot.config.trial import AdapterConfig, TrialConfig
from oneshot.models.memory import DTYPE_BYTES, Memory, Strategy, footprint
from oneshot.models.shapes import model_shape
from oneshot.tasks.benchmarks import load_suites

__all__ = [
    "GPU_GIB",
    "HEADROOM",
    "Memory",
    "Placement",
    "Strategy",
    "alternatives",
    "choose_strategy",
    "host_gib",
    "place_trial",
    "trial_memory",
    "usable_gib",
]
GPU_GIB = {
    "T4": 14.5,
    "V100": 15.5,
    "A10G": 22,
    "L4": 22,
    "A100": 39,
    "A100-40G": 39,
    "L40S": 44,
    "A100-80G": 79,
    "H100": 79,
    "H20": 94,
    "H200": 139,
    "B200": 178,
    "AMD-Instinct-MI300X-OAM": 191,
}
"""What a driver leaves of a GPU (GiB), by Ray's name for its type: 79 of one that is sold as 80 GB."""
USUAL_GPU_GIB = 79
HEADROOM = 0.1
"""Share of a GPU that is not planned with: the CUDA context, libraries' workspaces, what allocation cuts up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One way to run a trial: its weights or an adapter, on so many GPUs."""

    resources: ResourceConfig
    strategy: Strategy
    memory: Memory
    """Of each process."""
    adapter: AdapterConfig | None

    @property
    def usable_gib(self) -> float | None:
        """Of its GPU; None without one."""
        return usable_gib(self.resources)

    @property
    def fits(self) -> bool:
        """Whether each process stays within its GPU; without GPUs always."""
        return self.usable_gib is None or self.memory.peak_gib <= self.usable_gib


def usable_gib(resources: ResourceConfig) -> float | None:
    """What a process may use of its GPU, the headroom left out; None where it has none."""
    if not resources.gpus:
        return None
    known = [GPU_GIB[name] for name in resources.accelerator or () if name in GPU_GIB]
    whole = resources.gpu_gib or min(known, default=USUAL_GPU_GIB)
    return whole * min(resources.gpus, 1.0) * (1 - HEADROOM)


def trial_memory(config: TrialConfig, resources: ResourceConfig, *, strategy: Strategy | None = None) -> Memory | None:
    """What each process of a trial needs, spread as it is chosen; None where nothing is known of the model."""
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
    """What all processes of a trial load into host memory before their GPUs have it; None where nothing is known."""
    if config.script is not None or not resources.gpus or (shape := model_shape(config)) is None:
        return None
    size = DTYPE_BYTES[config.model.dtype]
    loaded = resources.processes * size * shape.num_params / 2**30
    if not resources.cpu_offload or choose_strategy(config, resources) != "fsdp":
        return loaded
    return max(loaded, 4 * size * shape.num_params / 2**30)  # the shards of all: weights, gradients, two moments


def choose_strategy(config: TrialConfig, resources: ResourceConfig) -> Strategy:
    """How a trial is spread: as its resources say, or by what fits.

    Of a model of which nothing is known: on several GPUs fsdp, which needs least.
    """
    if resources.processes == 1:
        return "single"
    if resources.strategy != "auto":
        return resources.strategy
    usable = usable_gib(resources)
    if usable is None:
        return "ddp"
    whole = trial_memory(config, resources, strategy="ddp")
    return "ddp" if whole is not None and whole.peak_gib <= usable else "fsdp"


def place_trial(
    config: TrialConfig, resources: ResourceConfig, *, strategy: Strategy | None = None
) -> Placement | None:
    """A trial as it will run; None where nothing is known of its model."""
    chosen = strategy or choose_strategy(config, resources)
    memory = trial_memory(config, resources, strategy=chosen)
    if memory is None:
        return None
    return Placement(resources=resources, strategy=chosen, memory=memory, adapter=config.model.adapter)


def alternatives(config: TrialConfig, resources: ResourceConfig) -> Iterator[Placement]:
    """Other ways to run a trial on such GPUs: one, several with copies or shards, and one with an adapter."""
    for num_gpus, strategy in _WAYS:
        need = resources.model_copy(update={"gpus": num_gpus, "num_processes": None, "strategy": "auto"})
        found = place_trial(config, need, strategy=strategy)
        if found is not None:
            yield found
    if config.model.adapter is None and config.train.num_steps:
        model = config.model.model_copy(update={"adapter": AdapterConfig()})
        alone = resources.model_copy(update={"gpus": 1.0, "num_processes": None, "cpu_offload": False})
        found = place_trial(config.model_copy(update={"model": model}), alone, strategy="single")
        if found is not None:
            yield found


_WAYS: tuple[tuple[float, Strategy], ...] = ((1, "single"), (2, "ddp"), (2, "fsdp"), (4, "fsdp"), (8, "fsdp"))
