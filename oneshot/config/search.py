"""The `search` and `early_stop` sections of a sweep file: typed, bounded and described."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from oneshot.config.fields import MAX_FACTOR, MAX_STEPS, Config, Seed, exactly_one

MAX_POINTS = 10_000  # points of a study, each with its trials in the plan


class RangeConfig(Config):
    """The values of a searched path: numbers from low to high (whole numbers for a whole-number path), or a choice."""

    low: int | float | None = Field(None, ge=-MAX_FACTOR, le=MAX_FACTOR, description="Smallest number")
    high: int | float | None = Field(
        None, ge=-MAX_FACTOR, le=MAX_FACTOR, description="Largest number, included in the range"
    )
    log: bool = Field(False, description="Draw evenly on a logarithmic scale")
    choice: list[Any] | None = Field(None, min_length=2, description="Values to choose from, instead of low and high")

    @field_validator("low", "high", mode="before")
    @classmethod
    def _is_a_number(cls, end: Any) -> Any:
        if end is not None and (isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end)):
            raise ValueError(f"must be a number, not {end!r}")
        return end

    @model_validator(mode="after")
    def _is_a_range(self) -> "RangeConfig":
        if self.choice is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("a range has either low and high, or choice; remove one of them")
            if any(isinstance(value, dict | list) for value in self.choice):
                raise ValueError("a choice must list single values, not lists or mappings")
            if len({(isinstance(value, bool), value) for value in self.choice}) != len(self.choice):
                raise ValueError("a value of the choice appears twice; keep one")
            return self
        if self.low is None or self.high is None:
            raise ValueError("a range needs low and high, or choice")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm; set it above 0, or remove log")
        return self

    def __str__(self) -> str:
        if self.choice is not None:
            return f"one of {', '.join(map(repr, self.choice))}"
        return f"from {self.low:g} to {self.high:g}{' (log)' if self.log else ''}"

    def holds(self, value: Any) -> bool:
        """Return whether the value is in the range."""
        if self.choice is not None:
            return any(type(value) is type(option) and value == option for option in self.choice)
        assert self.low is not None and self.high is not None
        is_whole = isinstance(self.low, int) and isinstance(self.high, int)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high and (not is_whole or isinstance(value, int))


class ObjectiveConfig(Config):
    """The metric that a search optimises, averaged over a point's cells and seeds."""

    metric: str = Field(min_length=1, description="Metric, such as `eval/arithmetic-val/pass_at_1`")
    mode: Literal["max", "min"] = Field("max", description="Whether to maximise or minimise the metric")
    at: Literal["last", "best"] = Field("last", description="Use the metric's last value, or its best during training")


class ConstraintConfig(Config):
    """A bound on a point's mean over cells and seeds. A point that violates it cannot win."""

    metric: str = Field(min_length=1, description="Metric; its last value counts")
    max: float | None = Field(None, ge=-MAX_FACTOR, le=MAX_FACTOR, description="Largest allowed value")
    min: float | None = Field(None, ge=-MAX_FACTOR, le=MAX_FACTOR, description="Smallest allowed value")

    _one_side = exactly_one(("max", "min"), "a constraint needs exactly one of max and min")


class SamplerConfig(Config):
    """The rule that chooses points."""

    kind: Literal["tpe", "random"] = Field("tpe", description="Optuna's TPE sampler, or independent random draws")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the sampler, not of a trial")
    num_startup: int = Field(
        10, ge=1, le=MAX_POINTS, description="`tpe`: number of random points before it builds a model"
    )


class SearchConfig(Config):
    """A phase before the grid: one study for each cell of the `per` axes. Its winner sets that part of the grid."""

    per: list[str] = Field(default_factory=list, description="Axes; each of their cells has its own study")
    on: dict[str, Any] = Field(
        default_factory=dict,
        description="Cells of the other axes to tune on. If an axis is left out, all its cells are used",
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="Settings of search trials, which override those of their cells"
    )
    seeds: list[Seed] = Field(
        min_length=1,
        description="Seeds of search trials, different from those of the grid. A point's value is the mean over them",
    )
    num_trials: int = Field(
        ge=1, le=MAX_POINTS, description="Points of each study. A point has one trial for each cell and seed"
    )
    parallel: int = Field(
        2,
        ge=1,
        le=MAX_POINTS,
        description="Points that run at the same time. A point is chosen from all results except those of the last "
        "`parallel` - 1 points, even if these are known, so that interruptions do not change a study",
    )
    objective: ObjectiveConfig = Field(description="The metric to optimise")
    space: dict[str, RangeConfig] = Field(min_length=1, description="Path -> {low, high, log} or {choice: [...]}")
    warm_start: list[dict[str, Any]] = Field(
        default_factory=list, description="First points to try. Paths that a point leaves out are sampled"
    )
    constraint: ConstraintConfig | None = Field(None, description="A bound that the winner must meet")
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="How points are chosen")


class EarlyStopConfig(Config):
    """A rule that ends search trials that fall behind others of their group. It never ends grid trials."""

    kind: Literal["asha", "median"] = Field(
        description="`asha`: at steps grace_steps x factor^k the best 1/factor of the trials continue. `median`: a "
        "trial ends if its best value is worse than the median of the other trials' means so far"
    )
    per: list[str] | None = Field(
        None, description="Axes; trials are compared within each of their cells. Absent: search.per"
    )
    metric: str | None = Field(None, min_length=1, description="Metric to compare. Absent: that of the objective")
    grace_steps: int = Field(ge=1, le=MAX_STEPS, description="First step at which a trial may end")
    factor: float = Field(3, ge=1.1, le=1000, description="`asha`: one in `factor` trials continues")
    min_trials: int = Field(
        3, ge=1, le=MAX_POINTS, description="`median`: number of other trials that must have come as far"
    )
