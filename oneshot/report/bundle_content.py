"""The shapes of a bundle's files, and the checks of what a report relies on. A bundle comes from a stranger."""

import re
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from oneshot.config.claims import ClaimConfig, PublishedConfig
from oneshot.config.fields import NAME
from oneshot.config.trial import TrialConfig
from oneshot.plan.frozen import Rules
from oneshot.report.runs import Run
from oneshot.trial.state import TrialState

ARRAYS = ("strict_PK", "lenient_PK", "num_tokens_PK", "boxed_PK")
MAX_NAME = 200  # most characters of a sweep's name. Folder names cannot be much longer.
MAX_MS = 253_402_300_799_000  # end of the year 9999, the last that `datetime` knows


class Metadata(BaseModel):
    """Content of bundle.json in this format."""

    name: Annotated[str, Field(pattern=NAME, max_length=MAX_NAME)]
    question: str
    reproduces: str | None
    seeds: tuple[int, ...]
    amended: tuple[ClaimConfig, ...]
    published: tuple[PublishedConfig, ...]
    selects_on_test: bool
    warnings: tuple[str, ...]
    rules: Rules = Field(default_factory=Rules)
    leaks: dict[str, tuple[str, ...]] = {}
    choices: dict[str, str] = {}


class ClaimsFile(BaseModel):
    """Content of claims.json, which is kept as written since its digest covers it."""

    model_config = ConfigDict(strict=True)

    claims: list[dict[str, Any]]
    digest: str
    frozen_ms: Annotated[int, Field(ge=0, le=MAX_MS)] | None
    seeds: list[int] = []
    num_steps: dict[str, int] = {}
    suites: dict[str, list[str]] = {}


class _Environment(BaseModel):
    """Versions and device of one attempt."""

    env_digest: str
    gpu: str
    platform: str
    versions: dict[str, str]


_ENVIRONMENTS = TypeAdapter(tuple[_Environment, ...])


class GradesFile(BaseModel):
    """Content of one grades/*.json."""

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    families: tuple[str, ...] = ()
    strict_PK: list[list[int]]
    lenient_PK: list[list[int]]
    num_tokens_PK: list[list[int]]
    boxed_PK: list[list[int]]

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return the arrays by name, each [problems, completions].

        Raises ValueError: an array is empty, or has another shape.
        """
        arrays = {name: np.array(getattr(self, name), dtype=np.float64) for name in ARRAYS}
        shape = (len(self.ids), *arrays["strict_PK"].shape[1:])
        if len(self.families) not in (0, len(self.ids)):
            raise ValueError("the families of grades are not one for each problem")
        if len(self.categories) != len(self.ids) or any(array.shape != shape for array in arrays.values()):
            raise ValueError("the columns of grades have different numbers of problems or completions")
        if len(shape) != 2 or 0 in shape:
            raise ValueError("grades need at least one problem and one completion")
        if any(not np.isin(arrays[name], (0, 1)).all() for name in ARRAYS if name != "num_tokens_PK"):
            raise ValueError("a grade must be 0 or 1")
        return arrays


class InvalidRunError(ValueError):
    """A run that has the right types and wrong values. The message names the run."""


def checked_runs(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Return the runs unchanged if a report can use them.

    Raises ValueError: a run has a wrong share, key, digest, config or environment.
    """
    for place, run in enumerate(runs):
        shares = [numbers.get("pass_at_1", 0.0) for steps in run.measured.values() for numbers in steps.values()]
        if any(share < 0 or share > 1 for share in shares):
            raise InvalidRunError(f"runs.json: {place}.measured: a share is not between 0 and 1")
        if run.state in (TrialState.RUNNING, TrialState.PENDING):
            raise InvalidRunError(f"runs.json: {place}.state: {str(run.state)!r} is not a state of a reported run")
        names = [run.key or "", *(suite.digest for suite in run.suites)]
        if invalid := [name for name in names if not re.fullmatch(r"[A-Za-z0-9]*", name)]:
            raise InvalidRunError(f"runs.json: {place}: {invalid[0]!r} is not a key of a trial or a digest of a suite")
        try:
            TrialConfig.model_validate(run.config)
            _ENVIRONMENTS.validate_python(run.environments)
        except ValidationError as error:
            raise InvalidRunError(f"runs.json: {place}: {finding(error)}") from error
    return runs


def of_one_grid(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Return the runs unchanged if they have the same axes and no two have the same cell and seed.

    Raises ValueError: they do not fit together.
    """
    if any(list(run.cell) != list(runs[0].cell) for run in runs):
        raise InvalidRunError("runs.json: the axes of a cell differ from those of the first run")
    if len({(*run.cell.values(), run.seed) for run in runs}) < len(runs):
        raise InvalidRunError("runs.json: two runs have the same cell and seed")
    return runs


def finding(error: ValidationError) -> str:
    """Return the place and the reason of the first mistake."""
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
