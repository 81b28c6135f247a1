"""Missing trainings -> run by Ray Tune, each once, placed by what it needs."""

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from oneshot.errors import UserError
from oneshot.store import Store, now_ms
from oneshot.sweep.background import TrackingThread
from oneshot.sweep.events import Event, Listener
from oneshot.sweep.searcher import PlanSearcher
from oneshot.sweep.trainable import TrialTrainable
from oneshot.sweepfile import Sweep
from oneshot.trainings import Training

WAKE_S = 5.0
"""MLflow is brought up to date with a running trial at most this often."""


def run_on_ray(
    missing: Sequence[Training],
    tracking: TrackingThread,
    *,
    sweep: Sweep,
    store: Store,
    address: str | None,
    listen: Listener,
) -> bool:
    """Runs trainings on a cluster; returns whether it was interrupted."""
    listen(Event(kind="message", text="starting Ray" if address is None else f"joining Ray at {address}"))
    _init_ray(address)
    by_key = {training.key: training for training in missing}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def resources(config: dict[str, Any]) -> Any:
        return tune.PlacementGroupFactory([_bundle(by_key[config["key"]], nodes)])

    try:
        _check_feasible(missing, nodes)
        with tempfile.TemporaryDirectory(prefix="oneshot-tune-") as scratch:
            tuner = tune.Tuner(
                tune.with_resources(TrialTrainable, resources),
                tune_config=tune.TuneConfig(
                    search_alg=PlanSearcher(missing, storage=_absolute(store), sweep=sweep.config.name),
                    num_samples=-1,
                    # Tune asks for one trial at a time of a searcher that states no limit
                    max_concurrent_trials=sweep.config.resources.max_concurrent or len(missing),
                    # accelerate fixes the precision of a process when it is first used
                    reuse_actors=len({training.config.model.mixed_precision for training in missing}) == 1,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name=sweep.config.name,
                    storage_path=scratch,
                    callbacks=[_Wake(store, tracking, listen)],
                    failure_config=tune.FailureConfig(max_failures=0),
                    verbose=0,
                ),
            )
            tuner.fit()
    finally:
        ray.shutdown()
    return any(store.trial(training.key).current_result() is None for training in missing)


def _init_ray(address: str | None) -> None:
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise UserError(f"--address {address}: no Ray cluster answers there: {error}") from error
    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _absolute(store: Store) -> str:
    """The storage as a worker, which has another working directory, finds it."""
    return str(Path(store.path).resolve()) if store.is_local else store.root


def _bundle(training: Training, nodes: Sequence[dict[str, float]]) -> dict[str, float]:
    """What a training reserves on one node; of several accelerator types, the first that the cluster has."""
    resources = training.resources
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


def _check_feasible(missing: Sequence[Training], nodes: Sequence[dict[str, float]]) -> None:
    """A trial that fits no node would wait for ever.

    Raises:
        UserError: names trial, need and the largest node.
    """
    for training in missing:
        bundle = _bundle(training, nodes)
        if not any(all(node.get(name, 0) >= amount for name, amount in bundle.items()) for node in nodes):
            largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
            there = {name: largest.get(name, 0) for name in bundle}
            raise UserError(
                f"{training.trials[0].label} needs {_amounts(bundle)} on one node; the largest node has "
                f"{_amounts(there)}: lower `resources`, or use another cluster"
            )


def _amounts(resources: dict[str, float]) -> str:
    shown = {name: amount / 2**30 if name == "memory" else amount for name, amount in resources.items()}
    return ", ".join(f"{amount:g} {'GiB memory' if name == 'memory' else name}" for name, amount in shown.items())


class _Wake(tune.Callback):
    """Tune's events -> ours. A Tune result is just a wake-up: what happened is read from the store."""

    def __init__(self, store: Store, tracking: TrackingThread, listen: Listener) -> None:
        self._store, self._tracking, self._listen = store, tracking, listen
        self._woken: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks in order to be restored, and it never is."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A worker takes a training."""
        self._listen(Event(kind="started", key=trial.config["key"]))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A step was made."""
        key = trial.config["key"]
        if "step" in result:
            self._listen(Event(kind="step", key=key, step=result["step"], reward=result.get("reward/mean")))
        if time.monotonic() - self._woken.get(key, 0.0) > WAKE_S:
            self._woken[key] = time.monotonic()
            self._tracking.wake(key, ended=False)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A training ended, well or not."""
        self._end(trial.config["key"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A worker died."""
        key = trial.config["key"]
        if self._store.trial(key).current_result() is None:
            _record_crash(self._store, key, trial)
        self._end(key)

    def _end(self, key: str) -> None:
        self._listen(Event(kind="ended", key=key, result=self._store.trial(key).result()))
        self._tracking.wake(key, ended=True)


def _record_crash(store: Store, key: str, trial: Any) -> None:
    """A worker that died could not record its own end."""
    folder = store.trial(key)
    error_file = trial.error_file
    trace = Path(error_file).read_text() if error_file and Path(error_file).is_file() else "the worker left no trace"
    # it may have died before it could begin an attempt
    attempt = len(folder.list("attempts")) or folder.begin_attempt(
        {"sweep": trial.config["sweep"], "started_ms": now_ms(), "gpu": "", "env_digest": ""}
    )
    log_name = folder.log_name(attempt)
    folder.write(log_name, f"{folder.read(log_name) or ''}\n{trace}")
    folder.end_attempt(attempt, "failed", reason="crash: the worker died", traceback=trace)
