"""A key, or a sweep's cell and seed -> the training whose weights are kept, and what is on record of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from oneshot.config.sweep import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, UserError
from oneshot.plan.keys import KEY_LENGTH
from oneshot.plan.loader import UNKNOWN_COST, begun_sweep
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan
from oneshot.plan.trial import Trial
from oneshot.store.gc import keys_of
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.benchmarks import load_suites

MOST_SHOWN = 12
"""Trials that an error lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A trial, and the sweep that it is exported as a part of, if any asks for it."""

    sweep: PinnedSweep | None
    trial: Trial

    @property
    def key(self) -> str:
        """Of the training."""
        assert self.trial.key is not None, "a trial without key is refused"
        return self.trial.key


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEvaluation:
    """One evaluation of the weights at the start or at the end."""

    suite: str
    """By the trial's own name for it."""
    digest: str
    step: int
    time_ms: int
    metrics: dict[str, float]
    num_completions: int
    is_asked: bool
    """By the trial itself; others (`oneshot eval`, another sweep that shares the training) are on record too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A training whose weights after its last step are in the store."""

    asked: Asked
    step: int
    folder: TrialFolder
    weights: tuple[str, ...]
    """Files of the checkpoint, by their names in the folder."""
    evaluations: tuple[KeptEvaluation, ...]
    attempt: dict[str, Any]
    """What the attempt that ended it noted of where it ran."""

    @property
    def config(self) -> TrialConfig:
        """The trial's."""
        return self.asked.trial.config

    @property
    def label(self) -> str:
        """What a person calls it."""
        return self.asked.trial.label if self.asked.sweep is not None else f"trial {self.asked.key}"

    @property
    def dtype(self) -> str:
        """What rollouts and evaluations computed in."""
        model = self.config.model
        return "bfloat16" if model.mixed_precision == "bf16" else model.dtype


def by_cell(sweep: PinnedSweep, plan: Plan, *, cells: Mapping[str, str], seed: int | None) -> Asked:
    """The one trial of a sweep's grid that cells and seed name.

    Raises:
        UserError: none or several are meant; lists them.
    """
    found = [
        trial
        for trial in plan.grid
        if all(trial.cell[axis] == one for axis, one in cells.items()) and seed in (None, trial.seed)
    ]
    if len(found) != 1:
        said = ",".join(f"{axis}={one}" for axis, one in cells.items()) or "(none)"
        which = f"--cell {said}" + ("" if seed is None else f" --seed {seed}")
        count = f"names {len(found)} trials" if found else "names no trial"
        raise UserError(f"{which}: {count} of {plan.name}; choose one of\n  {_listed(found or plan.grid)}")
    if found[0].key is None:
        raise UserError(f"{found[0].label}: waits for {found[0].waits_for}; run it first")
    return Asked(sweep=sweep, trial=found[0])


def by_key(store: Store, text: str) -> Asked:
    """The training that a key, or the beginning of one, names; as a part of the sweep that asks for most.

    Raises:
        UserError: none or several begin so.
    """
    known = store.trainings()
    keys = [text] if text in known else [key for key in known if key.startswith(text)]
    if not re.fullmatch(f"[0-9a-f]{{1,{KEY_LENGTH}}}", text) or not keys:
        sweeps = store.sweeps()
        there = f"{len(known)} trainings" + (f" of the sweeps {', '.join(sweeps)}" if sweeps else "")
        mend = "`oneshot status NAME --json` shows their keys" if sweeps else f"its keys: {_first(known)}"
        if not known:
            there, mend = "nothing", "name its --storage"
        raise UserError(
            f"{text}: no sweep file, no sweep and no training of that name in {store.root}, which has {there}; {mend}"
        )
    if len(keys) > 1:
        raise UserError(f"{text}: {len(keys)} keys begin so; write more of one: {_first(keys)}")
    (key,) = keys
    ran = store.trial(key).attempt(1).get("sweep")
    found = []
    for name in store.sweeps():
        if key in keys_of(store, name):
            begun = begun_sweep(store, name)
            found += [(name == ran, Asked(sweep=begun.sweep, trial=t)) for t in begun.plan.trials if t.key == key]
    if not found:
        return Asked(sweep=None, trial=_alone(store, key))
    # what is kept is what the longest asks for; of two as long it is shown as that of the sweep that ran it
    return max(found, key=lambda one: (one[1].trial.config.train.num_steps, one[0]))[1]


def _alone(store: Store, key: str) -> Trial:
    """A training that no sweep of the store asks for, as `oneshot trial --out` leaves it."""
    begun = store.trial(key).read_json("trial.json")
    if begun is None:
        raise UserError(f"{key}: nothing of it is on record; run it again")
    return Trial(
        cell={},
        seed=begun["seed"],
        key=key,
        waits_for=None,
        config=TrialConfig.model_validate(begun["config"]),
        resources=ResourceConfig(),
        labels={},
        cost=UNKNOWN_COST,
    )


def read_kept(store: Store, asked: Asked) -> Kept:
    """What the store has of a trial whose weights after its last step are kept.

    Raises:
        UserError: they are not; says why, and what to do.
    """
    trial, folder = asked.trial, store.trial(asked.key)
    num_steps = trial.config.train.num_steps
    label = trial.label if asked.sweep is not None else asked.key
    if trial.config.script is not None:
        raise UserError(f"{label}: a script trains no model; there is nothing to export")
    if num_steps == 0:
        raise UserError(f"{label}: trains no step (train.num_steps: 0): its model is {trial.config.model.path} itself")
    said = folder.salvage("checkpoint.json")
    state = folder.salvage(f"checkpoint/{said['folder']}/state.json") if said is not None else None
    if said is None or state is None or state["step"] < num_steps:
        raise UserError(f"{label}: {_why_not(asked, folder, at=state['step'] if state else None)}")
    if state["step"] > num_steps:
        raise UserError(
            f"{label}: its training went on to step {state['step']} for another trial, whose weights are kept; "
            f"`oneshot export {asked.key}` writes those"
        )
    place = f"checkpoint/{said['folder']}"
    result = folder.result()
    return Kept(
        asked=asked,
        step=num_steps,
        folder=folder,
        weights=tuple(f"{place}/{name}" for name in folder.list(place) if fnmatch(name, "model*.safetensors")),
        evaluations=_evaluations(trial, folder, at=(0, num_steps)),
        attempt=folder.attempt(result.attempt if result is not None else folder.last_attempt()),
    )


def _why_not(asked: Asked, folder: TrialFolder, *, at: int | None) -> str:
    """Why there are no weights of the last step, and the mend; `at`: the step of those that there are."""
    result, config = folder.current_result(), asked.trial.config
    name = asked.sweep.config.name if asked.sweep is not None else None
    run = "`oneshot run` its sweep" if name is None else f"`oneshot run` the file of {name}"
    if result is not None and result.outcome == "failed":
        mend = f"`oneshot retry {name}`, then {run}" if name else "mend that and run it again"
        return f"has failed: {result.reason}; {mend}"
    if result is not None and config.train.num_steps <= result.steps_done:
        return (
            "its weights are not kept (checkpoint.keep: none); `oneshot trial FILE --cell ... --seed "
            f"{asked.trial.seed} --set checkpoint.keep=weights --out FOLDER` trains it again, to the same weights"
        )
    done = f"step {at} of {config.train.num_steps}" if at else f"no checkpoint of its {config.train.num_steps} steps"
    return f"has not finished ({done}); {run}, which goes on from there"


def _evaluations(trial: Trial, folder: TrialFolder, *, at: Sequence[int]) -> tuple[KeptEvaluation, ...]:
    names: dict[str, str] | None
    try:
        names = {suite.digest: suite.name for suite in load_suites(trial.config)}
    except DataError:  # a file of the machine that ran it: the record's own names are as good
        names = None
    times_ms = {row.step: row.time_ms for row in folder.rows() if row.step in at}
    found = []
    for digest, step in sorted(folder.evaluations()):
        one = folder.evaluation(digest, step) if step in at else None
        if one is not None:
            is_asked = names is None or digest in names
            name = one["suite"] if names is None else names.get(digest, one["suite"])
            if not is_asked and names is not None and name in names.values():
                continue  # another suite by one of the trial's names
            table = folder.completions(f"eval-{digest}-{step}") or {"data": []}
            found.append(
                KeptEvaluation(
                    suite=name,
                    digest=digest,
                    step=step,
                    time_ms=times_ms.get(step, 0),
                    metrics=one["metrics"],
                    num_completions=len(table["data"]),
                    is_asked=is_asked,
                )
            )
    return tuple(sorted(found, key=lambda one: (one.suite, one.digest, one.step)))


def _listed(trials: Sequence[Trial]) -> str:
    lines = [
        ",".join(f"{axis}={one}" for axis, one in trial.cell.items()) + f" --seed {trial.seed}  {trial.key or ''}"
        for trial in trials[:MOST_SHOWN]
    ]
    rest = [f"... and {len(trials) - MOST_SHOWN} more"] if len(trials) > MOST_SHOWN else []
    return "\n  ".join([*lines, *rest])


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:MOST_SHOWN]) + (", ..." if len(keys) > MOST_SHOWN else "")
