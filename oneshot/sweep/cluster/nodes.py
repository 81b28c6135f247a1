"""A Ray cluster, joined or started here: its nodes, those an autoscaler may add, and what fits on them."""

import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray._private.state import state

from oneshot.config.sweep import ResourceConfig
from oneshot.errors import UserError
from oneshot.plan.trial import Trial
from oneshot.tasks.foreign import FOLDER

MOST_AT_A_TIME = 1000  # most trials that Tune is given ahead of free workers, unless the sweep sets a limit
NODE_TYPES = "ONESHOT_NODE_TYPES"
NUM_TRIES = 3  # attempts to connect to a running cluster, about a second each
REACH_S = 10.0
MAX_TEMP_DIR = 40
"""Length of a path that leaves room for the names of a session and a socket, whose path has 103 characters at most."""
SHORT_TEMP_DIR = "/tmp/ray"
RAYLET_S = 2.0
RAYLET_TRIES = 3
LOOK_S = 2.0  # least time between two looks at the cluster's nodes

Need = tuple[float, float, float | None, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """A type of node: the resources of each, and how many exist or may be added."""

    resources: Mapping[str, float]
    count: int


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Join a Ray cluster, or start one on this machine, for the duration of the block.

    Raises UserError: no cluster answers at the address, or it requires a token.
    """
    _check_reachable(address)
    before = signal.getsignal(signal.SIGTERM)
    num_tries = ray_constants.NUM_REDIS_GET_RETRIES
    is_in_reach = ray_constants.ENABLE_RAY_CLUSTER
    if address is None:
        # keeps Ray on loopback; otherwise it listens on every interface, so that other nodes can join
        ray_constants.ENABLE_RAY_CLUSTER = False
    else:
        ray_constants.NUM_REDIS_GET_RETRIES = NUM_TRIES
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=_short_temp_dir() if address is None else None,
            runtime_env=_trusted_code() if address is not None else None,
        )
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if address is None:
            raise UserError(f"Ray cannot start on this machine: {why}") from error
        raise UserError(
            f"--address {address}: {why}; check that Ray runs there in this version, and whether it requires a "
            "token (set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH)"
        ) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, ray_constants.NUM_REDIS_GET_RETRIES = is_in_reach, num_tries
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own handler would end the driver at once
    for name in ("ray.tune", "ray.train", "ray"):
        # an error of a trial is in the trial's own log, and the driver says what becomes of it
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        leave()


def _trusted_code() -> dict[str, Any] | None:
    """Return where workers find trusted code, on a disk that all nodes share. A job has this in its own environment."""
    folder = os.environ.get(FOLDER)
    is_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return None if folder is None or is_job else {"env_vars": {FOLDER: folder}}


def _short_temp_dir() -> str | None:
    """Return a folder for Ray's sockets if the path of the usual one is too long for a socket, else None."""
    return None if len(get_default_ray_temp_dir()) <= MAX_TEMP_DIR else SHORT_TEMP_DIR


def leave() -> None:
    """Disconnect from Ray while no other thread can free one of its object references.

    Between the end of Ray's C++ worker and that of its Python one, freeing a reference ends the process with code 1.
    Tune leaves references in cycles, which the garbage collector would free in any thread that allocates.
    """
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def _check_reachable(address: str | None) -> None:
    """Check that something listens at the address; Ray itself would retry for ten minutes.

    Raises UserError: nothing does.
    """
    host, has_port, port = (address or "").rpartition(":")
    if not has_port or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers ({error.strerror or error}); check the address"
        ) from error


class Nodes:
    """The cluster's nodes, which come and go while a sweep runs; looked at again every `LOOK_S`."""

    def __init__(self) -> None:
        self._looked_s = float("-inf")
        self._node_types: list[NodeType] = []
        self._leaving: frozenset[str] = frozenset()
        self._capacities: dict[Need, int] = {}

    def types(self) -> list[NodeType]:
        """Return every live node, and the types that an autoscaler may add."""
        self._look()
        return self._node_types

    def capacity(self, resources: ResourceConfig) -> int:
        """Return how many trials with these needs Tune should have now, running ones included."""
        self._look()
        need = need_of(resources)
        if need not in self._capacities:
            self._capacities[need] = capacity(resources, self._node_types)
        return self._capacities[need]

    def leaving(self) -> frozenset[str]:
        """Return the ids of nodes that are being drained, such as reclaimed spot machines."""
        self._look()
        return self._leaving

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s > LOOK_S:
            self._looked_s = now_s
            self._node_types = live_types()
            self._leaving = frozenset(state.get_draining_nodes())
            self._capacities.clear()


def live_types() -> list[NodeType]:
    """Return every live node, and the types that an autoscaler may add."""
    live = [NodeType(resources=node["Resources"], count=1) for node in ray.nodes() if node["Alive"]]
    return live + read_node_types(os.environ.get(NODE_TYPES, ""))


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
                    resources[f"accelerator_type:{value}"] = 1.0
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


def is_there(node_id: str) -> bool:
    """Return whether a node is alive by Ray's word and its raylet answers; Ray learns of a death seconds late."""
    node = next((node for node in ray.nodes() if node["NodeID"] == node_id and node["Alive"]), None)
    if node is None:
        return False
    for _ in range(RAYLET_TRIES):
        try:
            socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=RAYLET_S).close()
        except TimeoutError:  # it may be busy
            continue
        except OSError:
            return False
        return True
    return False


def reservation(resources: ResourceConfig, nodes: Sequence[NodeType]) -> dict[str, float]:
    """Return what a training reserves on one node; of several accelerator types, the first that the cluster has."""
    reserved: dict[str, float] = {"CPU": resources.cpus}
    if resources.gpus:
        reserved["GPU"] = resources.gpus
    if resources.memory_gib:
        reserved["memory"] = resources.memory_gib * 2**30
    types = [f"accelerator_type:{name}" for name in resources.accelerator or ()]
    if types:
        # a small part of the marker resource that Ray puts on every node of the type
        reserved[next((name for name in types if any(name in node.resources for node in nodes)), types[0])] = 0.001
    return reserved


def need_of(resources: ResourceConfig) -> Need:
    """Return the resources by which trials compete."""
    return resources.cpus, resources.gpus, resources.memory_gib, tuple(resources.accelerator or ())


def capacity(resources: ResourceConfig, nodes: Sequence[NodeType]) -> int:
    """Return how many trials Tune should have, running ones included: what fits, plus a few so that no worker waits.

    Only a few, because Tune takes them in order: a trial that was lost with a node waits behind those already there.
    """
    needed = reservation(resources, nodes)
    most = sum(
        int(min(node.resources.get(name, 0) / amount for name, amount in needed.items())) * node.count for node in nodes
    )
    return min(MOST_AT_A_TIME, most + max(2, most // 4))


def fits(needed: Mapping[str, float], node: Mapping[str, float]) -> bool:
    """Return whether an empty node could hold a reservation."""
    return all(node.get(name, 0) >= amount for name, amount in needed.items())


def check_cluster(address: str, trials: Sequence[Trial]) -> None:
    """Check that each trial fits on a node of a cluster. Raises UserError: one does not fit, or no cluster answers."""
    with joined(address):
        check_feasible(trials, live_types())


def check_feasible(trials: Sequence[Trial], nodes: Sequence[NodeType]) -> None:
    """Check that each trial fits on a node; one that does not would wait forever.

    Raises UserError: names the trial, its needs and the largest node.
    """
    seen = set()
    for trial in trials:
        needed = reservation(trial.resources, nodes)
        if (need := tuple(needed.items())) in seen:
            continue
        seen.add(need)
        if not any(fits(needed, node.resources) for node in nodes):
            largest = max(nodes, key=lambda node: (node.resources.get("GPU", 0), node.resources.get("CPU", 0)))
            available = {name: largest.resources.get(name, 0) for name in needed}
            raise UserError(
                f"{trial.label} needs {_amounts(needed)} on one node; the largest node has "
                f"{_amounts(available)}; lower `resources`, use another cluster, or set {NODE_TYPES} to what its "
                "autoscaler may add"
            )


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {name: amount / 2**30 if name == "memory" else amount for name, amount in resources.items()}
    return ", ".join(f"{amount:g} {'GiB memory' if name == 'memory' else name}" for name, amount in shown.items())
