"""The processes that share one trial -> their collective operations, through accelerate.

All processes make the same decisions from shared values. What could differ between them (a grader's deadline) is
decided by the first and broadcast. `training/worker.py` sets the process group up; a single process communicates
nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from accelerate.accelerator import Accelerator
from accelerate.utils.operations import broadcast_object_list, gather_object
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a trial, as one of them sees them."""

    accelerator: Accelerator
    num_partners: int = 1
    """Processes that share one rollout engine, and so a share of the completions."""

    @property
    def size(self) -> int:
        """Return the number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Return this process' number, from 0."""
        return int(self.accelerator.process_index)

    @property
    def is_first(self) -> bool:
        """Return whether this process decides and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Return the share of the items that this process' engine generates for: every so many-th."""
        return list(items[self.rank // self.num_partners :: self.size // self.num_partners])

    @property
    def reports(self) -> bool:
        """Return whether this process' completions count; its partners have the same."""
        return self.rank % self.num_partners == 0

    def gather(self, items: Iterable[T]) -> list[T]:
        """Return the items of all processes, in order of rank."""
        own = list(items)
        return own if self.size == 1 else list(gather_object(own))

    def broadcast(self, value: T | None) -> T:
        """Return the first process' value."""
        if self.size > 1:
            (value,) = broadcast_object_list([value])
        assert value is not None, "the first process has a value"
        return value

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors, which have one shape."""
        if self.size == 1:
            return tensor
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sum of each named value over all processes; a missing name counts as 0."""
        dicts = self.gather([values])
        return {name: sum(d.get(name, 0.0) for d in dicts) for name in dict.fromkeys(chain.from_iterable(dicts))}

    def largest(self, value: float) -> float:
        """Return the largest value of all processes."""
        return max(self.gather([value]))
