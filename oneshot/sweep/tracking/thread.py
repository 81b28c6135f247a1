"""News of trainings -> MLflow, in a separate thread, so that an outage never stops or slows a trial."""

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from oneshot.errors import first_line
from oneshot.plan.plan import Plan
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trial import Trial

if TYPE_CHECKING:
    from oneshot.sweep.tracking.tracker import Tracker

PAUSE_S = 15.0  # wait between two tries while MLflow does not answer
REFRESH_S = 30.0  # least time between two updates of the sweep's table and figures
REFRESH_SHARE = 0.05  # largest share of the time that these take: with 10,000 trials, an update takes seconds

logger = logging.getLogger(__name__)


class TrackingThread:
    """A queue of trainings with news, sent one by one; what could not be sent stays in the queue."""

    def __init__(self, sweep_run: SweepRun) -> None:
        self.error = ""
        self._sweep, self._plan, self._store = sweep_run.sweep, sweep_run.plan, sweep_run.store
        self._location = sweep_run.mlflow()
        self._trials = _by_key(self._plan)
        self._news: dict[str, None] = {}  # as an ordered set
        self._has_ended = False
        self._refresh_s = -math.inf  # when the next update is due
        self._is_replanned = False
        self._status = ""
        self._changed = threading.Condition()
        self._tracker: Tracker | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def replan(self, plan: Plan) -> None:
        """Note that the sweep has new trials."""
        with self._changed:
            self._plan, self._trials = plan, _by_key(plan)
            self._is_replanned = True

    def wake(self, key: str, *, ended: bool) -> None:
        """Note that a training has news."""
        with self._changed:
            self._news[key] = None
            self._has_ended = self._has_ended or ended
            self._changed.notify()

    def finish(self, status: str) -> None:
        """Send everything that is left, end the parent run, and wait until that is done."""
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
            except Exception as error:  # server, network or disk: trials continue, and this is tried again
                self._say(error)
                with self._changed:
                    self._news[key] = None
                    self._changed.wait_for(lambda: self._status, timeout=PAUSE_S)
        try:
            self._close()
        except Exception as error:  # the same; the next `run` sends the rest
            self._say(error)

    def _say(self, error: Exception) -> None:
        text = first_line(error)
        if text != self.error:
            logger.warning("MLflow is behind: %s", text)
        self.error = text

    def _open(self) -> "Tracker":
        if self._tracker is None:
            # MLflow takes seconds to import, and the trials need not wait for it
            from oneshot.sweep.tracking.tracker import Tracker

            self._tracker = Tracker(self._plan, self._store, self._location)
        return self._tracker

    def _sync(self, key: str) -> None:
        tracker = self._open()
        tracker.open(question=self._sweep.config.question, sweep_yaml=self._sweep.source.text)
        self._tell_plan(tracker)
        for trial in self._trials[key]:
            tracker.sync(trial)
        start_s = time.monotonic()
        if self._has_ended and start_s > self._refresh_s and not self._news:
            self._has_ended = False
            tracker.refresh_cells()
            end_s = time.monotonic()
            self._refresh_s = end_s + max(REFRESH_S, (end_s - start_s) / REFRESH_SHARE)

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
            except Exception as error:  # the other trials are still sent
                first_error = first_error or error
        tracker.close(self._status, is_whole=first_error is None)
        if first_error is not None:
            raise first_error
        self.error = ""


def _by_key(plan: Plan) -> dict[str, list[Trial]]:
    trials: dict[str, list[Trial]] = {}
    for trial in plan.trials:
        if trial.key is not None:
            trials.setdefault(trial.key, []).append(trial)
    return trials
