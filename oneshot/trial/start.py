"""A training with `model.init` -> the weights of the training that it begins from."""

import posixpath
from pathlib import Path

from oneshot.errors import DataError
from oneshot.plan.trainings import Training
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder


def fetch_start(training: Training, folder: TrialFolder, starts: Store | None, local: Path) -> Path | None:
    """Copy the weights that a training begins from into a local folder, and return it; None without `model.init`.

    The weights come from the store `starts`, or if it is None, from the store of the training's own folder.

    Raises DataError: the weights were removed, or replaced by those of another step.
    """
    init = training.config.model.init
    if init is None:
        return None
    key, step = init.of(training.seed)
    beside = TrialFolder(folder.fs, posixpath.join(posixpath.dirname(folder.path), key))
    source = beside if starts is None else starts.trial(key)
    kept = source.kept_step("checkpoint")
    if kept != step or not source.get_folder("checkpoint", local):
        why = "removed" if kept is None else f"replaced by those of step {kept}, because that training was continued"
        raise DataError(f"model.init: {init.sweep}: the weights of step {step} of trial {key} were {why}")
    return local
