"""A sweep run -> its missing trainings run on this machine's Ray, or on a cluster that this machine belongs to."""

from collections.abc import Collection
from functools import partial

from oneshot.plan.sweep_run import SweepRun
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.events import Listener
from oneshot.sweep.run import Summary, run
from oneshot.sweep.tracking.thread import TrackingThread


def run_local(
    sweep_run: SweepRun,
    *,
    listen: Listener,
    address: str | None = None,
    check: bool | None = None,
    only: Collection[str] | None = None,
) -> tuple[Summary, SweepRun]:
    """Run the missing trainings (`only`: among these keys); return a summary, and the run with its final plan.

    `address` is HOST:PORT of a Ray that this machine belongs to, or auto; None starts a Ray. `check` says whether the
    nodes are checked first; None: if there are several.

    Raises UserError: as `oneshot.sweep.run.run` does.
    """
    uri = sweep_run.mlflow().uri

    def launch(agenda: Agenda, tracking: TrackingThread) -> bool:
        # Ray takes seconds to import, and a finished sweep does not need it
        from oneshot.sweep.cluster.sharing import member_of
        from oneshot.sweep.cluster.tuner import run_on_ray
        from oneshot.sweep.tracking.server import why_not

        return run_on_ray(
            agenda,
            tracking,
            store=sweep_run.store,
            address=address,
            max_concurrent=sweep_run.sweep.config.resources.max_concurrent,
            listen=listen,
            check=check,
            reach=partial(why_not, uri),
            member=None if address is None else member_of(sweep_run),
        )

    return run(sweep_run, launch=launch, listen=listen, only=only)
