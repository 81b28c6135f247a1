"""Suite name and sampling rule -> the problems that the policy is evaluated on.

The built-in suites follow the paper's evaluation (arXiv 2504.20571, appendix B.3): greedy decoding, but eight samples
at temperature 0.6 for the small competition sets. Use `val` and `arithmetic-val` to make choices and the others to
report results. The problems are loaded when they are first needed; if a set's digests are shipped, the suite's digest
needs no data.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from heapq import merge
from itertools import groupby
from typing import Any

from oneshot.config.evaluation import GRADERS, GraderName, SuiteConfig, Template, ThinkingConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, nearest
from oneshot.tasks import arithmetic, foreign, sets
from oneshot.tasks.examples import identify_shots
from oneshot.tasks.grading import grader_call
from oneshot.tasks.problems import Problem, content_digest, text_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIn:
    """A built-in suite's source and default sampling rule."""

    source: str
    samples: int = 1
    temperature: float = 0.0
    about: str = ""


BUILT_IN = {
    "math500": BuiltIn(source="math500"),
    "aime24": BuiltIn(source="aime24", samples=8, temperature=0.6),
    "aime25": BuiltIn(source="aime25", samples=8, temperature=0.6),
    "amc23": BuiltIn(source="amc23", samples=8, temperature=0.6),
    "minerva": BuiltIn(source="minerva"),
    "olympiadbench": BuiltIn(source="olympiadbench"),
    "gsm8k": BuiltIn(source="gsm8k"),
    "arc_easy": BuiltIn(source="arc_easy"),
    "arc_challenge": BuiltIn(source="arc_challenge"),
    "gpqa_diamond": BuiltIn(source="gpqa_diamond"),
    "mmlu_stem": BuiltIn(source="mmlu_stem"),
    "bbeh_mini": BuiltIn(source="bbeh_mini"),
    "val": BuiltIn(source="val", about="200 rows of dsr_sub that no shipped sweep names: what choices are made by"),
    "arithmetic": BuiltIn(source="arithmetic", about="generated, so that no corpus has it: the held-out side"),
    "arithmetic-val": BuiltIn(source="arithmetic-val", about="generated: held out too, for choosing"),
}
GENERATED: dict[str, arithmetic.Side] = {"arithmetic": "held_out", "arithmetic-val": "val"}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Problems to evaluate on, and how and when their completions are sampled."""

    name: str
    source: str
    num_problems: int | None
    samples: int
    temperature: float
    max_tokens: int
    every_steps: int
    suffix: str
    template: Template
    prompt_rules: tuple[str, ...]
    """What else changes the prompt or the completion's end: the stop rule and the digests of the shots."""
    graders: tuple[GraderName, ...] = GRADERS
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    thinking: ThinkingConfig | None = None
    also_at: tuple[int, ...] = ()

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """Load the problems. Raises DataError: the source is missing, or its contents are not the published ones."""
        if self.source in GENERATED:
            return arithmetic.held_out(self.num_problems, which=GENERATED[self.source])
        return sets.load(self.source)[: self.num_problems]

    @property
    def count(self) -> int | None:
        """Return the number of problems, or None if it is unknown before the set is fetched."""
        if self.source in GENERATED:
            return len(self.problems)
        sizes = (sets.num_rows(self.source), self.num_problems)
        return min((size for size in sizes if size is not None), default=None)

    @property
    def is_known(self) -> bool:
        """Return whether the digests of its problems are known; those of some sets are not before they are fetched."""
        return self.source in GENERATED or sets.contents(self.source) is not None

    @property
    def prompts(self) -> frozenset[str]:
        """Return the sha256 (hex) of each prompt; the name of the source while they are unknown."""
        return _prompts(self.source, self.num_problems, sets.version(self.source))

    @cached_property
    def digest(self) -> str:
        """Return the sha256 (hex) of everything but the policy that decides the completions and their grades."""
        prompt = [self.template, *self.prompt_rules, self.suffix]
        contents = _contents_digest(self.source, self.num_problems, sets.version(self.source))
        rule = [self.samples, self.temperature, self.max_tokens, prompt, contents]
        if self.graders != GRADERS:
            rule.append(list(self.graders))
        if own := [name for name in self.graders if name not in GRADERS]:
            rule.append({"code": [grader_digest(name) for name in own]})
        if self.top_p != 1.0:
            rule.append({"top_p": self.top_p})
        if self.stop:
            rule.append({"stop": self.stop})
        if self.thinking is not None:
            rule.append({"thinking": self.thinking.model_dump()})
        return sha256(json.dumps(rule).encode()).hexdigest()


def grader_digest(name: GraderName) -> str:
    """Return the sha256 (hex) of a foreign grader's source, as the sweep's store has it or as it is here.

    Raises DataError: there is no such grader.
    """
    recorded = sets.recorded(grader_record(name))
    return recorded[0][0] if recorded is not None else foreign.find(grader_call(name)).digest


def grader_record(name: GraderName) -> str:
    """Return the name under which a sweep records the digest of a foreign grader's source."""
    return f"grader {name}"


@cache
def val_prompts(source: str) -> frozenset[str]:
    """Return the sha256 (hex) of every prompt in `val` or `arithmetic-val`."""
    if source in GENERATED:
        return frozenset(problem.content[0] for problem in arithmetic.held_out(None, which=GENERATED[source]))
    return frozenset(prompt for prompt, _ in sets.contents(source) or ())


@cache
def _prompts(source: str, num_problems: int | None, _version: object) -> frozenset[str]:
    """Return the sha256 (hex) of every prompt of a suite; a name in their place while they are unknown."""
    if source in GENERATED:
        return frozenset(problem.content[0] for problem in arithmetic.held_out(num_problems, which=GENERATED[source]))
    contents = sets.contents(source)
    return frozenset([source] if contents is None else [prompt for prompt, _ in contents[:num_problems]])


def load_suites(config: TrialConfig) -> tuple[Suite, ...]:
    """Return the suites that a trial is evaluated on, in the order of its config."""
    return tuple(load_suite(name, suite, config) for name, suite in config.eval.suites.items())


class DueSteps(Set[int]):
    """Steps after which a suite runs. Only their rule is stored, as there may be a million."""

    def __init__(self, *regular: range, also: Iterable[int]) -> None:
        self._regular = regular
        self._also = frozenset(also)

    def __contains__(self, step: object) -> bool:
        return step in self._also or any(step in steps for steps in self._regular)

    def __iter__(self) -> Iterator[int]:
        return (step for step, _ in groupby(merge(*self._regular, sorted(self._also))))

    def __len__(self) -> int:
        if len(self._regular) > 1:  # they may share steps
            return sum(1 for _ in self)
        return sum(map(len, self._regular)) + sum(all(step not in r for r in self._regular) for step in self._also)

    def merged(self, other: "DueSteps") -> "DueSteps":
        """Return the steps of both."""
        return DueSteps(*self._regular, *other._regular, also=self._also | other._also)


class DueEvaluations(Set[tuple[str, int]]):
    """(suite digest, step) of every evaluation that a trial asks for, of which only the rules are stored."""

    def __init__(self, steps: Mapping[str, DueSteps]) -> None:
        self._steps = steps

    def __contains__(self, evaluation: object) -> bool:
        return (
            isinstance(evaluation, tuple)
            and evaluation[0] in self._steps
            and evaluation[1] in self._steps[evaluation[0]]
        )

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((digest, step) for digest, steps in self._steps.items() for step in steps)

    def __len__(self) -> int:
        return sum(map(len, self._steps.values()))

    def __hash__(self) -> int:
        return hash(frozenset((digest, len(steps)) for digest, steps in self._steps.items()))

    @classmethod
    def _from_iterable(cls, evaluations: Iterable[Any]) -> Set[Any]:  # the result of `&`, `|` and `-`
        return frozenset(evaluations)


def due_steps(suite: Suite, config: TrialConfig) -> DueSteps:
    """Return the steps after which a suite runs; step 0 is before training, the last step is always due."""
    last = config.train.num_steps
    further = (*config.eval.also_at, *suite.also_at)
    also = {last, *(step for step in further if step <= last), *([0] if config.eval.at_start else [])}
    return DueSteps(range(suite.every_steps, last, suite.every_steps), also=also)


def due_evaluations(config: TrialConfig) -> DueEvaluations:
    """Return (suite digest, step) of every evaluation that a trial asks for."""
    steps: dict[str, DueSteps] = {}
    for suite in load_suites(config):
        due = due_steps(suite, config)
        steps[suite.digest] = steps[suite.digest].merged(due) if suite.digest in steps else due
    return DueEvaluations(steps)


def load_suite(name: str, config: SuiteConfig, trial: TrialConfig) -> Suite:
    """Return the suite `name`, with defaults from the built-in suite and then from the trial.

    Raises DataError: the suite is neither built in nor has a source, or its sampling rule is impossible.
    """
    built_in = _built_in(name, config.source)
    samples = config.samples or built_in.samples
    temperature = built_in.temperature if config.temperature is None else config.temperature
    if samples > 1 and temperature == 0.0:
        raise DataError(f"eval.suites.{name}: {samples} greedy completions are all equal; set a temperature above 0")
    if built_in.source not in GENERATED:
        count = sets.num_rows(built_in.source)
        if config.num_problems is not None and count is not None and config.num_problems > count:
            raise DataError(
                f"eval.suites.{name}.num_problems: {config.num_problems}, but {built_in.source} has {count} rows"
            )
    thinking = config.thinking
    return Suite(
        name=name,
        source=built_in.source,
        num_problems=config.num_problems,
        samples=samples,
        temperature=temperature,
        max_tokens=config.max_tokens or trial.rollout.max_tokens
        if thinking is None
        else thinking.max_tokens + thinking.answer_tokens,
        top_p=config.top_p or 1.0 if temperature else 1.0,  # a greedy completion does not depend on it
        stop=tuple(config.stop),
        thinking=thinking,
        every_steps=config.every_steps or trial.eval.every_steps,
        also_at=tuple(config.also_at),
        suffix=trial.prompt.eval_suffix if config.suffix is None else config.suffix,
        template=config.template or trial.prompt.eval_template or trial.prompt.template,
        graders=tuple(trial.eval.graders),
        prompt_rules=(trial.prompt.stop, *identify_shots(trial.prompt).digests),
    )


def _built_in(name: str, source: str | None) -> BuiltIn:
    key = source or name
    if key in BUILT_IN:
        return BUILT_IN[key]
    if source is None:
        raise DataError(
            f"eval.suites.{name}: not built in{nearest(name, list(BUILT_IN))}; or set its file, such as "
            f"`source: data/{name}.jsonl`"
        )
    return BuiltIn(source=source)


@cache
def _contents_digest(source: str, num_problems: int | None, _version: object) -> str:
    """Return the sha256 (hex) of a suite's problems, or of its name while the contents are unknown."""
    if source in GENERATED:
        digests = [problem.digest for problem in arithmetic.held_out(num_problems, which=GENERATED[source])]
    else:
        contents = sets.contents(source)
        digests = [source] if contents is None else [content_digest(content) for content in contents[:num_problems]]
    return text_digest(json.dumps(digests))
