"""Run an agenda with Ray Tune, which places each training by the resources that it needs."""

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.util.metrics import Gauge

from oneshot.config.resources import ResourceConfig
from oneshot.store.lease import LeaseError, take
from oneshot.store.records import FailureKind
from oneshot.store.store import Store
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.cluster.fit import MOST_AT_A_TIME, check_feasible, reservation
from oneshot.sweep.cluster.ledger import Member
from oneshot.sweep.cluster.nodes import Nodes, is_there, joined, node_of
from oneshot.sweep.cluster.patches import KilledForMemoryError, patched
from oneshot.sweep.cluster.preflight import preflight
from oneshot.sweep.cluster.searcher import AgendaScheduler, AgendaSearcher, AgendaStopper, Unsaved
from oneshot.sweep.cluster.sharing import Sharing
from oneshot.sweep.cluster.trainable import TrialTrainable
from oneshot.sweep.events import Event, Listener
from oneshot.sweep.tracking.thread import TrackingThread

MOVED = "its node is being drained"
YIELDS = "it makes room for another sweep"
LEAVES = (MOVED, YIELDS)  # why a worker saves a checkpoint and ends
WAKE_S = 5.0  # least time between two MLflow updates of a running trial
SHOW_S = 5.0  # least time between two settings of the gauges
KEPT = 100  # ended trials that Tune keeps whole


def run_on_ray(
    agenda: Agenda,
    tracking: TrackingThread,
    *,
    store: Store,
    address: str | None,
    max_concurrent: int | None,
    listen: Listener,
    check: bool | None,
    reach: Callable[[], str],
    member: Member | None = None,
) -> bool:
    """Run an agenda on a cluster until nothing is left; return whether it was interrupted.

    `check` tells whether to check the cluster first; None means if it has several nodes. `reach` returns why MLflow
    cannot be used, or nothing. `member` describes the sweep to others with which it shares the cluster.

    Raises UserError: no cluster answers, or it cannot run the sweep.
    """

    def say(text: str) -> None:
        listen(Event(kind="message", text=text))

    say("starting Ray" if address is None else f"joining Ray at {address}")
    with joined(address), tempfile.TemporaryDirectory(prefix="oneshot-tune-") as scratch:
        nodes = Nodes()
        if check or (check is None and len(nodes.fit().nodes) > 1):
            preflight(agenda.plan, store, reach=reach, say=say)
        else:
            check_feasible(agenda.plan.trials, nodes.fit().nodes)
        sharing = None if member is None else Sharing(member, say=say)
        searcher = AgendaSearcher(agenda, storage=store.absolute, fit=nodes.fit, most=max_concurrent, sharing=sharing)
        driver = _Driver(agenda, store, tracking, nodes, searcher)
        try:
            with patched():
                _tuner(agenda, searcher, driver, nodes, scratch=scratch).fit()
        finally:
            if sharing is not None:
                sharing.leave()
        driver.gauges.show(now=True)
    return bool(agenda.halted) or not agenda.is_idle()


def _tuner(agenda: Agenda, searcher: AgendaSearcher, driver: "_Driver", nodes: Nodes, *, scratch: str) -> tune.Tuner:
    def resources(config: dict[str, Any]) -> Any:
        needed = ResourceConfig.model_validate(config["resources"])
        return tune.PlacementGroupFactory([reservation(needed, nodes.fit().nodes)])

    # without this, Tune asks a searcher without a limit for one trial at a time; ours follows the cluster's size
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(MOST_AT_A_TIME)
    # Tune's own record of the sweep, which nothing reads; it takes time and memory for each trial that has ended
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(10 * 365 * 86_400)
    return tune.Tuner(
        tune.with_resources(TrialTrainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=AgendaScheduler(agenda),
            num_samples=-1,
            reuse_actors=True,  # for trials of equal resources
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=agenda.plan.name,
            storage_path=scratch,
            callbacks=[driver],
            stop=AgendaStopper(agenda),
            failure_config=tune.FailureConfig(max_failures=0),
            # the store has the checkpoints; Tune's own would need a scratch folder that all nodes share
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


class _Driver(Unsaved, tune.Callback):
    """Tune's events -> the agenda and MLflow. A Tune result only says that something happened; the store says what."""

    def __init__(
        self, agenda: Agenda, store: Store, tracking: TrackingThread, nodes: Nodes, searcher: AgendaSearcher
    ) -> None:
        self._agenda, self._store, self._tracking = agenda, store, tracking
        self._nodes, self._searcher = nodes, searcher
        self._woken: dict[str, float] = {}
        self._killed: dict[str, str] = {}  # key -> why its worker was ended
        self._last_dead: dict[str, int] = {}  # key -> last attempt whose worker died
        self._leased: set[str] = set()
        self._ended: deque[Any] = deque()  # Tune's trials that have ended and that Tune still keeps whole
        self.gauges = _Gauges(agenda)

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Kill workers that hang, and all workers if a person asked for it."""
        self.gauges.show()
        self._searcher.share()
        if len(self._ended) >= 2 * KEPT:
            self._forget(trials)
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
        self._searcher.began(trial.trial_id)
        self._agenda.begun(trial.config["key"])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        key = trial.config["key"]
        if not result.get("done") and key not in self._killed:
            is_drained = result.get("node") in self._nodes.leaving()
            if is_drained or self._searcher.is_in_excess(trial.trial_id):
                self._killed[key] = MOVED if is_drained else YIELDS
                trial.temporary_state.ray_actor.leave.remote()
        if result.get("leased"):
            self._leased.add(key)
        if time.monotonic() - self._woken.get(key, 0.0) > WAKE_S:
            self._woken[key] = time.monotonic()
            self._tracking.wake(key, ended=False)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._ended.append(trial)
        key = trial.config["key"]
        self._end(key, is_elsewhere=key in self._leased)
        self._leased.discard(key)
        self._killed.pop(key, None)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._ended.append(trial)
        key = trial.config["key"]
        why = self._killed.pop(key, "")
        if isinstance(_error_of(trial), KilledForMemoryError):
            most = self._searcher.have_fewer()
            self._agenda.tell(key, f"Ray ended it because the machine is short of memory; {most} at a time from now on")
        if why in LEAVES:
            self._agenda.moves(key, why)
        elif why != "killed by hand":
            try:
                self._last_dead[key] = _record_death(
                    self._store, key, trial, is_stall=why == "stall", last_dead=self._last_dead.get(key, 0)
                )
            except (OSError, LeaseError) as error:  # the store is full, read-only or unreachable
                self._agenda.halt(f"the store cannot be written ({error})")
        self._agenda.is_dead(key)
        self._end(key, is_elsewhere=False)

    def _forget(self, trials: list[Any]) -> None:
        """Let go of what Tune keeps of ended trials until the sweep ends: settings, results, and both as JSON.

        `trials` is Tune's own list, which it saves, searches and analyses.
        """
        forgotten = [self._ended.popleft() for _ in range(len(self._ended) - KEPT)]
        for trial in forgotten:
            trial.set_config({})
            trial.set_experiment_tag("")
            trial.evaluated_params = {}
            trial.run_metadata = type(trial.run_metadata)()
            trial.invalidate_json_state()
        ids = {trial.trial_id for trial in forgotten}
        trials[:] = [trial for trial in trials if trial.trial_id not in ids]

    def _end(self, key: str, *, is_elsewhere: bool) -> None:
        self._tracking.wake(key, ended=self._agenda.ended(key, is_elsewhere=is_elsewhere))


class _Gauges:
    """The sweep's state for Prometheus, through Ray's metrics agent: `ray_oneshot_*` on each node's metrics port."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._shown_s = float("-inf")
        by_sweep = ("sweep",)
        self._trials = Gauge("oneshot_trials", "trials of a sweep by state", tag_keys=("sweep", "state"))
        self._tokens = Gauge("oneshot_tokens_per_s", "completion tokens a second of running trials", tag_keys=by_sweep)
        self._used = Gauge("oneshot_gpu_hours_used", "GPU-hours that trials have used", tag_keys=by_sweep)
        self._left = Gauge("oneshot_gpu_hours_left", "estimated GPU-hours of open trials", tag_keys=by_sweep)

    def show(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._shown_s < SHOW_S:
            return
        self._shown_s = time.monotonic()
        load = self._agenda.load()
        tags = {"sweep": self._agenda.plan.name}
        for state, number in load.trials.items():
            self._trials.set(number, tags={**tags, "state": state})
        self._tokens.set(load.tokens_per_s, tags=tags)
        self._used.set(load.gpu_hours_used, tags=tags)
        if load.gpu_hours_left is not None:
            self._left.set(load.gpu_hours_left, tags=tags)


def _error_of(trial: Any) -> Exception | None:
    """Return the error that ended a trial's worker, which Tune has pickled in a local folder."""
    file = trial.pickled_error_file
    error: Exception | None = cloudpickle.loads(Path(file).read_bytes()) if file and Path(file).is_file() else None
    return error


def _lost_its_node(trial: Any, attempt: Mapping[str, Any]) -> bool:
    """Return whether a worker died with its node, or because its node was reclaimed."""
    error = _error_of(trial)
    if isinstance(error, RayActorError) and error.preempted:
        return True
    node_id: str = attempt.get("node", "")
    if not node_id and isinstance(error, RayActorError) and error.actor_id is not None:
        node_id = node_of(error.actor_id)  # it died before it began
    return bool(node_id) and not is_there(node_id)


def _record_death(store: Store, key: str, trial: Any, *, is_stall: bool, last_dead: int) -> int:
    """Record the end of a worker that died and could not do so itself; return the last attempt.

    `last_dead` is the last attempt whose worker is known to have died, 0 for none. If there is no later one, this
    worker died before it began, and that counts as an attempt too: otherwise it would be tried again for ever.
    """
    folder = store.trial(key)
    attempt = folder.last_attempt()
    has_begun = attempt > last_dead
    if has_begun and folder.current_result() is not None:
        return attempt
    error_file = trial.error_file
    trace = Path(error_file).read_text() if error_file and Path(error_file).is_file() else "the worker left no trace"
    kind: FailureKind = "crash"
    reason = "crash: the worker died"
    if is_stall:
        kind, reason = "stall", "stall: no report for longer than faults.stall_s; the worker was killed"
    elif isinstance(error := _error_of(trial), KilledForMemoryError):
        kind, reason = "host_oom", "host_oom: the machine was short of memory, and Ray ended the worker"
        trace = str(error)
    elif _lost_its_node(trial, folder.attempt(attempt) if has_begun else {}):
        kind, reason = "node", "node: the node was lost"
    if not has_begun:
        metadata = {"gpu": "", "env_digest": "", "claims": trial.config["claims"]}
        lease = take(folder, sweep=trial.config["sweep"], metadata=metadata)
        attempt = lease.attempt
        lease.release()
    log_name = folder.log_name(attempt)
    folder.write(log_name, f"{folder.read(log_name) or ''}\n{trace}")
    folder.end_attempt(attempt, "failed", kind=kind, reason=reason, traceback=trace)
    return attempt
