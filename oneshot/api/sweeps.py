"""A sweep file, or the same as a dict -> `Sweep`: planned, run, submitted and watched from Python."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from oneshot.api.lab import Lab
from oneshot.config.file import SweepFile, load, read
from oneshot.config.shipped import find_file
from oneshot.errors import OneshotError, UserError
from oneshot.plan.edits import check_edits
from oneshot.plan.loader import pin_all, pin_known
from oneshot.plan.plan import Plan, make_plan
from oneshot.report.runs import gather
from oneshot.store.store import Store

if TYPE_CHECKING:
    from oneshot.sweep.events import Event, Listener

DICT = "<dict>"


class TrialsFailedError(OneshotError):
    """A sweep that has ended with trials that failed or are missing. The message names the first reason."""


class SweepPlan:
    """A sweep's plan: its trials, cost and warnings."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what is odd about the file, one text each."""
        return self._plan.warnings

    @property
    def gpu_hours(self) -> float | None:
        """Return the estimate of GPU-hours, or None if there is none."""
        return self._plan.gpu_hours

    def trials(self) -> pd.DataFrame:
        """Return one row for each trial: its axes as `cell.<axis>`, `seed`, `key`, `num_steps`, `gpus`, `gpu_hours`."""
        return pd.DataFrame(
            {
                **{f"cell.{axis}": name for axis, name in trial.cell.items()},
                "seed": trial.seed,
                "key": trial.key,
                "num_steps": trial.config.train.num_steps,
                "gpus": trial.resources.gpus,
                "gpu_hours": trial.cost.gpu_hours,
            }
            for trial in self._plan.trials
        )

    def __repr__(self) -> str:
        return f"<SweepPlan {self._plan.name}: {self._plan.num_cells} cells, {len(self._plan.trials)} trials>"

    def _repr_html_(self) -> str:
        head = f"<p>{self._plan.num_cells} cells, {len(self._plan.trials)} trials</p>"
        return head + str(self.trials().to_html(index=False))


class Sweep:
    """A sweep: which trials to run, and what they should show."""

    def __init__(self, file: SweepFile) -> None:
        self._file = file

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Sweep":
        """Return the sweep of a mapping with the keys of a sweep file.

        Raises SweepFileError: it is not a valid sweep; names the path and what to do.
        """
        return cls(read(json.dumps(data, indent=2, ensure_ascii=False), name=DICT))

    @property
    def name(self) -> str:
        """Return the sweep's name, by which its results are opened."""
        return self._file.config.name

    @property
    def question(self) -> str:
        """Return the question that the sweep answers."""
        return self._file.config.question

    def plan(self, *, storage: str | None = None) -> SweepPlan:
        """Return the trials, their cost and warnings. Runs nothing.

        Raises SweepFileError: a setting is wrong; names file, line, path and what to do.
        """
        return SweepPlan(make_plan(pin_known(self._file, self._store(storage))))

    def run(self, *, storage: str | None = None, address: str | None = None, progress: bool = True) -> Lab:
        """Run the trials that are not finished yet, and return the results.

        If anything crashed, call it again: it resumes from checkpoints. `address` is HOST:PORT of a Ray that this
        machine belongs to, or auto; None starts a Ray here.

        Raises UserError: the input, the storage or the cluster cannot be used.
        Raises TrialsFailedError: trials failed or are missing; the results are in `oneshot.open(sweep.name)`.
        """
        from oneshot.sweep.local import run_local

        sweep_run = pin_all(self._file, self._store(storage))
        check_edits(sweep_run)
        with _listener(self.name, shows=progress) as listen:
            summary, sweep_run = run_local(sweep_run, listen=listen, address=address)
        gathered = gather(sweep_run)
        if summary.interrupted and not summary.halted:
            raise KeyboardInterrupt
        if summary.failed or summary.missing:
            first = next((run.reason for run in gathered.runs if run.state == "failed"), summary.halted)
            counts = f"{summary.finished} finished, {summary.failed} failed, {summary.missing} missing"
            raise TrialsFailedError(f"{self.name}: {counts}: {first or 'run it again to go on'}")
        return Lab(gathered)

    def submit(self, *, address: str, storage: str, mlflow: str | None = None) -> str:
        """Send the sweep to a Ray cluster, and return the id of the submission.

        `address` is http://HEAD:8265. `storage` must mean the same on every node.

        Raises UserError: the cluster does not answer, or refuses.
        """
        from oneshot.config.contexts import find_context
        from oneshot.sweep.cluster.jobs import Cluster
        from oneshot.sweep.cluster.package import Bundle

        file = Path(f"{self.name}.yaml")
        cluster = Cluster(find_context(address), name=address)
        arguments = ["--mlflow", mlflow] if mlflow else []
        bundle = Bundle(file=file, text=self._file.source.text, data=())
        return cluster.submit(bundle, sweep=self.name, storage=storage, arguments=arguments, wait_s=0)

    def status(self, *, storage: str | None = None) -> pd.DataFrame:
        """Return one row for each trial: its label, state, and how far it is.

        Raises UserError: the storage has no such sweep.
        """
        from oneshot.sweep.status import sweep_status

        return pd.DataFrame(sweep_status(self._store(storage), self.name).to_json()["trials"])

    def _store(self, storage: str | None) -> Store:
        return Store(storage or self._file.config.storage)

    def __repr__(self) -> str:
        return f"<Sweep {self.name}: {self.question}>"


def load_sweep(file: str | Path, *, settings: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, or a shipped sweep by its name. `settings` are texts `path=value`, as in `--set`.

    Raises SweepFileError: it is not a valid sweep file; names file, line, path and what to do.
    """
    path = find_file(Path(file))
    if not path.exists():
        raise UserError(f"{file}: no such file; `oneshot sweeps` lists the shipped sweeps")
    return Sweep(load(path, overrides=tuple(settings)))


def _listener(name: str, *, shows: bool) -> "AbstractContextManager[Listener]":
    """Return a context manager that gives what is called with each event of a run."""
    if not shows:
        return nullcontext(_ignore)
    from oneshot.api.notebook import NotebookProgress, is_notebook

    if is_notebook():
        return NotebookProgress(sweep=name)
    from rich.console import Console

    from oneshot.cli.progress import Progress

    return Progress(Console(), sweep=name)


def _ignore(event: "Event") -> None:
    """Do nothing with an event."""
