"""A phase of a trial at its first use -> a line in the log with the attention kernels that torch has chosen."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

log = logging.getLogger(__name__)

_named: set[tuple[str, str]] = set()


class _AttentionOperators(TorchDispatchMode):
    """The names of attention operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Note the operator's name, and call it."""
        if "attention" in func.name() or "_attn" in func.name():
            self.names.add(func.name().split("::")[1].split(".")[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def named(phase: str, device: torch.device) -> Iterator[None]:
    """Log the attention operators that are called within, at the first use of `phase` in this process."""
    if (phase, device.type) in _named:
        yield
        return
    _named.add((phase, device.type))
    with _AttentionOperators() as operators:
        yield
    names = ", ".join(sorted(operators.names)) or "no operator of torch's"
    log.info("attention in %s on %s: %s", phase, device.type, names)
