"""Reports of search trials -> which points lag behind their group and end; kept, so that no restart forgets.

A point is judged as a whole, by the mean over its cells and seeds, once all of its trials have come as far: so there is
always a point that is through, and a study is told of what it is judged by.
"""

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean

from oneshot.config.file import Sweep
from oneshot.plan.cells import study_name
from oneshot.plan.plan import Plan, Trial
from oneshot.store.store import Folder
from oneshot.sweep.search.pruners import EarlyStop, Judgement

FOLDER = "rungs"


class EarlyStopping:
    """The sweep's `early_stop`, if it has one: judges each arrival once, now or before a restart."""

    def __init__(self, sweep: Sweep, plan: Plan, folder: Folder) -> None:
        search, config = sweep.config.search, sweep.config.early_stop
        self._folder = folder
        self._machine: EarlyStop | None = None
        self._kept: set[Judgement] = set()
        if search is None or config is None:
            return
        self._metric = config.metric or search.objective.metric
        self._per = search.per if config.per is None else config.per
        self._num_trials = {study.name: len(study.cells) * len(search.seeds) for study in plan.studies}
        self._values: dict[tuple[str, int | None, int], dict[str, float]] = {}
        """(study, point, step) -> what each of its trials has reported."""
        self._machine = EarlyStop(config, mode=search.objective.mode)
        for name in folder.list(FOLDER):
            fields = folder.salvage(f"{FOLDER}/{name}")
            if fields is not None:
                self._kept.add(Judgement(**fields))
                self._machine.replay(Judgement(**fields))

    @property
    def metric(self) -> str | None:
        """What points are judged by; None where the sweep stops none early."""
        return self._metric if self._machine is not None else None

    def judged(self, study: str, point: int) -> dict[int, float]:
        """Step -> the mean by which a point was judged there."""
        key = _name(study, point)
        return {one.step: one.value for one in sorted(self._kept, key=lambda one: one.step) if one.key == key}

    def judge(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> Judgement | None:
        """Takes a step of a search trial; None where there is nothing to judge yet, or nothing new."""
        if self._machine is None or trial.phase != "search" or self._metric not in metrics:
            return None
        values = self._values.setdefault((trial.study, trial.point, step), {})
        values[trial.label] = metrics[self._metric]
        if len(values) < self._num_trials[trial.study]:
            return None
        group = study_name(trial.cell, self._per)
        point = _name(trial.study, trial.point)
        num_steps = trial.config.train.num_steps
        judgement = self._machine.arrive(group, point, step, fmean(values.values()), num_steps=num_steps)
        if judgement is not None and judgement not in self._kept:
            self._folder.write_json(f"{FOLDER}/{len(self._kept):06d}.json", asdict(judgement))
            self._kept.add(judgement)
        return judgement


def _name(study: str, point: int | None) -> str:
    return f"{study} point {point}"
