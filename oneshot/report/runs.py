"""A sweep's store -> `Gathered`: everything that a report needs, without how it is stored.

A report gives the same numbers from a store and from a bundle (bundle.py). No torch.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from oneshot.config.claims import ClaimConfig, GroupConfig, PublishedConfig
from oneshot.config.sweep import FaultsConfig
from oneshot.config.trial import TrialConfig
from oneshot.plan.claims import trained_categories
from oneshot.plan.frozen import Frozen, Planned, Rules, frozen
from oneshot.plan.leakage import VAL_SUITES, choices
from oneshot.plan.leaks import by_suite, find_leaks
from oneshot.plan.plan import Plan
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trial import Trial
from oneshot.report.groups import group_measures
from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder, mean_gpus, table_name
from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.benchmarks import due_steps, load_suites
from oneshot.tasks.examples import identify
from oneshot.tasks.measures import group_of, suite_of
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
    families: tuple[str, ...] = ()  # of problems that belong together, such as copies; empty if none do


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
    temperature: float = 0.0


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
    claims_digests: tuple[str, ...] = ()  # digests of the frozen record that its attempts of this sweep began under
    began_under: str = ""  # the digest that its first attempt carries, whatever its sweep; empty if none

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
    rules: Rules = field(default_factory=Rules)  # the rules of verdicts as the sweep file has them now
    leaks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Suite, or `@group` -> its problems that are trained on or repeated, in words."""
    choices: Mapping[str, str] = field(default_factory=dict)  # what chose by judged metrics, as leakage.choices has it
    signed_by: str = ""  # who signed the bundle that this was read from

    def run_of(self, cell: Mapping[str, str], seed: int) -> Run | None:
        """Return the run of a cell with a seed, or None if there is none."""
        return self._by_name.get((frozenset(cell.items()), seed))

    @property
    def judging(self) -> Rules:
        """Return the rules of the verdicts: the frozen ones, with groups that were added later."""
        if "rules" not in self.frozen.written:  # frozen by a version that had no rules
            return self.rules
        return replace(self.frozen.rules, groups={**self.rules.groups, **self.frozen.rules.groups})

    @property
    def design(self) -> tuple[int, ...]:
        """Return the numbers of seeds after which claims are judged: the planned looks, or else all seeds."""
        return self.judging.looks or (len(self.seeds),)

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
            group = gathered.judging.groups.get(group_of(claim.metric) or "")
            return suite if group is None else group.suites[0]
    suites = [suite for run in gathered.runs for suite in run.suites if not suite.name.startswith("@")]
    judging = [suite.name for suite in suites if suite.source not in VAL_SUITES]
    return next(iter([*judging, *(suite.name for suite in suites)]), None)


class StoreReader:
    """The reader of a store's completions."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._grades: dict[tuple[str, str, int], Grades | None] = {}

    def _table(self, key: str, suite: RunSuite, step: int) -> dict[str, Any] | None:
        return self._store.trial(key).completions(table_name(suite.digest, step))

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        """Return the grades of one evaluation, or None if it has no completions on record."""
        run_suite = run.suite(suite)
        if run_suite is None or run.key is None or suite.startswith("@"):  # a group has no evaluation of its own
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

    ids = tuple(column("id")[::samples])
    # copies of a problem are one problem, whatever their ids
    names = column("family")[::samples] if "family" in places else [""] * len(ids)
    families = tuple(name or text for name, text in zip(names, column("problem")[::samples], strict=True))
    return Grades(
        ids=ids,
        families=_short(families) if len(set(families)) < len(families) else (),
        categories=tuple(column("category")[::samples]),
        strict_PK=array(column("strict")),
        lenient_PK=array(column("lenient")),
        num_tokens_PK=array(column("num_tokens")),
        boxed_PK=array([extract_boxed(text) is not None for text in column("completion")]),
    )


def _short(names: Sequence[str]) -> tuple[str, ...]:
    numbers = {name: str(number) for number, name in enumerate(dict.fromkeys(names))}
    return tuple(numbers[name] for name in names)


def read_runs(
    plan: Plan, store: Store, *, faults: FaultsConfig = DEFAULT_FAULTS, phase: Literal["grid", "search"] = "grid"
) -> tuple[Run, ...]:
    """Read the recorded results of the trials of a phase, finished or not."""
    stops = read_stops(store.sweep(plan.name))

    def read(trial: Trial) -> Run:
        state = trial_state(trial, store, stops, faults=faults)
        return _run(trial, store, state=state, reason=stops.reason(trial) or "", sweep=plan.name)

    trials = plan.grid if phase == "grid" else plan.searched
    if store.is_local:  # where threads do not help
        return tuple(map(read, trials))
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return tuple(pool.map(read, trials))


def gather(sweep_run: SweepRun) -> Gathered:
    """Read a sweep: its runs, and the claims as it began."""
    sweep, plan, store, folder = sweep_run.sweep, sweep_run.plan, sweep_run.store, sweep_run.folder
    config = sweep.config
    claims = frozen(folder, Planned.of(config, plan))
    amended = tuple(claim for claim in config.claims if claim not in claims.claims)
    judged, trained = (*claims.claims, *amended), [trial.config for trial in plan.grid if trial.waits_for is None]
    recorded_text = folder.read("sweep.yaml")
    is_edited = recorded_text is not None and recorded_text != sweep.source.text
    groups = {**config.groups, **claims.rules.groups}
    return Gathered(
        name=plan.name,
        question=config.question,
        reproduces=config.reproduces,
        yaml=sweep.source.text,
        seeds=config.planned_seeds,
        runs=with_groups(read_runs(plan, store, faults=config.faults), groups),
        searched=read_runs(plan, store, faults=config.faults, phase="search"),
        frozen=claims,
        amended=amended,
        published=tuple(config.published),
        selects_on_test=config.allow_selection_on_test,
        warnings=("the sweep file was edited after the sweep began",) if is_edited else (),
        record=StoreReader(store),
        rules=Rules.of(config),
        leaks=by_suite(find_leaks(trained, judged, config.groups), config.groups),
        choices=choices(config, judged, [trial.config for trial in plan.trials]),
    )


def with_groups(runs: Sequence[Run], groups: Mapping[str, GroupConfig]) -> tuple[Run, ...]:
    """Return the runs with every group as one more suite, `@NAME`, at the steps that have all of its suites."""
    for name, group in groups.items():
        runs = [_with_group(run, f"@{name}", group) for run in runs]
    return tuple(runs)


def _with_group(run: Run, name: str, group: GroupConfig) -> Run:
    suites = [suite for each in group.suites if (suite := run.suite(each)) is not None]
    if len(suites) < len(group.suites):
        return run
    measured = group_measures(group, {suite.name: suite.num_problems for suite in suites}, run.measured)
    digest = sha256("".join(suite.digest for suite in suites).encode()).hexdigest()
    whole = RunSuite(name=name, source="", digest=digest, samples=1, num_problems=None)
    return replace(run, suites=(*run.suites, whole), measured={**run.measured, name: measured})


def _run(trial: Trial, store: Store, *, state: TrialState, reason: str, sweep: str) -> Run:
    folder = None if trial.key is None else store.trial(trial.key)
    result = None if folder is None else folder.result()
    attempts = [] if folder is None else folder.attempts()
    held = [] if folder is None else folder.held(attempts)
    reason = result.reason if not reason and result is not None and state == "failed" else reason
    suites = tuple(
        RunSuite(
            name=suite.name,
            source=suite.source,
            digest=suite.digest,
            samples=suite.samples,
            num_problems=suite.count,
            temperature=suite.temperature,
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
        gpus=mean_gpus(held, planned=trial.resources.gpus) if trial.resources.is_packed else trial.resources.gpus,
        spent_h=sum(each.ms for each in held) / 3_600_000,
        started_ms=next((attempt["started_ms"] for attempt in attempts if "started_ms" in attempt), None),
        ended_ms=None if result is None else result.ended_ms,
        origin=next((attempt["sweep"] for attempt in reversed(attempts) if "sweep" in attempt), ""),
        suites=suites,
        rows=() if folder is None else _rows(trial, folder),
        measured={} if folder is None else _measured(trial.config, folder),
        environments=_environments(attempts),
        claims_digests=_claims_digests(attempts, sweep),
        began_under=attempts[0].get("claims", "") if attempts else "",
    )


def _claims_digests(attempts: Sequence[Mapping[str, Any]], sweep: str) -> tuple[str, ...]:
    """Return the digests of the frozen record that a sweep's attempts carry; older versions recorded none."""
    digests = (attempt.get("claims") for attempt in attempts if attempt.get("sweep") == sweep)
    return tuple(dict.fromkeys(digest for digest in digests if digest))


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
