"""Trials -> the trainings that serve them: what a key names, asked for everything that its trials ask for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from math import gcd

from oneshot.config.sweep import GuardConfig, ResourceConfig
from oneshot.config.trial import SuiteConfig, TrialConfig
from oneshot.plan.plan import Trial
from oneshot.tasks.benchmarks import load_suite, load_suites
from oneshot.tasks.examples import check_labels, load_examples, load_shots
from oneshot.tasks.grading import Grader


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What one key names, with a config that serves every trial that shares it."""

    key: str
    seed: int
    config: TrialConfig
    resources: ResourceConfig
    guards: tuple[GuardConfig, ...] = ()
    trials: tuple[Trial, ...]

    @property
    def label(self) -> str:
        """Of the first trial that asks for it."""
        return self.trials[0].label if self.trials else self.key


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
            guards=those[0].guards,
            trials=tuple(those),
        )
        for key, those in by_key.items()
    ]


def _serving_all(trials: list[Trial]) -> TrialConfig:
    if len(trials) == 1:
        return trials[0].config
    first = max(trials, key=lambda trial: trial.config.train.num_steps)
    suites: dict[str, SuiteConfig] = {}
    also_at = set(first.config.eval.also_at)
    for trial in (first, *trials):
        also_at |= {*trial.config.eval.also_at, trial.config.train.num_steps}
        for name, suite in trial.config.eval.suites.items():
            mine = _resolved(name, suite, trial.config)
            # one name may mean two suites; each trial finds its own by digest
            names = chain([name], (f"{name} {number}" for number in count(2)))
            free = next(n for n in names if n not in suites or _asks_alike(suites[n], mine))
            known = suites.get(free, mine)
            suites[free] = known.model_copy(update={"every_steps": gcd(known.every_steps or 0, mine.every_steps or 0)})
    data = first.config.model_dump()
    data["eval"]["suites"] = {name: suite.model_dump() for name, suite in suites.items()}
    data["eval"]["also_at"] = sorted(also_at - {first.config.train.num_steps})
    data["eval"]["at_start"] = any(trial.config.eval.at_start for trial in trials)
    return TrialConfig.model_validate(data)


def _asks_alike(one: SuiteConfig, other: SuiteConfig) -> bool:
    return one.model_copy(update={"every_steps": other.every_steps}) == other


def _resolved(name: str, suite: SuiteConfig, config: TrialConfig) -> SuiteConfig:
    """A suite with nothing left for the trial to fill in but its length."""
    made = load_suite(name, suite, config)
    known = ("source", "samples", "temperature", "max_tokens", "every_steps", "suffix", "template")
    return suite.model_copy(update={field: getattr(made, field) for field in known})


def check_data(configs: Sequence[TrialConfig]) -> None:
    """Reads every example, worked problem and suite that trials need, and grades other labels, before anything runs.

    Raises:
        DataError: something is not at hand, or not as it should be; says how to mend it.
    """
    with Grader() as grader:
        for config in read_data(configs):
            check_labels(config.examples, grader)


def read_data(configs: Sequence[TrialConfig]) -> list[TrialConfig]:
    """Reads every example, worked problem and suite that trials need; returns one config for each set of them.

    Raises:
        DataError: something is not at hand, or not as it should be; says how to mend it.
    """
    seen: dict[str, TrialConfig] = {}
    for config in configs:
        asked = json.dumps([config.model_dump(mode="json")[name] for name in ("examples", "prompt", "eval")])
        if config.script is not None or asked in seen:
            continue
        seen[asked] = config
        load_examples(config.examples)
        load_shots(config.prompt)
        for suite in load_suites(config):
            _ = suite.problems
    return list(seen.values())
