"""A sweep's store -> `Gathered`: everything that a report is made of, and nothing of how it is stored.

A report judges what is gathered, from a store or from a bundle of one (bundle.py), to the same numbers. No torch.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from oneshot.config.sweep import ClaimConfig, FaultsConfig, PublishedConfig
from oneshot.config.trial import TrialConfig
from oneshot.plan.claims import Frozen, frozen, trained_categories
from oneshot.plan.plan import Plan, Trial
from oneshot.plan.sweep_run import SweepRun
from oneshot.store.records import EVALUATION_COLUMNS, Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.benchmarks import Suite, load_suites
from oneshot.tasks.examples import identify
from oneshot.tasks.problems import extract_boxed
from oneshot.trial.requests import read_stops
from oneshot.trial.state import DEFAULT_FAULTS, TrialState, trial_state

NUM_READERS = 8
"""Trials read at a time: a store may be far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grades:
    """What every completion of one evaluation earned; arrays are [problems, samples]."""

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    strict_PK: NDArray[np.float64]
    """1 right, 0 not right or ungraded."""
    lenient_PK: NDArray[np.float64]
    num_tokens_PK: NDArray[np.float64]
    boxed_PK: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A completion as people read it."""

    problem: str
    answer: str
    completion: str
    strict: bool | None
    category: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteFacts:
    """A suite as one trial is evaluated on it."""

    name: str
    source: str
    digest: str
    samples: int
    num_problems: int | None
    """None where the suite's problems are not at hand."""
    steps: tuple[int, ...]
    """After which it is due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One trial of the grid, and what it has on record."""

    label: str
    cell: dict[str, str]
    seed: int
    key: str | None
    state: TrialState
    reason: str
    """Why it failed, was stopped, or waits."""
    labels: dict[str, str]
    trained: tuple[str, ...]
    """Categories of its examples; none where they are not known."""
    examples: tuple[str, ...]
    """Names of its examples; of many, the first few."""
    num_examples: int
    config: dict[str, Any]
    num_steps: int
    gpus: float
    spent_h: float
    """Hours that all attempts held their worker."""
    started_ms: int | None
    """Of its first attempt."""
    ended_ms: int | None
    origin: str
    """The sweep that trained it."""
    suites: tuple[SuiteFacts, ...]
    rows: tuple[Row, ...]
    """Its steps: metrics of training alone."""
    measured: dict[str, dict[int, dict[str, float]]] = field(repr=False)
    """Suite -> step -> measure -> value."""
    environments: tuple[dict[str, Any], ...]
    """Of its attempts: what ran, and on what."""

    @property
    def gpu_hours(self) -> float:
        """GPUs that it held times hours; of a trial on the CPU 0."""
        return self.gpus * self.spent_h

    def suite(self, name: str) -> SuiteFacts | None:
        """By its name in this sweep."""
        return next((suite for suite in self.suites if suite.name == name), None)

    def measure(self, suite: str, step: int, name: str = "pass_at_1") -> float | None:
        """One number of an evaluation."""
        return self.measured.get(suite, {}).get(step, {}).get(name)


class CompletionReader(Protocol):
    """Where the completions of runs are read."""

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        """Of one evaluation; None where nothing of it is on record."""
        ...

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        """Completions to look at, the first of each problem; none where they are not on record."""
        ...


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """A sweep as it is reported."""

    name: str
    question: str
    reproduces: str | None
    yaml: str
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    """Of the grid."""
    searched: tuple[Run, ...] = ()
    """Trials of the search, which choose and are not judged."""
    frozen: Frozen
    amended: tuple[ClaimConfig, ...]
    """Claims of the file that were not there when the sweep began."""
    published: tuple[PublishedConfig, ...]
    selects_on_test: bool
    warnings: tuple[str, ...]
    record: CompletionReader

    def run_of(self, cell: Mapping[str, str], seed: int) -> Run | None:
        """The trial of a cell with a seed."""
        return self._by_name.get((frozenset(cell.items()), seed))

    @cached_property
    def _by_name(self) -> dict[tuple[frozenset[tuple[str, str]], int], Run]:
        return {(frozenset(run.cell.items()), run.seed): run for run in self.runs}

    @property
    def cells(self) -> list[dict[str, str]]:
        """The grid's cells, in order."""
        return list({tuple(run.cell.items()): run.cell for run in self.runs}.values())


class StoreRecord:
    """Completions as a store has them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, str, int], Grades | None] = {}

    def _table(self, run: Run, suite: str, step: int) -> dict[str, Any] | None:
        facts = run.suite(suite)
        if facts is None or run.key is None:
            return None
        return self._store.trial(run.key).completions(f"eval-{facts.digest}-{step}")

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        """Of one evaluation."""
        facts = run.suite(suite)
        if facts is None or run.key is None:
            return None
        name = (run.key, facts.digest, step)
        if name not in self._known:
            table = self._table(run, suite, step)
            self._known[name] = None if table is None else _grades(table, samples=facts.samples)
        return self._known[name]

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        """Completions to look at."""
        table, facts = self._table(run, suite, step), run.suite(suite)
        if table is None or facts is None:
            return ()
        names = ("problem", "answer", "completion", "strict", "category", "id")
        places = [table["columns"].index(name) for name in names]
        return [
            Shown(**dict(zip(names, (line[place] for place in places), strict=True)))
            for line in table["data"][:: facts.samples]
        ]


def _grades(table: Mapping[str, Any], *, samples: int) -> Grades:
    """A table of completions, `samples` of each problem side by side."""
    places = {name: table["columns"].index(name) for name in EVALUATION_COLUMNS}
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
    """Reads what the trials of a phase have on record, finished or not."""
    stops = read_stops(store.sweep(plan.name))

    def read(trial: Trial) -> Run:
        state = trial_state(trial, store, stops, faults=faults)
        return _run(trial, store, state=state, reason=stops.reason(trial) or "")

    with ThreadPoolExecutor(NUM_READERS) as readers:
        return tuple(readers.map(read, plan.grid if phase == "grid" else plan.searched))


def gather(sweep_run: SweepRun) -> Gathered:
    """Read a sweep: its runs, and what it began with."""
    sweep, plan, store, folder = sweep_run.sweep, sweep_run.plan, sweep_run.store, sweep_run.folder
    record = frozen(folder, sweep.config.claims)
    began = folder.read("sweep.yaml")
    is_other = began is not None and began != sweep.source.text
    return Gathered(
        name=plan.name,
        question=sweep.config.question,
        reproduces=sweep.config.reproduces,
        yaml=sweep.source.text,
        seeds=tuple(sweep.config.seeds),
        runs=read_runs(plan, store, faults=sweep.config.faults),
        searched=read_runs(plan, store, faults=sweep.config.faults, phase="search"),
        frozen=record,
        amended=tuple(claim for claim in sweep.config.claims if claim not in record.claims),
        published=tuple(sweep.config.published),
        selects_on_test=sweep.config.allow_selection_on_test,
        warnings=("the sweep file has been edited since the sweep began",) if is_other else (),
        record=StoreRecord(store),
    )


def _run(trial: Trial, store: Store, *, state: TrialState, reason: str) -> Run:
    folder = None if trial.key is None else store.trial(trial.key)
    result = None if folder is None else folder.result()
    attempts = [] if folder is None else [folder.attempt(n) for n in range(1, folder.last_attempt() + 1)]
    if not reason and result is not None and state == "failed":
        reason = result.reason
    suites = tuple(
        SuiteFacts(
            name=suite.name,
            source=suite.source,
            digest=suite.digest,
            samples=suite.samples,
            num_problems=suite.count,
            steps=tuple(sorted(_due(trial.config, suite))),
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
        measured={} if folder is None else _measured(suites, folder),
        environments=_environments(attempts),
    )


def _due(config: TrialConfig, suite: Suite) -> set[int]:
    return suite.due_steps(num_steps=config.train.num_steps, at_start=config.eval.at_start, also_at=config.eval.also_at)


def _rows(trial: Trial, folder: TrialFolder) -> tuple[Row, ...]:
    """The trial's own steps, without evaluations."""
    return tuple(
        Row(
            step=row.step,
            time_ms=row.time_ms,
            metrics={name: value for name, value in row.metrics.items() if not name.startswith("eval/")},
        )
        for row in folder.rows()
        if row.step <= trial.config.train.num_steps
    )


def _measured(suites: Sequence[SuiteFacts], folder: TrialFolder) -> dict[str, dict[int, dict[str, float]]]:
    """What each evaluation on record measured, under the trial's own names for its suites."""
    there = folder.evaluations()
    found: dict[str, dict[int, dict[str, float]]] = {}
    for suite in suites:
        for step in suite.steps:
            if (suite.digest, step) in there and (evaluation := folder.evaluation(suite.digest, step)) is not None:
                found.setdefault(suite.name, {})[step] = evaluation["metrics"]
    return found


def _environments(attempts: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Versions and device of each attempt, each once; no host's name."""
    found = {}
    for attempt in attempts:
        if "env_digest" in attempt:
            facts = {name: attempt.get(name, "") for name in ("env_digest", "gpu", "platform")}
            facts["versions"] = attempt.get("versions", {})
            found[json.dumps(facts, sort_keys=True)] = facts
    return tuple(found.values())
