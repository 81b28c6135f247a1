"""A sweep's folder in the store -> the sweep and its plan as they were run last."""

from typing import Any

from oneshot.config.file import Sweep
from oneshot.config.sweep import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, ModelError, SweepFileError, UserError
from oneshot.plan.cost import Cost
from oneshot.plan.edits import began_with
from oneshot.plan.plan import Plan, Trial, make_plan
from oneshot.store.store import Store

UNKNOWN_COST = Cost(train_tokens=0, eval_tokens=0, step_s=None, gpu_hours=None, basis="unknown")


def begun_sweep(store: Store, name: str) -> tuple[Sweep, Plan]:
    """A sweep of the store as it was run last.

    Raises:
        UserError: the store has no such sweep.
    """
    folder = store.sweep(name)
    text = folder.read("sweep.yaml")
    if text is None:
        there = ", ".join(sweeps(store)) or "none"
        raise UserError(f"{name}: no sweep of that name in {store.root}, which has {there}; name its --storage")
    sweep = began_with(folder, text, name=name)
    try:
        return sweep, make_plan(sweep)
    except (ModelError, DataError, SweepFileError):  # a model or a file of the machine that runs it
        recorded = folder.read_json("plan.json")
        if recorded is None:
            raise
        return sweep, _recorded_plan(sweep, recorded, store)


def _recorded_plan(sweep: Sweep, plan: dict[str, Any], store: Store) -> Plan:
    """The plan as its driver left it, with the configs of trainings that have begun: enough to see where they stand."""
    trials = []
    for facts in plan["trials"]:
        begun = store.trial(facts["key"]).read_json("trial.json") if facts["key"] else None
        config = TrialConfig.model_validate(begun["config"] if begun else {"script": {}})
        steps = config.train.model_copy(update={"num_steps": facts["num_steps"]})
        trials.append(
            Trial(
                cell=facts["cell"],
                seed=facts["seed"],
                key=facts["key"],
                waits_for=facts.get("waits_for"),
                config=config.model_copy(update={"train": steps}),
                resources=ResourceConfig(),
                labels={},
                cost=UNKNOWN_COST,
                phase=facts.get("phase", "grid"),
                study=facts.get("study", ""),
                point=facts.get("point"),
            )
        )
    return Plan(name=sweep.config.name, num_cells=plan["num_cells"], trials=tuple(trials), warnings=())


def sweeps(store: Store) -> list[str]:
    """Names of the sweeps that a store has; of one whose driver died early, nothing may be there but its lease."""
    return [name for name in store.sweeps() if "sweep.yaml" in store.sweep(name).list("")]
