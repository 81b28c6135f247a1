"""A key, or a sweep's cell and seed -> a training with kept weights, and its record."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from operator import attrgetter
from typing import Any, Literal

from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, UserError
from oneshot.plan.keys import KEY_LENGTH
from oneshot.plan.loader import begun_sweep
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan
from oneshot.plan.trial import Trial
from oneshot.store.gc import keys_of
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder, table_name
from oneshot.tasks.benchmarks import load_suites
from oneshot.trial.best import BEST, best_step, why_no_best

MOST_SHOWN = 12  # largest number of trials or keys that an error lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A trial to export, and its sweep if it has one."""

    sweep: PinnedSweep | None
    trial: Trial

    @property
    def key(self) -> str:
        """Return the key of the training."""
        assert self.trial.key is not None, "trials without key are refused"
        return self.trial.key


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEvaluation:
    """One evaluation at the start or at the end."""

    suite: str  # the trial's own name for the suite
    digest: str
    step: int
    time_ms: int
    metrics: dict[str, float]
    num_completions: int | None  # None if gc removed them
    is_own: bool
    """Whether the trial asks for it; `oneshot eval` and other sweeps of the training also leave evaluations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A training whose final weights are in the store."""

    selection: Selection
    step: int
    folder: TrialFolder
    weights: tuple[str, ...]  # names of the checkpoint's files in the folder
    evaluations: tuple[KeptEvaluation, ...]
    attempt: dict[str, Any]  # metadata of the attempt that wrote the result

    @property
    def config(self) -> TrialConfig:
        """Return the trial's config."""
        return self.selection.trial.config

    @property
    def label(self) -> str:
        """Return the trial's name for people."""
        return self.selection.trial.label if self.selection.sweep is not None else f"trial {self.selection.key}"

    @property
    def dtype(self) -> str:
        """Return the precision of rollouts and evaluations."""
        return self.config.model.compute_dtype


def by_cell(sweep: PinnedSweep, plan: Plan, *, cells: Mapping[str, str], seed: int | None) -> Selection:
    """Return the one trial of a sweep's grid with this cell and seed.

    Raises UserError: no trial or several trials match; lists them.
    """
    trials = [
        trial
        for trial in plan.grid
        if all(trial.cell[axis] == name for axis, name in cells.items()) and seed in (None, trial.seed)
    ]
    if len(trials) != 1:
        options = "--cell " + (",".join(f"{axis}={name}" for axis, name in cells.items()) or "(none)")
        options += "" if seed is None else f" --seed {seed}"
        count = f"matches {len(trials)} trials" if trials else "matches no trial"
        raise UserError(f"{options}: {count} of {plan.name}; choose one of\n  {_listed(trials or plan.grid)}")
    if trials[0].key is None:
        raise UserError(f"{trials[0].label}: waits for {trials[0].waits_for}; run it first")
    return Selection(sweep=sweep, trial=trials[0])


def by_key(store: Store, text: str) -> Selection:
    """Return the training with this key or prefix of a key, as a trial of the sweep with the most steps.

    Raises UserError: no key or several keys match.
    """
    all_keys = store.trainings()
    keys = [text] if text in all_keys else [key for key in all_keys if key.startswith(text)]
    if not re.fullmatch(f"[0-9a-f]{{1,{KEY_LENGTH}}}", text) or not keys:
        sweeps = store.sweeps()
        contents = f"{len(all_keys)} trainings" + (f" of the sweeps {', '.join(sweeps)}" if sweeps else "")
        hint = "`oneshot status NAME --json` shows their keys" if sweeps else f"its keys: {_first(all_keys)}"
        if not all_keys:
            contents, hint = "nothing", "set --storage to another store"
        raise UserError(
            f"{text}: no sweep file, sweep or training with this name in {store.root}, which has {contents}; {hint}"
        )
    if len(keys) > 1:
        raise UserError(f"{text}: {len(keys)} keys start with it; write more characters: {_first(keys)}")
    (key,) = keys
    runner = store.trial(key).attempt(1).get("sweep")
    matches = []
    for name in store.sweeps():
        if key in keys_of(store, name):
            begun = begun_sweep(store, name)
            trials = [trial for trial in begun.plan.trials if trial.key == key]
            matches += [(name == runner, Selection(sweep=begun.sweep, trial=trial)) for trial in trials]
    if not matches:
        return Selection(sweep=None, trial=_alone(store, key))
    # the kept weights are those of the longest trial; between equals, the sweep that ran it comes first
    return max(matches, key=lambda match: (match[1].trial.config.train.num_steps, match[0]))[1]


def _alone(store: Store, key: str) -> Trial:
    """Return a training of no sweep, as `oneshot trial --out` leaves it."""
    record = store.trial(key).read_json("trial.json")
    if record is None:
        raise UserError(f"{key}: it has no trial.json; run it again")
    return Trial(cell={}, seed=record["seed"], key=key, config=TrialConfig.model_validate(record["config"]))


def read_kept(store: Store, selection: Selection, *, at: Literal["last", "best"] = "last") -> Kept:
    """Read what the store has of a finished trial with kept weights: its last ones, or those of its best step.

    Raises UserError: they are not kept; says why, and what to do.
    """
    trial, folder = selection.trial, store.trial(selection.key)
    num_steps = trial.config.train.num_steps
    label = trial.label if selection.sweep is not None else selection.key
    if trial.config.script is not None:
        raise UserError(f"{label}: a script trains no model; there is nothing to export")
    if num_steps == 0:
        init = trial.config.model.init
        whose = f"{trial.config.model.path} itself" if init is None else f"that of {init.sweep}; export its trial"
        raise UserError(f"{label}: trains no step (train.num_steps: 0): its model is {whose}")
    place, step = folder.kept_place("checkpoint"), folder.kept_step("checkpoint")
    if place is None or step is None or step < num_steps:
        raise UserError(f"{label}: {_why_not(selection, folder, at=step)}")
    if at == "best":
        place, step = _best(trial, folder, label)
    elif step > num_steps:
        raise UserError(
            f"{label}: its training continued to step {step} for another trial, whose weights are kept; "
            f"`oneshot export {selection.key}` writes those"
        )
    result = folder.result()
    return Kept(
        selection=selection,
        step=step,
        folder=folder,
        weights=tuple(f"{place}/{name}" for name in folder.list(place) if fnmatch(name, "model*.safetensors")),
        evaluations=_evaluations(trial, folder, at=(0, step)),
        attempt=folder.attempt(result.attempt if result is not None else folder.last_attempt()),
    )


def _best(trial: Trial, folder: TrialFolder, label: str) -> tuple[str, int]:
    """Return the place and step of a trial's best weights. Raises UserError: they are not kept."""
    if reason := why_no_best(trial.config, folder):
        raise UserError(f"{label}: --step best: {reason}; leave out --step, or train with checkpoint.keep.best")
    step, place = best_step(trial.config, folder), folder.kept_place(BEST)
    if not step or place is None:
        raise UserError(f"{label}: --step best: it is best at the start, so this is {trial.config.model.path} itself")
    return place, step


def _why_not(selection: Selection, folder: TrialFolder, *, at: int | None) -> str:
    """Return why there are no final weights, and a hint; `at` is the step of the weights that there are."""
    result, config = folder.current_result(), selection.trial.config
    name = selection.sweep.config.name if selection.sweep is not None else None
    run = "`oneshot run` its sweep" if name is None else f"`oneshot run` the file of {name}"
    if result is not None and result.outcome == "failed":
        hint = f"`oneshot retry {name}`, then {run}" if name else "fix that and run it again"
        return f"has failed: {result.reason}; {hint}"
    if result is not None and config.train.num_steps <= result.steps_done:
        return (
            "its weights are not kept (checkpoint.keep: none), or gc removed them; "
            f"`oneshot trial FILE --cell ... --seed {selection.trial.seed} --set checkpoint.keep=weights --out FOLDER` "
            "trains it again, to the same weights"
        )
    done = f"step {at} of {config.train.num_steps}" if at else f"no checkpoint of its {config.train.num_steps} steps"
    return f"has not finished ({done}); {run} to resume it"


def _evaluations(trial: Trial, folder: TrialFolder, *, at: Sequence[int]) -> tuple[KeptEvaluation, ...]:
    names: dict[str, str] | None
    try:
        names = {suite.digest: suite.name for suite in load_suites(trial.config)}
    except DataError:  # a suite's file is on another machine: use the recorded names
        names = None
    times_ms = {row.step: row.time_ms for row in folder.rows() if row.step in at}
    evaluations = []
    for digest, step in sorted(folder.evaluations()):
        record = folder.evaluation(digest, step) if step in at else None
        if record is not None:
            is_own = names is None or digest in names
            name = record["suite"] if names is None else names.get(digest, record["suite"])
            if not is_own and names is not None and name in names.values():
                continue  # another suite has the name of one of the trial's
            table = folder.completions(table_name(digest, step))
            evaluations.append(
                KeptEvaluation(
                    suite=name,
                    digest=digest,
                    step=step,
                    time_ms=times_ms.get(step, 0),
                    metrics=record["metrics"],
                    num_completions=None if table is None else len(table["data"]),
                    is_own=is_own,
                )
            )
    return tuple(sorted(evaluations, key=attrgetter("suite", "digest", "step")))


def _listed(trials: Sequence[Trial]) -> str:
    lines = [
        ",".join(f"{axis}={name}" for axis, name in trial.cell.items()) + f" --seed {trial.seed}  {trial.key or ''}"
        for trial in trials[:MOST_SHOWN]
    ]
    rest = [f"... and {len(trials) - MOST_SHOWN} more"] if len(trials) > MOST_SHOWN else []
    return "\n  ".join([*lines, *rest])


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:MOST_SHOWN]) + (", ..." if len(keys) > MOST_SHOWN else "")
