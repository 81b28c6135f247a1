"""Suite name and sampling rule -> the problems that the policy is evaluated on.

Built in: `arithmetic`, the held-out side of the generated problems (as `arithmetic.py` splits them). Any other suite
names its `source`, a .jsonl or .parquet file.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from oneshot.config import SuiteConfig, TrialConfig
from oneshot.errors import DataError
from oneshot.tasks import arithmetic, problems
from oneshot.tasks.problems import Problem

BUILT_IN = ("arithmetic",)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Problems, and how many completions of each are sampled, how and when."""

    name: str
    problems: tuple[Problem, ...]
    samples: int
    temperature: float
    max_tokens: int
    every_steps: int
    suffix: str
    template: str

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of everything that decides an evaluation's completions and grades, apart from the policy."""
        asked = [self.template, self.suffix]
        rule = [self.samples, self.temperature, self.max_tokens, asked, [problem.digest for problem in self.problems]]
        return sha256(json.dumps(rule).encode()).hexdigest()

    def is_due(self, step: int, *, num_steps: int, at_start: bool, also_at: Sequence[int] = ()) -> bool:
        """Whether the suite is run after this step; step 0 is before training, the last step always counts."""
        if step == num_steps or step in also_at:
            return True
        return at_start if step == 0 else step % self.every_steps == 0


def load_suites(config: TrialConfig) -> tuple[Suite, ...]:
    """The suites that a trial is evaluated on, in the order of its config."""
    return tuple(load_suite(name, suite, config) for name, suite in config.eval.suites.items())


def load_suite(name: str, config: SuiteConfig, trial: TrialConfig) -> Suite:
    """The suite `name`; what it leaves out is the trial's.

    Raises:
        DataError: neither built in nor given a source, or the source is not as it should be.
    """
    if config.source is not None:
        chosen = problems.load_file(config.source)
        if config.num_problems is not None:
            if config.num_problems > len(chosen):
                raise DataError(
                    f"eval.suites.{name}.num_problems: {config.num_problems}, but {config.source} has "
                    f"{len(chosen)} rows"
                )
            chosen = chosen[: config.num_problems]
    elif name == "arithmetic":
        chosen = tuple(arithmetic.held_out(config.num_problems))
    else:
        raise DataError(
            f"eval.suites.{name}: not built in (there are: {', '.join(BUILT_IN)}); name its file, "
            f"as `source: data/{name}.jsonl`"
        )
    return Suite(
        name=name,
        problems=chosen,
        samples=config.samples,
        temperature=config.temperature,
        max_tokens=config.max_tokens or trial.rollout.max_tokens,
        every_steps=config.every_steps or trial.eval.every_steps,
        suffix=trial.prompt.eval_suffix if config.suffix is None else config.suffix,
        template=trial.prompt.template,
    )
