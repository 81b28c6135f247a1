"""Trials with `model.init` -> key and step of the training that each seed begins from.

The sweep's folder records them when the sweep first runs, so that later runs of the other sweep do not change it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from oneshot.config.model import InitConfig
from oneshot.config.paths import SettingError, Where
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.plan.pinned import PinnedSweep
from oneshot.store.folder import Folder
from oneshot.store.gc import STARTS
from oneshot.store.store import Store

AWAITS = "the weights of "
Starts = dict[str, str]
"""Seed -> KEY@STEP."""


def frozen_starts(sweep: PinnedSweep, folder: Folder) -> PinnedSweep:
    """Return the sweep with the starts that were recorded when it first ran."""
    recorded = folder.read_json(STARTS) or []
    return replace(sweep, starts={each["init"]: each["starts"] for each in recorded})


def find_starts(sweep: PinnedSweep, configs: Sequence[TrialConfig], store: Store) -> PinnedSweep:
    """Return the sweep with every start whose training has finished.

    Raises UserError: that training kept no weights, has another model, or is not identified by `cell` and `seed`.
    """
    starts = dict(sweep.starts)
    seeds = _seeds(sweep)
    for config in configs:
        if config.model.init is None:
            continue
        known = starts.get(name := _name(config), {})
        try:
            new = _found(config, config.model.init, [seed for seed in seeds if str(seed) not in known], store)
            if new is not None:
                starts[name] = {**known, **new}
        except UserError as error:
            raise UserError(f"{sweep.source.name}: model.init: {error}") from error
    return replace(sweep, starts=starts)


def keep_starts(sweep: PinnedSweep, folder: Folder) -> None:
    """Record the starts in the sweep's folder."""
    if sweep.starts:
        folder.write_json(STARTS, [{"init": name, "starts": starts} for name, starts in sweep.starts.items()])


def with_start(sweep: PinnedSweep, config: TrialConfig, where: Where) -> tuple[TrialConfig, str | None]:
    """Return a trial with the trainings that its seeds begin from, and the sweep that it waits for if any.

    Raises SettingError: a sweep would begin from its own trials.
    """
    init = config.model.init
    if init is None:
        return config, None
    if init.sweep == sweep.config.name:
        raise SettingError(
            where,
            "model.init.sweep: a sweep cannot begin from its own trials; put the first stage into another sweep file",
        )
    starts = sweep.starts.get(_name(config), {})
    if any(str(seed) not in starts for seed in _seeds(sweep)):
        return config, f"{AWAITS}{init.sweep!r}: run that sweep first"
    model = config.model.model_copy(update={"init": init.model_copy(update={"weights": starts})})
    return config.model_copy(update={"model": model}), None


def _seeds(sweep: PinnedSweep) -> tuple[int, ...]:
    """Return the seeds of the grid and of the search."""
    search = sweep.config.search
    return (*sweep.config.planned_seeds, *(search.seeds if search is not None else ()))


def _name(config: TrialConfig) -> str:
    """Return what decides the start: the model, and the other sweep's cell and seed."""
    assert config.model.init is not None, "the trial begins from another one"
    return f"{config.model.path} {config.model.init.model_dump_json(exclude={'weights', 'reference'})}"


def _found(config: TrialConfig, init: InitConfig, seeds: Sequence[int], store: Store) -> Starts | None:
    """Return the starts of all seeds, or None if one of their trainings has not finished."""
    if not seeds:
        return {}
    plan = store.sweep(init.sweep).read_json("plan.json")
    if plan is None:
        return None
    rows = [row for row in plan["trials"] if init.cell.items() <= row["cell"].items() and row.get("phase") != "search"]
    cells = {tuple(row["cell"].items()) for row in rows}
    if len(cells) != 1:
        has = ", ".join(" ".join(f"{axis}={cell}" for axis, cell in names) for names in sorted(cells)[:5])
        what = f"several cells match ({has})" if cells else f"no cell matches {init.cell}"
        raise UserError(f"{init.sweep}: {what}; name one in model.init.cell")
    starts: Starts = {}
    for seed in seeds:
        wanted = seed if init.seed == "same" else init.seed
        row = next((row for row in rows if row["seed"] == wanted), None)
        if row is None:
            raise UserError(f"{init.sweep}: has no seed {wanted}; set model.init.seed to one of its seeds")
        if not row["key"] or not (start := _start(row, config, init, store)):
            return None
        starts[str(seed)] = start
    return starts


def _start(row: Mapping[str, Any], config: TrialConfig, init: InitConfig, store: Store) -> str:
    """Return KEY@STEP of one trial, or an empty text if it has not finished."""
    folder = store.trial(row["key"])
    result, description = folder.result(), folder.read_json("trial.json")
    if result is None or description is None or result.outcome != "finished" or result.steps_done < row["num_steps"]:
        return ""
    model = description["config"]["model"]
    if model["path"] != config.model.path:
        raise UserError(
            f"{init.sweep}: trained {model['path']}, but model.path is {config.model.path}; set both to the same model"
        )
    if model.get("adapter") is not None:
        raise UserError(
            f"{init.sweep}: trained an adapter; run `oneshot export` on it and name its folder in model.path"
        )
    step = folder.kept_step("checkpoint")
    if step != row["num_steps"]:
        has = "no weights" if step is None else f"the weights of step {step}, not of step {row['num_steps']}"
        raise UserError(
            f"{init.sweep}: seed {row['seed']} has {has}; it must run with checkpoint.keep: weights, and `oneshot gc` "
            "must not have removed them by age"
        )
    return f"{row['key']}@{step}"
