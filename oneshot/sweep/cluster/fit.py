"""The resources of trials and the types of nodes -> what fits where. Of Ray it knows only names of resources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oneshot.config.resources import ResourceConfig
from oneshot.errors import UserError
from oneshot.models.placement import GPU_GIB, share_of
from oneshot.plan.trial import Trial

MOST_AT_A_TIME = 1000  # most trials that Tune is given ahead of free workers, unless the sweep sets a limit
NODE_TYPES = "ONESHOT_NODE_TYPES"
ACCELERATOR = "accelerator_type:"
"""Prefix of the resource that Ray gives every node with GPUs of a type that it knows."""


Need = tuple[float, float, float | None, float | None, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """A type of node: the resources of each, and how many exist or may be added."""

    resources: Mapping[str, float]
    count: int


class Fit:
    """What fits on given nodes, looked up again for equal needs."""

    def __init__(self, nodes: Sequence[NodeType]) -> None:
        self.nodes = nodes
        self._capacities: dict[Need, int] = {}
        self._placements: dict[str, list[ResourceConfig]] = {}

    def capacity(self, resources: ResourceConfig) -> int:
        """Return how many trials with these needs Tune should have now, running ones included."""
        need = need_of(resources)
        if need not in self._capacities:
            self._capacities[need] = capacity(resources, self.nodes)
        return self._capacities[need]

    def placements(self, resources: ResourceConfig) -> list[ResourceConfig]:
        """Return the ways to place a trial."""
        if not resources.is_packed:
            return [resources]
        key = resources.model_dump_json()  # trials with equal needs may differ otherwise
        if key not in self._placements:
            self._placements[key] = placements(resources, self.nodes)
        return self._placements[key]


def read_node_types(text: str) -> list[NodeType]:
    """Parse what an autoscaler may add, as `CPU=8,GPU=1,memory_gib=48,accelerator=L4,count=8; CPU=64`.

    Ray itself does not say what its autoscaler may add.

    Raises UserError: the text has another form.
    """
    types = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        resources, count = {}, MOST_AT_A_TIME
        for part in entry.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            try:
                if name == "accelerator" and value:
                    resources[f"{ACCELERATOR}{value}"] = 1.0
                elif name == "count":
                    count = int(value)
                else:
                    resources[{"CPU": "CPU", "GPU": "GPU", "memory_gib": "memory"}[name]] = float(value)
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"{NODE_TYPES}: {part.strip()!r}: expected node types as CPU=8,GPU=1,count=8, separated by "
                    "semicolons (memory_gib and accelerator are allowed too)"
                ) from error
        resources["memory"] = resources.get("memory", float("inf")) * 2**30
        types.append(NodeType(resources=resources, count=count))
    return types


def reservation(resources: ResourceConfig, nodes: Sequence[NodeType]) -> dict[str, float]:
    """Return what a training reserves on one node; of several accelerator types, the first that the cluster has."""
    reserved: dict[str, float] = {"CPU": resources.cpus}
    if resources.gpus:
        reserved["GPU"] = resources.gpus
    if resources.memory_gib:
        reserved["memory"] = resources.memory_gib * 2**30
    types = [f"{ACCELERATOR}{name}" for name in resources.accelerator or ()]
    if types:
        # a small part of the marker resource that Ray puts on every node of the type
        reserved[next((name for name in types if any(name in node.resources for node in nodes)), types[0])] = 0.001
    return reserved


def need_of(resources: ResourceConfig) -> Need:
    """Return the resources by which trials compete."""
    packed_gib = resources.gpu_gib if resources.is_packed else None
    return resources.cpus, resources.gpus, resources.memory_gib, packed_gib, tuple(resources.accelerator or ())


def placements(resources: ResourceConfig, nodes: Sequence[NodeType]) -> list[ResourceConfig]:
    """Return the ways to place a trial: one, or for a share of a GPU one for each type of GPU that has the memory."""
    if not resources.is_packed:
        return [resources]
    assert resources.gpu_gib is not None, "a packed trial says how much memory it needs"
    sizes = {name: GPU_GIB[name] for name in _gpu_types(nodes) if name in GPU_GIB}
    return [
        resources.model_copy(update={"gpus": share_of(resources.gpu_gib, size), "accelerator": [name]})
        for name, size in sizes.items()
        if size >= resources.gpu_gib and name in (resources.accelerator or sizes)
    ]


def _gpu_types(nodes: Sequence[NodeType]) -> list[str]:
    """Return the accelerator types of nodes with GPUs, in Ray's names."""
    names = {
        name.removeprefix(ACCELERATOR)
        for node in nodes
        if node.resources.get("GPU")
        for name in node.resources
        if name.startswith(ACCELERATOR)
    }
    return sorted(names)


def capacity(resources: ResourceConfig, nodes: Sequence[NodeType]) -> int:
    """Return how many trials Tune should have, running ones included: what fits, plus a few so that no worker waits.

    Only a few, because Tune takes them in order: a trial that was lost with a node waits behind those already there.
    """
    needed = reservation(resources, nodes)
    most = sum(
        min(_num_parts(name, node.resources.get(name, 0), amount) for name, amount in needed.items()) * node.count
        for node in nodes
    )
    return min(MOST_AT_A_TIME, most + max(2, most // 4))


def _num_parts(name: str, total: float, amount: float) -> int:
    """Return how many times an amount fits; a share of a GPU is never spread over two."""
    if name == "GPU" and amount < 1:
        return int(total) * int(1 / amount + 1e-9)
    return int(total / amount + 1e-9)


def fits(needed: Mapping[str, float], node: Mapping[str, float]) -> bool:
    """Return whether an empty node could hold a reservation."""
    return all(node.get(name, 0) >= amount for name, amount in needed.items())


def check_feasible(trials: Sequence[Trial], nodes: Sequence[NodeType]) -> None:
    """Check that each trial fits on a node; one that does not would wait forever.

    Raises UserError: names the trial, its needs and the largest node.
    """
    seen = set()
    for trial in trials:
        if (need := need_of(trial.resources)) in seen:
            continue
        seen.add(need)
        if not can_hold(nodes, trial.resources):
            _check_gpu_types(trial, nodes)
            needed = reservation(trial.resources, nodes)
            largest = max(nodes, key=lambda node: (node.resources.get("GPU", 0), node.resources.get("CPU", 0)))
            available = {name: largest.resources.get(name, 0) for name in needed}
            raise UserError(
                f"{trial.label} needs {_amounts(needed)} on one node; the largest node has "
                f"{_amounts(available)}; lower `resources`, use another cluster, or set {NODE_TYPES} to what its "
                "autoscaler may add"
            )


def can_hold(nodes: Sequence[NodeType], resources: ResourceConfig) -> bool:
    """Return whether an empty node could hold a trial."""
    return any(
        fits(reservation(placed, nodes), node.resources) for placed in placements(resources, nodes) for node in nodes
    )


def _check_gpu_types(trial: Trial, nodes: Sequence[NodeType]) -> None:
    """Raise UserError: the trial needs a share of a GPU, and no type of GPU that the cluster has is large enough."""
    if placements(trial.resources, nodes):
        return
    types = [f"{name} ({GPU_GIB[name]:g} GiB)" if name in GPU_GIB else name for name in _gpu_types(nodes)]
    raise UserError(
        f"{trial.label} needs {trial.resources.gpu_gib:g} GiB of one GPU; the cluster has "
        f"{', '.join(types) or 'no GPU of a known type'}; lower resources.gpu_gib, or set resources.gpus to a share"
    )


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {name: amount / 2**30 if name == "memory" else amount for name, amount in resources.items()}
    return ", ".join(f"{amount:g} {'GiB memory' if name == 'memory' else name}" for name, amount in shown.items())
