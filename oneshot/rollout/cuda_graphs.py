"""One decode step at fixed shapes, which a GPU captures once and replays as one graph.

A step of few rows is some hundred small kernels, and takes a GPU as long as Python takes to launch them. So rows are
rounded up to a power of two and the cache's length to a multiple of `LENGTH_STEP`, everything that changes from step to
step is read from tensors, and each pair of sizes is captured when it is first met. Without a GPU the same step runs
uncaptured, which is how it is tested.

Shapes: B rows, L positions of the cache, H hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LENGTH_STEP = 512
"""Positions by which the part of the cache that a step looks at grows."""


class FixedStep:
    """Runs `forward(ids_B1, positions_B1, mask_B11L)` at few sizes."""

    def __init__(self, forward: Callable[[Tensor, Tensor, Tensor], Tensor], start_B: Tensor, *, capacity: int) -> None:
        """Takes the first position of each row that is not padding, and how many positions there can be."""
        self._forward, self._capacity = forward, capacity
        self.position = torch.zeros(1, dtype=torch.long, device=start_B.device)
        self._ids_B1 = torch.zeros(len(start_B), 1, dtype=torch.long, device=start_B.device)
        self._start_B1 = start_B[:, None].clone()
        self._graphs: dict[tuple[int, int], tuple[Any, Tensor]] = {}

    def sizes(self, num_rows: int, position: int) -> tuple[int, int]:
        """Rows and positions that a step of so many rows at this position works on."""
        rows = min(1 << (num_rows - 1).bit_length(), len(self._ids_B1))
        length = min(-(-(position + 1) // LENGTH_STEP) * LENGTH_STEP, self._capacity)
        return rows, length

    def keep(self, kept_B: Tensor) -> None:
        """Moves these rows to the front."""
        self._start_B1[: len(kept_B)] = self._start_B1[kept_B]

    def run(self, tokens_B: Tensor, position: int, size: tuple[int, int]) -> Tensor:
        """Each row's token at this position of the cache, at these `sizes`; the hidden states after it, `[B, H]`."""
        self._ids_B1[: len(tokens_B), 0] = tokens_B
        self.position.fill_(position)
        if not tokens_B.is_cuda:
            return self._step(*size)[: len(tokens_B)]
        if size not in self._graphs:
            self._graphs[size] = self._captured(*size)
        graph, hidden_BH = self._graphs[size]
        graph.replay()
        return hidden_BH[: len(tokens_B)]

    def _step(self, rows: int, length: int) -> Tensor:
        start_B1 = self._start_B1[:rows]
        index_L = torch.arange(length, device=self.position.device)
        mask_BL = (index_L <= self.position) & (index_L >= start_B1)
        return self._forward(self._ids_B1[:rows], self.position - start_B1, mask_BL[:, None, None, :])

    def _captured(self, rows: int, length: int) -> tuple[Any, Tensor]:
        """Runs the step once as it is, since first calls set up libraries, and once for the graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step(rows, length)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hidden_BH = self._step(rows, length)
        return graph, hidden_BH
