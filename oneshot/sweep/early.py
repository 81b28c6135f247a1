"""Reports of search trials -> which of them lag behind their group and end; kept, so that no restart forgets."""

from collections.abc import Mapping
from dataclasses import asdict

from oneshot.cells import study_name
from oneshot.plan import Trial
from oneshot.store import Folder
from oneshot.sweep.schedule import EarlyStop, Judgement
from oneshot.sweepfile import Sweep

FOLDER = "rungs"


class EarlyStopping:
    """The sweep's `early_stop`, if it has one: judges each arrival once, now or before a restart."""

    def __init__(self, sweep: Sweep, folder: Folder) -> None:
        search, config = sweep.config.search, sweep.config.early_stop
        self._folder = folder
        self._machine: EarlyStop | None = None
        self._num_kept = 0
        if search is None or config is None:
            return
        self._metric = config.metric or search.objective.metric
        self._per = search.per if config.per is None else config.per
        self._machine = EarlyStop(config, mode=search.objective.mode)
        for name in folder.list(FOLDER):
            fields = folder.read_json(f"{FOLDER}/{name}")
            if fields is not None:
                self._machine.replay(Judgement(**fields))
                self._num_kept += 1

    @property
    def is_on(self) -> bool:
        """Whether the sweep stops trials early at all."""
        return self._machine is not None

    @property
    def metric(self) -> str | None:
        """What trials are judged by."""
        return self._metric if self._machine is not None else None

    def judge(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> Judgement | None:
        """Takes a step of a search trial; None where there is nothing to judge."""
        if self._machine is None or trial.phase != "search" or trial.key is None or self._metric not in metrics:
            return None
        judgement = self._machine.arrive(
            study_name(trial.cell, self._per),
            trial.key,
            step,
            metrics[self._metric],
            num_steps=trial.config.train.num_steps,
        )
        if judgement is not None:
            self._folder.write_json(f"{FOLDER}/{self._num_kept:06d}.json", asdict(judgement))
            self._num_kept += 1
        return judgement
