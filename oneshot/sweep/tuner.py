"""An agenda -> run by Ray Tune, each training placed by what it needs."""

import logging
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from oneshot.errors import UserError
from oneshot.lease import LeaseError, take
from oneshot.plan import Trial
from oneshot.store import FailureKind, Store
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.background import TrackingThread
from oneshot.sweep.events import Event, Listener
from oneshot.sweep.searcher import AgendaScheduler, AgendaSearcher, AgendaStopper
from oneshot.sweep.trainable import TrialTrainable
from oneshot.sweepconfig import ResourceConfig
from oneshot.trainings import Training

WAKE_S = 5.0
"""MLflow is brought up to date with a running trial at most this often."""
MOST_AT_A_TIME = 1000
"""Trials that are asked for ahead of workers, where the sweep sets no limit."""


def run_on_ray(
    agenda: Agenda,
    tracking: TrackingThread,
    *,
    store: Store,
    address: str | None,
    max_concurrent: int | None,
    listen: Listener,
) -> bool:
    """Runs an agenda on a cluster until nothing is left; returns whether it was interrupted."""
    listen(Event(kind="message", text="starting Ray" if address is None else f"joining Ray at {address}"))
    _init_ray(address)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def resources(config: dict[str, Any]) -> Any:
        return tune.PlacementGroupFactory([_bundle(ResourceConfig.model_validate(config["resources"]), nodes)])

    driver = _Driver(agenda, store, tracking)
    try:
        check_feasible(agenda.plan.trials, nodes)
        with tempfile.TemporaryDirectory(prefix="oneshot-tune-") as scratch:
            tuner = tune.Tuner(
                tune.with_resources(TrialTrainable, resources),
                tune_config=tune.TuneConfig(
                    search_alg=AgendaSearcher(agenda, storage=_absolute(store)),
                    scheduler=AgendaScheduler(agenda),
                    num_samples=-1,
                    # Tune asks for one trial at a time of a searcher that states no limit
                    max_concurrent_trials=max_concurrent or _room(agenda.outstanding(), nodes),
                    reuse_actors=True,  # between trials of equal resources, by their placement group
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name=agenda.plan.name,
                    storage_path=scratch,
                    callbacks=[driver],
                    stop=AgendaStopper(agenda),
                    failure_config=tune.FailureConfig(max_failures=0),
                    verbose=0,
                ),
            )
            tuner.fit()
    finally:
        ray.shutdown()
    return bool(agenda.halted) or not agenda.is_idle()


def _init_ray(address: str | None) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers there, or it asks for a token (RAY_AUTH_MODE=token): {error}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which ends the driver at once
    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _absolute(store: Store) -> str:
    """The storage as a worker, which has another working directory, finds it."""
    return str(Path(store.path).resolve()) if store.is_local else store.root


def _bundle(resources: ResourceConfig, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a training reserves on one node; of several accelerator types, the first that the cluster has."""
    bundle: dict[str, float] = {"CPU": resources.cpus}
    if resources.gpus:
        bundle["GPU"] = resources.gpus
    if resources.memory_gib:
        bundle["memory"] = resources.memory_gib * 2**30
    types = [f"accelerator_type:{name}" for name in resources.accelerator or ()]
    if types:
        # a sliver of the marker that Ray puts on every node of the type
        bundle[next((name for name in types if any(name in node for node in nodes)), types[0])] = 0.001
    return bundle


def _room(trainings: Sequence[Training], nodes: Sequence[Mapping[str, float]]) -> int:
    """Trials to have ready: twice what fits, so that a worker never waits for its next one."""
    smallest = min((one.resources.cpus for one in trainings), default=1.0)
    return min(MOST_AT_A_TIME, max(4, int(2 * sum(node.get("CPU", 0) for node in nodes) / smallest)))


def check_cluster(address: str, trials: Sequence[Trial]) -> None:
    """Asks a cluster whether each trial fits one of its nodes.

    Raises:
        UserError: one does not, or no cluster answers.
    """
    _init_ray(address)
    try:
        check_feasible(trials, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    finally:
        ray.shutdown()


def check_feasible(trials: Sequence[Trial], nodes: Sequence[Mapping[str, float]]) -> None:
    """A trial that fits no node would wait for ever.

    Raises:
        UserError: names trial, need and the largest node.
    """
    seen = set()
    for trial in trials:
        bundle = _bundle(trial.resources, nodes)
        if (need := tuple(bundle.items())) in seen:
            continue
        seen.add(need)
        if not any(all(node.get(name, 0) >= amount for name, amount in bundle.items()) for node in nodes):
            largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
            there = {name: largest.get(name, 0) for name in bundle}
            raise UserError(
                f"{trial.label} needs {_amounts(bundle)} on one node; the largest node has "
                f"{_amounts(there)}: lower `resources`, or use another cluster"
            )


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {name: amount / 2**30 if name == "memory" else amount for name, amount in resources.items()}
    return ", ".join(f"{amount:g} {'GiB memory' if name == 'memory' else name}" for name, amount in shown.items())


class _Driver(tune.Callback):
    """Tune's events -> the agenda and MLflow. A Tune result is a wake-up: what happened is read from the store."""

    def __init__(self, agenda: Agenda, store: Store, tracking: TrackingThread) -> None:
        self._agenda, self._store, self._tracking = agenda, store, tracking
        self._woken: dict[str, float] = {}
        self._killed: dict[str, str] = {}
        """Key -> why its worker was killed."""
        self._leased: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks in order to be restored, and it never is."""
        return {}

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Kills workers that hang, and all of them where somebody asked for it."""
        stalled = self._agenda.stalled()
        if not stalled and not self._agenda.kill:
            return
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            key = trial.config["key"]
            if actor is None or key in self._killed or not (self._agenda.kill or key in stalled):
                continue
            self._killed[key] = "killed by hand" if self._agenda.kill else "stall"
            ray.kill(actor)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A worker takes a training."""
        self._agenda.begun(trial.config["key"])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A step was made."""
        key = trial.config["key"]
        if result.get("leased"):
            self._leased.add(key)
        if time.monotonic() - self._woken.get(key, 0.0) > WAKE_S:
            self._woken[key] = time.monotonic()
            self._tracking.wake(key, ended=False)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A worker is free again."""
        key = trial.config["key"]
        self._end(key, is_elsewhere=key in self._leased)
        self._leased.discard(key)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A worker died."""
        key = trial.config["key"]
        why = self._killed.pop(key, "")
        if why != "killed by hand":
            try:
                _record_death(self._store, key, trial, is_stall=why == "stall")
            except (OSError, LeaseError) as error:  # a store that is full, read-only or cut off
                self._agenda.halt(f"the store cannot be written ({error})")
        self._agenda.is_dead(key)
        self._end(key, is_elsewhere=False)

    def _end(self, key: str, *, is_elsewhere: bool) -> None:
        has_ended = self._agenda.ended(key, is_elsewhere=is_elsewhere)
        self._tracking.wake(key, ended=has_ended)


def _record_death(store: Store, key: str, trial: Any, *, is_stall: bool) -> None:
    """A worker that died could not record its own end."""
    folder = store.trial(key)
    attempt = folder.last_attempt()
    if folder.current_result() is not None:
        return
    error_file = trial.error_file
    trace = Path(error_file).read_text() if error_file and Path(error_file).is_file() else "the worker left no trace"
    kind: FailureKind = "crash"
    reason = "crash: the worker died"
    if is_stall:
        kind, reason = "stall", "stall: no report for longer than faults.stall_s; the worker was killed"
    elif attempt and folder.attempt(attempt).get("node") not in {n["NodeID"] for n in ray.nodes() if n["Alive"]}:
        kind, reason = "node", "node: the node was lost"
    if not attempt:  # it died before it could begin
        lease = take(folder, sweep=trial.config["sweep"], facts={"gpu": "", "env_digest": ""})
        attempt = lease.attempt
        lease.release()
    log_name = folder.log_name(attempt)
    folder.write(log_name, f"{folder.read(log_name) or ''}\n{trace}")
    folder.end_attempt(attempt, "failed", kind=kind, reason=reason, traceback=trace)
