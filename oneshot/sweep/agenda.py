"""A sweep and its store -> which training is next, and what became of those that ran. Knows no Ray.

Rebuilt from the store at every start: what is finished is not run again, what was asked of a study is not asked again,
who was judged at a rung is not judged again.
"""

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from oneshot.config.file import Sweep
from oneshot.plan.plan import Plan, Trial
from oneshot.plan.trainings import Training, trainings
from oneshot.store.lease import Holder, Watch, holder, known_dead
from oneshot.store.store import Folder, Result, Store
from oneshot.sweep.budget import Budget
from oneshot.sweep.events import Event, Listener
from oneshot.sweep.search.early_stopping import EarlyStopping
from oneshot.sweep.search.phase import Searching
from oneshot.trial.requests import Request, Stops, covers, pop_requests, read_stops, write_stops
from oneshot.trial.state import standing, view

LOOK_S = 1.0
"""Between two looks at a training that another process is at, and at requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A training whose turn it is, and who was at it last and is gone."""

    training: Training
    stale_holder: Holder | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is done, and under way."""

    trials: Mapping[str, int]
    """State -> trials."""
    tokens_per_s: float
    gpu_hours_used: float
    """Since this driver began; of all attempts, where there is a budget."""
    gpu_hours_left: float | None
    """As the plan expects it of trials that are open; None where it expects nothing."""


class Agenda:
    """The driver's list. `plan` grows as studies ask points and are won; `replanned` is told."""

    def __init__(
        self,
        sweep: Sweep,
        plan: Plan,
        store: Store,
        *,
        folder: Folder,
        listen: Listener,
        replanned: Callable[[Plan], None],
        only: Collection[str] | None = None,
    ) -> None:
        self.plan = plan
        self.num_started = 0
        """Attempts that were begun."""
        self.halted = ""
        """Why no more is begun; trials that run are to end with a checkpoint."""
        self.kill = False
        """... or at once."""
        self._store = store
        self._folder = folder
        self._listen, self._replanned, self._only = listen, replanned, only
        self._stops = read_stops(self._folder)
        self._faults = sweep.config.faults
        self._watch = Watch()
        self._trainings: dict[str, Training] = {}
        self._queue: deque[str] = deque()
        self._closed: dict[str, tuple[Trial, ...]] = {}
        self._live: dict[str, float | None] = {}
        """Key -> when it was begun or last reported, by the monotonic clock; None while no worker has it."""
        self._states: dict[str, str] = {}
        """Key -> finished, failed or stopped, of trainings that have ended."""
        self._progress: dict[str, tuple[float, float]] = {}
        """Key of a live training -> share of its steps that is done, tokens a second."""
        self._dead: dict[str, Holder | None] = {}
        """Key -> who was at it when its worker died under our eyes."""
        self._elsewhere: dict[str, str] = {}
        """Key -> who is at it."""
        self._moved: set[str] = set()
        self._looked_s = 0.0
        self._first_failures: dict[str, str] = {}
        """Key -> what it failed of, while none has finished."""
        self._has_finished = False
        self._early = EarlyStopping(sweep, plan, self._folder)
        self._searching = Searching(sweep, plan, store, folder, self._early)
        self._take_up(plan)
        self._budget = Budget(sweep.config.budget, store, self._trainings.values())
        self._heed()
        self._catch_up()
        self._search_on()

    # --- what is next ---

    def next(self, is_full: Callable[[Training], bool] | None = None) -> Assignment | Literal["wait", "done"]:
        """The next training, of those for whose like there is room; `wait` while others may still matter."""
        self.look()
        aside: list[str] = []
        try:
            return self._next(is_full, aside)
        finally:
            self._queue.extendleft(reversed(aside))

    def _next(
        self, is_full: Callable[[Training], bool] | None, aside: list[str]
    ) -> Assignment | Literal["wait", "done"]:
        while self._queue and not self.halted:
            key = self._queue.popleft()
            training = self._trainings[key]
            if is_full is not None and is_full(training):
                aside.append(key)
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
        if self._live or aside or (self._elsewhere and not self.halted):
            return "wait"
        return "done"

    def look(self) -> None:
        """Heeds requests, the budget, and what other processes have finished; at most once a second."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        self._heed()
        if reason := self._budget.spent(self._trainings[key] for key, since in self._live.items() if since is not None):
            self.halt(reason)
        for key in list(self._elsewhere):
            if self._watch.living(self._store.trial(key)) is None:
                del self._elsewhere[key]
                if self._is_open(self._trainings[key]):
                    self._queue.append(key)
                else:
                    self._has_ended(key)

    def outstanding(self) -> list[Training]:
        """Trainings that are to be run as things stand; more may come of a search."""
        return [self._trainings[key] for key in self._queue]

    def is_idle(self) -> bool:
        """Whether there is nothing to do, and nothing will come."""
        return not (self._queue or self._live or self._elsewhere)

    def load(self) -> Load:
        """How much is done, and under way."""
        counts = Counter({"finished": 0, "failed": 0, "stopped": 0, "running": 0, "pending": 0})
        costs = {trial.key: trial.cost.gpu_hours for trial in self.plan.paid()}
        left: list[float | None] = [cost for key, cost in costs.items() if key is None]
        for key, training in self._trainings.items():
            is_running = self._live.get(key) is not None
            state = "running" if is_running else self._states.get(key, "pending")
            counts[state] += len(training.trials)
            if state in ("running", "pending"):
                cost, done = costs.get(key), self._progress.get(key, (0.0, 0.0))[0]
                left.append(None if cost is None else cost * (1 - done))
        counts["finished"] += sum(trial.is_settled for trial in self.plan.trials)
        counts["pending"] += sum(trial.key is None for trial in self.plan.trials)
        return Load(
            trials=counts,
            tokens_per_s=sum(self._progress[key][1] for key in self._live if key in self._progress),
            gpu_hours_used=self._budget.gpu_hours,
            gpu_hours_left=None if None in left else sum(hours for hours in left if hours is not None),
        )

    @property
    def watched(self) -> tuple[str, ...]:
        """Metrics that decide something as they come."""
        return (self._early.metric,) if self._early.metric is not None else ()

    # --- what became of it ---

    def begun(self, key: str) -> None:
        """Takes that a worker has a training."""
        self._live[key] = time.monotonic()
        self._listen(self._event("started", key))

    def is_dead(self, key: str) -> None:
        """Takes that a training's worker has died: nobody needs to wait for its lease to lapse."""
        found = holder(self._store.trial(key))
        self._dead[key] = None if found is None else known_dead(found)

    def moves(self, key: str) -> None:
        """Takes that a training left its worker with a checkpoint, to go on elsewhere."""
        self._say(f"{self._trainings[key].label}  goes on elsewhere: its node is being drained")
        self._moved.add(key)

    def reported(self, key: str, step: int, metrics: dict[str, float]) -> bool:
        """Takes a live training's step; whether it is to end, since nobody wants more of it."""
        self._live[key] = time.monotonic()
        training = self._trainings[key]
        share = step / max(1, training.config.train.num_steps)
        self._progress[key] = min(1.0, share), metrics.get("perf/tokens_per_s", 0.0)
        self._listen(replace(self._event("step", key), step=step, reward=metrics.get("reward/mean")))
        for trial in training.trials:
            self._judge(trial, step, metrics)
        return not self._is_wanted(training)

    def ended(self, key: str, *, is_elsewhere: bool = False) -> bool:
        """Takes that a training's worker is free again; whether the training itself has ended, well or not."""
        self._live.pop(key, None)
        self._progress.pop(key, None)
        training, folder = self._trainings[key], self._store.trial(key)
        result = folder.result()
        if not self._is_open(training):
            self._has_ended(key)
            return True
        if is_elsewhere:
            if (living := self._watch.living(folder)) is not None:
                self._wait_for(key, living)
            else:
                self._elsewhere[key] = "another process"
        elif result is not None and result.outcome == "failed" and result.attempt == folder.last_attempt():
            self._count_same_failures(training, result)
            self._say(f"{training.label}  {result.reason}; tried again")
            self._queue.appendleft(key)
        elif key in self._moved:
            self._moved.discard(key)
            self._queue.appendleft(key)
        elif not self.halted:
            self._queue.append(key)
        return False

    def stalled(self) -> list[str]:
        """Live trainings that have not reported for longer than `faults.stall_s`."""
        now_s = time.monotonic()
        limit_s = self._faults.stall_s
        return [key for key, since_s in self._live.items() if since_s is not None and now_s - since_s > limit_s]

    def halt(self, reason: str) -> None:
        """Begins nothing more."""
        if not self.halted:
            self.halted = reason
            self._say(f"{reason}: running trials leave a checkpoint and end")

    # --- inside ---

    def _take_up(self, plan: Plan) -> None:
        """Queues what a plan asks for and is not under way."""
        self.plan = plan
        trials = [t for t in plan.trials if not t.is_settled and (self._only is None or t.key in self._only)]
        made = {training.key: training for training in trainings(trials)}
        busy = {*self._live, *self._elsewhere}
        self._queue = deque(key for key, one in made.items() if key not in busy and self._is_news(one))
        # of a study that is won just now, a worker may still be at a point that was stopped
        self._trainings = {key: self._trainings[key] for key in busy & self._trainings.keys()} | made

    def _is_news(self, training: Training) -> bool:
        """Whether a training is open; one that has ended, and of which no more is asked, is not looked at again."""
        if self._closed.get(training.key) == training.trials:
            return False
        if self._is_open(training):
            return True
        self._closed[training.key] = training.trials
        return False

    def _is_open(self, training: Training) -> bool:
        """Whether the training has yet to be run, or run on."""
        if not self._is_wanted(training):
            self._states[training.key] = "stopped"
            return False
        found = standing(self._wanted(training), self._store.trial(training.key), faults=self._faults)
        if found == "finished":
            self._has_finished = True
        if found == "missing":
            self._states.pop(training.key, None)
        else:
            self._states[training.key] = found
        return found == "missing"

    def _wanted(self, training: Training) -> Training:
        """The training for those of its trials that nobody has stopped."""
        trials = tuple(trial for trial in training.trials if self._stops.reason(trial) is None)
        return replace(training, trials=trials)

    def _is_wanted(self, training: Training) -> bool:
        return bool(self._wanted(training).trials)

    def _has_ended(self, key: str) -> None:
        training, folder = self._trainings[key], self._store.trial(key)
        result = folder.result()
        if result is not None and result.outcome == "failed":
            self._count_same_failures(training, result)
        is_stopped = not self._is_wanted(training)
        self._listen(Event(kind="ended", key=key, label=training.label, result=result, stopped=is_stopped))
        if any(trial.phase == "search" for trial in training.trials):
            self._search_on()

    def _wait_for(self, key: str, living: Holder) -> None:
        if key not in self._elsewhere:
            self._say(f"{self._trainings[key].label}  waits: {living} is at it")
        self._elsewhere[key] = str(living)

    def _count_same_failures(self, training: Training, result: Result) -> None:
        """Halts the sweep when the first trainings all fail of one thing."""
        if self._has_finished or (training.trials[0].phase == "search" and result.kind in ("nan", "guard", "oom")):
            return
        self._first_failures[training.key] = f"{result.kind}: {re.sub('[0-9]+', '#', result.reason)}"
        if (
            len(self._first_failures) >= self._faults.same_failure_limit
            and len(set(self._first_failures.values())) == 1
        ):
            self.halt(f"the first {len(self._first_failures)} trainings failed alike ({result.reason})")

    def _heed(self) -> None:
        for request in pop_requests(self._folder):
            self._answer(request)

    def _answer(self, request: Request) -> None:
        if request.verb == "stop" and not request.cell:
            self.kill = self.kill or request.now
            self.halt("stopped by hand")
        elif request.verb == "stop":
            self._set_stops(replace(self._stops, cells=(*self._stops.cells, request.cell)))
            self._say(f"stopped by hand: {request.cell}")
        else:
            kept = tuple(cell for cell in self._stops.cells if request.cell and cell != request.cell)
            self._set_stops(replace(self._stops, cells=kept))
            busy = {*self._live, *self._elsewhere, *self._queue}
            for key, training in self._trainings.items():
                asked = any(covers(request.cell, trial) for trial in training.trials)
                if asked and key not in busy and self._is_open(training):
                    self._queue.append(key)

    def _set_stops(self, stops: Stops) -> None:
        self._stops = stops
        write_stops(self._folder, stops)

    def _catch_up(self) -> None:
        """Judges what was reported to a driver that is gone before it could."""
        if self._early.metric is None:
            return
        for training in self._trainings.values():
            for trial in training.trials:
                for row in view(trial, self._store.trial(training.key)) if trial.phase == "search" else ():
                    self._judge(trial, row.step, row.metrics)

    def _judge(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        """Stops every trial of a point that lags behind."""
        judgement = self._early.judge(trial, step, metrics)
        if judgement is None or not judgement.stop:
            return
        of_point = [t for t in self.plan.trials if (t.study, t.point) == (trial.study, trial.point) and t.key]
        fresh = {str(t.key): judgement.reason for t in of_point if t.key not in self._stops.early}
        if fresh:
            self._set_stops(replace(self._stops, early={**self._stops.early, **fresh}))
            self._say(f"{trial.study} point {trial.point}  stopped: {judgement.reason}")

    def _search_on(self) -> None:
        """Asks the points that can be asked now, and sets the grid by the studies that are through."""
        if not self._searching.is_under_way():
            return
        said = self._searching.advance(self._stops)
        for line in said:
            self._say(line)
        if said:
            self._take_up(self._searching.plan)
            self._replanned(self.plan)

    def _event(self, kind: Literal["started", "step"], key: str) -> Event:
        training = self._trainings[key]
        return Event(kind=kind, key=key, label=training.label, num_steps=training.config.train.num_steps)

    def _say(self, text: str) -> None:
        self._listen(Event(kind="message", text=text))
