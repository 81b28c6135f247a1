"""Trainings that are not finished -> Tune's trials, in the plan's order."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from ray.tune.search import Searcher

from oneshot.sweep.trainable import to_tune_config
from oneshot.trainings import Training


class PlanSearcher(Searcher):
    """Suggests each training once; finished when none is queued and none is live."""

    def __init__(self, trainings: Sequence[Training], *, storage: str, sweep: str) -> None:
        super().__init__()
        self._queue = deque(trainings)
        self._storage = storage
        self._sweep = sweep
        self._live: set[str] = set()

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Accepts that Tune knows no metric: what chooses is ours."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str
        """The next training; None while live ones may still matter."""
        if not self._queue:
            return None if self._live else str(Searcher.FINISHED)
        self._live.add(trial_id)
        return to_tune_config(self._queue.popleft(), storage=self._storage, sweep=self._sweep)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A training ended, or its worker died."""
        self._live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is rebuilt from its store, Tune is never restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""
