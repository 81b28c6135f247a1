"""A cluster of several nodes on this machine, with simulated GPUs, in a process of its own: nodes come and go."""

import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import psutil
from drivers import LEAN, OPEN, PATIENCE_S, end

_spawns = multiprocessing.get_context("spawn")

QUICK: dict[str, Any] = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""Ray's own settings take half a minute to miss a node."""


def _be_nodes(scratch: str, line: Connection) -> None:
    os.environ |= {**OPEN, **LEAN, "RAY_TMPDIR": scratch, "HOME": scratch, "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    )
    nodes: dict[str, Any] = {}
    line.send(cluster.address)
    while (said := line.recv()) is not None:
        verb, argument = said
        if verb == "add":
            node = cluster.add_node(**argument)
            nodes[node.node_id] = node
            line.send(node.node_id)
        elif verb == "kill":
            cluster.remove_node(nodes.pop(argument), allow_graceful=False)
            line.send(argument)
        else:
            line.send(_drain(cluster.address, argument))
    cluster.shutdown()


def _drain(address: str, node_id: str) -> bool:
    """As a cloud does that takes a spot machine back."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    is_accepted, _ = GcsClient(address=address).drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "spot machine taken back",
        int((time.time() + 60) * 1000),
    )
    return bool(is_accepted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The cluster, as a test steers it."""

    address: str
    scratch: str
    process: BaseProcess
    line: Connection

    def _ask(self, verb: str, argument: Any) -> Any:
        self.line.send((verb, argument))
        assert self.line.poll(PATIENCE_S), f"{verb}: no answer"
        return self.line.recv()

    def add(self, *, num_cpus: int = 2, num_gpus: int = 2, accelerator: str = "") -> str:
        """A node more; its id."""
        resources = {"resources": {f"accelerator_type:{accelerator}": 1}} if accelerator else {}
        return str(self._ask("add", {"num_cpus": num_cpus, "num_gpus": num_gpus, **resources}))

    def kill(self, node_id: str) -> None:
        """Without a word to anybody."""
        self._ask("kill", node_id)

    def drain(self, node_id: str) -> bool:
        """With a minute's notice; whether it was taken."""
        return bool(self._ask("drain", node_id))

    def close(self) -> None:
        assert self.process.pid is not None
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.line.send(None)
        self.process.join(30)
        end(processes)


def make_nodes(scratch: str) -> Nodes:
    """A head that holds no trial; nodes are added."""
    ours, theirs = _spawns.Pipe()
    process = _spawns.Process(target=_be_nodes, args=(scratch, theirs))
    process.start()
    theirs.close()
    assert ours.poll(PATIENCE_S), "Ray does not start"
    return Nodes(address=ours.recv(), scratch=scratch, process=process, line=ours)
