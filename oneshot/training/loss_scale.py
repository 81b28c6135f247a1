"""The factor by which the loss is multiplied in float16, so that small gradients do not become 0.

A gradient that is too large for float16 becomes infinite. Then the optimiser step is skipped and the scale halved. The
defaults are those of torch's `GradScaler`.
"""

from dataclasses import dataclass

from oneshot.config.model import ModelConfig

FIRST, LOWEST = 2.0**16, 1.0
GROWTH_INTERVAL = 2000  # optimiser steps in a row without overflow, after which the scale doubles


@dataclass(slots=True, kw_only=True)
class LossScale:
    """The scale, which may change after each optimiser step in float16 and is 1 in other precisions."""

    value: float
    is_used: bool
    num_finite: int = 0  # optimiser steps in a row without overflow

    @classmethod
    def of(cls, config: ModelConfig) -> "LossScale":
        """Return the scale before the first optimiser step."""
        is_used = config.mixed_precision == "fp16"
        return cls(value=FIRST if is_used else 1.0, is_used=is_used)

    @property
    def can_fall(self) -> bool:
        """Return whether a smaller scale may give a finite gradient."""
        return self.is_used and self.value > LOWEST

    def update(self, *, is_finite: bool) -> None:
        """Halve the scale after an overflow, and double it after many finite gradients."""
        if not self.is_used:
            return
        self.num_finite = self.num_finite + 1 if is_finite else 0
        if not is_finite:
            self.value /= 2
        elif self.num_finite == GROWTH_INTERVAL:
            self.value, self.num_finite = self.value * 2, 0
