"""oneshot: the replication lab for one-shot RLVR.

    sweep = oneshot.load_sweep("quickstart")
    lab = sweep.run()
    lab.verdicts()

The names below are public; everything else may change. Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from oneshot.errors import DataError, ModelError, OneshotError, SweepFileError, UserError
from oneshot.version import __version__

if TYPE_CHECKING:
    from oneshot.api.lab import Lab
    from oneshot.api.lab import open_lab as open
    from oneshot.api.sweeps import Sweep, SweepPlan, TrialsFailedError, load_sweep
    from oneshot.api.training import grade, rank, train

__all__ = [
    "DataError",
    "Lab",
    "ModelError",
    "OneshotError",
    "Sweep",
    "SweepFileError",
    "SweepPlan",
    "TrialsFailedError",
    "UserError",
    "__version__",
    "grade",
    "load_sweep",
    "open",
    "rank",
    "train",
]

_HOMES = {
    "Lab": "lab",
    "open": "lab:open_lab",
    "Sweep": "sweeps",
    "SweepPlan": "sweeps",
    "TrialsFailedError": "sweeps",
    "load_sweep": "sweeps",
    "grade": "training",
    "rank": "training",
    "train": "training",
}
"""Public name -> its module in oneshot.api, and its name there if that differs."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'oneshot' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"oneshot.api.{module}"), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
