"""A trial -> what it needs of each GPU's memory, and so how it is spread over processes."""

from typing import Literal

from oneshot.config import TrialConfig
from oneshot.sweepconfig import ResourceConfig

Strategy = Literal["single", "ddp", "fsdp"]
"""One process; several with the whole model each; several with a shard each."""


def choose_strategy(config: TrialConfig, resources: ResourceConfig) -> Strategy:
    """How a trial is spread: as its resources say, or by what fits."""
    if resources.processes == 1:
        return "single"
    return "ddp" if resources.strategy == "auto" else resources.strategy
