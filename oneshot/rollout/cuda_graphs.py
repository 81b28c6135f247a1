"""Decode steps at few fixed shapes -> CUDA graphs, which a GPU captures once and replays.

A step of few rows has hundreds of small kernels and takes as long as Python needs to launch them. The numbers of rows
and positions are therefore rounded up, everything that changes between steps is read from tensors at fixed addresses,
and each pair of sizes is captured at its first use. All graphs share one pool of memory, since they never run at the
same time. Without a GPU the same step runs uncaptured, for tests.

Shapes: B live rows, R rows and L positions of the layout, H hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Token ids `[R, 1]`, their positions `[R, 1]` and the mask `[R, 1, 1, L]` -> hidden states `[R, H]`."""

FEW_ROWS = 64
ROW_STEP = 16


def rounded_rows(num_rows: int) -> int:
    """Return a power of two up to 64 rows, a multiple of 16 beyond."""
    return 1 << (num_rows - 1).bit_length() if num_rows <= FEW_ROWS else -(-num_rows // ROW_STEP) * ROW_STEP


class FixedStep:
    """The inputs of decode steps at fixed addresses, and the graphs that read them."""

    def __init__(self, max_rows: int, *, device: torch.device) -> None:
        self.max_rows = max_rows
        self.position_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._ids_R1 = torch.zeros(max_rows, 1, dtype=torch.long, device=device)
        self._start_R1 = torch.zeros(max_rows, 1, dtype=torch.long, device=device)
        self._hidden_RH: Tensor | None = None
        self._graphs: dict[tuple[int, int], Any] = {}
        self._pool: Any = None

    def begin(self, start_B: Tensor) -> None:
        """Take the first position of each row that is not padding; rows beyond them attend to everything."""
        self._start_R1.zero_()
        self._start_R1[: len(start_B), 0] = start_B

    def run(self, forward: Forward, tokens_B: Tensor, position: int, *, rows: int, length: int) -> Tensor:
        """Process each row's token at a position of the layout; return the hidden states, `[B, H]`."""
        self._ids_R1[: len(tokens_B), 0] = tokens_B
        self.position_1.fill_(position)
        if not tokens_B.is_cuda:
            return self._step(forward, rows, length)[: len(tokens_B)]
        if (rows, length) not in self._graphs:
            self._graphs[rows, length] = self._capture(forward, rows, length)
        self._graphs[rows, length].replay()
        assert self._hidden_RH is not None, "no step was captured"
        return self._hidden_RH[: len(tokens_B)]

    def _step(self, forward: Forward, rows: int, length: int) -> Tensor:
        start_R1 = self._start_R1[:rows]
        index_L = torch.arange(length, device=self.position_1.device)
        mask_RL = (index_L <= self.position_1) & (index_L >= start_R1)
        return forward(self._ids_R1[:rows], self.position_1 - start_R1, mask_RL[:, None, None, :])

    def _capture(self, forward: Forward, rows: int, length: int) -> Any:
        """Capture the step after one plain run, since first calls initialise libraries."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            hidden_RH = self._step(forward, rows, length)
        torch.cuda.current_stream().wait_stream(side)
        if self._hidden_RH is None:
            self._hidden_RH = hidden_RH.new_empty(self.max_rows, hidden_RH.shape[1])
            self._pool = torch.cuda.graph_pool_handle()
        del hidden_RH
        graph = torch.cuda.CUDAGraph()
        # other threads of the process may use the GPU meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            # the result leaves the pool, so that the next graph can use all of it
            self._hidden_RH[:rows].copy_(self._step(forward, rows, length))
        return graph
