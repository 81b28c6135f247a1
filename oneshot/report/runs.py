"""A sweep's store -> `Gathered`: everything that a report needs, without how it is stored.

A report gives the same numbers from a store and from a bundle (bundle.py). No torch.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from oneshot.config.claims import ClaimConfig, PublishedConfig
from oneshot.config.sweep import FaultsConfig
from oneshot.config.trial import TrialConfig
from oneshot.plan.claims import Frozen, frozen, trained_categories
from oneshot.plan.leakage import VAL_SUITES
from oneshot.plan.plan import Plan
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trial import Trial
from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.benchmarks import due_steps, load_suites
from oneshot.tasks.examples import identify
from oneshot.tasks.measures import suite_of
from oneshot.trial.best import best_step
from oneshot.trial.requests import read_stops
from oneshot.trial.state import DEFAULT_FAULTS, TrialState, trial_state

NUM_READERS = 8  # trials read at the same time, because a store may be remote


@dataclass(frozen=True, slots=True, kw_only=True)
class Grades:
    """The grades of every completion of one evaluation. Arrays are [problems, samples]."""

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    strict_PK: NDArray[np.float64]  # 1: right. 0: wrong or ungraded.
    lenient_PK: NDArray[np.float64]
    num_tokens_PK: NDArray[np.float64]
    boxed_PK: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A completion to show, with its problem and grade."""

    problem: str
    answer: str
    completion: str
    strict: bool | None
    category: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSuite:
    """A suite with the sampling rule of one run."""

    name: str
    source: str
    digest: str
    samples: int
    num_problems: int | None  # none if the suite's problems are not on this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One trial with its recorded results."""

    label: str
    cell: dict[str, str]
    seed: int
    key: str | None
    state: TrialState
    reason: str  # why it failed or was stopped, or what it waits for
    labels: dict[str, str]
    trained: tuple[str, ...]  # categories of its examples; empty if unknown
    examples: tuple[str, ...]  # names of its first four examples
    num_examples: int
    config: dict[str, Any]
    num_steps: int
    gpus: float
    spent_h: float  # hours that its attempts held their workers
    started_ms: int | None  # start of its first attempt
    ended_ms: int | None
    origin: str  # the sweep that trained it
    suites: tuple[RunSuite, ...]
    rows: tuple[Row, ...]  # the training metrics of its steps, without evaluations
    measured: dict[str, dict[int, dict[str, float]]] = field(repr=False)  # suite -> step -> measure -> value
    environments: tuple[dict[str, Any], ...]  # versions and device of its attempts, each once

    @property
    def gpu_hours(self) -> float:
        """Return GPUs times hours that it held them; 0 for a trial on the CPU."""
        return self.gpus * self.spent_h

    def suite(self, name: str) -> RunSuite | None:
        """Return the suite of this name in this sweep."""
        return next((suite for suite in self.suites if suite.name == name), None)

    def measure(self, suite: str, step: int, name: str = "pass_at_1") -> float | None:
        """Return one number of an evaluation, or None if there is none."""
        return self.measured.get(suite, {}).get(step, {}).get(name)


class CompletionReader(Protocol):
    """A reader of runs' completions."""

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        """Return the grades of one evaluation, or None if it has no completions on record."""

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        """Return the first completion of each problem; empty if none are on record."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """A sweep with everything that its report needs."""

    name: str
    question: str
    reproduces: str | None
    yaml: str
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]  # trials of the grid
    searched: tuple[Run, ...] = ()  # trials of the search. They choose settings and are not judged.
    frozen: Frozen
    amended: tuple[ClaimConfig, ...]  # claims that were added to the file after the sweep began
    published: tuple[PublishedConfig, ...]
    selects_on_test: bool
    warnings: tuple[str, ...]
    record: CompletionReader

    def run_of(self, cell: Mapping[str, str], seed: int) -> Run | None:
        """Return the run of a cell with a seed, or None if there is none."""
        return self._by_name.get((frozenset(cell.items()), seed))

    @cached_property
    def _by_name(self) -> dict[tuple[frozenset[tuple[str, str]], int], Run]:
        return {(frozenset(run.cell.items()), run.seed): run for run in self.runs}

    @property
    def cells(self) -> list[dict[str, str]]:
        """Return the grid's cells, in order."""
        return list({tuple(run.cell.items()): run.cell for run in self.runs}.values())


def primary_suite(gathered: Gathered) -> str | None:
    """Return the suite of the first claim, or else the first suite that is not used to choose."""
    for claim in gathered.frozen.claims:
        if (suite := suite_of(claim.metric)) is not None:
            return suite
    suites = [suite for run in gathered.runs for suite in run.suites]
    judging = [suite.name for suite in suites if suite.source not in VAL_SUITES]
    return next(iter([*judging, *(suite.name for suite in suites)]), None)


class StoreReader:
    """The reader of a store's completions."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._grades: dict[tuple[str, str, int], Grades | None] = {}

    def _table(self, key: str, suite: RunSuite, step: int) -> dict[str, Any] | None:
        return self._store.trial(key).completions(f"eval-{suite.digest}-{step}")

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        """Return the grades of one evaluation, or None if it has no completions on record."""
        run_suite = run.suite(suite)
        if run_suite is None or run.key is None:
            return None
        name = (run.key, run_suite.digest, step)
        if name not in self._grades:
            table = self._table(run.key, run_suite, step)
            self._grades[name] = None if table is None else _grades(table, samples=run_suite.samples)
        return self._grades[name]

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        """Return the first completion of each problem; empty if none are on record."""
        run_suite = run.suite(suite)
        if run_suite is None or run.key is None or (table := self._table(run.key, run_suite, step)) is None:
            return ()
        names = ("problem", "answer", "completion", "strict", "category", "id")
        places = [table["columns"].index(name) for name in names]
        return [
            Shown(**dict(zip(names, (line[place] for place in places), strict=True)))
            for line in table["data"][:: run_suite.samples]
        ]


def _grades(table: Mapping[str, Any], *, samples: int) -> Grades:
    """Return the grades in a table of completions, which has the `samples` of each problem one after another."""
    places = {name: place for place, name in enumerate(table["columns"])}
    data = table["data"]

    def column(name: str) -> list[Any]:
        return [line[places[name]] for line in data]

    def array(values: Sequence[Any]) -> NDArray[np.float64]:
        return np.array([float(value or 0) for value in values]).reshape(-1, samples)

    return Grades(
        ids=tuple(column("id")[::samples]),
        categories=tuple(column("category")[::samples]),
        strict_PK=array(column("strict")),
        lenient_PK=array(column("lenient")),
        num_tokens_PK=array(column("num_tokens")),
        boxed_PK=array([extract_boxed(text) is not None for text in column("completion")]),
    )


def read_runs(
    plan: Plan, store: Store, *, faults: FaultsConfig = DEFAULT_FAULTS, phase: Literal["grid", "search"] = "grid"
) -> tuple[Run, ...]:
    """Read the recorded results of the trials of a phase, finished or not."""
    stops = read_stops(store.sweep(plan.name))

    def read(trial: Trial) -> Run:
        state = trial_state(trial, store, stops, faults=faults)
        return _run(trial, store, state=state, reason=stops.reason(trial) or "")

    with ThreadPoolExecutor(NUM_READERS) as readers:
        return tuple(readers.map(read, plan.grid if phase == "grid" else plan.searched))


def gather(sweep_run: SweepRun) -> Gathered:
    """Read a sweep: its runs, and the claims as it began."""
    sweep, plan, store, folder = sweep_run.sweep, sweep_run.plan, sweep_run.store, sweep_run.folder
    claims = frozen(folder, sweep.config.claims)
    recorded_text = folder.read("sweep.yaml")
    is_edited = recorded_text is not None and recorded_text != sweep.source.text
    return Gathered(
        name=plan.name,
        question=sweep.config.question,
        reproduces=sweep.config.reproduces,
        yaml=sweep.source.text,
        seeds=sweep.config.planned_seeds,
        runs=read_runs(plan, store, faults=sweep.config.faults),
        searched=read_runs(plan, store, faults=sweep.config.faults, phase="search"),
        frozen=claims,
        amended=tuple(claim for claim in sweep.config.claims if claim not in claims.claims),
        published=tuple(sweep.config.published),
        selects_on_test=sweep.config.allow_selection_on_test,
        warnings=("the sweep file was edited after the sweep began",) if is_edited else (),
        record=StoreReader(store),
    )


def _run(trial: Trial, store: Store, *, state: TrialState, reason: str) -> Run:
    folder = None if trial.key is None else store.trial(trial.key)
    result = None if folder is None else folder.result()
    attempts = [] if folder is None else [folder.attempt(n) for n in range(1, folder.last_attempt() + 1)]
    if not reason and result is not None and state == "failed":
        reason = result.reason
    suites = tuple(
        RunSuite(
            name=suite.name, source=suite.source, digest=suite.digest, samples=suite.samples, num_problems=suite.count
        )
        for suite in load_suites(trial.config)
    )
    ids = identify(trial.config.examples).ids if trial.waits_for is None else ()
    return Run(
        label=trial.label,
        cell=dict(trial.cell),
        seed=trial.seed,
        key=trial.key,
        state=state,
        reason=reason or trial.waits_for or "",
        labels=dict(trial.labels),
        trained=tuple(sorted(trained_categories(trial.labels, trial.config))) if ids else (),
        examples=ids[:4],
        num_examples=len(ids),
        config=trial.config.model_dump(mode="json"),
        num_steps=trial.config.train.num_steps,
        gpus=trial.resources.gpus,
        spent_h=0.0 if folder is None or not attempts else folder.spent_ms() / 3_600_000,
        started_ms=next((attempt["started_ms"] for attempt in attempts if "started_ms" in attempt), None),
        ended_ms=None if result is None else result.ended_ms,
        origin=next((attempt["sweep"] for attempt in reversed(attempts) if "sweep" in attempt), ""),
        suites=suites,
        rows=() if folder is None else _rows(trial, folder),
        measured={} if folder is None else _measured(trial.config, folder),
        environments=_environments(attempts),
    )


def _rows(trial: Trial, folder: TrialFolder) -> tuple[Row, ...]:
    """Return the trial's own steps, without evaluations."""
    rows = (row for row in folder.rows() if row.step <= trial.config.train.num_steps)
    metrics = ((row, {name: row.metrics[name] for name in row.metrics if not name.startswith("eval/")}) for row in rows)
    return tuple(Row(step=row.step, time_ms=row.time_ms, metrics=training) for row, training in metrics)


def _measured(config: TrialConfig, folder: TrialFolder) -> dict[str, dict[int, dict[str, float]]]:
    """Return the metrics of each recorded evaluation, under the trial's own names of its suites."""
    recorded, best = folder.evaluations(), best_step(config, folder)  # `oneshot eval --step best` may add the latter
    measured: dict[str, dict[int, dict[str, float]]] = {}
    for suite in load_suites(config):
        due = due_steps(suite, config)
        for step in sorted(
            step for digest, step in recorded if digest == suite.digest and (step in due or step == best)
        ):
            if (evaluation := folder.evaluation(suite.digest, step)) is not None:
                measured.setdefault(suite.name, {})[step] = evaluation["metrics"]
    return measured


def _environments(attempts: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return the distinct versions and devices of the attempts, without host names."""
    environments = {}
    for attempt in attempts:
        if "env_digest" in attempt:
            environment = {name: attempt.get(name, "") for name in ("env_digest", "gpu", "platform")}
            environment["versions"] = attempt.get("versions", {})
            environments[json.dumps(environment, sort_keys=True)] = environment
    return tuple(environments.values())
