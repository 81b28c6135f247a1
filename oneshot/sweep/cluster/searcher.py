"""The agenda's next training -> Tune's next trial, and Tune's reports -> the agenda."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from oneshot.config.resources import ResourceConfig
from oneshot.plan.plan import Plan
from oneshot.plan.trainings import Training
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.cluster.fit import MOST_AT_A_TIME, Fit, Need, need_of
from oneshot.sweep.cluster.sharing import Sharing, Wish, units
from oneshot.sweep.cluster.trainable import to_tune_config


class Unsaved:
    """Something that Tune pickles to restore it, and never does: a sweep is rebuilt from its store."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class AgendaSearcher(Unsaved, Searcher):
    """Suggests the agenda's next training; finished when nothing is left and nothing will come."""

    def __init__(
        self, agenda: Agenda, *, storage: str, fit: Callable[[], Fit], most: int | None, sharing: Sharing | None = None
    ) -> None:
        super().__init__()
        self._agenda, self._storage, self._fit, self._most = agenda, storage, fit, most
        self._sharing = sharing
        self._live: dict[str, Need] = {}
        self._units: dict[str, float] = {}  # Tune's trial -> units of the cluster that it has or waits for in Tune
        self._begun: dict[str, None] = {}  # Tune's trials that have begun, in order
        self._counts: Counter[Need] = Counter()
        self._kinds: dict[Need, ResourceConfig] = {}
        self._of_plan: Plan | None = None

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Accept Tune's settings, which have no metric."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str
        """Return the next training; None while there are enough, or while running ones may still matter."""
        self.share()
        is_full = len(self._live) >= (self._most or MOST_AT_A_TIME) or self._is_all_full()
        if is_full and not self._agenda.halted and self._agenda.has_queue:
            return None
        resources: ResourceConfig | None = None

        def has_no_room(training: Training) -> bool:
            nonlocal resources
            resources = self._place(training.resources)
            return resources is None

        assignment = self._agenda.next(has_no_room)
        if assignment == "done":
            return str(Searcher.FINISHED)
        if assignment == "wait":
            return None
        assert resources is not None, "the agenda gives the last training that it found room for"
        self._live[trial_id] = need_of(resources)
        self._counts[self._live[trial_id]] += 1
        self._units[trial_id] = self._units_of(resources)
        return to_tune_config(
            replace(assignment.training, resources=resources),
            storage=self._storage,
            sweep=self._agenda.plan.name,
            claims_digest=self._agenda.claims_digest,
            stale_holder=assignment.stale_holder,
            watched=self._agenda.watched,
        )

    def have_fewer(self) -> int:
        """Have one trial less at a time than there are now, at least one; return how many that is."""
        self._most = min(self._most or MOST_AT_A_TIME, max(1, len(self._live) - 1))
        return self._most

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Free the trial's capacity; the driver's callback tells the agenda."""
        self._counts[self._live.pop(trial_id)] -= 1
        del self._units[trial_id]
        self._begun.pop(trial_id, None)

    def _place(self, resources: ResourceConfig) -> ResourceConfig | None:
        """Return where a trial goes: of several types of GPU, to the one with the most room; None if all are full."""
        fit = self._fit()
        places = {need_of(place): place for place in fit.placements(resources)}
        room = {need: fit.capacity(place) - self._counts[need] for need, place in places.items()}
        if self._sharing is not None:
            left = self._sharing.limit - sum(self._units.values()) + 1e-9
            room = {need: number for need, number in room.items() if self._units_of(places[need]) <= left}
        best = max(room, key=room.__getitem__, default=None)
        if best is None or (self._most is None and room[best] <= 0):
            return None
        return places[best]

    def _units_of(self, resources: ResourceConfig) -> float:
        return 0.0 if self._sharing is None else units(resources, self._sharing.unit)

    def _most_units(self, resources: ResourceConfig) -> float:
        """Return the units of a trial where it takes most, since its share of a GPU depends on the GPU."""
        return max(map(self._units_of, self._fit().placements(resources)), default=self._units_of(resources))

    def began(self, trial_id: str) -> None:
        """Note that a trial has its resources."""
        self._begun[trial_id] = None

    def share(self) -> None:
        """Tell other sweeps on the cluster what this one holds and wants, and learn what it may hold."""
        if self._sharing is None or not self._sharing.is_due():
            return
        most = max(0, (self._most or MOST_AT_A_TIME) - len(self._live))
        waiting = [self._most_units(training.resources) for training in self._agenda.runnable()]
        wish = Wish(
            need=next((each for each in waiting if each), max(self._units.values(), default=0.0)),
            held=sum(self._units[trial_id] for trial_id in self._begun),
            wanted=sum(self._units.values()) + sum(waiting[:most]),
            num_waiting=len(waiting) + len(self._units) - len(self._begun),
        )
        self._sharing.renew(wish, cost=self._agenda.budget.shown_cost)

    def is_in_excess(self, trial_id: str) -> bool:
        """Return whether a trial should leave for another sweep's: the last that began leaves first.

        A trial of several GPUs leaves for a quarter of them, or a rival's smaller trials could wait for ever.
        """
        if self._sharing is None:
            return False
        excess = self._sharing.excess(sum(self._units[each] for each in self._begun))
        for last in reversed(self._begun):
            if excess <= 1e-9:
                return False
            has = self._units[last]
            if has and excess >= has / 4:
                if last == trial_id:
                    return True
                excess -= has
        return False

    def _is_all_full(self) -> bool:
        """Return whether no need has capacity left, so that the queue need not be searched."""
        if self._agenda.plan is not self._of_plan:
            self._of_plan = self._agenda.plan
            self._kinds = {need_of(trial.resources): trial.resources for trial in self._of_plan.trials}
        return all(self._place(resources) is None for resources in self._kinds.values())

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep is rebuilt from its store."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, see `save`."""


class AgendaScheduler(Unsaved, FIFOScheduler):
    """First come, first served; stops a trial that the agenda no longer wants."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's
        self._agenda = agenda

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether the trial continues."""
        if "step" not in result:
            return str(TrialScheduler.CONTINUE)
        metrics = {name: value for name, value in result.items() if isinstance(value, float | int)}
        is_over = self._agenda.reported(trial.config["key"], result["step"], metrics)
        return str(TrialScheduler.STOP if is_over else TrialScheduler.CONTINUE)


class AgendaStopper(Unsaved, Stopper):
    """Ends the experiment when the agenda halts; trials save a checkpoint."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether the agenda has halted."""
        self._agenda.look()
        return bool(self._agenda.halted)
