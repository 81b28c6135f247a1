"""Records of trainings -> the states of trials and trainings, and each trial's view of its training's rows."""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Literal

from pydantic import ValidationError

from oneshot.config.evaluation import SuiteConfig
from oneshot.config.sweep import FaultsConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.plan.leakage import trains_on
from oneshot.plan.plan import Plan
from oneshot.plan.trainings import Training
from oneshot.plan.trial import Trial
from oneshot.store.records import Result, Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.benchmarks import due_evaluations, load_suites
from oneshot.trial.best import best_step, why_no_best
from oneshot.trial.requests import Stops

DEFAULT_FAULTS = FaultsConfig()


class TrialState(StrEnum):
    """The state of a trial, or of the training that its trials share."""

    FINISHED = "finished"
    FAILED = "failed"  # no attempts are left
    STOPPED = "stopped"  # by early stopping, or by hand
    MISSING = "missing"
    """It still has to run, from the start or from a checkpoint. People see it as running or pending."""
    RUNNING = "running"
    PENDING = "pending"


SHOWN_STATES = (TrialState.FINISHED, TrialState.FAILED, TrialState.STOPPED, TrialState.RUNNING, TrialState.PENDING)

LOST = ("crash", "stall", "node", "oom", "host_oom", "storage")  # kinds of failures that are not the training's own


def trial_standing(trial: Trial, result: Result | None) -> TrialState:
    """Return whether the record has the steps and evaluations that a trial asks for, and weights if it keeps them.

    A later attempt that fails, with more steps, does not undo what is recorded.
    """
    if result is None:
        return TrialState.MISSING
    num_steps = trial.config.train.num_steps
    keeps = trial.config.checkpoint.keep != "none" and num_steps > 0
    # a worker that is lost after the last step may not have written the weights
    lacks_weights = result.kind in LOST and result.checkpoint == "none" and result.steps_done == num_steps
    is_whole = result.steps_done >= num_steps and due_evaluations(trial.config) <= result.evaluations
    if is_whole and not (keeps and lacks_weights):
        return TrialState.FINISHED
    return TrialState.FAILED if result.outcome == "failed" else TrialState.MISSING


def trial_state(trial: Trial, store: Store, stops: Stops, *, faults: FaultsConfig) -> TrialState:
    """Return a trial's state by its record, whether or not it is running now."""
    if trial.key is None:
        return TrialState.MISSING
    folder = store.trial(trial.key)
    result = folder.result()
    if trial_standing(trial, result) is TrialState.FINISHED:
        return TrialState.FINISHED
    if stops.reason(trial) is not None:
        return TrialState.STOPPED
    if has_failed(result, folder, faults=faults):
        return TrialState.FAILED
    if trial.is_settled:  # its study was decided by the recorded steps; the sweep asked for more steps later
        is_finished = result is not None and result.outcome == "finished"
        return TrialState.FINISHED if is_finished else TrialState.STOPPED
    return TrialState.MISSING


def standing(training: Training, folder: TrialFolder, *, faults: FaultsConfig = DEFAULT_FAULTS) -> TrialState:
    """Return whether every trial of the training is finished; failed means that the sweep's `faults` allow no retry."""
    result = folder.result()
    if all(trial_standing(trial, result) is TrialState.FINISHED for trial in training.trials):
        return TrialState.FINISHED
    return TrialState.FAILED if has_failed(result, folder, faults=faults) else TrialState.MISSING


def has_failed(result: Result | None, folder: TrialFolder, *, faults: FaultsConfig) -> bool:
    """Return whether a training's last attempt has failed and is not tried again."""
    if result is None or result.outcome != "failed" or result.attempt != folder.last_attempt():
        return False
    return not is_retried(result, faults)


def is_retried(result: Result, faults: FaultsConfig) -> bool:
    """Return whether a failed training has retries left for the class of its last failure."""
    budgets = (
        (("crash", "stall"), faults.retries),
        (("node",), faults.node_retries),
        (("oom",), faults.oom_retries),
        (("host_oom",), faults.oom_retries),
    )
    for kinds, allowed in budgets:
        if result.kind in kinds:
            return sum(result.failures.get(kind, 0) for kind in kinds) <= allowed
    return False


def view(trial: Trial, folder: TrialFolder, *, read: dict[str, list[Row]] | None = None) -> list[Row]:
    """Return a trial's view of its training's rows: its own steps, and its evaluations under its own names.

    Evaluations are looked up by digest, because another trial may name the same suite differently. `read` is a cache of
    segments for repeated calls.
    """
    due = due_evaluations(trial.config)
    names = [(suite.name, suite.digest) for suite in load_suites(trial.config)]
    rows = []
    for row in folder.rows(read=read):
        if row.step > trial.config.train.num_steps:
            break
        metrics = {name: value for name, value in row.metrics.items() if not name.startswith("eval/")}
        for name, digest in names:
            evaluation = folder.evaluation(digest, row.step) if (digest, row.step) in due else None
            if evaluation is not None:
                metrics |= {f"eval/{name}/{key}": value for key, value in evaluation["metrics"].items()}
        rows.append(Row(step=row.step, time_ms=row.time_ms, metrics=metrics))
    return rows


def end_accuracies(trial: Trial, folder: TrialFolder) -> dict[str, tuple[float | None, float]]:
    """Return the accuracy on each suite at the start, if it was measured, and after the trial's last step."""
    ends = {}
    for suite in load_suites(trial.config):
        first, last = (folder.evaluation(suite.digest, step) for step in (0, trial.config.train.num_steps))
        if last is not None:
            ends[suite.name] = (first["metrics"]["pass_at_1"] if first else None, last["metrics"]["pass_at_1"])
    return ends


def with_suites(
    plan: Plan, suites: Mapping[str, SuiteConfig], store: Store, *, at: Literal["last", "best"] = "last"
) -> tuple[Plan, list[Trial], list[str]]:
    """Return a plan in which trials with kept weights also have these suites: at start and end only, or also at best.

    Also return the changed trials, and for each other trial the reason why it was left out.

    Raises UserError: a trial cannot be evaluated on a suite.
    """
    trials, extended, left_out = [], [], []
    for trial in plan.trials:
        folder = store.trial(trial.key) if trial.key is not None else None
        result = folder.result() if folder is not None else None
        if folder is None or result is None or trial_standing(trial, result) is not TrialState.FINISHED:
            left_out.append(f"{trial.label}: not finished, so not evaluated")
        elif trial.config.train.num_steps and folder.read_json("checkpoint.json") is None:
            left_out.append(f"{trial.label}: its weights were not kept (checkpoint.keep), or gc removed them (keep)")
        elif result.steps_done != trial.config.train.num_steps:
            left_out.append(
                f"{trial.label}: its training continued to step {result.steps_done}, whose weights are kept"
            )
        elif at == "best" and (reason := why_no_best(trial.config, folder)):
            left_out.append(f"{trial.label}: {reason}, so not evaluated")
        else:
            also_at = best_step(trial.config, folder) if at == "best" else None
            extended.append(replace(trial, config=_add_suites(trial, suites, also_at=also_at)))
            trials.append(extended[-1])
            continue
        trials.append(trial)
    return replace(plan, trials=tuple(trials)), extended, left_out


def _add_suites(trial: Trial, suites: Mapping[str, SuiteConfig], *, also_at: int | None) -> TrialConfig:
    data = trial.config.model_dump()
    only_last = {"every_steps": max(1, trial.config.train.num_steps), "also_at": [also_at] if also_at else []}
    data["eval"]["suites"] |= {name: suite.model_copy(update=only_last).model_dump() for name, suite in suites.items()}
    data["eval"] |= {"also_at": [], "at_start": True}
    try:
        config = TrialConfig.model_validate(data)
    except ValidationError as error:
        detail = error.errors()[0]
        name = ".".join(str(part) for part in detail["loc"][2:])
        raise UserError(f"--suite: {name}: {detail['msg'].lower()}") from error
    digests = {suite.name: suite.digest for suite in load_suites(trial.config)}
    for suite in load_suites(config):
        if suite.name in suites and digests.get(suite.name, suite.digest) != suite.digest:
            raise UserError(
                f"--suite {suite.name}: the sweep has a suite of that name with another rule; use another name, "
                f"such as `--suite {suite.name}-2={suite.source}`"
            )
        if problem := trains_on(suite.source, config):
            raise UserError(f"--suite {suite.name}: {trial.label} {problem}")
    return config
