"""A Ray to run on: joined or started here, its nodes now and those it may grow to, and whether each trial fits one."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray._private import ray_constants
from ray._private.state import state

from oneshot.config.sweep import ResourceConfig
from oneshot.errors import UserError
from oneshot.plan.plan import Trial

MOST_AT_A_TIME = 1000
"""Trials that are asked for ahead of workers, where the sweep sets no limit."""
NODE_TYPES = "ONESHOT_NODE_TYPES"
NUM_TRIES = 3
"""To be let in by a cluster that is there, about a second each."""
REACH_S = 10.0
RAYLET_S = 2.0
LOOK_S = 2.0
"""Between two looks at the cluster's nodes."""


Need = tuple[float, float, float | None, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """A kind of node: what each has, and how many there are, or may come to be."""

    resources: Mapping[str, float]
    count: int


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Joins a Ray cluster, or starts one on this machine alone, for as long as the block lasts.

    Raises:
        UserError: no cluster answers at the address, or it asks for a token.
    """
    _check_reachable(address)
    before = signal.getsignal(signal.SIGTERM)
    num_tries = ray_constants.NUM_REDIS_GET_RETRIES
    is_in_reach = ray_constants.ENABLE_RAY_CLUSTER
    if address is None:
        # Ray binds to every interface of the machine, where a cluster could grow; of one machine, only to loopback
        ray_constants.ENABLE_RAY_CLUSTER = False
    else:
        ray_constants.NUM_REDIS_GET_RETRIES = NUM_TRIES
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--address {address}: {_why(error)}; is Ray up there, of this version, and does it ask for a token "
            "(RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH say which)?"
        ) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, ray_constants.NUM_REDIS_GET_RETRIES = is_in_reach, num_tries
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which ends the driver at once
    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Ray itself tries for ten minutes.

    Raises:
        UserError: nothing listens there.
    """
    host, has_port, port = (address or "").rpartition(":")
    if not has_port or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise UserError(f"--address {address}: no Ray cluster answers there ({error.strerror or error})") from error


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class Nodes:
    """The cluster's nodes, looked at again every `LOOK_S`: they come and go while a sweep runs."""

    def __init__(self) -> None:
        self._looked_s = float("-inf")
        self._node_types: list[NodeType] = []
        self._leaving: frozenset[str] = frozenset()
        self._capacities: dict[Need, int] = {}

    def shapes(self) -> list[NodeType]:
        """Every node that is there, and what an autoscaler may add."""
        self._look()
        return self._node_types

    def capacity(self, resources: ResourceConfig) -> int:
        """Trials of this need to have ready now, those that run counted."""
        self._look()
        need = need_of(resources)
        if need not in self._capacities:
            self._capacities[need] = capacity(resources, self._node_types)
        return self._capacities[need]

    def leaving(self) -> frozenset[str]:
        """Ids of nodes that are being drained: a spot machine that is taken back, one that is scaled away."""
        self._look()
        return self._leaving

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s > LOOK_S:
            self._looked_s = now_s
            self._node_types = shapes()
            self._leaving = frozenset(state.get_draining_nodes())
            self._capacities.clear()


def shapes() -> list[NodeType]:
    """Every node that is there, and what an autoscaler may add."""
    there = [NodeType(resources=node["Resources"], count=1) for node in ray.nodes() if node["Alive"]]
    return there + node_types(os.environ.get(NODE_TYPES, ""))


def node_types(text: str) -> list[NodeType]:
    """`CPU=8,GPU=1,memory_gib=48,accelerator=L4,count=8; CPU=64` -> what an autoscaler may add: Ray does not tell.

    Raises:
        UserError: it is written otherwise.
    """
    found = []
    for one in filter(None, (part.strip() for part in text.split(";"))):
        resources, count = {}, MOST_AT_A_TIME
        for part in one.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            try:
                if name == "accelerator" and value:
                    resources[f"accelerator_type:{value}"] = 1.0
                elif name == "count":
                    count = int(value)
                else:
                    resources[{"CPU": "CPU", "GPU": "GPU", "memory_gib": "memory"}[name]] = float(value)
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"{NODE_TYPES}: {part.strip()!r}: write node types as CPU=8,GPU=1,count=8, a semicolon between two "
                    "(there is also memory_gib, accelerator)"
                ) from error
        resources["memory"] = resources.get("memory", float("inf")) * 2**30
        found.append(NodeType(resources=resources, count=count))
    return found


def is_there(node_id: str) -> bool:
    """Whether a node is alive: Ray says so, and its raylet answers. Ray learns of a death seconds after its victims."""
    found = next((node for node in ray.nodes() if node["NodeID"] == node_id and node["Alive"]), None)
    if found is None:
        return False
    try:
        socket.create_connection((found["NodeManagerAddress"], found["NodeManagerPort"]), timeout=RAYLET_S).close()
    except OSError:
        return False
    return True


def bundle(resources: ResourceConfig, nodes: Sequence[NodeType]) -> dict[str, float]:
    """What a training reserves on one node; of several accelerator types, the first that the cluster has."""
    found: dict[str, float] = {"CPU": resources.cpus}
    if resources.gpus:
        found["GPU"] = resources.gpus
    if resources.memory_gib:
        found["memory"] = resources.memory_gib * 2**30
    types = [f"accelerator_type:{name}" for name in resources.accelerator or ()]
    if types:
        # a sliver of the marker that Ray puts on every node of the type
        found[next((name for name in types if any(name in node.resources for node in nodes)), types[0])] = 0.001
    return found


def need_of(resources: ResourceConfig) -> Need:
    """By which trials compete."""
    return resources.cpus, resources.gpus, resources.memory_gib, tuple(resources.accelerator or ())


def capacity(resources: ResourceConfig, nodes: Sequence[NodeType]) -> int:
    """Trials to have ready, those that run counted: what fits, and a few more, so that no worker waits for its next.

    Few, since Tune takes them in order: what was lost with a node waits behind those that are ready already.
    """
    needed = bundle(resources, nodes)
    most = sum(_copies(needed, node) for node in nodes)
    return min(MOST_AT_A_TIME, most + max(2, most // 4))


def _copies(needed: Mapping[str, float], node: NodeType) -> int:
    """How often a bundle fits a kind of node."""
    of_one = min(node.resources.get(name, 0) / amount for name, amount in needed.items())
    return int(of_one) * node.count


def fits(needed: Mapping[str, float], node: Mapping[str, float]) -> bool:
    """Whether a node could ever hold a bundle."""
    return all(node.get(name, 0) >= amount for name, amount in needed.items())


def check_cluster(address: str, trials: Sequence[Trial]) -> None:
    """Asks a cluster whether each trial fits one of its nodes.

    Raises:
        UserError: one does not, or no cluster answers.
    """
    with joined(address):
        check_feasible(trials, shapes())


def check_feasible(trials: Sequence[Trial], nodes: Sequence[NodeType]) -> None:
    """A trial that fits no node would wait for ever.

    Raises:
        UserError: names trial, need and the largest node.
    """
    seen = set()
    for trial in trials:
        needed = bundle(trial.resources, nodes)
        if (need := tuple(needed.items())) in seen:
            continue
        seen.add(need)
        if not any(fits(needed, node.resources) for node in nodes):
            largest = max(nodes, key=lambda node: (node.resources.get("GPU", 0), node.resources.get("CPU", 0)))
            there = {name: largest.resources.get(name, 0) for name in needed}
            raise UserError(
                f"{trial.label} needs {_amounts(needed)} on one node; the largest node has "
                f"{_amounts(there)}: lower `resources`, use another cluster, or say in {NODE_TYPES} what its "
                "autoscaler may add"
            )


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {name: amount / 2**30 if name == "memory" else amount for name, amount in resources.items()}
    return ", ".join(f"{amount:g} {'GiB memory' if name == 'memory' else name}" for name, amount in shown.items())
