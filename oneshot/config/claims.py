"""The `claims`, `groups` and `published` sections of a sweep file: typed, bounded and described."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from oneshot.config.fields import MAX_FACTOR, Config, exactly_one


class ExpectConfig(Config):
    """The difference a - b that a claim expects."""

    greater_by: float | None = Field(None, ge=-MAX_FACTOR, le=MAX_FACTOR, description="a - b is above this")
    less_by: float | None = Field(None, ge=-MAX_FACTOR, le=MAX_FACTOR, description="a - b is below minus this")
    within: float | None = Field(None, gt=0, le=MAX_FACTOR, description="a - b is between minus this and this")
    share_at_least: float | None = Field(
        None, gt=0, le=10, description="a's gain is at least this share of b's; 0.9 is 90%. Needs `of: gain`"
    )

    _one_relation = exactly_one(
        ("greater_by", "less_by", "within", "share_at_least"),
        "expect needs exactly one of greater_by, less_by, within and share_at_least",
    )


class PowerConfig(Config):
    """Assumptions with which `plan` computes what a claim can detect, until the sweep has results to measure it by."""

    seed_sd: float = Field(0.02, ge=0, le=1, description="SD of the difference between seeds; 0.02 is two points")
    discordance: float = Field(0.3, gt=0, le=1, description="Share of problems on which only one side is right")
    chance: float = Field(
        0.5, ge=0, le=1, description="Share of that which differs from seed to seed, so that more seeds average it out"
    )
    effect: float | None = Field(
        None,
        gt=0,
        le=MAX_FACTOR,
        description="A difference for which `plan` prints power and seeds; with `share_at_least`, b's gain",
    )


class OverSettingsConfig(Config):
    """Other settings under which a claim is judged as well. They do not change its verdict."""

    grader: list[Literal["strict", "lenient"]] = Field(
        default_factory=list, description="Graders of pass@1: the metric and its `_lenient` form"
    )
    at: list[Literal["last", "best", "saturation"]] = Field(
        default_factory=list, description="Steps that replace that of `a`, and that of `b` unless it is the start"
    )


class ClaimConfig(Config):
    """A comparison of two selections of cells, written before the sweep runs."""

    name: str = Field(min_length=1, description="The claim in words")
    metric: str = Field(
        min_length=1, description="Metric, such as `eval/math500/pass_at_1`, or `eval/@GROUP/pass_at_1` of a group"
    )
    of: Literal["value", "gain"] = Field("value", description="Compare the metric, or its change since the start")
    a: dict[str, Any] = Field(
        description="Axis -> cell or list of cells, and `at`: start, last, best (on `val`) or saturation"
    )
    b: dict[str, Any] = Field(
        description="What `a` is compared with. An axis that is left out is as in `a`. `suite`: another suite"
    )
    for_each: list[str] = Field(default_factory=list, description="Axes; each of their cells gets its own verdict")
    for_all: list[str] = Field(
        default_factory=list,
        description="Axes; the claim must hold on each of their cells. There is one verdict, that of the weakest cell",
    )
    over: str | None = Field(
        None,
        min_length=1,
        description="Axis whose cells are a sample, such as models: the verdict is on their mean (random effects)",
    )
    over_settings: OverSettingsConfig = Field(
        default_factory=OverSettingsConfig, description="Other settings, under which the claim is judged beside its own"
    )
    primary: bool = Field(
        False,
        description="Test this claim first. Claims that are not primary are tested once all primary ones are decided",
    )
    categories: Literal["all", "trained", "untrained"] = Field(
        "all",
        description="Use all problems of the suite, only those in the categories of the examples, or only the others",
    )
    expect: ExpectConfig = Field(description="The expected difference a - b")
    power: PowerConfig = Field(default_factory=PowerConfig, description="Assumptions of `plan` about power")


class GroupConfig(Config):
    """Suites whose mean is a metric, `eval/@NAME/pass_at_1`."""

    suites: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2, description="Names of the suites")
    weight: Literal["suite", "problem"] = Field(
        "suite", description="What counts equally: every suite, or every problem of all suites"
    )

    @model_validator(mode="after")
    def _names_each_once(self) -> "GroupConfig":
        if len(set(self.suites)) < len(self.suites):
            raise ValueError("suites: a suite appears twice; keep one")
        return self

    def mean(self, values: Mapping[str, float], sizes: Mapping[str, int | None]) -> float | None:
        """Return the mean of the suites' values; None if one is missing, or its size counts and is unknown."""
        if self.weight == "problem" and any(not sizes.get(suite) for suite in self.suites):
            return None
        if any(suite not in values for suite in self.suites):
            return None
        weights = [1.0 if self.weight == "suite" else float(sizes[suite] or 0) for suite in self.suites]
        return sum(weight * values[suite] for weight, suite in zip(weights, self.suites, strict=True)) / sum(weights)


class PublishedRow(Config):
    """One row of a published table."""

    cell: dict[str, Any] = Field(default_factory=dict, description="Axis -> cell to show the row with")
    at: Literal["start", "last"] = Field("last", description="Accuracies before training, or after")
    values: list[float | None] = Field(
        min_length=1, description="Accuracies from 0 to 1, one for each column; null if there is none"
    )


class PublishedConfig(Config):
    """Numbers that others published, to be shown with those of the sweep."""

    by: str = Field(min_length=1, description="Author and place of publication")
    how: str = Field(
        min_length=1, description="How they were measured, such as `best checkpoint on the test set, one seed`"
    )
    columns: list[str] = Field(min_length=1, description="Suites, or `@GROUP`, whose pass@1 is given")
    grader: Literal["strict", "lenient", "released"] = Field(
        "released",
        description="Grader that made the numbers, which ours are compared by. `released`: Qwen2.5-Math's `math_equal`",
    )
    rows: list[PublishedRow] = Field(min_length=1, description="One row for each cell")

    @model_validator(mode="after")
    def _is_a_table(self) -> "PublishedConfig":
        for number, row in enumerate(self.rows):
            if len(row.values) != len(self.columns):
                raise ValueError(f"row {number} has {len(row.values)} values for {len(self.columns)} columns")
            if any(value is not None and not 0 <= value <= 1 for value in row.values):
                raise ValueError(f"row {number}: an accuracy must be from 0 to 1; write 72.8 percent as 0.728")
        return self
