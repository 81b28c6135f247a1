"""Reports of search trials -> the points that lag behind their group and end early. Judgements survive restarts.

A point is judged as a whole, by the mean over its cells and seeds, once all of its trials have reached the step. So at
least one point always completes, and Optuna learns the value that the point was judged by.
"""

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean

from oneshot.plan.cells import study_name
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trial import Trial
from oneshot.sweep.search.pruners import EarlyStop, Judgement

FOLDER = "rungs"


class EarlyStopping:
    """The sweep's `early_stop`, if it has one. It judges each arrival once, across restarts."""

    def __init__(self, sweep_run: SweepRun) -> None:
        search, config = sweep_run.sweep.config.search, sweep_run.sweep.config.early_stop
        folder = self._folder = sweep_run.folder
        self._machine: EarlyStop | None = None
        self._kept: set[Judgement] = set()
        if search is None or config is None:
            return
        self._metric = config.metric or search.objective.metric
        self._per = search.per if config.per is None else config.per
        self._num_trials = {study.name: len(study.cells) * len(search.seeds) for study in sweep_run.plan.studies}
        self._values: dict[tuple[str, int | None, int], dict[str, float]] = {}  # (study, point, step) -> trial -> value
        self._machine = EarlyStop(config, mode=search.objective.mode)
        for name in folder.list(FOLDER):
            fields = folder.salvage(f"{FOLDER}/{name}")
            if fields is not None:
                self._kept.add(Judgement(**fields))
                self._machine.replay(Judgement(**fields))

    @property
    def metric(self) -> str | None:
        """Return the metric that points are judged by; None without early stopping."""
        return self._metric if self._machine is not None else None

    def judged(self, study: str, point: int) -> dict[int, float]:
        """Return the mean that a point was judged by, by step."""
        key = _name(study, point)
        return {made.step: made.value for made in sorted(self._kept, key=lambda made: made.step) if made.key == key}

    def judge(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> Judgement | None:
        """Judge a step of a search trial; return None where there is nothing to judge yet, or nothing new."""
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
