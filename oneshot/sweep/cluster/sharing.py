"""A driver's part in sharing a cluster: what its sweep holds and wants -> what it may hold, by the cluster's ledger."""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
from ray import cloudpickle

from oneshot.config.resources import ResourceConfig
from oneshot.errors import UserError
from oneshot.plan.sweep_run import SweepRun
from oneshot.sweep.cluster import ledger
from oneshot.sweep.cluster.fit import MOST_AT_A_TIME, NODE_TYPES, read_node_types
from oneshot.sweep.cluster.ledger import Ledger, Member, Unit

UNITS: tuple[Unit, ...] = ("GPU", "CPU")
NAME, NAMESPACE = "oneshot-ledger", "oneshot"
RENEW_S = 0.5
SAY_S = 10.0  # time without a trial after which the driver says why
PATIENCE_S = 5.0  # how long a sweep holds too much before its trials leave
ANSWER_S = 30.0  # the first answer waits for the actor's process

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a sweep holds and could use, in its unit."""

    need: float  # of its next trial
    held: float  # of running trials
    wanted: float  # of running trials, and of those that could run
    num_waiting: int


def unit_of(plan_resources: Sequence[ResourceConfig]) -> Unit:
    """Return what a sweep is given: GPUs if any of its trials uses one, else CPU cores."""
    return "GPU" if any(resources.gpus for resources in plan_resources) else "CPU"


def units(resources: ResourceConfig, unit: Unit) -> float:
    """Return how many units a trial holds."""
    return resources.gpus if unit == "GPU" else resources.cpus


def member_of(sweep_run: SweepRun) -> Member:
    """Return how a sweep appears to others on its cluster, before it holds anything."""
    config = sweep_run.sweep.config
    unit = unit_of([trial.resources for trial in sweep_run.plan.trials])
    return Member(
        driver=f"{socket.gethostname()}:{os.getpid()}",
        sweep=sweep_run.name,
        storage=sweep_run.store.root,
        user=sweep_run.owner.user,
        project=sweep_run.owner.project,
        priority=config.sharing.priority,
        share=config.sharing.share,
        most=config.sharing.max_gpus if unit == "GPU" else None,
        preemptible=config.sharing.preemptible,
        unit=unit,
        need=0.0,
        held=0.0,
        wanted=0.0,
        num_waiting=0,
    )


class Sharing:
    """The driver's line to the ledger. Until it has answered, the sweep holds nothing."""

    def __init__(self, member: Member, *, say: Callable[[str], None]) -> None:
        self._member, self._say = member, say
        self._waits_since_s: float | None = None
        self._has_answered = self._has_said = False
        self._granted = 0.0
        self._is_shared = True
        self._actor: Any = None
        self._asked: Any = None
        self._looked_s = float("-inf")
        self._over_since_s: float | None = None

    @property
    def unit(self) -> Unit:
        """Return what the sweep is given."""
        return self._member.unit

    @property
    def limit(self) -> float:
        """Return the units that the sweep may hold: its own limit if it has the cluster to itself."""
        own = float("inf") if self._member.most is None else self._member.most
        return min(own, self._granted) if self._is_shared else own

    def is_due(self) -> bool:
        """Return whether it is time to look for the ledger's answer and to ask again."""
        return time.monotonic() - self._looked_s >= RENEW_S

    def renew(self, wish: Wish, *, cost: float | None) -> None:
        """Tell the ledger what the sweep holds and wants, and take its last answer; call this while `is_due`."""
        now_s = self._looked_s = time.monotonic()
        if self._asked is not None:
            self._take_answer()
        if self._asked is None:
            fields = asdict(replace(self._member, cost=cost, **asdict(wish)))
            try:
                self._actor = self._actor or _find_actor()
                self._asked = self._actor.renew.remote(fields, _capacity())
            except (ray.exceptions.RayError, ValueError) as error:
                self._lose(error)
        is_over = self._member.preemptible and wish.held > self.limit + 1e-9
        self._over_since_s = (self._over_since_s or now_s) if is_over else None
        self._explain(wish, now_s)

    def _explain(self, wish: Wish, now_s: float) -> None:
        """Say once why nothing runs."""
        waits = wish.num_waiting > 0 and wish.held == 0 and self.limit < wish.need
        self._waits_since_s = (self._waits_since_s or now_s) if waits else None
        waited_s = 0.0 if self._waits_since_s is None else now_s - self._waits_since_s
        if self._has_answered and waited_s > SAY_S and not self._has_said:
            self._has_said = True
            self._say("waiting for room: other sweeps have this cluster; `oneshot status --address auto` lists them")
        elif not self._has_answered and waited_s > ANSWER_S and self._is_shared:
            self._is_shared = False
            self._say(f"this cluster's {NAME} does not answer: running without a share, as if alone on the cluster")

    def _take_answer(self) -> None:
        if not ray.wait([self._asked], timeout=0)[0]:
            return
        try:
            answer = ray.get(self._asked)
            self._has_answered = True
            self._granted, self._is_shared = answer["granted"], answer["is_shared"]
        except ray.exceptions.RayError as error:
            self._lose(error)
        self._asked = None

    def _lose(self, error: Exception) -> None:
        """Ask for the actor again next time: it ended with its last sweep, or died with its node."""
        logger.info("the cluster's ledger does not answer (%s); asking again", error)
        self._actor = self._asked = None

    def excess(self, held: float) -> float:
        """Return the units that preemptible trials should leave, which they hold for a while already."""
        since_s = self._over_since_s
        return held - self.limit if since_s is not None and time.monotonic() - since_s > PATIENCE_S else 0.0

    def leave(self) -> None:
        """Tell the ledger that the sweep ends."""
        if self._actor is not None:
            try:
                if ray.get(self._actor.leave.remote(self._member.driver), timeout=ANSWER_S):
                    ray.kill(self._actor)  # nobody is left
            except ray.exceptions.RayError as error:  # it died with its node, or another driver has just ended it
                logger.info("the cluster's ledger does not answer: %s", error)


def _find_actor() -> Any:
    cloudpickle.register_pickle_by_value(ledger)
    try:
        options = {"name": NAME, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True, "num_cpus": 0}
        return ray.remote(Ledger).options(**options).remote()
    finally:
        cloudpickle.unregister_pickle_by_value(ledger)


def _capacity() -> dict[Unit, float]:
    """Return the size of the cluster: what is there, or what an autoscaler may make of it if that is more."""
    live = ray.cluster_resources()
    declared = [node for node in read_node_types(os.environ.get(NODE_TYPES, "")) if node.count < MOST_AT_A_TIME]
    sizes: dict[Unit, float] = {}
    for unit in UNITS:
        later = sum(node.resources.get(unit, 0.0) * node.count for node in declared)
        sizes[unit] = max(live.get(unit, 0.0), later)
    return sizes


def members() -> list[Mapping[str, Any]]:
    """Return the sweeps that run on the cluster that this process has joined."""
    try:
        found: list[Mapping[str, Any]] = ray.get(ray.get_actor(NAME, NAMESPACE).members.remote(), timeout=ANSWER_S)
    except ValueError:  # no such actor: no sweep runs
        return []
    except ray.exceptions.RayError as error:
        raise UserError(
            f"the actor {NAME} of this cluster does not answer ({type(error).__name__}); try again"
        ) from error
    return found
