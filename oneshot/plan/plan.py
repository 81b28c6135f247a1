"""A sweep -> its plan: trials in the order in which they run, with keys, costs and warnings.

A trial is one cell with one seed. A training is what a key names. Trials share a training if they differ only in their
evaluations or their number of steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from oneshot.config.claims import GroupConfig
from oneshot.config.examples import RowExample, SetExamples
from oneshot.config.file import SweepFile
from oneshot.config.paths import SettingError, flatten
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, ModelError, UserError
from oneshot.models.engines import engine_fault, has_vllm, with_engine
from oneshot.models.placement import choose_strategy, place_trial
from oneshot.models.shapes import check_positions
from oneshot.plan.cells import Axes, Cell, expand, read_axes, study_name, unused
from oneshot.plan.cost import TrainingShape, estimate, training_shape
from oneshot.plan.foreign_code import check_functions, foreign_code
from oneshot.plan.keys import TrialIdentity, identify_trial
from oneshot.plan.leakage import check_choices
from oneshot.plan.leaks import find_leaks, leak_warnings
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.recorded_solutions import AWAITS
from oneshot.plan.starts import AWAITS as AWAITS_WEIGHTS
from oneshot.plan.studies import Study, at_point, idle, read_studies
from oneshot.plan.trial import Trial
from oneshot.plan.warnings import (
    coinciding,
    inert_settings,
    odd_resources,
    odd_rows,
    odd_suites,
    of_other_method,
    repeated_seeds,
    too_large,
)
from oneshot.tasks.benchmarks import load_suite, load_suites
from oneshot.tasks.examples import identify_shots


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A sweep's trials, in the order in which they run, with warnings about its file."""

    name: str
    num_cells: int
    trials: tuple[Trial, ...]
    warnings: tuple[str, ...]
    studies: tuple[Study, ...] = ()
    groups: Mapping[str, GroupConfig] = field(default_factory=dict)  # groups of suites, whose means are shown

    def to_json(self) -> dict[str, Any]:
        """Return the plan as `plan --json` prints it, and as the store keeps it in plan.json."""
        paid = self.paid()
        return {
            "name": self.name,
            "num_cells": self.num_cells,
            "num_trials": len(self.trials),
            "num_trainings": len(paid),
            "trials": [_trial_json(trial) for trial in self.trials],
            "max_tokens": sum(max_tokens(trial.config) for trial in paid),
            "tokens": sum(trial.cost.train_tokens + trial.cost.eval_tokens for trial in paid),
            "gpu_hours": self.gpu_hours,
            "gpu_hours_basis": sorted({trial.cost.basis for trial in paid if trial.resources.gpus}),
            "warnings": list(self.warnings),
        }

    @property
    def grid(self) -> tuple[Trial, ...]:
        """Return the trials of the grid, which are judged."""
        return tuple(trial for trial in self.trials if trial.phase == "grid")

    @property
    def searched(self) -> tuple[Trial, ...]:
        """Return the trials of the search, which only choose."""
        return tuple(trial for trial in self.trials if trial.phase == "search")

    def paid(self) -> list[Trial]:
        """Return the longest trial of each training, which pays for it."""
        longest: dict[object, Trial] = {}
        for index, trial in enumerate(self.trials):
            payer = longest.setdefault(trial.key or index, trial)
            if trial.config.train.num_steps > payer.config.train.num_steps:
                longest[trial.key] = trial
        return list(longest.values())

    @property
    def gpu_hours(self) -> float | None:
        """Return the sum over trainings, or None if it is unknown for a training on GPUs."""
        hours = [trial.cost.gpu_hours for trial in self.paid()]
        return None if None in hours else sum(known for known in hours if known is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A cell of the grid, or a cell with one point of a study."""

    cell: Cell
    phase: Literal["search", "grid"] = "grid"
    study: str = ""
    point: int | None = None


def make_plan(file: SweepFile, *, measured: Mapping[TrainingShape, float] | None = None) -> Plan:
    """Make every trial of a sweep, with its settings checked and its key. `measured` are seconds a step by shape.

    Raises:
        SweepFileError: the file is wrong; names the place.
        UserError: an example, a suite or a model is missing.
    """
    sweep = PinnedSweep.of(file)
    try:
        axes = read_axes(sweep)
        cells = expand(sweep, axes)
        studies = read_studies(sweep, axes, cells)
        searched = [place for study in studies for place in _points(sweep, axes, study)]
        named = flatten(dict.fromkeys(path for study in studies for path in study.space), ("search", "space"))
    except SettingError as error:
        raise sweep.source.error(error.where, error.message) from error
    every = [*cells, *(place.cell for place in searched)]
    warnings = [f"{sweep.source.at(where)}: {why}" for where, why in unused(sweep, axes, every, besides=set(named))]
    warnings += [f"{sweep.source.at(where)}: {why}" for where, why in idle(sweep, studies)]
    warnings += sorted({warning for cell in cells for warning in inert_settings(cell.config)})
    warnings += of_other_method([cell.config for cell in every])
    warnings += repeated_seeds(cells) if len(sweep.config.planned_seeds) > 1 else []
    awaited = {study.name: study for study in studies}
    # point by point over all studies, so that all of them progress; then the grid seed by seed, controls first, so that
    # a sweep that is stopped early leaves a balanced matrix
    searched.sort(key=lambda place: place.point or 0)
    grid = sorted(
        (_Place(cell=_waiting(sweep, cell, awaited)) for cell in cells),
        key=lambda place: not is_control(place.cell.config),
    )
    seeds = sweep.config.search.seeds if sweep.config.search is not None else []
    trials = [trial for place in searched for trial in _trials(sweep, place, seeds, measured or {})]
    by_cell = [_trials(sweep, place, sweep.config.planned_seeds, measured or {}) for place in grid]
    trials += [trial for at_seed in zip(*by_cell, strict=True) for trial in at_seed]
    studied = [cell for study in studies for cell in study.cells]
    check_choices(sweep, grid=cells, searched=studied)
    warnings += coinciding([trial for trial in trials if trial.phase == "grid"])
    warnings += odd_resources(every)
    warnings += odd_suites(every)
    warnings += odd_rows(every)
    warnings += foreign_code(sweep, every)
    known = [cell.config for cell in every if cell.waits_for is None]
    warnings += leak_warnings(find_leaks(known, sweep.config.claims, sweep.config.groups))
    warnings += too_large(trials)
    if missing := sorted({name for trial in trials for name in trial.provisional}):
        warnings.append(
            f"the keys will change, because {', '.join(missing)} is not fetched yet; run `oneshot fetch "
            f"{' '.join(missing)}`"
        )
    return Plan(
        name=sweep.config.name,
        num_cells=len(cells),
        trials=tuple(trials),
        warnings=tuple(warnings),
        studies=tuple(studies),
        groups=sweep.config.groups,
    )


def _points(sweep: PinnedSweep, axes: Axes, study: Study) -> Iterator[_Place]:
    """Yield each point of a study on each of its cells. A point without settings yet has cells that wait for it."""
    search = sweep.config.search
    assert search is not None, "a study belongs to a search"
    points = sweep.points.get(study.name, [])
    for point in range(max(search.num_trials, len(points))):
        if point < len(points):
            cells = at_point(sweep, axes, study, points[point])
        else:
            waits_for = f"point {point} of the search of {study.name}"
            cells = [replace(cell, waits_for=cell.waits_for or waits_for) for cell in study.cells]
        yield from (_Place(cell=cell, phase="search", study=study.name, point=point) for cell in cells)


def _waiting(sweep: PinnedSweep, cell: Cell, awaited: Mapping[str, Study]) -> Cell:
    """Return a cell of the grid, waiting for its study unless that has a winner or sets nothing in the cell."""
    search = sweep.config.search
    if search is None or (name := study_name(cell.names, search.per)) not in awaited:
        return cell
    own = {path for path, place in cell.places.items() if place[0] not in ("trial", "search")}
    if own >= awaited[name].space.keys():
        return cell
    winner = sweep.winners.get(name)
    if winner is None:
        return replace(cell, waits_for=cell.waits_for or f"the search of {name}")
    if winner.point is None:
        return replace(cell, waits_for=f"the search of {name}, in which no point can win")
    return cell


def with_point(plan: Plan, sweep: PinnedSweep, study: Study, number: int) -> Plan:
    """Return the plan with the trials of a new point in place of the trials that waited for it."""
    search = sweep.config.search
    assert search is not None, "a study belongs to a search"
    cells = at_point(sweep, read_axes(sweep), study, sweep.points[study.name][number])
    places = [_Place(cell=cell, phase="search", study=study.name, point=number) for cell in cells]
    new_trials = [trial for place in places for trial in _trials(sweep, place, search.seeds, {})]
    is_waiting = [(trial.study, trial.point) == (study.name, number) for trial in plan.trials]
    first = is_waiting.index(True)
    others = [trial for trial, waits in zip(plan.trials, is_waiting, strict=True) if not waits]
    return replace(plan, trials=(*others[:first], *new_trials, *others[first:]))


def _trials(
    sweep: PinnedSweep, place: _Place, seeds: Sequence[int], measured: Mapping[TrainingShape, float]
) -> list[Trial]:
    """Return one trial of a cell for each seed."""
    cell, gpus = place.cell, place.cell.resources.gpus
    identity = _identify(cell, sweep)
    config = with_engine(cell.config, cell.resources, has_vllm=has_vllm() if sweep.has_vllm is None else sweep.has_vllm)
    step_s = measured.get(training_shape(config, gpus=gpus))
    cost = estimate(config, load_suites(config), cell.cost, gpus=gpus, measured_s=step_s)
    placement = place_trial(config, cell.resources)
    return [
        Trial(
            cell=cell.names,
            seed=seed,
            key=key,
            waits_for=identity.waits_for,
            config=config,
            resources=cell.resources,
            labels=cell.labels,
            cost=cost,
            placement=placement,
            guards=tuple(sweep.config.guards),
            phase=place.phase,
            study=place.study,
            point=place.point,
            is_settled=place.phase == "search" and place.study in sweep.winners,
            provisional=identity.provisional,
        )
        for seed, key in zip(seeds, identity.keys(config, seeds), strict=True)
    ]


def is_control(config: TrialConfig) -> bool:
    """Return whether a trial is not rewarded for matching right labels, or not trained at all."""
    relabelled = any(
        (isinstance(e, RowExample) and e.answer is not None) or (isinstance(e, SetExamples) and e.wrong)
        for e in config.examples
    )
    is_unrewarded = config.reward.kind != "outcome" or config.loss.pg_coef == 0
    return relabelled or config.train.num_steps == 0 or (config.train.method == "grpo" and is_unrewarded)


def _identify(cell: Cell, sweep: PinnedSweep) -> TrialIdentity:
    """Identify a cell's trial. An error names the place in the file that causes it."""
    config = cell.config
    check_functions(cell, sweep)
    for name, suite in config.eval.suites.items():
        try:
            load_suite(name, suite, config)
        except UserError as error:
            raise sweep.source.error(cell.place(f"eval.suites.{name}"), str(error)) from error
    try:
        identify_shots(config.prompt)
    except DataError as error:
        raise sweep.source.error(cell.place("prompt.shots"), str(error)) from error
    try:
        identity = TrialIdentity(waits_for=cell.waits_for) if cell.waits_for is not None else identify_trial(config)
    except DataError as error:
        raise sweep.source.error(cell.place("examples"), str(error)) from error
    except ModelError as error:
        raise sweep.source.error(cell.place("model.path"), str(error)) from error
    try:
        check_positions(config)
    except UserError as error:
        path = str(error).partition(":")[0]  # which setting asks for too much
        raise sweep.source.error(cell.place(path), str(error)) from error
    if config.critic is not None and cell.resources.strategy == "fsdp":
        raise sweep.source.error(
            cell.place("advantage"), "advantage.baseline: a critic cannot be sharded; set resources.strategy: ddp"
        )
    most_gpus = sweep.config.sharing.max_gpus
    if most_gpus is not None and cell.resources.gpus > most_gpus:
        needs = f"{most_gpus:g}, but a trial has resources.gpus: {cell.resources.gpus:g}; raise max_gpus"
        raise sweep.source.error(("sharing", "max_gpus"), needs)
    if fault := engine_fault(config, cell.resources):
        path, why = fault
        raise sweep.source.error(cell.place(path), why)
    return identity


def with_seed(trial: Trial, seed: int) -> Trial:
    """Return the trial of the same cell with another seed and the key of that seed.

    Raises UserError: the cell waits for something, so that its trials cannot run yet.
    """
    if trial.waits_for is not None and trial.waits_for.startswith(("the history", AWAITS, AWAITS_WEIGHTS)):
        raise UserError(f"{trial.label} waits for {trial.waits_for}")
    identity = identify_trial(trial.config)
    if identity.contents is None:
        raise UserError(
            f"{trial.label} waits for {identity.waits_for}; set model.revision to a commit hash to run it alone"
        )
    init = trial.config.model.init
    if init is not None and str(seed) not in init.weights:
        raise UserError(f"{trial.label}: seed {seed}: {init.sweep} has no weights for it; set model.init.seed")
    (key,) = identity.keys(trial.config, [seed])
    return replace(trial, seed=seed, key=key)


def max_tokens(config: TrialConfig) -> int:
    """Return the completion tokens of a trial's training if all are full and drawn as often as may be; 0 for SFT."""
    rollout = config.rollout
    if config.train.method == "sft":
        return 0
    return (
        config.train.num_steps * (1 + rollout.resample) * rollout.num_groups * rollout.group_size * rollout.max_tokens
    )


def _trial_json(trial: Trial) -> dict[str, Any]:
    row: dict[str, Any] = {"key": trial.key, "cell": trial.cell, "seed": trial.seed}
    row["num_steps"] = trial.config.train.num_steps
    if trial.waits_for:
        row["waits_for"] = trial.waits_for
    if trial.provisional:
        row["provisional"] = True
    if trial.phase == "search":
        row |= {"phase": trial.phase, "study": trial.study, "point": trial.point}
    if trial.resources.gpus:
        row |= {"gpus": trial.resources.gpus, "gpu_hours": trial.cost.gpu_hours}
    if trial.config.script is None:
        row["strategy"] = (
            choose_strategy(trial.config, trial.resources) if trial.placement is None else trial.placement.strategy
        )
        row["num_processes"] = trial.resources.processes
        row["engine"] = trial.config.rollout.engine
    if trial.placement is not None:
        row["memory_gib"] = trial.placement.memory.peak_gib
    return row
