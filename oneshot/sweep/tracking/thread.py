"""Wake-ups -> MLflow brought up to date in a thread of its own, so that an outage never stops or slows a trial."""

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from oneshot.config.file import Sweep
from oneshot.plan.plan import Plan, Trial
from oneshot.store.store import Store

if TYPE_CHECKING:
    from oneshot.sweep.tracking.tracker import Tracker

PAUSE_S = 15.0
"""Between two tries, while MLflow does not answer."""

REFRESH_S = 30.0
"""Between two drawings of the whole sweep's table and figures."""

logger = logging.getLogger(__name__)


class TrackingThread:
    """Keeps which trainings have news, and sends them one by one; what fails is news still."""

    def __init__(self, sweep: Sweep, plan: Plan, store: Store, *, uri: str, artifacts: str | None) -> None:
        self.error = ""
        self._sweep, self._plan, self._store = sweep, plan, store
        self._uri, self._artifacts = uri, artifacts
        self._trials = _by_key(plan)
        self._news: dict[str, None] = {}  # as an ordered set
        self._has_ended = False
        self._refreshed_s = -math.inf
        self._is_replanned = False
        self._status = ""
        self._changed = threading.Condition()
        self._tracker: Tracker | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def replan(self, plan: Plan) -> None:
        """The sweep has trials that it had not."""
        with self._changed:
            self._plan, self._trials = plan, _by_key(plan)
            self._is_replanned = True

    def wake(self, key: str, *, ended: bool) -> None:
        """A training has something new."""
        with self._changed:
            self._news[key] = None
            self._has_ended = self._has_ended or ended
            self._changed.notify()

    def finish(self, status: str) -> None:
        """Sends everything that is left, ends the parent, and waits for it."""
        with self._changed:
            self._status = status
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._status)
                if self._status:
                    break
                key = next(iter(self._news))
                del self._news[key]
            try:
                self._sync(key)
                self.error = ""
            except Exception as error:  # server, network or disk: the trials go on, and this is tried again
                self._say(error)
                with self._changed:
                    self._news[key] = None
                    self._changed.wait_for(lambda: self._status, timeout=PAUSE_S)
        try:
            self._close()
        except Exception as error:  # the same; `run` again catches up
            self._say(error)

    def _say(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        if text != self.error:
            logger.warning("MLflow is behind: %s", text)
        self.error = text

    def _open(self) -> "Tracker":
        if self._tracker is None:
            from oneshot.sweep.tracking.tracker import (
                Tracker,
            )  # MLflow takes seconds to import, and the trials need not wait

            self._tracker = Tracker(
                self._plan,
                self._store,
                tracking_uri=self._uri,
                experiment=self._sweep.config.mlflow.experiment or self._plan.name,
                artifacts=self._artifacts,
            )
        return self._tracker

    def _sync(self, key: str) -> None:
        tracker = self._open()
        tracker.open(question=self._sweep.config.question, sweep_yaml=self._sweep.source.text)
        self._tell_plan(tracker)
        for trial in self._trials[key]:
            tracker.sync(trial)
        is_due = time.monotonic() - self._refreshed_s > REFRESH_S
        if self._has_ended and is_due and not self._news:
            self._has_ended = False
            tracker.refresh_cells()
            self._refreshed_s = time.monotonic()

    def _tell_plan(self, tracker: "Tracker") -> None:
        with self._changed:
            plan, is_news = self._plan, self._is_replanned
            self._is_replanned = False
        if is_news:
            tracker.replan(plan)

    def _close(self) -> None:
        tracker = self._open()
        self._tell_plan(tracker)
        if self._status == "FINISHED" and tracker.is_complete():
            self.error = ""
            return
        tracker.open(question=self._sweep.config.question, sweep_yaml=self._sweep.source.text)
        first_error: Exception | None = None
        for trial in (trial for trials in self._trials.values() for trial in trials):
            try:
                tracker.sync(trial)
            except Exception as error:  # one trial's trouble is not the others'
                first_error = first_error or error
        tracker.close(self._status)
        if first_error is not None:
            raise first_error
        self.error = ""


def _by_key(plan: Plan) -> dict[str, list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for trial in plan.trials:
        if trial.key is not None:
            found.setdefault(trial.key, []).append(trial)
    return found
