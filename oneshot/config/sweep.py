"""The sweep file's keys: typed, bounded and described. Nothing here runs.

Of its sections, `claims`, `published`, `search` and `early_stop` are in claims.py and search.py, and `resources`,
`sharing` and `budget` are in resources.py.
"""

import logging
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from oneshot.config.claims import ClaimConfig, GroupConfig, PublishedConfig
from oneshot.config.fields import (
    MAX_COUNT,
    MAX_DAYS,
    MAX_FACTOR,
    MAX_S,
    MAX_STEPS,
    MAX_TOKENS,
    NAME,
    Config,
    Seed,
    exactly_one,
)
from oneshot.config.ranking import FromRankConfig
from oneshot.config.resources import BudgetConfig, SharingConfig, SweepResourceConfig
from oneshot.config.search import EarlyStopConfig, RangeConfig, SearchConfig
from oneshot.config.urls import STORAGE_HINT, no_password, server_uri

logger = logging.getLogger(__name__)

AxisName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.\-]*$")]
GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_\-]*$")]
CellName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-+ ]+$")]


class CostConfig(Config):
    """The speed of a trial, for the plan."""

    step_s: float | None = Field(
        None, gt=0, le=MAX_S, description="Seconds a step. Absent: measured in the store, or estimated"
    )
    mean_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="Expected tokens of a completion. Absent: 900, or max_tokens if that is less",
    )


class GuardConfig(Config):
    """A bound on a metric. A trial that violates it fails with the reason, and is not retried."""

    metric: str = Field(min_length=1, description="Metric, such as `rollout/entropy`. Steps without it are ignored")
    is_: Literal["nan"] | None = Field(None, alias="is", description="Fail if the metric is not a finite number")
    above: float | None = Field(None, ge=-MAX_FACTOR, le=MAX_FACTOR, description="Fail if the metric is above this")
    below: float | None = Field(None, ge=-MAX_FACTOR, le=MAX_FACTOR, description="Fail if the metric is below this")
    for_steps: int = Field(1, ge=1, le=MAX_STEPS, description="Consecutive steps that must violate the bound")

    _one_bound = exactly_one(("is_", "above", "below"), "a guard needs exactly one of `is: nan`, `above` and `below`")


class FaultsConfig(Config):
    """How often a training is retried for each kind of failure. Wrong input and guards are never retried."""

    retries: int = Field(2, ge=0, le=MAX_COUNT, description="Retries after a crash or a stall")
    node_retries: int = Field(8, ge=0, le=MAX_COUNT, description="Retries after its node was lost")
    oom_retries: int = Field(2, ge=0, le=20, description="Retries when out of memory, each with half the micro-batch")
    stall_s: float = Field(
        1800, gt=0, le=MAX_S, description="Seconds without a report after which a trial is killed as hanging"
    )
    same_failure_limit: int = Field(
        3, ge=2, le=MAX_COUNT, description="Stop the sweep if its first N trainings all fail for the same reason"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_old_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "alike" not in data:
            return data
        if "same_failure_limit" in data:
            raise ValueError("alike is the old name of same_failure_limit; keep one")
        logger.warning("faults.alike is deprecated; rename it to faults.same_failure_limit")
        return {("same_failure_limit" if name == "alike" else name): value for name, value in data.items()}


class CellConfig(Config):
    """A named cell of an axis, with its settings, resources and labels."""

    set: dict[str, Any] = Field(default_factory=dict, description="Settings of a trial, nested or dotted")
    from_rank: FromRankConfig | None = Field(None, description="Make a cell for each example that a ranking selects")
    resources: dict[str, Any] = Field(default_factory=dict, description="Values that override `resources`")
    search: dict[str, RangeConfig] = Field(
        default_factory=dict, description="Ranges that replace those of search.space"
    )
    cost: CostConfig | None = Field(None, description="Speed of its trials, for the plan")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels for reports, such as `category: Algebra`")


class TableConfig(Config):
    """A table axis. Its columns are paths, and each row is a cell."""

    columns: list[str] = Field(min_length=1, description="Paths of trial settings")
    rows: dict[CellName, list[Any]] = Field(min_length=1, description="Cell name -> one value for each column")


class GridBlock(Config):
    """One block of the grid: selectors by axis name, and settings that override those of cells."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    set: dict[str, Any] = Field(default_factory=dict, description="Settings that override those of axis cells")


def _is_an_axis(value: Any) -> Any:
    if not isinstance(value, list | dict):
        shown = "null" if value is None else repr(value)
        raise ValueError(f"an axis must be a list of values, such as [1, 2], or named cells or a table, not {shown}")
    others = [] if not isinstance(value, list) else [v for v in value if not isinstance(v, Scalar | None)]
    if others:
        raise ValueError(
            f"a list of values cannot hold {others[0]!r}; write named cells, such as `first: {{set: {{PATH: ...}}}}`, "
            "or a table"
        )
    return value


Scalar = str | int | float | bool
Axis = Annotated[list[Scalar | None] | TableConfig | dict[CellName, CellConfig], BeforeValidator(_is_an_axis)]


class SeedsConfig(Config):
    """Planned seeds, and when fewer are enough."""

    planned: int = Field(ge=1, le=MAX_COUNT, description="Number of seeds: 0, 1, and so on")
    stop: Literal["decided"] | None = Field(
        None,
        description="`decided`: run no more seeds once a look has decided every claim, or every primary one. Needs "
        "`looks`",
    )


class KeepConfig(Config):
    """How long a finished training keeps what `oneshot gc` may remove. Of several sweeps, the most careful counts."""

    checkpoint_days: float | None = Field(
        None,
        ge=0,
        le=MAX_DAYS,
        description="Days from a training's end after which `gc` removes its weights, unless another sweep begins from "
        "them. Absent: for ever",
    )
    completion_days: float | None = Field(
        None,
        ge=0,
        le=MAX_DAYS,
        description="Days from a training's end after which `gc` removes its tables of completions, but for those that "
        "claims are judged by. Absent: for ever",
    )


class MlflowConfig(Config):
    """The MLflow server and experiment that show the runs."""

    tracking_uri: str | None = Field(
        None, description="URI of the tracking server. Absent: sqlite in the local storage folder"
    )
    experiment: str | None = Field(None, min_length=1, description="Experiment's name. Absent: the sweep's name")

    _server_uri = field_validator("tracking_uri")(server_uri)


class NotifyConfig(Config):
    """The webhook that is called when the sweep ends."""

    webhook_env: str = Field(
        min_length=1, description="Environment variable that holds the webhook's URL. JSON is posted to it"
    )


class SweepConfig(Config):
    """A sweep file."""

    version: Literal[1] = Field(description="Version of this format")
    name: str = Field(pattern=NAME, description="Name of the sweep, of its folder and of its parent run")
    question: str = Field(min_length=1, description="The question that the sweep answers")
    reproduces: str | None = Field(
        None, min_length=1, description="What it reproduces, such as `Table 5, rows 2 to 10`"
    )
    trial: dict[str, Any] = Field(description="Settings that all trials share, nested or dotted")
    axes: dict[AxisName, Axis] = Field(
        default_factory=dict,
        description="Named cells, a list of values (the axis is named after their path), or a table",
    )
    grid: list[GridBlock] | None = Field(
        None, description="Union of blocks. Absent: the full product. `none`: a search without a grid"
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] | SeedsConfig = Field(
        description="Seeds, the replicates of every cell: a list, or `{planned: 10}` for 0 to 9"
    )
    looks: list[Annotated[int, Field(ge=3, le=MAX_COUNT)]] = Field(
        default_factory=list,
        description="Numbers of seeds after which the claims are judged, the last being all. Absent: only at the end",
    )
    failed: Literal["start", "worst", "leave_out"] = Field(
        "start",
        description="How a claim counts a seed that failed: as one that gained nothing, as one that gets every problem "
        "wrong, or not at all",
    )
    groups: dict[GroupName, GroupConfig] = Field(
        default_factory=dict, description="Groups of suites, whose means are metrics"
    )
    search: SearchConfig | None = Field(None, description="A phase before the grid, whose winners set the grid")
    early_stop: EarlyStopConfig | None = Field(None, description="When to end search trials early")
    guards: list[GuardConfig] = Field(
        default_factory=list,
        description="Bounds that fail a trial; by default, `rollout/mismatch_kl` above 1e-4 (0.1 in 16-bit precision)",
    )
    claims: list[ClaimConfig] = Field(
        default_factory=list, description="Expected results, written before the sweep runs"
    )
    published: list[PublishedConfig] = Field(
        default_factory=list, description="Published numbers that the report shows with those of the sweep"
    )
    allow_selection_on_test: bool = Field(
        False, description="Allow claims on metrics and seeds that also choose. The verdicts then say so"
    )
    resources: SweepResourceConfig = Field(default_factory=SweepResourceConfig, description="Resources of every trial")
    sharing: SharingConfig = Field(
        default_factory=SharingConfig, description="How it shares a cluster with other sweeps"
    )
    budget: BudgetConfig = Field(default_factory=BudgetConfig, description="When to stop, so that it can be resumed")
    faults: FaultsConfig = Field(default_factory=FaultsConfig, description="How often failures are retried")
    keep: KeepConfig = Field(default_factory=KeepConfig, description="How long finished trainings keep what is large")
    storage: str = Field("runs", min_length=1, description="Folder or fsspec URL of the trial store")
    user: str | None = Field(
        None, pattern=NAME, description="Who runs it, for `status --address` and MLflow. Absent: the login name"
    )
    project: str | None = Field(None, pattern=NAME, description="What it belongs to, for `status --address` and MLflow")
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig, description="Where MLflow shows the runs")
    notify: NotifyConfig | None = Field(None, description="Webhook to call when the sweep ends")

    _no_password = no_password("storage", hint=STORAGE_HINT)

    @field_validator("grid", mode="before")
    @classmethod
    def _none_is_no_block(cls, grid: Any) -> Any:
        if grid == []:
            raise ValueError("the grid has no block; write `none` for a search without a grid")
        return [] if grid == "none" else grid

    def named_cells(self) -> Iterator[tuple[str, str, CellConfig]]:
        """Yield axis, name and cell of every named cell."""
        for axis, cells in self.axes.items():
            if isinstance(cells, dict):
                yield from ((axis, name, cell) for name, cell in cells.items())

    @property
    def planned_seeds(self) -> tuple[int, ...]:
        """Return the seeds in the order in which looks count them."""
        return tuple(range(self.seeds.planned) if isinstance(self.seeds, SeedsConfig) else self.seeds)

    @property
    def stops_when_decided(self) -> bool:
        """Return whether a look that decides the claims ends the sweep."""
        return isinstance(self.seeds, SeedsConfig) and self.seeds.stop is not None

    @property
    def asks_for_gpus(self) -> bool:
        """Return whether any trial uses a GPU."""
        of_cells = [cell.resources for _, _, cell in self.named_cells()]
        return any(each.get("gpus") or each.get("gpu_gib") for each in (self.resources.model_dump(), *of_cells))
