"""Settings -> AdamW."""

from collections.abc import Iterable

import torch
from torch.nn import Parameter

from oneshot.config.trial import OptimConfig


def adamw(parameters: Iterable[Parameter], config: OptimConfig, *, lr: float) -> torch.optim.AdamW:
    """Return an AdamW with the trial's settings and a learning rate of its own."""
    return torch.optim.AdamW(
        parameters,
        lr=lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
