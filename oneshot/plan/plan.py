"""`Sweep` -> `Plan`: its trials in the order they run, with keys, what they cost, and warnings.

A *trial* is one cell with one seed; a *training* is what a key names. Trials that differ only in how they are
evaluated, or of which one asks for fewer steps, share a training.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from oneshot.config.file import SweepFile
from oneshot.config.paths import SettingError, flatten
from oneshot.config.sweep import GuardConfig, ResourceConfig
from oneshot.config.trial import RowExample, SetExamples, TrialConfig
from oneshot.errors import DataError, ModelError, UserError
from oneshot.models.memory import Memory
from oneshot.models.placement import GPU_GIB, Placement, alternatives, choose_strategy, host_gib, place_trial
from oneshot.models.source import local_folder
from oneshot.plan.cells import Axes, Cell, expand, read_axes, study_name, unused
from oneshot.plan.cost import Cost, TrainingShape, estimate, training_shape
from oneshot.plan.keys import TrialIdentity, identify_trial, inert_paths
from oneshot.plan.leakage import check_choices
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.studies import Study, at_point, idle, read_studies
from oneshot.tasks.benchmarks import due_evaluations, load_suite, load_suites
from oneshot.tasks.examples import identify_shots


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One cell with one seed: one MLflow child run, one row of every report."""

    cell: dict[str, str]
    seed: int
    key: str | None
    """Of its training; None while something that decides it is not known yet."""
    waits_for: str | None
    config: TrialConfig
    resources: ResourceConfig
    labels: dict[str, str]
    cost: Cost
    placement: Placement | None = None
    """How it is spread over processes, and what each needs; None: nothing is known of the model."""
    guards: tuple[GuardConfig, ...] = ()
    phase: Literal["search", "grid"] = "grid"
    study: str = ""
    point: int | None = None
    """Of a search trial: which of its study's points it tries, from 0."""
    is_settled: bool = False
    """Of a study that has been won: nothing more of it is run."""
    provisional: tuple[str, ...] = ()
    """Sets whose contents are not known yet: the key will change when they are fetched."""

    @property
    def label(self) -> str:
        """`tiny-qwen2/47+38/outcome seed 0`."""
        point = "" if self.point is None else f" point {self.point}"
        return f"{'/'.join(self.cell.values()) or 'trial'}{point} seed {self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A sweep's trials, in running order, and what is odd about its file."""

    name: str
    num_cells: int
    trials: tuple[Trial, ...]
    warnings: tuple[str, ...]
    studies: tuple[Study, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `plan --json` prints, and the store keeps as plan.json."""
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
        """The trials that are judged; those of a search only choose."""
        return tuple(trial for trial in self.trials if trial.phase == "grid")

    @property
    def searched(self) -> tuple[Trial, ...]:
        """Those that only choose."""
        return tuple(trial for trial in self.trials if trial.phase == "search")

    def paid(self) -> list[Trial]:
        """Of the trials that share a training, the longest alone."""
        longest: dict[object, Trial] = {}
        for index, trial in enumerate(self.trials):
            known = longest.setdefault(trial.key or index, trial)
            if trial.config.train.num_steps > known.config.train.num_steps:
                longest[trial.key] = trial
        return list(longest.values())

    @property
    def gpu_hours(self) -> float | None:
        """Sum over trainings; None where of one on GPUs nothing is known."""
        hours = [trial.cost.gpu_hours for trial in self.paid()]
        return None if any(of_one is None for of_one in hours) else sum(of_one or 0.0 for of_one in hours)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a cell stands in the sweep: in the grid, or as one point of a study."""

    cell: Cell
    phase: Literal["search", "grid"] = "grid"
    study: str = ""
    point: int | None = None


def make_plan(file: SweepFile, *, measured: Mapping[TrainingShape, float] | None = None) -> Plan:
    """Expands, resolves, checks and keys every trial of a sweep; `measured` are seconds a step by shape.

    Raises:
        SweepFileError: the file asks for something that cannot be; names the place.
        UserError: an example, a suite or a model is not there.
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
    awaited = {study.name: study for study in studies}
    # point by point over all studies, so that all of them get on; then the grid seed by seed, so that an evening that
    # is cut leaves a balanced matrix, controls first
    searched.sort(key=lambda place: place.point or 0)
    grid = sorted((_Place(cell=_waiting(sweep, cell, awaited)) for cell in cells), key=_is_paid_for_answers)
    seeds = sweep.config.search.seeds if sweep.config.search is not None else []
    made = _Maker(sweep, measured or {})
    trials = [trial for place in searched for trial in made.trials(place, seeds)]
    by_cell = [made.trials(place, sweep.config.seeds) for place in grid]
    trials += [trial for at_seed in zip(*by_cell, strict=True) for trial in at_seed]
    studied = [cell for study in studies for cell in study.cells]
    check_choices(sweep, grid=cells, searched=studied)
    warnings += _coinciding([trial for trial in trials if trial.phase == "grid"])
    warnings += _odd_resources(every)
    warnings += _too_large(trials)
    if unknown := sorted(made.provisional):
        warnings.append(
            f"keys are provisional: of {', '.join(unknown)} only the name is known; `oneshot fetch "
            f"{' '.join(unknown)}` makes them final"
        )
    return Plan(
        name=sweep.config.name,
        num_cells=len(cells),
        trials=tuple(trials),
        warnings=tuple(warnings),
        studies=tuple(studies),
    )


def _points(sweep: PinnedSweep, axes: Axes, study: Study) -> Iterator[_Place]:
    """Each point of a study, on each of its cells; those not asked yet stand for themselves."""
    search = sweep.config.search
    assert search is not None, "a study is of a search"
    asked = sweep.points.get(study.name, [])
    for point in range(max(search.num_trials, len(asked))):
        if point < len(asked):
            cells = at_point(sweep, axes, study, asked[point])
        else:
            waits_for = f"point {point} of the search of {study.name}"
            cells = [replace(cell, waits_for=cell.waits_for or waits_for) for cell in study.cells]
        yield from (_Place(cell=cell, phase="search", study=study.name, point=point) for cell in cells)


def _waiting(sweep: PinnedSweep, cell: Cell, awaited: Mapping[str, Study]) -> Cell:
    """A cell of the grid, which waits for its study unless that has been won, or nothing of it reaches the cell."""
    search = sweep.config.search
    if search is None or (name := study_name(cell.names, search.per)) not in awaited:
        return cell
    own = {path for path, place in cell.places.items() if place[0] not in ("trial", "search")}
    if own >= awaited[name].space.keys():
        return cell
    found = sweep.winners.get(name)
    if found is None:
        return replace(cell, waits_for=cell.waits_for or f"the search of {name}")
    if found.point is None:
        return replace(cell, waits_for=f"the search of {name}, of which no point can win")
    return cell


def _is_paid_for_answers(place: _Place) -> bool:
    return not is_control(place.cell.config)


def with_point(plan: Plan, sweep: PinnedSweep, study: Study, number: int) -> Plan:
    """The plan with the trials of a point that has just been asked, in place of those that stood for it."""
    search = sweep.config.search
    assert search is not None, "a study is of a search"
    cells = at_point(sweep, read_axes(sweep), study, sweep.points[study.name][number])
    made = _Maker(sweep, {})
    fresh = [
        trial
        for cell in cells
        for trial in made.trials(_Place(cell=cell, phase="search", study=study.name, point=number), search.seeds)
    ]
    is_it = [(trial.study, trial.point) == (study.name, number) for trial in plan.trials]
    first = is_it.index(True)
    others = [trial for trial, mine in zip(plan.trials, is_it, strict=True) if not mine]
    return replace(plan, trials=(*others[:first], *fresh, *others[first:]))


class _Maker:
    """Cells -> trials; what several share is found once."""

    def __init__(self, sweep: PinnedSweep, measured: Mapping[TrainingShape, float]) -> None:
        self._sweep = sweep
        self._measured = measured
        self.provisional: set[str] = set()

    def trials(self, place: _Place, seeds: Sequence[int]) -> list[Trial]:
        """One trial a seed."""
        cell = place.cell
        identity = _identify(cell, self._sweep)
        self.provisional.update(identity.provisional)
        cost = _cost(cell, self._measured)
        placement = place_trial(cell.config, cell.resources)
        keys = identity.keys(cell.config, seeds)
        return [
            Trial(
                cell=cell.names,
                seed=seed,
                key=key,
                waits_for=identity.waits_for,
                config=cell.config,
                resources=cell.resources,
                labels=cell.labels,
                cost=cost,
                placement=placement,
                guards=tuple(self._sweep.config.guards),
                phase=place.phase,
                study=place.study,
                point=place.point,
                is_settled=place.phase == "search" and place.study in self._sweep.winners,
                provisional=identity.provisional,
            )
            for seed, key in zip(seeds, keys, strict=True)
        ]


def is_control(config: TrialConfig) -> bool:
    """Whether a trial is not paid for right answers to right labels, or not trained at all."""
    relabelled = any(isinstance(e, RowExample) or (isinstance(e, SetExamples) and e.wrong) for e in config.examples)
    return relabelled or config.reward.kind != "outcome" or config.loss.pg_coef == 0 or config.train.num_steps == 0


def _cost(cell: Cell, measured: Mapping[TrainingShape, float]) -> Cost:
    gpus = cell.resources.gpus
    known = measured.get(training_shape(cell.config, gpus=gpus))
    return estimate(cell.config, load_suites(cell.config), cell.cost, gpus=gpus, measured_s=known)


def _too_large(trials: Sequence[Trial]) -> list[str]:
    """Cells that do not fit the GPUs that they ask for, with what would help; one sentence for all of one need."""
    cells: dict[tuple[str, str, str], list[str]] = {}
    mends: dict[tuple[Memory, str], str] = {}
    # one of each cell and need: seeds are alike, points of a search need not be
    distinct_trials = {(tuple(t.cell.values()), t.placement and t.placement.memory): t for t in reversed(trials)}
    for trial in distinct_trials.values():
        need, model = trial.placement, trial.config.model.path
        if need is None or need.fits:
            continue
        needs = (
            f"about {need.memory.peak_gib:.0f} GiB of a GPU ({need.strategy}), which has {need.usable_gib:.0f} to use"
        )
        if (need.memory, model) not in mends:
            mends[need.memory, model] = _mend(
                trial, [one for one in alternatives(trial.config, trial.resources) if one.fits]
            )
        cells.setdefault((needs, mends[need.memory, model], model), []).insert(0, "/".join(trial.cell.values()))
    found = []
    for (needs, mend, model), names in cells.items():
        distinct = [name or "the only cell" for name in dict.fromkeys(names)]
        found.append(f"{model} needs {needs}: {mend} ({', '.join(distinct[:3])}{', ...' if len(distinct) > 3 else ''})")
    return found


def _mend(trial: Trial, others: Sequence[Placement]) -> str:
    """What would fit, for a person to set: the fewest GPUs, or an adapter."""
    same = [other for other in others if other.adapter == trial.config.model.adapter]
    mends = []
    if same:
        stated = trial.resources.strategy
        strategy = "" if stated in ("auto", same[0].strategy) or same[0].strategy == "single" else ", strategy: auto"
        mends.append(f"resources: {{gpus: {same[0].resources.gpus:g}{strategy}}}")
    if len(same) < len(others):
        mends.append("model.adapter: {kind: lora}")
    return (
        f"set {' or '.join(mends)}"
        if mends
        else "lower train.microbatch_tokens, or set train.activation_checkpointing and rollout.kv_gib"
    )


def _odd_resources(cells: Sequence[Cell]) -> list[str]:
    """How to spread a trial, said where no trial is spread that way; and too few cores or host memory."""
    several = [cell for cell in cells if cell.resources.processes > 1]
    found = []
    if short := [cell for cell in several if cell.resources.cpus < cell.resources.processes]:
        need = short[0].resources
        found.append(
            f"resources.cpus: {need.cpus:g} for {need.processes} processes, which share them: set cpus to "
            f"{need.processes} or more ({short[0].label or 'the only cell'})"
        )
    unknown = {name for cell in cells for name in cell.resources.accelerator or () if name not in GPU_GIB}
    if unknown and any(cell.resources.gpus and cell.resources.gpu_gib is None for cell in cells):
        found.append(
            f"resources.accelerator: {', '.join(sorted(unknown))}: its memory is not known here, and left out of the "
            "estimate; set resources.gpu_gib"
        )
    for cell in cells:
        loaded, stated = host_gib(cell.config, cell.resources), cell.resources.memory_gib
        if loaded is not None and stated is not None and stated < loaded:
            number = cell.resources.processes
            loads = f"{number} processes load" if number > 1 else "it loads"
            found.append(
                f"resources.memory_gib: {stated:g}, but {loads} about {loaded:.0f} GiB of weights at first: set "
                f"more ({cell.label or 'the only cell'})"
            )
            break
    if not several and any(cell.resources.strategy != "auto" for cell in cells):
        found.append(
            "resources.strategy changes nothing: every trial is one process; set resources.gpus or num_processes"
        )
    offloads = [cell for cell in cells if cell.resources.cpu_offload]
    if offloads and all(choose_strategy(cell.config, cell.resources) != "fsdp" for cell in offloads):
        found.append("resources.cpu_offload changes nothing: it is for shards, and no trial is spread as fsdp")
    return found


def _coinciding(trials: Sequence[Trial]) -> list[str]:
    """Cells that differ in nothing that training or evaluation could feel."""
    found: dict[tuple[str, frozenset[tuple[str, int]]], Trial] = {}
    warnings = []
    for trial in trials:
        if trial.key is not None and trial.seed == trials[0].seed:  # what holds of cells holds at every seed
            other = found.setdefault((trial.key, frozenset(due_evaluations(trial.config))), trial)
            if other is not trial:
                warnings.append(f"{other.label} and {trial.label} are the same trial: what differs changes nothing")
    return warnings


def _identify(cell: Cell, sweep: PinnedSweep) -> TrialIdentity:
    """`identify_trial`, with an error told at the place of the file that it comes from."""
    config = cell.config
    for name, suite in config.eval.suites.items():
        try:
            load_suite(name, suite, config)
        except UserError as error:
            raise sweep.source.error(cell.place(f"eval.suites.{name}"), str(error)) from error
    try:
        identify_shots(config.prompt)
    except DataError as error:
        raise sweep.source.error(cell.place("prompt.shots"), str(error)) from error
    if cell.waits_for is not None:
        return TrialIdentity(waits_for=cell.waits_for)
    try:
        return identify_trial(config)
    except DataError as error:
        raise sweep.source.error(cell.place("examples"), str(error)) from error
    except ModelError as error:
        raise sweep.source.error(cell.place("model.path"), str(error)) from error


def with_seed(trial: Trial, seed: int) -> Trial:
    """The same cell with another seed, and the key that goes with it.

    Raises:
        UserError: the cell waits for something, so that no trial of it can run yet.
    """
    if trial.waits_for is not None and trial.waits_for.startswith("the history"):
        raise UserError(f"{trial.label}: waits for {trial.waits_for}")
    identity = identify_trial(trial.config)
    if identity.facts is None:
        raise UserError(
            f"{trial.label}: waits for {identity.waits_for}; set model.revision to a commit hash to run it alone"
        )
    (key,) = identity.keys(trial.config, [seed])
    return replace(trial, seed=seed, key=key)


def inert_settings(config: TrialConfig) -> list[str]:
    """Settings that this trial cannot feel, each as a sentence."""
    reasons = {
        "loss.clip_low": "at train.updates_per_rollout 1: the ratio is always 1",
        "reward.probability": "outside reward.kind random",
        "advantage.normalize_std": "with advantage.baseline none",
        "advantage.eps": "where no standard deviation divides",
    }
    reasons["loss.clip_high"] = reasons["loss.clip_low"]
    inert = set(inert_paths(config)) - {"rollout.kv_gib"}
    found = [f"{path} changes nothing {reasons[path]}" for path in sorted(inert) if _is_set(config, path)]
    if config.model.revision is not None and local_folder(config.model.path) is not None:
        found.append(f"model.revision changes nothing: {config.model.path} is a folder, known by its contents")
    if config.rollout.engine == "hf" and _is_set(config, "rollout.kv_gib"):
        found.append("rollout.kv_gib changes nothing with rollout.engine hf")
    return found


def _is_set(config: TrialConfig, path: str) -> bool:
    section, _, name = path.partition(".")
    return name in getattr(config, section).model_fields_set


def max_tokens(config: TrialConfig) -> int:
    """Completion tokens of a trial's training, were every one of full length."""
    return config.train.num_steps * config.rollout.num_groups * config.rollout.group_size * config.rollout.max_tokens


def _trial_json(trial: Trial) -> dict[str, Any]:
    found: dict[str, Any] = {"key": trial.key, "cell": trial.cell, "seed": trial.seed}
    found["num_steps"] = trial.config.train.num_steps
    if trial.waits_for:
        found["waits_for"] = trial.waits_for
    if trial.provisional:
        found["provisional"] = True
    if trial.phase == "search":
        found |= {"phase": trial.phase, "study": trial.study, "point": trial.point}
    if trial.resources.gpus:
        found |= {"gpus": trial.resources.gpus, "gpu_hours": trial.cost.gpu_hours}
    if trial.config.script is None:
        found["strategy"] = (
            choose_strategy(trial.config, trial.resources) if trial.placement is None else trial.placement.strategy
        )
        found["num_processes"] = trial.resources.processes
    if trial.placement is not None:
        found["memory_gib"] = trial.placement.memory.peak_gib
    return found
