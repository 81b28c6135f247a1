"""The processes that share one trial, as one of them sees them: who it is, and what all of them know together.

What is decided from what all know is decided alike by all; what could turn out differently (a grader's deadline) is
decided by the first and told to the others. Tensors and objects travel through accelerate, on whose process group
`member.py` has agreed with the others before; alone, nothing travels.
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
    """One process among `size`."""

    accelerator: Accelerator

    @property
    def size(self) -> int:
        """How many processes there are."""
        number: int = self.accelerator.num_processes
        return number

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        number: int = self.accelerator.process_index
        return number

    @property
    def is_first(self) -> bool:
        """Whether this is the one that decides and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Every `size`-th item: this process' part of the work."""
        return list(items[self.rank :: self.size])

    def gather(self, mine: Iterable[T]) -> list[T]:
        """Everybody's items, the first process' first."""
        items = list(mine)
        return items if self.size == 1 else list(gather_object(items))

    def broadcast(self, value: T | None) -> T:
        """The first process' value."""
        if self.size > 1:
            (value,) = broadcast_object_list([value])
        assert value is not None, "the first process has a value"
        return value

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensor, of one shape."""
        if self.size == 1:
            return tensor
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """By name, the sum of everybody's values; a name that some do not have counts as 0 there."""
        every = self.gather([values])
        return {name: sum(one.get(name, 0.0) for one in every) for name in dict.fromkeys(chain.from_iterable(every))}

    def largest(self, value: float) -> float:
        """The largest of everybody's values."""
        return max(self.gather([value]))
