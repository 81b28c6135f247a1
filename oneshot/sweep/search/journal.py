"""The studies of a sweep -> Optuna journal files, which optuna-dashboard opens."""

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from oneshot.errors import UserError
from oneshot.plan.sweep_run import SweepRun
from oneshot.sweep.search.early_stopping import EarlyStopping
from oneshot.sweep.search.optuna_study import trials_of
from oneshot.sweep.search.phase import Searching
from oneshot.trial.requests import read_stops


def write_journals(sweep_run: SweepRun, folder: Path) -> list[Path]:
    """Write one journal file for each study, with the points so far; a file that exists is replaced.

    Raises UserError: the sweep has no search.
    """
    search, plan = sweep_run.sweep.config.search, sweep_run.plan
    if search is None or not plan.studies:
        raise UserError(f"{plan.name}: the sweep has no search, so it has no study to write")
    folder.mkdir(parents=True, exist_ok=True)
    searching, stops = Searching(sweep_run, EarlyStopping(sweep_run)), read_stops(sweep_run.folder)
    paths = []
    for study in plan.studies:
        path = folder / f"{study.name}.journal"
        path.unlink(missing_ok=True)
        written = optuna.create_study(
            study_name=study.name,
            storage=JournalStorage(JournalFileBackend(str(path))),
            direction="maximize" if search.objective.mode == "max" else "minimize",
        )
        written.add_trials(trials_of(study.space, searching.points(study, stops)))
        paths.append(path)
    return paths
