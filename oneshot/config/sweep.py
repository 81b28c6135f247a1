"""What a sweep file may say: every key typed, bounded and described once, and nothing that runs."""

import logging
import math
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from oneshot.config.trial import Config

logger = logging.getLogger(__name__)

Scalar = str | int | float | bool
AxisName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.\-]*$")]
CellName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-+ ]+$")]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_\-]*$"
"""What a sweep may be called: it names a folder, a run and a job."""


class ResourceConfig(Config):
    """What one trial holds while it runs, and how it is spread over that."""

    cpus: float = Field(1, gt=0, description="cores; also torch's threads, evenly over processes (at least 1 each)")
    gpus: float = Field(
        0, ge=0, description="a share packs several trials on one GPU; several make one trial of as many processes"
    )
    memory_gib: float | None = Field(None, gt=0, description="host memory, reserved through Ray")
    accelerator: list[str] | None = Field(None, description="accelerator types that will do, as Ray names them")
    gpu_gib: float | None = Field(
        None,
        gt=0,
        description="of one GPU, for the plan; absent: by `accelerator`, else 79, of 80 GB",
    )
    num_processes: int | None = Field(
        None, ge=1, description="processes that share one trial, on one node; absent: one a GPU"
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="of several processes. ddp: each holds the whole model; fsdp: each holds a shard of weights, "
        "gradients and optimiser; auto: ddp if that fits the GPU by the memory estimate, else fsdp",
    )
    cpu_offload: bool = Field(False, description="fsdp: shards and optimiser wait in host memory, which is slow")

    @property
    def processes(self) -> int:
        """How many processes share one trial."""
        return self.num_processes or max(1, int(self.gpus))

    @property
    def threads(self) -> int:
        """Torch's threads in each of them."""
        return max(1, int(self.cpus / self.processes))

    @model_validator(mode="after")
    def _has_a_gpu_a_process(self) -> "ResourceConfig":
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus:g} is neither a share of one GPU nor a whole number of them")
        if self.num_processes is not None and self.gpus and self.num_processes != max(1, self.gpus):
            raise ValueError(
                f"num_processes: {self.num_processes} with gpus {self.gpus:g}: each process has one GPU; leave one of "
                "the two out"
            )
        return self


class SweepResourceConfig(ResourceConfig):
    """Resources of every trial, unless its cell says otherwise, and how many run at a time."""

    max_concurrent: int | None = Field(None, ge=1, description="absent: as many as fit")


class CostConfig(Config):
    """What is known or assumed of a trial's speed, for the plan."""

    step_s: float | None = Field(None, gt=0, description="seconds a step; absent: measured in the store, or estimated")
    mean_tokens: int | None = Field(
        None, ge=1, description="expected length of a completion; absent: 900, or max_tokens where that is less"
    )


class FromRankConfig(Config):
    """Cells that a ranking names: `<cell>#1`, `<cell>#2` ... its top, `#last1` ... its end, `#random1` ... others."""

    history: str = Field(min_length=1, description="a sweep of the same storage, or a .json file")
    set: str = Field("dsr_sub", min_length=1, description="of which a file's numbers are rows")
    by: Literal["historical_variance", "lim", "pass_rate", "random"] = Field(
        "historical_variance", description="pass_rate: of those within `band` at the first visit, nearest to its middle"
    )
    band: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[0.0, 1.0], min_length=2, max_length=2, description="lowest and highest pass rate"
    )
    top: int = Field(0, ge=0, description="examples from the top")
    bottom: int = Field(0, ge=0, description="... from the end")
    random: int = Field(0, ge=0, description="... from those between, drawn by `seed`")
    seed: int = Field(0, ge=0, description="of that draw, and of by: random")
    together: bool = Field(False, description="one cell that trains on all of them, in place of a cell for each")

    @model_validator(mode="after")
    def _asks_for_some(self) -> "FromRankConfig":
        if not self.top + self.bottom + self.random:
            raise ValueError("from_rank: asks for no example; set top, bottom or random")
        return self


class RangeConfig(Config):
    """What a search may give a path: numbers from low to high (whole where the path's are), or a choice of values."""

    low: int | float | None = Field(None, description="smallest number")
    high: int | float | None = Field(None, description="largest, itself in the range")
    log: bool = Field(False, description="drawn evenly in the logarithm")
    choice: list[Any] | None = Field(None, min_length=2, description="or values to choose from")

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
                raise ValueError("a range has either low and high, or choice")
            if any(isinstance(value, dict | list) for value in self.choice):
                raise ValueError("a choice is of single values, not lists or mappings")
            if len({(isinstance(value, bool), value) for value in self.choice}) != len(self.choice):
                raise ValueError("a choice stands twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("a range has low and high, or choice")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm; set it above 0, or leave log out")
        return self

    def __str__(self) -> str:
        if self.choice is not None:
            return f"one of {', '.join(map(repr, self.choice))}"
        return f"from {self.low:g} to {self.high:g}{' (log)' if self.log else ''}"

    def holds(self, value: Any) -> bool:
        """Whether the search may give this value."""
        if self.choice is not None:
            return any(type(value) is type(one) and value == one for one in self.choice)
        assert self.low is not None and self.high is not None
        is_whole = isinstance(self.low, int) and isinstance(self.high, int)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high and (not is_whole or isinstance(value, int))


class ObjectiveConfig(Config):
    """What a search makes large or small: a metric, averaged over a point's cells and seeds."""

    metric: str = Field(min_length=1, description="as eval/arithmetic-val/pass_at_1")
    mode: Literal["max", "min"] = Field("max", description="which way is better")
    at: Literal["last", "best"] = Field("last", description="the metric's last value, or its best on the way")


class ConstraintConfig(Config):
    """What a point must keep to, by its mean over cells and seeds, in order to win."""

    metric: str = Field(min_length=1, description="its last value counts")
    max: float | None = Field(None, description="largest value allowed")
    min: float | None = Field(None, description="smallest value allowed")

    @model_validator(mode="after")
    def _one_side(self) -> "ConstraintConfig":
        if (self.max is None) == (self.min is None):
            raise ValueError("a constraint has either max or min")
        return self


class SamplerConfig(Config):
    """How points are chosen."""

    kind: Literal["tpe", "random"] = Field("tpe", description="Optuna's TPE sampler, or independent draws")
    seed: int = Field(0, ge=0, description="of the sampler; not a trial's")
    num_startup: int = Field(10, ge=1, description="tpe: points drawn at random before it models anything")


class SearchConfig(Config):
    """A phase before the grid: one study for each cell of the `per` axes, whose winner sets that part of the grid."""

    per: list[str] = Field(default_factory=list, description="axes of which every cell has a study of its own")
    on: dict[str, Any] = Field(
        default_factory=dict, description="cells of the other axes that are tuned on; an axis left out: all its cells"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="settings of search trials, above their cells'")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, description="a point is tried with each, and told their mean; other seeds than the grid's"
    )
    num_trials: int = Field(ge=1, description="points a study; each is one trial a cell and seed")
    parallel: int = Field(
        2,
        ge=1,
        description="points under way at a time: a point is chosen knowing all results but those of the last "
        "`parallel` - 1, whenever those come, so that a study is the same however it is interrupted",
    )
    objective: ObjectiveConfig = Field(description="what is made large or small")
    space: dict[str, RangeConfig] = Field(min_length=1, description="path -> {low, high, log} or {choice: [...]}")
    warm_start: list[dict[str, Any]] = Field(
        default_factory=list, description="points to begin with; paths left out are sampled"
    )
    constraint: ConstraintConfig | None = Field(None, description="a point that breaks it cannot win")
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="how points are chosen")


class EarlyStopConfig(Config):
    """Ends search trials that lag behind others of their group; grid trials are never cut."""

    kind: Literal["asha", "median"] = Field(
        description="asha: at steps grace_steps x factor^k the best 1/factor go on; median: a trial ends whose best is "
        "worse than the median of the others' means so far"
    )
    per: list[str] | None = Field(None, description="axes within whose cells trials are compared; absent: search.per")
    metric: str | None = Field(None, min_length=1, description="absent: the objective's")
    grace_steps: int = Field(ge=1, description="no trial ends before")
    factor: float = Field(3, ge=1.1, description="asha: one in `factor` goes on")
    min_trials: int = Field(3, ge=1, description="median: so many others must have come as far")


class GuardConfig(Config):
    """A bound that a trial may not break: it fails with the reason, and is not tried again."""

    metric: str = Field(min_length=1, description="as rollout/entropy; a step without it is not looked at")
    is_: Literal["nan"] | None = Field(None, alias="is", description="not a finite number")
    above: float | None = Field(None, description="larger than this")
    below: float | None = Field(None, description="smaller than this")
    for_steps: int = Field(1, ge=1, description="in so many steps one after another")

    @model_validator(mode="after")
    def _one_bound(self) -> "GuardConfig":
        if sum(bound is not None for bound in (self.is_, self.above, self.below)) != 1:
            raise ValueError("a guard has one of `is: nan`, `above` and `below`")
        return self


class ExpectConfig(Config):
    """What a claim says of the difference a - b."""

    greater_by: float | None = Field(None, description="more than this")
    less_by: float | None = Field(None, description="less by more than this")
    within: float | None = Field(None, gt=0, description="no further from 0 than this")

    @model_validator(mode="after")
    def _one_relation(self) -> "ExpectConfig":
        if sum(bound is not None for bound in (self.greater_by, self.less_by, self.within)) != 1:
            raise ValueError("expect has one of greater_by, less_by and within")
        return self


class PowerConfig(Config):
    """What `plan` assumes where it says how small a difference a claim could show."""

    seed_sd: float = Field(0.02, ge=0, le=1, description="SD of the difference between seeds; 0.02 is two points")
    discordance: float = Field(0.3, gt=0, le=1, description="share of problems on which one side alone is right")
    effect: float | None = Field(None, gt=0, description="a difference whose chance to be shown is asked")


class ClaimConfig(Config):
    """A comparison of two selections, written down before the run."""

    name: str = Field(min_length=1, description="what it says")
    metric: str = Field(min_length=1, description="as eval/math500/pass_at_1")
    of: Literal["value", "gain"] = Field("value", description="the metric, or its change since the start")
    a: dict[str, Any] = Field(
        description="axis -> cell or list of cells, and `at`: start, last, best (on `val`) or saturation"
    )
    b: dict[str, Any] = Field(description="what it is compared with; an axis left out is as in `a`")
    for_each: list[str] = Field(default_factory=list, description="axes with a verdict for every cell")
    for_all: list[str] = Field(
        default_factory=list, description="axes on every cell of which it must hold: one verdict, the weakest cell's"
    )
    categories: Literal["all", "trained", "untrained"] = Field(
        "all", description="of the suite's problems: those of the examples' categories, or the others"
    )
    expect: ExpectConfig = Field(description="of the difference a - b")
    power: PowerConfig = Field(default_factory=PowerConfig, description="what `plan` assumes")


class PublishedRow(Config):
    """One line of a published table."""

    cell: dict[str, Any] = Field(default_factory=dict, description="axis -> cell that it stands beside")
    at: Literal["start", "last"] = Field("last", description="before training, or after")
    values: list[float | None] = Field(min_length=1, description="accuracies, 0 to 1, one a column; null where none is")


class PublishedConfig(Config):
    """Numbers that others published, to stand beside the sweep's own."""

    by: str = Field(min_length=1, description="whom, and where")
    how: str = Field(min_length=1, description="how they came about, as `best checkpoint on the test set, one seed`")
    columns: list[str] = Field(min_length=1, description="suites; pass@1")
    rows: list[PublishedRow] = Field(min_length=1, description="a line for each cell")

    @model_validator(mode="after")
    def _is_a_table(self) -> "PublishedConfig":
        for number, row in enumerate(self.rows):
            if len(row.values) != len(self.columns):
                raise ValueError(f"row {number} has {len(row.values)} values for {len(self.columns)} columns")
            if any(value is not None and not 0 <= value <= 1 for value in row.values):
                raise ValueError(f"row {number}: an accuracy is between 0 and 1; write 72.8 percent as 0.728")
        return self


class BudgetConfig(Config):
    """When a sweep stops, resumably, though trials are left."""

    gpu_hours: float | None = Field(None, gt=0, description="GPUs x hours that its trials have held, all attempts")
    until: str | None = Field(None, description="a time of day on the driver's clock, as 08:00, or 2026-12-01T08:00")

    @field_validator("until", mode="before")
    @classmethod
    def _is_a_time(cls, until: Any) -> Any:
        form = r"([01]\d|2[0-3]):[0-5]\d|\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d"
        if until is not None and not (isinstance(until, str) and re.fullmatch(form, until) and _is_in_calendar(until)):
            raise ValueError(f"{str(until)!r} is no time; write it as 08:00 or 2026-12-01T08:00")
        return until

    def limits(self, now: datetime | None = None) -> dict[str, float | None]:
        """GPU-hours, and hours from now."""
        end = None if self.until is None else deadline(self.until, now or datetime.now())
        hours = None if end is None else (end - (now or datetime.now())).total_seconds() / 3600
        return {"gpu_hours": self.gpu_hours, "hours": hours}


def _is_in_calendar(until: str) -> bool:
    try:
        deadline(until, datetime.min)
    except ValueError:  # as 2026-02-30
        return False
    return True


def deadline(until: str, now: datetime) -> datetime:
    """The next time that a clock shows `08:00`; a date stands for itself."""
    if "T" in until:
        return datetime.fromisoformat(until)
    hour, minute = map(int, until.split(":"))
    today = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)


class FaultsConfig(Config):
    """How often a training is tried again, by what it failed of; input that is wrong and guards: never."""

    retries: int = Field(2, ge=0, description="after a crash or a stall")
    node_retries: int = Field(8, ge=0, description="after its node was lost")
    oom_retries: int = Field(2, ge=0, description="out of memory: each time with half the micro-batch")
    stall_s: float = Field(1800, gt=0, description="without a report for so long a trial is taken to hang, and killed")
    same_failure_limit: int = Field(
        3, ge=2, description="stop the sweep when its first N trainings all failed for the same reason"
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


STORAGE_HINT = "set what fsspec's driver reads from the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
MLFLOW_HINT = "name an MLflow server, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"


def without_password(url: str | None, mend: str) -> str | None:
    """The URL itself.

    Raises:
        ValueError: it says a password, which would be logged and kept.
    """
    if url is not None and has_password(url):
        raise ValueError(f"a password does not belong into a URL, which is logged and kept; {mend}")
    return url


def has_password(url: str) -> bool:
    """Whether a URL says a user's password."""
    return re.search(r"://[^@?#\s/]*:(?!\d+/)[^@?#\s]*@", url) is not None


class CellConfig(Config):
    """A named cell of an axis: its own settings, and what it needs."""

    set: dict[str, Any] = Field(default_factory=dict, description="any TrialConfig field, nested or dotted")
    from_rank: FromRankConfig | None = Field(None, description="makes one cell of each example that a ranking names")
    resources: dict[str, Any] = Field(default_factory=dict, description="overrides of `resources`")
    search: dict[str, RangeConfig] = Field(default_factory=dict, description="ranges in place of search.space's")
    cost: CostConfig | None = Field(None, description="for the plan")
    labels: dict[str, str] = Field(default_factory=dict, description="facts for reports, as category: Algebra")


class TableConfig(Config):
    """A table axis: columns are paths, each row is a cell."""

    columns: list[str] = Field(min_length=1, description="TrialConfig paths")
    rows: dict[CellName, list[Any]] = Field(min_length=1, description="cell name -> one value a column")


class GridBlock(Config):
    """One block of the grid: selectors by axis name, and settings on top."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    set: dict[str, Any] = Field(default_factory=dict, description="overrides what axis cells set")


class MlflowConfig(Config):
    """Where runs are shown."""

    tracking_uri: str | None = Field(None, description="absent: sqlite in a local storage folder")
    experiment: str | None = Field(None, min_length=1, description="absent: the sweep's name")

    @field_validator("tracking_uri")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        return without_password(uri, MLFLOW_HINT)


class NotifyConfig(Config):
    """Who is told when the sweep ends."""

    webhook_env: str = Field(min_length=1, description="environment variable that holds a URL; JSON is posted to it")


class SweepConfig(Config):
    """A sweep file."""

    version: Literal[1] = Field(description="of this format")
    name: str = Field(pattern=NAME, description="names the sweep's folder and parent run")
    question: str = Field(min_length=1, description="what the sweep asks")
    reproduces: str | None = Field(None, min_length=1, description="what it repeats, as `Table 5, rows 2 to 10`")
    trial: dict[str, Any] = Field(description="any TrialConfig field, nested or dotted; the same for every trial")
    axes: dict[AxisName, list[Scalar] | TableConfig | dict[CellName, CellConfig]] = Field(
        default_factory=dict, description="named cells, a list of values (the axis is the path), or a table"
    )
    grid: list[GridBlock] | None = Field(
        None, description="union of blocks; absent: the full product; `none`: a search and no grid"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="replicates of every cell")
    search: SearchConfig | None = Field(None, description="a phase before the grid; its winner sets the grid")
    early_stop: EarlyStopConfig | None = Field(None, description="of search trials")
    guards: list[GuardConfig] = Field(default_factory=list, description="what fails a trial")
    claims: list[ClaimConfig] = Field(default_factory=list, description="what is expected, written before the run")
    published: list[PublishedConfig] = Field(
        default_factory=list, description="others' numbers, which the report shows beside the sweep's"
    )
    allow_selection_on_test: bool = Field(
        False, description="let a claim be about a metric, or a seed, that also chose; verdicts say so"
    )
    resources: SweepResourceConfig = Field(default_factory=SweepResourceConfig, description="of every trial")
    budget: BudgetConfig = Field(default_factory=BudgetConfig, description="when to stop, resumably")
    faults: FaultsConfig = Field(default_factory=FaultsConfig, description="what is tried again")
    storage: str = Field("runs", min_length=1, description="folder or fsspec URL of the trial store")
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig, description="where runs are shown")
    notify: NotifyConfig | None = Field(None, description="who is told when the sweep ends")

    @field_validator("storage")
    @classmethod
    def _no_password(cls, storage: str) -> str | None:
        return without_password(storage, STORAGE_HINT)

    @field_validator("grid", mode="before")
    @classmethod
    def _none_is_no_block(cls, grid: Any) -> Any:
        if grid == []:
            raise ValueError("no block; write `none` for a search without a grid")
        return [] if grid == "none" else grid

    def named_cells(self) -> Iterator[tuple[str, str, CellConfig]]:
        """Axis, name and cell of every named cell."""
        for axis, cells in self.axes.items():
            if isinstance(cells, dict):
                yield from ((axis, name, cell) for name, cell in cells.items())

    @property
    def asks_for_gpus(self) -> bool:
        """Whether any trial may."""
        return bool(self.resources.gpus or any(cell.resources.get("gpus") for _, _, cell in self.named_cells()))
