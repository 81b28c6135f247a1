"""A Ray cluster, joined or started here: its nodes, and those that an autoscaler may add."""

import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray._private.state import state

from oneshot.errors import UserError
from oneshot.plan.trial import Trial
from oneshot.sweep.cluster.fit import NODE_TYPES, Fit, NodeType, check_feasible, read_node_types
from oneshot.tasks.foreign import FOLDER

NUM_TRIES = 3  # attempts to connect to a running cluster, about a second each
REACH_S = 10.0
MAX_TEMP_DIR = 40
"""Length of a path that leaves room for the names of a session and a socket, whose path has 103 characters at most."""
SHORT_TEMP_DIR = "/tmp/ray"
RAYLET_S = 2.0
RAYLET_TRIES = 3
LOOK_S = 2.0  # least time between two looks at the cluster's nodes


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
        self._leaving: frozenset[str] = frozenset()
        self._fit = Fit(())

    def fit(self) -> Fit:
        """Return what fits on every live node, and on those that an autoscaler may add."""
        self._look()
        return self._fit

    def leaving(self) -> frozenset[str]:
        """Return the ids of nodes that are being drained, such as reclaimed spot machines."""
        self._look()
        return self._leaving

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s > LOOK_S:
            self._looked_s = now_s
            self._fit = Fit(live_types())
            self._leaving = frozenset(state.get_draining_nodes())


def live_types() -> list[NodeType]:
    """Return every live node, and the types that an autoscaler may add."""
    live = [NodeType(resources=node["Resources"], count=1) for node in ray.nodes() if node["Alive"]]
    return live + read_node_types(os.environ.get(NODE_TYPES, ""))


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


def node_of(actor_id: str) -> str:
    """Return the id of the node on which a worker was placed, alive or not; empty if it never was."""
    address = state.actor_table(actor_id).get("Address", {})
    node_id: str = address.get("NodeID", "")
    return "" if set(node_id) == {"f"} else node_id  # Ray's id of no node


def check_cluster(address: str, trials: Sequence[Trial]) -> None:
    """Check that each trial fits on a node of a cluster. Raises UserError: one does not fit, or no cluster answers."""
    with joined(address):
        check_feasible(trials, live_types())
