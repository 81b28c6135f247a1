"""Trials -> the trainings that serve them: what a key names, asked for everything that its trials ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count

from pydantic import ValidationError

from oneshot.config import SuiteConfig, TrialConfig
from oneshot.errors import UserError
from oneshot.plan import Plan, Trial
from oneshot.store import Result
from oneshot.sweepfile import ResourceConfig
from oneshot.tasks.benchmarks import load_suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What one key names, with a config that serves every trial that shares it."""

    key: str
    seed: int
    config: TrialConfig
    resources: ResourceConfig
    trials: tuple[Trial, ...]


def trainings(trials: Sequence[Trial]) -> list[Training]:
    """Trials of known key -> the trainings that serve them, in the order in which they are first asked for."""
    by_key: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.key is not None:
            by_key.setdefault(trial.key, []).append(trial)
    return [
        Training(
            key=key,
            seed=those[0].seed,
            config=_serving_all(those),
            resources=those[0].resources,
            trials=tuple(those),
        )
        for key, those in by_key.items()
    ]


def _serving_all(trials: list[Trial]) -> TrialConfig:
    first = max(trials, key=lambda trial: trial.config.train.num_steps)
    suites: dict[str, SuiteConfig] = {}
    also_at = set(first.config.eval.also_at)
    for trial in (first, *trials):
        also_at |= {*trial.config.eval.also_at, trial.config.train.num_steps}
        for name, suite in trial.config.eval.suites.items():
            mine = _resolved(name, suite, trial.config)
            # one name may mean two suites; each trial finds its own by digest
            names = chain([name], (f"{name} {number}" for number in count(2)))
            suites.setdefault(next(n for n in names if suites.get(n, mine) == mine), mine)
    data = first.config.model_dump()
    data["eval"]["suites"] = {name: suite.model_dump() for name, suite in suites.items()}
    data["eval"]["also_at"] = sorted(also_at - {first.config.train.num_steps})
    data["eval"]["at_start"] = any(trial.config.eval.at_start for trial in trials)
    return TrialConfig.model_validate(data)


def _resolved(name: str, suite: SuiteConfig, config: TrialConfig) -> SuiteConfig:
    """A suite with nothing left for the trial to fill in but its length."""
    suffix = config.prompt.eval_suffix if suite.suffix is None else suite.suffix
    return suite.model_copy(
        update={
            "every_steps": suite.every_steps or config.eval.every_steps,
            "max_tokens": suite.max_tokens or config.rollout.max_tokens,
            "suffix": suffix,
            "source": suite.source or name,
            "template": suite.template or config.prompt.eval_template or config.prompt.template,
        }
    )


def with_suites(plan: Plan, suites: Mapping[str, SuiteConfig], results: Mapping[str, Result]) -> tuple[Plan, list[str]]:
    """The plan in which each trial whose final weights are kept also asks for more suites, at start and end alone.

    Also says which trials cannot be asked, and why.
    """
    trials, left_out = [], []
    for trial in plan.trials:
        result = results.get(trial.key or "")
        if result is None or result.outcome != "finished":
            left_out.append(f"{trial.label}: not finished, so not evaluated")
        elif result.checkpoint == "none" and trial.config.train.num_steps:
            left_out.append(f"{trial.label}: its weights are not kept (checkpoint.keep), so not evaluated")
        elif result.steps_done != trial.config.train.num_steps:
            left_out.append(f"{trial.label}: its training went on to step {result.steps_done}, whose weights are kept")
        else:
            trials.append(replace(trial, config=_asking_more(trial.config, suites)))
            continue
        trials.append(trial)
    return replace(plan, trials=tuple(trials)), left_out


def _asking_more(config: TrialConfig, suites: Mapping[str, SuiteConfig]) -> TrialConfig:
    data = config.model_dump()
    seldom = max(1, config.train.num_steps)
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
    for name, suite in asking.eval.suites.items():
        load_suite(name, suite, asking)
    return asking
