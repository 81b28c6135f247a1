"""Trials -> the trainings that serve them: one for each key, with the evaluations of all its trials."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from math import gcd

from oneshot.config.evaluation import GRADERS, SuiteConfig
from oneshot.config.resources import ResourceConfig
from oneshot.config.sweep import GuardConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError
from oneshot.plan.trial import Trial
from oneshot.tasks import sets
from oneshot.tasks.benchmarks import GENERATED, grader_digest, grader_record, load_suite, load_suites
from oneshot.tasks.examples import check_labels, load_examples, load_shots, sources
from oneshot.tasks.functions import function_call, functions_of
from oneshot.tasks.grading import Grader
from oneshot.tasks.measures import measure_of, suite_of
from oneshot.tasks.solutions import column_digests, recorded_name, solution_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The training that a key names, with a config that serves all trials that share the key."""

    key: str
    seed: int
    config: TrialConfig
    resources: ResourceConfig
    guards: tuple[GuardConfig, ...] = ()
    trials: tuple[Trial, ...]

    @property
    def label(self) -> str:
        """Return the label of its first trial, or else the key."""
        return self.trials[0].label if self.trials else self.key


def trainings(trials: Sequence[Trial]) -> list[Training]:
    """Return the trainings that serve the trials with a key, in the order of the trials."""
    by_key: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.key is not None:
            by_key.setdefault(trial.key, []).append(trial)
    return [
        Training(
            key=key,
            seed=sharing[0].seed,
            config=_serving_all(sharing),
            resources=sharing[0].resources,
            guards=sharing[0].guards,
            trials=tuple(sharing),
        )
        for key, sharing in by_key.items()
    ]


def _serving_all(trials: list[Trial]) -> TrialConfig:
    if len(trials) == 1:
        return trials[0].config
    longest = max(trials, key=lambda trial: trial.config.train.num_steps)
    suites: dict[str, SuiteConfig] = {}
    also_at = set(longest.config.eval.also_at)
    keep = longest.config.checkpoint.keep
    for trial in (longest, *trials):
        also_at |= {*trial.config.eval.also_at, trial.config.train.num_steps}
        for name, suite in trial.config.eval.suites.items():
            resolved = _resolved(name, suite, trial.config)
            # two trials may use one name for two suites; each trial finds its own by digest
            names = chain([name], (f"{name} {number}" for number in count(2)))
            free = next(n for n in names if n not in suites or _is_same_suite(suites[n], resolved))
            merged = suites.get(free, resolved)
            timing = {
                "every_steps": gcd(merged.every_steps or 0, resolved.every_steps or 0),
                "also_at": sorted({*merged.also_at, *resolved.also_at}),
            }
            suites[free] = merged.model_copy(update=timing)
            best = trial.config.checkpoint.best_metric
            if best is not None and suite_of(best) == name and keep in ("none", "weights"):
                keep = {"best": f"eval/{free}/{measure_of(best)}"}
    data = longest.config.model_dump()
    data["eval"]["suites"] = {name: suite.model_dump() for name, suite in suites.items()}
    data["eval"]["also_at"] = sorted(also_at - {longest.config.train.num_steps})
    data["checkpoint"]["keep"] = keep
    data["eval"]["at_start"] = any(trial.config.eval.at_start for trial in trials)
    return TrialConfig.model_validate(data)


def _is_same_suite(suite: SuiteConfig, other: SuiteConfig) -> bool:
    return suite.model_copy(update={"every_steps": other.every_steps, "also_at": other.also_at}) == other


def _resolved(name: str, suite: SuiteConfig, config: TrialConfig) -> SuiteConfig:
    """Return the suite with all defaults of the trial filled in, except its number of problems."""
    loaded = load_suite(name, suite, config)
    fields = ["source", "samples", "temperature", "every_steps", "suffix", "template"]
    if suite.thinking is None:  # else its budget says it
        fields.append("max_tokens")
    return suite.model_copy(update={field: getattr(loaded, field) for field in fields})


def data_digests(configs: Iterable[TrialConfig]) -> dict[str, Sequence[Sequence[str]]]:
    """Return the digests of the rows of every set that the trials use and whose digests are not shipped.

    Also those of the solutions that SFT learns.
    """
    configs = list(configs)
    used = {
        source
        for config in configs
        for source in (*sources(config.examples), *(suite.source for suite in load_suites(config)))
    }
    columns = {pair for config in configs if config.train.method == "sft" for pair in solution_columns(config.examples)}
    learned = {recorded_name(*pair): digests for pair in columns if (digests := column_digests(*pair)) is not None}
    graders = {name for config in configs for name in config.eval.graders if name not in GRADERS}
    return {
        **sets.unshipped(used - GENERATED.keys()),
        **{name: [[digest] for digest in digests] for name, digests in learned.items()},
        **{grader_record(name): [[grader_digest(name)]] for name in sorted(graders)},
    }


def check_data(configs: Sequence[TrialConfig]) -> None:
    """Read every example, worked problem and suite of the trials, and grade other labels, before anything runs.

    Raises DataError: data are missing or wrong; says what to do.
    """
    with Grader() as grader:
        for config in read_data(configs):
            check_labels(config.examples, grader)
        named = dict.fromkeys(each for config in configs for each in functions_of(config))
        for path, name, kind in named:
            if error := grader.cannot_load(function_call(name, kind)):
                raise DataError(f"{path}: {name}: {error}; correct the function, or its name")


def read_data(configs: Sequence[TrialConfig]) -> list[TrialConfig]:
    """Read every example, worked problem and suite of the trials. Return one config for each distinct set of data.

    Raises DataError: data are missing or wrong; says what to do.
    """
    seen: dict[str, TrialConfig] = {}
    for config in configs:
        data = json.dumps([config.model_dump(mode="json")[name] for name in ("examples", "prompt", "eval")])
        data += config.train.method
        if config.script is not None or data in seen:
            continue
        seen[data] = config
        load_examples(config.examples)
        if config.train.method == "sft":
            for source, column in solution_columns(config.examples):
                column_digests(source, column)
        load_shots(config.prompt)
        for suite in load_suites(config):
            _ = suite.problems
    return list(seen.values())
