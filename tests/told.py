"""What a test says of runs -> `Gathered`, without a store: numbers that can be worked by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oneshot.config.claims import ClaimConfig
from oneshot.plan.frozen import Planned, Rules, record, thaw
from oneshot.report.runs import Gathered, Grades, Run, RunSuite, Shown

CATEGORIES = ("addition", "addition", "subtraction", "subtraction", "multiplication", "multiplication")
"""Of the problems that are asked where a test does not say."""
FROZEN_MS = 1_000
ARMS = ({"arm": "outcome"}, {"arm": "format"})
Counts = Callable[[Mapping[str, str], int, int, str], Sequence[int] | int]
"""(cell, seed, step, suite) -> right completions of each problem."""
METRIC = "eval/arithmetic/pass_at_1"


def claim(a: Mapping[str, Any], b: Mapping[str, Any], **more: Any) -> ClaimConfig:
    return ClaimConfig.model_validate(
        {"name": "c", "metric": METRIC, "a": dict(a), "b": dict(b), "expect": {"greater_by": 0}, **more}
    )


def grades(
    num_right: Sequence[int],
    *,
    samples: int = 1,
    num_lenient: Sequence[int] | None = None,
    categories: Sequence[str] = CATEGORIES,
    num_tokens: Sequence[int] = (),
    boxed: Sequence[int] = (),
    first: int = 0,
) -> Grades:
    """Of each problem so many completions right, the first ones; the problems are named from `first` on."""

    def array(counts: Sequence[int]) -> Any:
        return np.array([float(sample < count) for count in counts for sample in range(samples)]).reshape(-1, samples)

    num = len(num_right)
    tokens = num_tokens or [10] * num
    return Grades(
        ids=tuple(f"p{first + place}" for place in range(num)),
        categories=tuple(categories[:num]),
        strict_PK=array(num_right),
        lenient_PK=array(num_right if num_lenient is None else num_lenient),
        num_tokens_PK=np.array([[float(number)] * samples for number in tokens]),
        boxed_PK=array(boxed or [samples] * num),
    )


@dataclass(frozen=True, kw_only=True)
class Told:
    """A record in memory."""

    tables: Mapping[tuple[str, str, int], Grades] = field(default_factory=dict)
    """By label of the run, suite, step."""

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        return self.tables.get((run.label, suite, step))

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        return ()


def suite(name: str = "arithmetic", *, samples: int = 1, source: str = "", digest: str = "d") -> RunSuite:
    return RunSuite(name=name, source=source or name, digest=digest, samples=samples, num_problems=None)


def run(cell: Mapping[str, str], seed: int = 0, **changes: Any) -> Run:
    """A finished run of 8 steps, after the claims were frozen."""
    label = f"{'/'.join(cell.values())} seed {seed}"
    fields: dict[str, Any] = {
        "label": label,
        "cell": dict(cell),
        "seed": seed,
        "key": label,
        "state": "finished",
        "reason": "",
        "labels": {},
        "trained": (),
        "examples": (),
        "num_examples": 1,
        "config": {"reward": {"kind": "outcome"}, "examples": []},
        "num_steps": 8,
        "gpus": 0.0,
        "spent_h": 1.0,
        "started_ms": None,
        "ended_ms": FROZEN_MS + 1,
        "origin": "told",
        "suites": (suite(),),
        "rows": (),
        "measured": {},
        "environments": (),
    }
    return Run(**{**fields, **changes})


def told(
    counts: Counts,
    *claims: ClaimConfig,
    cells: Sequence[Mapping[str, str]] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    sizes: Mapping[str, int] = {"arithmetic": 6},
    samples: int = 1,
    of_run: Callable[[Mapping[str, str], int], Mapping[str, Any]] = lambda cell, seed: {},
    **changes: Any,
) -> Gathered:
    """Runs of every cell and seed, with grades at the start and the end on suites of these sizes.

    `counts` is how many of the `samples` completions of each problem are right: one number for all, or a list.
    """
    runs, tables = [], {}
    for cell in cells:
        for seed in seeds:
            fields = {"suites": tuple(suite(name, samples=samples) for name in sizes), **of_run(cell, seed)}
            runs.append(run(cell, seed, **fields))
            for name, size in sizes.items():
                for step in (0, runs[-1].num_steps):
                    right = counts(cell, seed, step, name)
                    each = [right] * size if isinstance(right, int) else right
                    tables[runs[-1].label, name, step] = grades(each, samples=samples, categories=[""] * size)
    return gathered(runs, claims, **{"tables": tables, **changes})


def gathered(
    runs: Sequence[Run],
    claims: Sequence[ClaimConfig] = (),
    *,
    tables: Mapping[tuple[str, str, int], Grades] | None = None,
    frozen_ms: int | None = FROZEN_MS,
    rules: Rules | None = None,
    **changes: Any,
) -> Gathered:
    rules = rules or Rules()
    fields: dict[str, Any] = {
        "name": "told",
        "question": "Is it so?",
        "reproduces": None,
        "yaml": "",
        "seeds": tuple(dict.fromkeys(run.seed for run in runs)),
        "runs": tuple(runs),
        "frozen": thaw(record(Planned(claims=tuple(claims), rules=rules), frozen_ms)),
        "amended": (),
        "published": (),
        "selects_on_test": False,
        "warnings": (),
        "record": Told(tables=tables or {}),
        "rules": rules,
    }
    return Gathered(**{**fields, **changes})
