"""The rows that are decoded together -> the hidden states that predict their next tokens.

Each different prompt is computed once, a portion of prompts at a time, and written to its rows. Rows end at the same
position, so that shorter prompts are padded on the left. Prompts of equal length need no padding and no mask.

Shapes: P prompts of a portion, B live rows, S positions of a prompt, H hidden size.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from oneshot.models.memory import PREFILL_TOKENS
from oneshot.rollout.cuda_graphs import FixedStep, rounded_rows
from oneshot.rollout.kv_memory import KvMemory
from oneshot.rollout.rows import Row

LENGTH_STEP = 256
"""Positions by which the room of a row grows. Smaller steps waste less memory, and need more moves and CUDA graphs."""


def has_window(model: Any) -> bool:
    """Return whether layers may attend to a window only, and so need different masks."""
    return model.config.to_dict().get("sliding_window") is not None


class Wave:
    """Rows with a common number of positions, of which the memory holds the keys and values."""

    def __init__(self, memory: KvMemory, fixed: FixedStep | None, rows: Sequence[Row]) -> None:
        """Take the rows, those with the shortest prefix first."""
        prompts = [row.prefix for row in rows]
        self._memory, self._fixed, self._prompts = memory, fixed, prompts
        width = len(prompts[-1])
        device = memory.policy.device
        self._max_length = width + max(row.num_left for row in rows)
        self._start_B = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        self._is_padded = len(prompts[0]) < width
        num_rows, length = sizes(len(prompts), width + 1, limit=self._max_length, fixed=fixed is not None)
        memory.layout.position_1 = None if fixed is None else fixed.position_1
        memory.begin(rows=num_rows, length=length, written=width)
        if fixed is not None:
            fixed.begin(self._start_B)

    def prefill(self) -> Tensor:
        """Compute the prompts; return the hidden states that predict the rows' first tokens, `[B, H]`."""
        layout = self._memory.layout
        hidden = []
        for rows, prompts, prompt_of_row in _portions(self._prompts):
            prompt_B = torch.tensor(prompt_of_row, device=self._start_B.device)
            layout.prefill = rows, prompt_B
            hidden.append(self._prefill(prompts)[prompt_B])
        layout.prefill = None
        return torch.cat(hidden)

    def _prefill(self, prompts: list[tuple[int, ...]]) -> Tensor:
        policy = self._memory.policy
        width = len(prompts[-1])
        starts_P1 = torch.tensor([[width - len(prompt)] for prompt in prompts], device=policy.device)
        ids_PS = torch.tensor([[policy.pad_id] * (width - len(p)) + list(p) for p in prompts], device=policy.device)
        index_S = torch.arange(width, device=policy.device)
        is_token_PS = index_S >= starts_P1
        mask: Tensor | None = None
        if len(prompts[0]) < width and has_window(policy.model):
            mask = is_token_PS.long()  # from which the model makes a mask for each kind of layer
        elif len(prompts[0]) < width:
            # what a kernel gives for a position that attends to nothing may be NaN: padding attends to itself
            lags_SS = index_S[:, None] - index_S
            mask = ((lags_SS >= 0) & is_token_PS[:, None] | (lags_SS == 0))[:, None]
        return self._memory.forward(ids_PS, (index_S - starts_P1).clamp(min=0), mask)

    @property
    def is_full(self) -> bool:
        """Return whether the next step needs more room."""
        return self._memory.layout.written == self._memory.layout.length

    def max_rows(self, num_rows: int) -> int:
        """Return how many of `num_rows` rows the memory holds with the room that the next step needs."""
        written, fixed = self._memory.layout.written, self._fixed is not None
        while num_rows and not self._memory.fits(*sizes(num_rows, written + 1, limit=self._max_length, fixed=fixed)):
            num_rows -= 1
        return num_rows

    def keep(self, kept_B: Tensor) -> None:
        """Keep these rows, in this order, and give them room for the next step."""
        written, fixed = self._memory.layout.written, self._fixed
        rows, length = sizes(len(kept_B), written + 1, limit=self._max_length, fixed=fixed is not None)
        self._memory.move(kept_B, rows=rows, length=length)
        self._start_B = self._start_B[kept_B]
        if fixed is not None:
            fixed.begin(self._start_B)

    def step(self, tokens_B: Tensor) -> Tensor:
        """Process each row's token; return the hidden states that predict the next ones, `[B, H]`."""
        layout, memory = self._memory.layout, self._memory
        if self._fixed is not None:
            hidden_BH = self._fixed.run(
                memory.forward, tokens_B, layout.written, rows=layout.rows, length=layout.length
            )
        else:
            mask_BL = None
            if self._is_padded:
                index_L = torch.arange(layout.written + 1, device=tokens_B.device)
                mask_BL = (index_L >= self._start_B[:, None]).long()
            hidden_BH = memory.forward(tokens_B[:, None], layout.written - self._start_B[:, None], mask_BL)
        layout.written += 1
        return hidden_BH


def num_admitted(rows: Sequence[Row], memory: KvMemory, *, fixed: bool) -> int:
    """Return how many of the rows, shortest first, the memory holds with their first room; at least 1."""
    room, most = 0, 0
    for index, row in enumerate(rows):
        # what is computed again doubles before it can have to wait again
        room = max(room, min(max(LENGTH_STEP, len(row.tokens)), row.num_left))
        most, width = max(most, row.num_left), len(row.prefix)
        if index and not memory.fits(*sizes(index + 1, width + room, limit=width + most, fixed=fixed)):
            return index
    return len(rows)


def sizes(num_rows: int, num_positions: int, *, limit: int, fixed: bool) -> tuple[int, int]:
    """Return the rows and positions, at most `limit`, of a layout for `num_rows` rows of `num_positions`."""
    rows = rounded_rows(num_rows) if fixed else num_rows
    return rows, min(-(-num_positions // LENGTH_STEP) * LENGTH_STEP, limit)


def _portions(prompts: Sequence[tuple[int, ...]]) -> Iterator[tuple[slice, list[tuple[int, ...]], list[int]]]:
    """Yield ranges of rows, their different prompts and each row's prompt among these.

    With padding, the prompts of a portion have at most `PREFILL_TOKENS` tokens; a single prompt may have more.
    """
    start, different, prompt_of_row = 0, [prompts[0]], [0]
    for row in range(1, len(prompts)):
        if prompts[row] != different[-1]:
            if (len(different) + 1) * len(prompts[row]) > PREFILL_TOKENS:
                yield slice(start, row), different, prompt_of_row
                start, different, prompt_of_row = row, [], []
            different.append(prompts[row])
        prompt_of_row.append(len(different) - 1)
    yield slice(start, len(prompts)), different, prompt_of_row
