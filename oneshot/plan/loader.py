"""A sweep file, or a sweep in the store -> the pinned sweep and its plan."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from oneshot.config.file import SweepFile, read
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, ModelError, SweepFileError, UserError, nearest
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.ranking import frozen_rankings, known_rankings, pin_rankings
from oneshot.plan.recorded_solutions import AWAITS, asks, find_solutions, frozen_solutions, keep_solutions
from oneshot.plan.revisions import frozen_revisions, pin_revisions
from oneshot.plan.starts import AWAITS as AWAITS_WEIGHTS
from oneshot.plan.starts import find_starts, frozen_starts, keep_starts
from oneshot.plan.studies import frozen_search
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trial import Trial
from oneshot.store.folder import Folder
from oneshot.store.store import Store
from oneshot.tasks import sets

ENGINES = "engines.json"
"""File in a sweep's folder that says whether vLLM was installed where the sweep first ran."""
DATA = "data.json"
"""File in a sweep's folder with the digests of its data, by set, path or URL."""


def _with_recorded(ranked: PinnedSweep, folder: Folder) -> PinnedSweep:
    """Return a sweep whose rankings are pinned with its recorded revisions, points, winners and engines."""
    engines = folder.read_json(ENGINES)
    # a sweep that began without this file had no choice
    was_there = engines["vllm"] if engines else None if folder.read("sweep.yaml") is None else False
    pinned = frozen_solutions(frozen_search(frozen_revisions(ranked, folder), folder), folder)
    pinned = frozen_starts(pinned, folder)
    return replace(pinned, has_vllm=was_there)


def pin_known(file: SweepFile, store: Store) -> PinnedSweep:
    """Return the sweep with its recorded pins, and every ranking that can be made now. Writes nothing."""
    sets.remember({})  # a file's sweep is of the data that are here
    ranked, _ = known_rankings(file, store)
    return _with_found(_with_recorded(ranked, store.sweep(file.config.name)), store)


def _with_found(sweep: PinnedSweep, store: Store) -> PinnedSweep:
    """Return the sweep with the completions and weights of other sweeps that it asks for, as far as they are there."""
    is_staged = "init" in f"{sweep.source.text} {sweep.overrides}"  # cheaper than its plan
    if not asks(sweep) and not is_staged:
        return sweep
    configs = [trial.config for trial in make_plan(sweep).trials]
    return find_starts(find_solutions(sweep, configs, store), configs, store)


def pin_all(file: SweepFile, store: Store) -> SweepRun:
    """Return the sweep ready to run: everything pinned and recorded in its folder.

    Asks the hub for the commit of each moving revision, once for each sweep.

    Raises UserError: a ranking's history is missing, or the hub cannot be reached.
    """
    sets.remember({})
    folder = store.sweep(file.config.name)
    sweep = _with_found(_with_recorded(pin_rankings(file, store), folder), store)
    keep_solutions(sweep, folder)
    keep_starts(sweep, folder)
    plan = make_plan(sweep)
    for trial in plan.trials:
        if trial.waits_for is not None and trial.waits_for.startswith((AWAITS, AWAITS_WEIGHTS)):
            name = trial.waits_for.split("'")[1]
            others = [*sweep_names(store), *(["policy"] if trial.waits_for.startswith(AWAITS) else [])]
            is_known = name in others or Path(sweep.source.name).with_name(f"{name}.yaml").is_file()
            hint = "" if is_known else nearest(name, others)
            raise UserError(f"{trial.label} waits for {trial.waits_for}, with the same storage{hint}")
    pinned = pin_revisions(sweep, plan, folder)
    return SweepRun.of(pinned, plan if pinned is sweep else make_plan(pinned), store)


def begun_text(store: Store, name: str) -> str:
    """Return the sweep file's text as the sweep was last run. Raises UserError: the store has no such sweep."""
    text = store.sweep(name).read("sweep.yaml")
    if text is None:
        names = ", ".join(sweep_names(store)) or "none"
        raise UserError(f"{name}: {store.root} has no sweep of this name; it has {names}; check the name or --storage")
    return text


def recorded_sweep(folder: Folder, text: str, *, name: str) -> PinnedSweep:
    """Return the sweep as its folder records it, `--set` values and pins included; `name` is what errors call it."""
    file = read(text, name=name, settings=folder.read_json("settings.json") or {})
    return _with_recorded(frozen_rankings(file, folder), folder)


def begun_sweep(store: Store, name: str) -> SweepRun:
    """Return a sweep of the store as it was last run. Raises UserError: the store has no such sweep."""
    folder = store.sweep(name)
    text = begun_text(store, name)
    sets.remember(folder.read_json(DATA) or {})
    sweep = recorded_sweep(folder, text, name=name)
    try:
        plan = make_plan(sweep)
    except (ModelError, DataError, SweepFileError):  # its model or data are on the machine that runs it
        recorded = folder.read_json("plan.json")
        if recorded is None:
            raise
        plan = _recorded_plan(sweep, recorded, store)
    return SweepRun.of(sweep, plan, store)


def _recorded_plan(sweep: PinnedSweep, recorded: dict[str, Any], store: Store) -> Plan:
    """Return the plan that the driver recorded, with the configs of trainings that have begun."""
    trials = []
    for row in recorded["trials"]:
        begun = store.trial(row["key"]).read_json("trial.json") if row["key"] else None
        config = TrialConfig.model_validate(begun["config"] if begun else {"script": {}})
        steps = config.train.model_copy(update={"num_steps": row["num_steps"]})
        trials.append(
            Trial(
                cell=row["cell"],
                seed=row["seed"],
                key=row["key"],
                config=config.model_copy(update={"train": steps}),
                **{name: row[name] for name in ("waits_for", "phase", "study", "point") if name in row},
            )
        )
    return Plan(name=sweep.config.name, num_cells=recorded["num_cells"], trials=tuple(trials), warnings=())


def sweep_names(store: Store) -> list[str]:
    """Return the names of the store's sweeps, without those whose driver died before it recorded the file."""
    return [name for name in store.sweeps() if "sweep.yaml" in store.sweep(name).list("")]
