"""A training and its record -> the state of its trials, and the rows that each trial sees."""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from pydantic import ValidationError

from oneshot.config.sweep import FaultsConfig
from oneshot.config.trial import SuiteConfig, TrialConfig
from oneshot.errors import UserError
from oneshot.plan.leakage import trains_on
from oneshot.plan.plan import Plan
from oneshot.plan.trainings import Training
from oneshot.plan.trial import Trial
from oneshot.store.records import Result, Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.benchmarks import due_evaluations, load_suites
from oneshot.trial.requests import Stops

DEFAULT_FAULTS = FaultsConfig()


class TrialState(StrEnum):
    """The state of a trial, or of the training that its trials share."""

    FINISHED = "finished"
    FAILED = "failed"
    """For good: no attempts are left."""
    STOPPED = "stopped"
    """By early stopping, or by hand."""
    MISSING = "missing"
    """It still has to run, from the start or from a checkpoint. People see it as running or pending."""
    RUNNING = "running"
    PENDING = "pending"


SHOWN_STATES = (
    TrialState.FINISHED,
    TrialState.FAILED,
    TrialState.STOPPED,
    TrialState.RUNNING,
    TrialState.PENDING,
)


def trial_standing(trial: Trial, result: Result | None) -> TrialState:
    """Whether the record has the steps and evaluations that a trial asks for.

    What is on record is not taken back by a later attempt, for a longer request, that failed.
    """
    if result is None:
        return TrialState.MISSING
    enough = result.steps_done >= trial.config.train.num_steps
    if enough and due_evaluations(trial.config) <= result.evaluations:
        return TrialState.FINISHED
    return TrialState.FAILED if result.outcome == "failed" else TrialState.MISSING


def trial_state(trial: Trial, store: Store, stops: Stops, *, faults: FaultsConfig) -> TrialState:
    """What became of a trial so far, whoever may be at it now."""
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
    if trial.is_settled:  # asked for more steps since: its study is won by what it has
        is_finished = result is not None and result.outcome == "finished"
        return TrialState.FINISHED if is_finished else TrialState.STOPPED
    return TrialState.MISSING


def standing(training: Training, folder: TrialFolder, *, faults: FaultsConfig = DEFAULT_FAULTS) -> TrialState:
    """Whether the record serves every trial that shares the training; failed: for good, by the sweep's `faults`."""
    result = folder.result()
    if all(trial_standing(trial, result) is TrialState.FINISHED for trial in training.trials):
        return TrialState.FINISHED
    return TrialState.FAILED if has_failed(result, folder, faults=faults) else TrialState.MISSING


def has_failed(result: Result | None, folder: TrialFolder, *, faults: FaultsConfig) -> bool:
    """Whether a training's last word is a failure that is not tried again; an attempt begun since goes on."""
    if result is None or result.outcome != "failed" or result.attempt != folder.last_attempt():
        return False
    return not is_retried(result, faults)


def is_retried(result: Result, faults: FaultsConfig) -> bool:
    """Whether a failed training has attempts left, by the class of its last failure."""
    budgets = ((("crash", "stall"), faults.retries), (("node",), faults.node_retries), (("oom",), faults.oom_retries))
    for kinds, allowed in budgets:
        if result.kind in kinds:
            return sum(result.failures.get(kind, 0) for kind in kinds) <= allowed
    return False


def view(trial: Trial, folder: TrialFolder, *, read: dict[str, list[Row]] | None = None) -> list[Row]:
    """What one trial sees of its training's rows: its own steps, and its own evaluations under its own names.

    Evaluations are found by the digest of what they ask: another trial may have called the same suite otherwise. `read`
    is kept by who looks again and again.
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


def with_suites(plan: Plan, suites: Mapping[str, SuiteConfig], store: Store) -> tuple[Plan, list[Trial], list[str]]:
    """The plan in which each trial whose final weights are kept also asks for more suites, at start and end alone.

    Also gives those trials, and says of the others why they cannot be asked.

    Raises:
        UserError: a suite cannot be asked of these trials.
    """
    trials, asked, left_out = [], [], []
    for trial in plan.trials:
        folder = store.trial(trial.key) if trial.key is not None else None
        result = folder.result() if folder is not None else None
        if folder is None or result is None or trial_standing(trial, result) is not TrialState.FINISHED:
            left_out.append(f"{trial.label}: not finished, so not evaluated")
        elif trial.config.train.num_steps and folder.read_json("checkpoint.json") is None:
            left_out.append(f"{trial.label}: its weights are not kept (checkpoint.keep), so not evaluated")
        elif result.steps_done != trial.config.train.num_steps:
            left_out.append(f"{trial.label}: its training went on to step {result.steps_done}, whose weights are kept")
        else:
            asked.append(replace(trial, config=_asking_more(trial, suites)))
            trials.append(asked[-1])
            continue
        trials.append(trial)
    return replace(plan, trials=tuple(trials)), asked, left_out


def _asking_more(trial: Trial, suites: Mapping[str, SuiteConfig]) -> TrialConfig:
    data = trial.config.model_dump()
    seldom = max(1, trial.config.train.num_steps)
    data["eval"]["suites"] |= {
        name: suite.model_copy(update={"every_steps": seldom}).model_dump() for name, suite in suites.items()
    }
    data["eval"] |= {"also_at": [], "at_start": True}
    try:
        asking = TrialConfig.model_validate(data)
    except ValidationError as error:
        finding = error.errors()[0]
        name = ".".join(str(part) for part in finding["loc"][2:])
        raise UserError(f"--suite: {name}: {finding['msg'].lower()}") from error
    before = {suite.name: suite.digest for suite in load_suites(trial.config)}
    for suite in load_suites(asking):
        if suite.name in suites and before.get(suite.name, suite.digest) != suite.digest:
            raise UserError(
                f"--suite {suite.name}: the sweep has a suite of that name with another rule; give this one a name, as "
                f"`--suite {suite.name}-2={suite.source}`"
            )
        if complaint := trains_on(suite.source, asking):
            raise UserError(f"--suite {suite.name}: {trial.label} {complaint}")
    return asking
