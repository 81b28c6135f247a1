"""Ray Tune -> Ray Tune with three changes, for as long as a sweep runs. Written for Ray 2.56 to 2.60."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution.tune_controller import TuneController

ASK_S = 1


class KilledForMemoryError(RayActorError):
    """A worker that Ray's memory monitor has ended."""

    def __init__(self, error_msg: str) -> None:
        super().__init__(error_msg=error_msg)


@contextmanager
def patched() -> Iterator[None]:
    """Change three methods of Tune for the duration of the block.

    A worker that the memory monitor has ended counts as one that died, which is what it is. Tune knows RayActorError
    and RayTaskError only; any other error of an actor, this one included, ends the driver.

    While nothing runs, Tune asks its searcher for a trial for up to ten minutes and does nothing else: no callback, no
    look at the signal that ends it. Now it does so for a second.

    A worker that has become free gets a trial that waits for resources, if there is one. Tune may give it one whose own
    worker is starting, and ends that worker; as long as trials end within a worker's start, a new node would stay idle.
    """
    manager: Any = RayActorManager
    controller: Any = TuneController
    task_failed, update_queue = manager._actor_task_failed, controller._update_trial_queue
    reuse_worker = controller._maybe_reuse_cached_actor

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        is_killed = isinstance(exception, OutOfMemoryError)
        task_failed(self, tracked_actor_task, KilledForMemoryError(str(exception)) if is_killed else exception)

    def update(self: TuneController, *args: Any, **kwargs: Any) -> bool:
        return bool(update_queue(self, *args, **{**kwargs, "timeout": ASK_S}))

    def reuse(self: Any, trial: Any) -> bool:
        need = trial.placement_group_factory
        if not self._actor_cache.has_cached_object(need) or not _is_starting(self, trial):
            return bool(reuse_worker(self, trial))
        alike = self._resources_to_pending_trials[need]
        ready = (alike & self._staged_trials) - self._resetting_trials
        other = next((each for each in ready if not _is_starting(self, each)), None)
        if other is None and alike <= self._staged_trials:  # nothing else waits, or will in this turn
            return bool(reuse_worker(self, trial))
        if other is not None:
            reuse_worker(self, other)
        return False

    manager._actor_task_failed, controller._update_trial_queue = failed, update
    controller._maybe_reuse_cached_actor = reuse
    try:
        yield
    finally:
        manager._actor_task_failed, controller._update_trial_queue = task_failed, update_queue
        controller._maybe_reuse_cached_actor = reuse_worker


def _is_starting(controller: Any, trial: Any) -> bool:
    """Return whether a trial that has not begun has a worker of its own, on resources of its own."""
    worker = controller._trial_to_actor.get(trial)
    is_resetting = trial in controller._resetting_trials
    return worker is not None and not is_resetting and controller._actor_manager.is_actor_started(worker)
