"""Wake-ups -> MLflow brought up to date in a thread of its own, so that an outage never stops or slows a trial."""

import logging
import queue
import threading

from oneshot.plan import Plan, Trial
from oneshot.store import Store
from oneshot.sweep.tracking import Tracker
from oneshot.sweepfile import Sweep

logger = logging.getLogger(__name__)


class TrackingThread:
    """Brings MLflow up to date beside the trials: neither its import nor an outage holds one up."""

    def __init__(self, sweep: Sweep, plan: Plan, store: Store, *, uri: str, artifacts: str | None) -> None:
        self.error = ""
        self._sweep, self._plan, self._store = sweep, plan, store
        self._uri, self._artifacts = uri, artifacts
        self._trials: dict[str, list[Trial]] = {}
        for trial in plan.trials:
            if trial.key is not None:
                self._trials.setdefault(trial.key, []).append(trial)
        self._queue: queue.Queue[tuple[str, bool] | str] = queue.Queue()
        self._tracker: Tracker | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wake(self, key: str, *, ended: bool) -> None:
        """A training has something new."""
        self._queue.put((key, ended))

    def finish(self, status: str) -> None:
        """Sends everything that is left, ends the parent, and waits for it."""
        self._queue.put(status)
        self._thread.join()

    def _work(self) -> None:
        while True:
            item = self._queue.get()
            try:
                if isinstance(item, str):
                    self._close(item)
                    self.error = ""
                    return
                self._sync(*item)
            except (
                Exception
            ) as error:  # whatever the server, network or disk does: the trials go on, and `run` catches up
                self.error = f"{type(error).__name__}: {error}"
                logger.warning("MLflow is behind: %s", self.error)
                if isinstance(item, str):
                    return

    def _open(self) -> Tracker:
        if self._tracker is None:
            self._tracker = Tracker(
                self._plan,
                self._store,
                tracking_uri=self._uri,
                experiment=self._sweep.config.mlflow.experiment or self._plan.name,
                artifacts=self._artifacts,
            )
        return self._tracker

    def _sync(self, key: str, ended: bool) -> None:
        fresh = self._tracker is None
        tracker = self._open()
        if fresh:
            tracker.open(question=self._sweep.config.question, sweep_yaml=self._sweep.source.text)
        for trial in self._trials[key]:
            tracker.sync(trial)
        if ended and self._queue.empty():
            tracker.refresh_cells()

    def _close(self, status: str) -> None:
        fresh = self._tracker is None
        tracker = self._open()
        if fresh:
            if tracker.is_complete() and status == "FINISHED":
                return
            tracker.open(question=self._sweep.config.question, sweep_yaml=self._sweep.source.text)
        for trials in self._trials.values():
            for trial in trials:
                tracker.sync(trial)
        tracker.close(status)
