"""What a trial needs, and what a sweep may use: the classes of `resources` and `budget`."""

import re
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from oneshot.config.fields import MAX_COUNT, MAX_FACTOR, MAX_GIB, Config

AcceleratorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
MAX_PRIORITY = 100


class ResourceConfig(Config):
    """The resources of one trial, and how the trial is spread over them."""

    cpus: float = Field(
        1,
        gt=0,
        le=MAX_COUNT,
        description="CPU cores. Torch's threads are shared evenly by the processes, at least 1 each",
    )
    gpus: float = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="GPUs of one trial. With a fraction, several trials share one GPU. With several GPUs, a trial has "
        "one process for each",
    )
    memory_gib: float | None = Field(None, gt=0, le=MAX_GIB, description="Host memory, reserved through Ray")
    accelerator: list[str] | None = Field(None, description="Accepted accelerator types, in Ray's names")
    gpu_gib: float | None = Field(
        None,
        gt=0,
        le=MAX_GIB,
        description="GPU memory for each process of a trial. Without `gpus`, the trial has this much of one GPU, of "
        "whatever size, and other trials may have the rest. Absent: all of its GPUs, which are as large as the "
        "smallest of `accelerator`, or else 79 (an 80 GB GPU)",
    )
    num_processes: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Processes that share one trial, on one node. Absent: one for each GPU"
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="How several processes share a trial. `ddp`: each holds the whole model. `fsdp`: each holds a "
        "shard of weights, gradients and optimiser. `auto`: `ddp` if the memory estimate fits the GPU, else `fsdp`",
    )
    cpu_offload: bool = Field(
        False, description="`fsdp`: keep shards and optimiser in host memory between uses, which is slow"
    )

    @property
    def processes(self) -> int:
        """Return the number of processes that share one trial."""
        return self.num_processes or max(1, int(self.gpus))

    @property
    def is_packed(self) -> bool:
        """Return whether its share of one GPU depends on the GPU's memory."""
        return False

    @property
    def threads(self) -> int:
        """Return the number of Torch's threads in each process."""
        return max(1, int(self.cpus / self.processes))

    @model_validator(mode="after")
    def _has_a_gpu_a_process(self) -> "ResourceConfig":
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus:g} is neither below 1 nor a whole number")
        if self.num_processes is not None and self.gpus and self.num_processes != max(1, self.gpus):
            raise ValueError(
                f"num_processes: {self.num_processes} with gpus {self.gpus:g}; each process has one GPU, so remove one "
                "of the two"
            )
        if self.gpu_gib is not None and not self.gpus and (self.num_processes or 1) > 1:
            raise ValueError(
                f"num_processes: {self.num_processes}, but gpu_gib without gpus is a share of one GPU; set gpus"
            )
        return self


class PackedResources(ResourceConfig):
    """The resources of a trial that has `gpu_gib` of one GPU; `gpus` is its share of the GPU that a plan assumes."""

    @property
    def is_packed(self) -> bool:
        """Return whether its share of one GPU depends on the GPU's memory."""
        return self.gpu_gib is not None


class SweepResourceConfig(ResourceConfig):
    """The resources of every trial, which a cell can override, and the number of trials that run at a time."""

    max_concurrent: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Largest number of trials that run at the same time. Absent: as many as fit",
    )


class SharingConfig(Config):
    """How a sweep shares a cluster with other sweeps that run there."""

    priority: int = Field(
        0,
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description="A sweep has what it asks for before any sweep of lower priority has something",
    )
    share: float = Field(
        1,
        gt=0,
        le=MAX_COUNT,
        description="Weight among sweeps of equal priority: with 2, it has twice the GPU-seconds of a sweep with 1",
    )
    max_gpus: float | None = Field(None, ge=1, le=MAX_COUNT, description="Most GPUs at a time. Absent: no limit")
    preemptible: bool = Field(
        False,
        description="Whether its trials make room for other sweeps: each saves a checkpoint, ends, and resumes later",
    )


class BudgetConfig(Config):
    """A limit at which a sweep stops with trials left. The same command resumes it."""

    gpu_hours: float | None = Field(
        None, gt=0, le=MAX_FACTOR, description="GPUs x hours held by all attempts of its trials"
    )
    cost: float | None = Field(
        None, gt=0, le=MAX_FACTOR, description="Price of all GPU-hours held, in the currency of `price_per_gpu_hour`"
    )
    price_per_gpu_hour: dict[AcceleratorName, Annotated[float, Field(gt=0, le=MAX_FACTOR)]] = Field(
        default_factory=dict,
        description="Price of an hour of one GPU, by Ray's name for its type, such as `{H100: 2.5}`. A type that is "
        "not named counts as the most expensive one",
    )
    until: str | None = Field(
        None, description="Time on the driver's clock, such as 08:00 (the next one) or 2026-12-01T08:00"
    )

    @field_validator("until", mode="before")
    @classmethod
    def _is_a_time(cls, until: Any) -> Any:
        form = r"([01]\d|2[0-3]):[0-5]\d|\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d"
        with suppress(TypeError, ValueError):  # no text, or no day of the calendar, such as 2026-02-30
            if until is None or (re.fullmatch(form, until) and deadline(until, datetime.min)):
                return until
        raise ValueError(f"{str(until)!r} is not a time; write it as 08:00 or 2026-12-01T08:00")

    @model_validator(mode="after")
    def _has_prices(self) -> "BudgetConfig":
        if (self.cost is None) == bool(self.price_per_gpu_hour):
            here, missing = ("price_per_gpu_hour", "cost") if self.cost is None else ("cost", "price_per_gpu_hour")
            raise ValueError(f"{here} has no effect without {missing}; set both, such as cost: 500 and {{H100: 2.5}}")
        return self

    def price(self, accelerator: str) -> float:
        """Return the price of one GPU for an hour; 0 if there are no prices."""
        return self.price_per_gpu_hour.get(accelerator, max(self.price_per_gpu_hour.values(), default=0.0))

    def limits(self, now: datetime | None = None) -> dict[str, float | None]:
        """Return the limits in GPU-hours, at the highest price, and in hours from now."""
        now = now or datetime.now()
        hours = None if self.until is None else (deadline(self.until, now) - now).total_seconds() / 3600
        affordable = None if self.cost is None else self.cost / self.price("")
        most = min((limit for limit in (self.gpu_hours, affordable) if limit is not None), default=None)
        return {"gpu_hours": most, "hours": hours}


def deadline(until: str, now: datetime) -> datetime:
    """Return the next time that a clock shows `08:00`, or the time of a full date."""
    if "T" in until:
        return datetime.fromisoformat(until)
    hour, minute = map(int, until.split(":"))
    today = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)
