"""`Sweep` -> `Plan`: its trials in the order they run, with keys, what they cost, and warnings.

A *trial* is one cell with one seed; a *training* is what a key names. Trials that differ only in how they are
evaluated, or of which one asks for fewer steps, share a training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oneshot.cells import Cell, expand, read_axes, unused
from oneshot.config import RowExample, SetExamples, TrialConfig
from oneshot.cost import Cost, Shape, estimate, training_shape
from oneshot.errors import DataError, ModelError, UserError
from oneshot.keys import TrialIdentity, identify_trial, inert_paths
from oneshot.models import local_folder
from oneshot.settings import SettingError
from oneshot.sweepfile import ResourceConfig, Sweep
from oneshot.tasks.benchmarks import due_evaluations, load_suite, load_suites, val_prompts
from oneshot.tasks.examples import identify as identify_examples
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
    provisional: tuple[str, ...] = ()
    """Sets whose contents are not known yet: the key will change when they are fetched."""

    @property
    def label(self) -> str:
        """`tiny-qwen2/47+38/outcome seed 0`."""
        return f"{'/'.join(self.cell.values()) or 'trial'} seed {self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A sweep's trials, in running order, and what is odd about its file."""

    name: str
    num_cells: int
    trials: tuple[Trial, ...]
    warnings: tuple[str, ...]

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


def make_plan(sweep: Sweep, *, measured: Mapping[Shape, float] | None = None) -> Plan:
    """Expands, resolves, checks and keys every trial of a sweep; `measured` are seconds a step by shape.

    Raises:
        SweepFileError: the file asks for something that cannot be; names the place.
        UserError: an example, a suite or a model is not there.
    """
    try:
        axes = read_axes(sweep)
        cells = expand(sweep, axes)
    except SettingError as error:
        raise sweep.source.error(error.where, error.message) from error
    warnings = [f"{sweep.source.at(where)}: {why}" for where, why in unused(sweep, axes, cells)]
    warnings += sorted({warning for cell in cells for warning in inert_settings(cell.config)})
    keyed = [_identify(cell, sweep) for cell in cells]
    refuse_val(sweep, cells)
    costs = [_cost(cell, measured or {}) for cell in cells]
    # seed by seed, so that an evening that is cut leaves a balanced matrix; controls first
    order = sorted(range(len(cells)), key=lambda index: not is_control(cells[index].config))
    trials = tuple(
        Trial(
            cell=cells[index].names,
            seed=seed,
            key=keyed[index].key(cells[index].config, seed),
            waits_for=keyed[index].waits_for,
            config=cells[index].config,
            resources=cells[index].resources,
            labels=cells[index].labels,
            cost=costs[index],
            provisional=keyed[index].provisional,
        )
        for seed in sweep.config.seeds
        for index in order
    )
    warnings += _coinciding(trials)
    several = sorted({cell.label for cell in cells if cell.resources.gpus > 1})
    if several:
        warnings.append(
            f"{len(several)} cells ask for more than one GPU ({several[0]}, ...): a trial is one process on one GPU as "
            "yet; the hours are those of an even share"
        )
    unknown = sorted({name for identity in keyed for name in identity.provisional})
    if unknown:
        warnings.append(
            f"keys are provisional: of {', '.join(unknown)} only the name is known; `oneshot fetch "
            f"{' '.join(unknown)}` makes them final"
        )
    return Plan(name=sweep.config.name, num_cells=len(cells), trials=trials, warnings=tuple(warnings))


def is_control(config: TrialConfig) -> bool:
    """Whether a trial is not paid for right answers to right labels, or not trained at all."""
    relabelled = any(isinstance(e, RowExample) or (isinstance(e, SetExamples) and e.wrong) for e in config.examples)
    return relabelled or config.reward.kind != "outcome" or config.loss.pg_coef == 0 or config.train.num_steps == 0


def refuse_val(sweep: Sweep, cells: Sequence[Cell]) -> None:
    """Refuses to choose by problems that a trial of the sweep trains on.

    Raises:
        SweepFileError: names the cell and the mend.
    """
    used_for_choice = {suite.source for cell in cells for suite in load_suites(cell.config)} & set(VAL_SUITES)
    for cell in cells:
        for source in sorted(used_for_choice) if cell.waits_for is None else ():
            if complaint := trains_on(source, cell.config):
                raise sweep.source.error(cell.place("examples"), f"{cell.label} {complaint}")


VAL_SUITES = ("val", "arithmetic-val")


def trains_on(source: str, config: TrialConfig) -> str:
    """What a trial trains on of a suite that is for choosing, as the end of a sentence; empty: nothing."""
    if source not in VAL_SUITES:
        return ""
    examples = identify_examples(config.examples)
    held_out = val_prompts(source)
    used = [name for name, prompt in zip(examples.ids, examples.prompts, strict=True) if prompt in held_out]
    if not used:
        return ""
    others = "dsr_sub-val, the other 1,009 rows" if source == "val" else "others"
    return (
        f"trains on {len(used)} of the problems that the suite `{source}` holds out ({used[0]}, ...); "
        f"train on {others}, or leave `{source}` out"
    )


def _cost(cell: Cell, measured: Mapping[Shape, float]) -> Cost:
    gpus = cell.resources.gpus
    known = measured.get(training_shape(cell.config, gpus=gpus))
    return estimate(cell.config, load_suites(cell.config), cell.cost, gpus=gpus, measured_s=known)


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


def _identify(cell: Cell, sweep: Sweep) -> TrialIdentity:
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
    return replace(trial, seed=seed, key=identity.key(trial.config, seed))


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
    if trial.resources.gpus:
        found |= {"gpus": trial.resources.gpus, "gpu_hours": trial.cost.gpu_hours, "memory_gib": trial.cost.memory_gib}
    return found
