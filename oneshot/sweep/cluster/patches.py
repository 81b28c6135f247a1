"""Ray Tune -> Ray Tune with two changes, for as long as a sweep runs. Written for Ray 2.56 to 2.60."""

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
    """Change two methods of Tune for the duration of the block.

    A worker that the memory monitor has ended counts as one that died, which is what it is. Tune knows RayActorError
    and RayTaskError only; any other error of an actor, this one included, ends the driver.

    While nothing runs, Tune asks its searcher for a trial for up to ten minutes and does nothing else: no callback, no
    look at the signal that ends it. Now it does so for a second.
    """
    manager: Any = RayActorManager
    controller: Any = TuneController
    task_failed, update_queue = manager._actor_task_failed, controller._update_trial_queue

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        is_killed = isinstance(exception, OutOfMemoryError)
        task_failed(self, tracked_actor_task, KilledForMemoryError(str(exception)) if is_killed else exception)

    def update(self: TuneController, *args: Any, **kwargs: Any) -> bool:
        return bool(update_queue(self, *args, **{**kwargs, "timeout": ASK_S}))

    manager._actor_task_failed, controller._update_trial_queue = failed, update
    try:
        yield
    finally:
        manager._actor_task_failed, controller._update_trial_queue = task_failed, update_queue
