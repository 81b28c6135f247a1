"""Decode steps at few fixed shapes -> CUDA graphs, which a GPU captures once and replays.

A step of few rows has hundreds of small kernels and takes as long as Python needs to launch them. Rows are therefore
rounded up to a power of two and the cache's length to a multiple of `LENGTH_STEP`; everything that changes between
steps is read from tensors; each pair of sizes is captured at its first use. Without a GPU the same step runs
uncaptured, for tests.

Shapes: B rows, L positions of the cache, H hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LENGTH_STEP = 512  # positions by which the visible part of the cache grows


class FixedStep:
    """A decode step at few sizes, with its graphs. It never keeps `forward`: a cycle would keep the cache alive."""

    def __init__(self, start_B: Tensor, *, capacity: int) -> None:
        """Take the first position of each row that is not padding, and the cache's number of positions."""
        self._capacity = capacity
        self.position = torch.zeros(1, dtype=torch.long, device=start_B.device)
        self._ids_B1 = torch.zeros(len(start_B), 1, dtype=torch.long, device=start_B.device)
        self._start_B1 = start_B[:, None].clone()
        self._graphs: dict[tuple[int, int], tuple[Any, Tensor]] = {}

    def sizes(self, num_rows: int, position: int) -> tuple[int, int]:
        """Return the rounded numbers of rows and positions for a step of `num_rows` rows at `position`."""
        rows = min(1 << (num_rows - 1).bit_length(), len(self._ids_B1))
        length = min(-(-(position + 1) // LENGTH_STEP) * LENGTH_STEP, self._capacity)
        return rows, length

    def keep(self, kept_B: Tensor) -> None:
        """Move these rows to the front."""
        self._start_B1[: len(kept_B)] = self._start_B1[kept_B]

    def run(self, forward: Callable[..., Tensor], tokens_B: Tensor, position: int, size: tuple[int, int]) -> Tensor:
        """Process each row's token by `forward(ids_B1, positions_B1, mask_B11L)`; return hidden states, `[B, H]`."""
        self._ids_B1[: len(tokens_B), 0] = tokens_B
        self.position.fill_(position)
        if not tokens_B.is_cuda:
            return self._step(forward, *size)[: len(tokens_B)]
        if size not in self._graphs:
            self._graphs[size] = self._capture(forward, *size)
        graph, hidden_BH = self._graphs[size]
        graph.replay()
        return hidden_BH[: len(tokens_B)]

    def _step(self, forward: Callable[..., Tensor], rows: int, length: int) -> Tensor:
        start_B1 = self._start_B1[:rows]
        index_L = torch.arange(length, device=self.position.device)
        mask_BL = (index_L <= self.position) & (index_L >= start_B1)
        return forward(self._ids_B1[:rows], self.position - start_B1, mask_BL[:, None, None, :])

    def _capture(self, forward: Callable[..., Tensor], rows: int, length: int) -> tuple[Any, Tensor]:
        """Capture the step after one plain run, since first calls initialise libraries."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step(forward, rows, length)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads of the process may use the GPU meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            hidden_BH = self._step(forward, rows, length)
        return graph, hidden_BH
