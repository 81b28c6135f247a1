"""Sweeps of scripted trials: their files, and what store and MLflow must say once nothing is left to do."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from oneshot.config.trial import TrialConfig
from oneshot.plan.loader import begun_sweep
from oneshot.plan.plan import Plan
from oneshot.plan.trial import Trial
from oneshot.store.lease import holder
from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.sweep.status import is_alive
from oneshot.sweep.tracking.tracker import TRIAL
from oneshot.trial.requests import read_stops
from oneshot.trial.scripted import MODULUS
from oneshot.trial.state import trial_standing

NUM_STEPS = 6
EVERY_STEPS = 2


def sweep_text(
    *,
    name: str = "s",
    script: str = "step_s: 0.02",
    trial: str = "",
    axes: str = "",
    seeds: str = "[0]",
    rest: str = "",
) -> str:
    """A sweep file of scripted trials: 6 steps and a checkpoint after every second, unless `trial` says otherwise."""
    numbers = "" if "num_steps" in trial else f"  train.num_steps: {NUM_STEPS}\n"
    numbers += "" if "every_steps" in trial else f"  checkpoint.every_steps: {EVERY_STEPS}\n"
    return (
        f"version: 1\nname: {name}\nquestion: Is anything lost?\n"
        f"trial:\n  script: {{{script}}}\n{numbers}{trial}"
        f"{f'axes:{chr(10)}{axes}' if axes else ''}seeds: {seeds}\n{rest}"
    )


@cache
def chain(seed: int, step: int) -> float:
    """What `script/chain` is after a step: each is made of all before it."""
    value = seed
    for number in range(1, step + 1):
        value = (value * 31 + number) % MODULUS
    return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A folder with sweep files and a store, as a driver started in it sees them."""

    folder: Path

    def write(self, text: str, name: str = "s.yaml") -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "runs"))

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder}/runs/mlflow.db")

    def plan(self, name: str = "s") -> Plan:
        """As it was run last, with all points that were asked."""
        return begun_sweep(self.store, name).plan

    def trainings(self, name: str = "s") -> dict[str, TrialFolder]:
        """Label of a trial -> its folder."""
        return {t.label: self.store.trial(t.key) for t in self.plan(name).trials if t.key is not None}


def make_lab(folder: Path, database: Path) -> Lab:
    """A lab whose MLflow has its tables already: to make them takes seconds."""
    (folder / "runs").mkdir(parents=True)
    shutil.copy(database, folder / "runs" / "mlflow.db")
    return Lab(folder=folder)


def make_database(path: Path) -> Path:
    """An MLflow database without a run."""
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


# --- what must hold ---


def lines_of(folder: TrialFolder) -> list[tuple[int, Row]]:
    """(attempt, row) of every line of the metrics, those that a later attempt made again included."""
    found = []
    for name in folder.list("metrics"):
        lines = (folder.read(f"metrics/{name}") or "").splitlines()
        whole = [line for line in lines if line.endswith("}")]  # the last one may be torn
        found += [(int(name.split("-")[0]), Row(**json.loads(line))) for line in whole]
    return found


def steps_of(folder: TrialFolder) -> dict[int, list[int]]:
    """Attempt -> the steps that it put on record, in order."""
    found: dict[int, list[int]] = {}
    for attempt, row in lines_of(folder):
        found.setdefault(attempt, []).append(row.step)
    return found


def check_steps(folder: TrialFolder, config: TrialConfig, seed: int) -> list[Row]:
    """Every step on record is as it should be, and was made once but for those after a checkpoint."""
    rows = folder.rows()
    assert [row.step for row in rows] == list(range(1, len(rows) + 1))
    assert [row.metrics["script/chain"] for row in rows] == [chain(seed, row.step) for row in rows]
    last = 0
    for steps in steps_of(folder).values():
        assert all(later == earlier + 1 for earlier, later in pairwise(steps)), steps
        begun = steps[0] - 1
        # an interrupt leaves a checkpoint of the last step; a kill may come between a segment and its checkpoint
        is_at_checkpoint = begun % config.checkpoint.every_steps == 0 and last - begun <= config.checkpoint.every_steps
        assert begun in (0, last) or is_at_checkpoint, f"from no checkpoint: {steps}"
        last = steps[-1]
    return rows


def nothing_lost(
    lab: Lab, name: str = "s", *, client: MlflowClient | None = None, failed: Mapping[str, str] | None = None
) -> dict[str, Run]:
    """Every training was done exactly once, and MLflow says so; `failed`: label -> how the reason begins.

    Returns the runs of the trials by label.
    """
    failed = failed or {}
    plan, store, client = lab.plan(name), lab.store, client or lab.client
    assert plan.trials
    assert holder(store.sweep(name)) is None, "the driver's lease is released"
    stops = read_stops(store.sweep(name))
    seen: dict[str, tuple[TrialFolder, list[Row]]] = {}
    ends: dict[str, str] = {}
    for trial in plan.trials:
        assert trial.key is not None, f"{trial.label} waits for {trial.waits_for}"
        folder = store.trial(trial.key)
        rows = check_steps(folder, trial.config, trial.seed)[: trial.config.train.num_steps]
        seen[_identity(trial)] = folder, rows
        result = folder.result()
        if stops.reason(trial) is not None and trial_standing(trial, result) != "finished":
            continue
        assert result is not None, trial.label
        assert result.attempt == folder.last_attempt()
        assert not is_alive(holder(folder)), "nobody is at the training any more"
        ends[_identity(trial)] = "FAILED" if trial.label in failed else "FINISHED"
        if trial.label in failed:
            assert (result.outcome, trial.label) == ("failed", trial.label)
            assert result.reason.startswith(failed[trial.label]), result.reason
        else:
            assert result.outcome == "finished", f"{trial.label}: {result.reason}"
            assert result.steps_done >= trial.config.train.num_steps
            assert len(rows) == trial.config.train.num_steps
    return _check_mlflow(client, name, seen, ends, is_finished=not failed)


def _identity(trial: Trial) -> str:
    return f"{trial.key} {trial.label}"


def runs_of(client: MlflowClient, experiment: str) -> list[Run]:
    """Every run of an experiment."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None, f"MLflow has no experiment {experiment}"
    return list(client.search_runs([found.experiment_id], max_results=1000))


def _check_mlflow(
    client: MlflowClient,
    name: str,
    seen: dict[str, tuple[TrialFolder, list[Row]]],
    ends: dict[str, str],
    *,
    is_finished: bool,
) -> dict[str, Run]:
    runs = runs_of(client, name)
    (parent,) = (run for run in runs if run.data.tags["phase"] == "sweep")
    assert parent.info.status == ("FINISHED" if is_finished else "FAILED")
    children = [run for run in runs if run is not parent]
    assert Counter(run.data.tags[TRIAL] for run in children) == Counter(seen.keys()), "one run a trial"
    assert "RUNNING" not in {run.info.status for run in children}
    for run in children:
        identity = run.data.tags[TRIAL]
        if identity in ends:
            assert (identity, run.info.status) == (identity, ends[identity])
        check_points(client, run, *seen[identity])
    return {run.data.tags[TRIAL].split(" ", 1)[1]: run for run in children}


def check_points(client: MlflowClient, run: Run, folder: TrialFolder, rows: list[Row]) -> None:
    """Each metric of a run has each step once, as some attempt made it: what was sent is not sent again."""
    made: dict[tuple[str, int], set[tuple[float, int]]] = {}
    for _, row in lines_of(folder):
        for metric, value in row.metrics.items():
            made.setdefault((metric, row.step), set()).add((_as_kept(value), row.time_ms))
    steps: dict[str, list[int]] = {}
    for row in rows:
        for metric in row.metrics:
            steps.setdefault(metric, []).append(row.step)
    assert set(run.data.metrics) == set(steps)
    for metric, expected in steps.items():
        points = client.get_metric_history(run.info.run_id, metric)
        assert (metric, sorted(point.step for point in points)) == (metric, expected)
        assert all((point.value, point.timestamp) in made[metric, point.step] for point in points), metric


def _as_kept(value: float) -> float:
    """MLflow's database has no infinity."""
    return max(-sys.float_info.max, min(value, sys.float_info.max))


def files(folder: Any, name: str) -> dict[str, str]:
    """Name -> text of a sub-folder's files."""
    return {file: folder.read(f"{name}/{file}") for file in folder.list(name)}
