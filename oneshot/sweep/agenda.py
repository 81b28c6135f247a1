"""A sweep run -> which training is next, and how those that ran ended. Knows nothing of Ray.

Everything here is rebuilt from the store when a driver starts: finished trainings are not run again, points already
asked of a study are not asked again, and points already judged at a rung are not judged again.
"""

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from oneshot.plan.frozen import recorded_digest
from oneshot.plan.plan import Plan
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trainings import Training, trainings
from oneshot.plan.trial import Trial
from oneshot.store.lease import Holder, Watch, holder, known_dead
from oneshot.store.records import Result
from oneshot.sweep.budget import Budget
from oneshot.sweep.events import Event, Listener
from oneshot.sweep.load import Load
from oneshot.sweep.looks import Decide, Looks, decide
from oneshot.sweep.search.early_stopping import EarlyStopping
from oneshot.sweep.search.phase import Searching
from oneshot.trial.requests import Stops, covers, pop_requests, read_stops, write_stops
from oneshot.trial.state import SHOWN_STATES, TrialState, end_accuracies, standing, view

LOOK_S = 1.0  # least time between two looks at requests and at trainings that other processes run


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The next training, and its last holder if that one is gone."""

    training: Training
    stale_holder: Holder | None


class Agenda:
    """The driver's list of trainings. `plan` grows as studies ask points and finish; `replanned` is called then."""

    def __init__(
        self,
        sweep_run: SweepRun,
        *,
        listen: Listener,
        replanned: Callable[[Plan], None],
        only: Collection[str] | None = None,
        decide: Decide = decide,
    ) -> None:
        self.plan = sweep_run.plan
        self.num_started = 0  # attempts that this driver began
        self.halted = ""  # why no more trainings begin and running ones end with a checkpoint
        self.kill = False  # whether running trainings end at once instead
        self.decided = ""  # at which look the claims were decided, and what that saved
        self._store = sweep_run.store
        self._folder = sweep_run.folder
        self._listen, self._replanned, self._only = listen, replanned, only
        recorded = read_stops(self._folder)
        # later seeds wait until this driver has judged the looks, too
        self._stops = recorded if only is not None else replace(recorded, seeds={})
        self._looks = Looks(sweep_run, decide=decide, applies=only is None)
        self._faults = sweep_run.sweep.config.faults
        self._watch = Watch()
        self._trainings: dict[str, Training] = {}
        self._queue: deque[str] = deque()
        self._closed: dict[str, tuple[Trial, ...]] = {}
        self._live: dict[str, float | None] = {}  # key -> when it last reported (monotonic), None until it has begun
        self._states: dict[str, TrialState] = {}  # key -> state of a training that has ended
        self._progress: dict[str, tuple[float, float]] = {}  # key of a live one -> share of steps done, tokens a second
        self._dead: dict[str, Holder | None] = {}  # key -> holder whose worker this driver saw die
        self._elsewhere: dict[str, str] = {}  # key -> the other process that runs it
        self._moved: set[str] = set()
        self._looked_s = 0.0
        self._first_failures: dict[str, str] = {}  # key -> reason of failure, as long as no training has finished
        self._has_finished = False
        self._num_unkeyed = 0  # trials that wait for a search
        self._early = EarlyStopping(sweep_run)
        self._searching = Searching(sweep_run, self._early)
        self._take_up(self.plan)
        self.budget = Budget(sweep_run.sweep.config.budget, self._store, self._trainings.values())
        self._serve_requests()
        self._judge_recorded()
        self._search_on()
        self._judge_looks()
        if self._stops.seeds != recorded.seeds:
            self._set_stops(self._stops)

    @cached_property
    def claims_digest(self) -> str:
        """Return the digest of the sweep's frozen record, which every attempt carries; empty if nothing is frozen."""
        return recorded_digest(self._folder)

    # --- what is next ---

    def next(self, is_full: Callable[[Training], bool] | None = None) -> Assignment | Literal["wait", "done"]:
        """Return the next training that the cluster has room for; `wait` while others may still matter."""
        self.look()
        self._judge_looks()
        skipped: list[str] = []
        try:
            while self._queue and not self.halted:
                key = self._queue.popleft()
                training = self._trainings[key]
                if not self._looks.may_run(training) or (is_full is not None and is_full(training)):
                    skipped.append(key)
                    continue
                if not self._is_open(training):
                    continue
                folder = self._store.trial(key)
                dead = self._dead.pop(key, None)
                living = self._watch.living(folder)
                if living is not None and (dead is None or not living.is_process(dead)):
                    self._wait_for(key, living)
                    continue
                self._live[key] = None
                self.num_started += 1
                return Assignment(training=training, stale_holder=dead or self._watch.lapsed(folder))
            return "wait" if self._live or skipped or (self._elsewhere and not self.halted) else "done"
        finally:
            self._queue.extendleft(reversed(skipped))

    def look(self) -> None:
        """Serve requests, check the budget and see what other processes have finished; at most once a second."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        self._serve_requests()
        if reason := self.budget.spent(self._trainings[key] for key, since in self._live.items() if since is not None):
            self.halt(reason)
        for key in list(self._elsewhere):
            if self._watch.living(self._store.trial(key)) is None:
                del self._elsewhere[key]
                if self._is_open(self._trainings[key]):
                    self._queue.append(key)
                else:
                    self._close(key)

    def outstanding(self) -> list[Training]:
        """Return the trainings that still have to run; a search may add more."""
        return [self._trainings[key] for key in self._queue]

    def runnable(self) -> list[Training]:
        """Return the trainings that could run now: those that no look holds back."""
        return [] if self.halted else [training for training in self.outstanding() if self._looks.may_run(training)]

    @property
    def has_queue(self) -> bool:
        """Return whether trainings wait for room."""
        return bool(self._queue)

    def is_idle(self) -> bool:
        """Return whether nothing runs, waits, or will come."""
        return not (self._queue or self._live or self._elsewhere)

    def load(self) -> Load:
        """Return how much is done, and how much is running."""
        counts = Counter({str(state): 0 for state in SHOWN_STATES})
        costs = {trial.key: trial.cost.gpu_hours for trial in self.plan.paid()}
        left: list[float | None] = [cost for key, cost in costs.items() if key is None]
        for key, training in self._trainings.items():
            is_running = self._live.get(key) is not None
            state = TrialState.RUNNING if is_running else self._states.get(key, TrialState.PENDING)
            counts[state] += len(training.trials)
            if state in (TrialState.RUNNING, TrialState.PENDING):
                cost, share_done = costs.get(key), self._progress.get(key, (0.0, 0.0))[0]
                left.append(None if cost is None else cost * (1 - share_done))
        counts[TrialState.FINISHED] += sum(trial.is_settled for trial in self.plan.trials)
        counts[TrialState.PENDING] += sum(trial.key is None for trial in self.plan.trials)
        return Load(
            trials=counts,
            tokens_per_s=sum(self._progress[key][1] for key in self._live if key in self._progress),
            gpu_hours_used=self.budget.gpu_hours,
            gpu_hours_left=None if None in left else sum(hours for hours in left if hours is not None),
        )

    @property
    def watched(self) -> tuple[str, ...]:
        """Return the metrics that early stopping needs as they arrive."""
        return (self._early.metric,) if self._early.metric is not None else ()

    # --- what happened ---

    def begun(self, key: str) -> None:
        """Note that a worker has begun a training."""
        self._live[key] = time.monotonic()
        self._listen(self._event("started", key))

    def is_dead(self, key: str) -> None:
        """Note that a training's worker has died, so that nobody waits for its lease to lapse."""
        last_holder = holder(self._store.trial(key))
        self._dead[key] = None if last_holder is None else known_dead(last_holder)

    def moves(self, key: str, why: str) -> None:
        """Note that a training left its worker with a checkpoint and will resume."""
        self._say(f"{self._trainings[key].label}  {why}; it resumes from its checkpoint")
        self._moved.add(key)

    def tell(self, key: str, text: str) -> None:
        """Tell those who watch something about a training."""
        self._say(f"{self._trainings[key].label}  {text}")

    def reported(self, key: str, step: int, metrics: dict[str, float]) -> bool:
        """Note a live training's step; return whether it must end because nobody wants more of it."""
        self._live[key] = time.monotonic()
        training = self._trainings[key]
        share = step / max(1, training.config.train.num_steps)
        self._progress[key] = min(1.0, share), metrics.get("perf/tokens_per_s", 0.0)
        reward, loss = metrics.get("reward/mean"), metrics.get("loss/total")
        self._listen(replace(self._event("step", key), step=step, reward=reward, loss=loss))
        for trial in training.trials:
            self._judge(trial, step, metrics)
        return not self._is_wanted(training)

    def ended(self, key: str, *, is_elsewhere: bool = False) -> bool:
        """Note that a training's worker is free; return whether the training itself has ended, well or not."""
        self._live.pop(key, None)
        self._progress.pop(key, None)
        training, folder = self._trainings[key], self._store.trial(key)
        result = folder.result()
        if not self._is_open(training):
            self._close(key)
            return True
        if is_elsewhere:
            if (living := self._watch.living(folder)) is not None:
                self._wait_for(key, living)
            else:
                self._elsewhere[key] = "another process"
        elif result is not None and result.outcome == "failed" and result.attempt == folder.last_attempt():
            self._count_same_failures(training, result)
            self._say(f"{training.label}  {result.reason}; retrying")
            self._queue.appendleft(key)
        elif key in self._moved:
            self._moved.discard(key)
            self._queue.appendleft(key)
        elif not self.halted:
            self._queue.append(key)
        return False

    def stalled(self) -> list[str]:
        """Return the live trainings that have not reported for longer than `faults.stall_s`."""
        now_s = time.monotonic()
        limit_s = self._faults.stall_s
        return [key for key, since_s in self._live.items() if since_s is not None and now_s - since_s > limit_s]

    def halt(self, reason: str) -> None:
        """Begin no more trainings."""
        if not self.halted:
            self.halted = reason
            self._say(f"{reason}: running trials save a checkpoint and end")

    # --- inside ---

    def _take_up(self, plan: Plan) -> None:
        """Queue the trainings of a plan that are open and not running."""
        self.plan = plan
        self._num_unkeyed = sum(trial.key is None for trial in plan.trials) if self._only is None else 0
        trials = [t for t in plan.trials if not t.is_settled and (self._only is None or t.key in self._only)]
        planned = {training.key: training for training in trainings(trials)}
        busy = {*self._live, *self._elsewhere}
        self._queue = deque(key for key, training in planned.items() if key not in busy and self._is_news(training))
        # when a study has just finished, a worker may still run a point that was stopped
        self._trainings = {key: self._trainings[key] for key in busy & self._trainings.keys()} | planned

    def _is_news(self, training: Training) -> bool:
        """Return whether a training is open, without reading the store again for one that is known to have ended."""
        if self._closed.get(training.key) == training.trials:
            return False
        if self._is_open(training):
            return True
        self._closed[training.key] = training.trials
        return False

    def _is_open(self, training: Training) -> bool:
        """Return whether the training still has to run, from the start or from a checkpoint."""
        if not self._is_wanted(training):
            self._states[training.key] = TrialState.STOPPED
            return False
        state = standing(self._wanted(training), self._store.trial(training.key), faults=self._faults)
        if state is TrialState.FINISHED:
            self._has_finished = True
        if state is TrialState.MISSING:
            self._states.pop(training.key, None)
        else:
            self._states[training.key] = state
        return state is TrialState.MISSING

    def _wanted(self, training: Training) -> Training:
        """Return the training with only those of its trials that are not stopped."""
        trials = tuple(trial for trial in training.trials if self._stops.reason(trial) is None)
        return replace(training, trials=trials)

    def _is_wanted(self, training: Training) -> bool:
        return bool(self._wanted(training).trials)

    def _close(self, key: str) -> None:
        """Tell listeners that a training has ended."""
        training, folder = self._trainings[key], self._store.trial(key)
        result = folder.result()
        if result is not None and result.outcome == "failed":
            self._count_same_failures(training, result)
        ended = replace(self._event("ended", key), result=result, stopped=not self._is_wanted(training))
        self._listen(replace(ended, accuracies=end_accuracies(training.trials[0], folder)))
        if any(trial.phase == "search" for trial in training.trials):
            self._search_on()

    def _wait_for(self, key: str, living: Holder) -> None:
        if key not in self._elsewhere:
            self._say(f"{self._trainings[key].label}  waiting: held by {living}")
        self._elsewhere[key] = str(living)

    def _count_same_failures(self, training: Training, result: Result) -> None:
        """Halt the sweep when its first trainings all failed for the same reason."""
        if self._has_finished or (training.trials[0].phase == "search" and result.kind in ("nan", "guard", "oom")):
            return
        self._first_failures[training.key] = f"{result.kind}: {re.sub('[0-9]+', '#', result.reason)}"
        num_failures = len(self._first_failures)
        if num_failures >= self._faults.same_failure_limit and len(set(self._first_failures.values())) == 1:
            self.halt(f"the first {num_failures} trainings failed for the same reason ({result.reason})")

    def _serve_requests(self) -> None:
        for request in pop_requests(self._folder):
            if request.verb == "retry":
                self._retry(request.cell)
            elif request.cell:
                self._set_stops(replace(self._stops, cells=(*self._stops.cells, request.cell)))
                self._say(f"stopped by hand: {','.join(f'{axis}={name}' for axis, name in request.cell.items())}")
            else:
                self.kill = self.kill or request.now
                self.halt("stopped by hand")

    def _retry(self, cell: dict[str, str]) -> None:
        self._set_stops(self._stops.without(cell))
        busy = {*self._live, *self._elsewhere, *self._queue}
        for key, training in self._trainings.items():
            is_meant = any(covers(cell, trial) for trial in training.trials)
            if is_meant and key not in busy and self._is_open(training):
                self._queue.append(key)

    def _set_stops(self, stops: Stops) -> None:
        self._stops = stops
        write_stops(self._folder, stops)

    def _judge_recorded(self) -> None:
        """Judge the steps that were reported to an earlier driver which died before it judged them."""
        if self._early.metric is None:
            return
        for training in self._trainings.values():
            for trial in training.trials:
                for row in view(trial, self._store.trial(training.key)) if trial.phase == "search" else ():
                    self._judge(trial, row.step, row.metrics)

    def _judge(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        """Stop every trial of a point that lags behind."""
        judgement = self._early.judge(trial, step, metrics)
        if judgement is None or not judgement.stop:
            return
        of_point = [t for t in self.plan.trials if (t.study, t.point) == (trial.study, trial.point) and t.key]
        fresh = {str(t.key): judgement.reason for t in of_point if t.key not in self._stops.early}
        if fresh:
            self._set_stops(replace(self._stops, early={**self._stops.early, **fresh}))
            self._say(f"{trial.study} point {trial.point}  stopped: {judgement.reason}")

    def _judge_looks(self) -> None:
        """Judge the claims when all trainings of a look have ended; if they are decided, stop the later seeds."""
        while self._queue and self._looks.are_left and not self.halted and not self.decided:
            if any(self._looks.may_run(self._trainings[key]) for key in (*self._queue, *self._live, *self._elsewhere)):
                return
            seeds = self._looks.judge(self.plan)
            if not seeds:
                continue
            self._set_stops(replace(self._stops, seeds=seeds))
            stopped = [self._trainings[key] for key in self._queue if not self._is_open(self._trainings[key])]
            self.decided = self._looks.summary(next(iter(seeds.values())), stopped, self.plan)
            self._queue = deque(key for key in self._queue if self._states.get(key) is not TrialState.STOPPED)
            self._say(self.decided)

    def _search_on(self) -> None:
        """Ask the points that can be asked now, and set the grid by the studies that have finished."""
        if not self._searching.is_under_way():
            return
        lines = self._searching.advance(self._stops)
        for line in lines:
            self._say(line)
        if lines:
            self._take_up(self._searching.plan)
            self._replanned(self.plan)

    def _event(self, kind: Literal["started", "step", "ended"], key: str) -> Event:
        training = self._trainings[key]
        num_left = len(self._queue) + len(self._live) + len(self._elsewhere) + self._num_unkeyed
        num_steps = training.config.train.num_steps
        return Event(kind=kind, key=key, label=training.label, num_steps=num_steps, num_left=num_left)

    def _say(self, text: str) -> None:
        self._listen(Event(kind="message", text=text))
