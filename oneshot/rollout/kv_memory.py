"""Keys and values of all layers, in memory that is allocated once and laid out as rows x positions.

Each layer has a flat buffer for its keys and one for its values. A layout of R rows and L positions uses the beginning
of each as `[R, heads, L, D]`. When rows are dropped or need more positions, the live part moves to another layout in
the same memory. Addresses never change, so that the CUDA graphs of a layout stay valid.

Shapes: P prompts, B live rows, R rows and L positions of the layout, S positions of a prompt, D size of a head.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from oneshot.policy.kernels import named
from oneshot.policy.policy import Policy


@dataclass(slots=True)
class Layout:
    """Where the next keys and values are written, in every layer."""

    rows: int = 0
    length: int = 0  # positions of a row
    written: int = 0  # positions of a row that are written
    position_1: Tensor | None = None  # with fixed shapes, the position to write, which a graph reads
    prefill: tuple[slice, Tensor] | None = None  # the rows to write, and the prompt of each


class KvLayer(DynamicLayer):
    """One layer's keys and values, written in place."""

    def __init__(self, layout: Layout, num_positions: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self._layout = layout
        self._num_positions = num_positions
        self._buffers: list[tuple[Tensor, int, int]] = []  # flat, heads and size of a head

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write `[P, heads, S, D]` of prompts or `[B, heads, 1, D]` of a step; return what attention has to see."""
        layout, states = self._layout, (key_states, value_states)
        if not self._buffers:
            self._buffers = [self._allocate(new) for new in states]
        keys, values = self._views()
        if layout.prefill is not None:
            rows, prompt_B = layout.prefill
            start = layout.written - key_states.shape[2]
            for buffer, new in zip((keys, values), states, strict=True):
                buffer[rows, :, :start] = 0  # padding that no forward pass has written
                buffer[rows, :, start : layout.written] = new[prompt_B]
            return key_states, value_states
        if layout.position_1 is not None:
            keys.index_copy_(2, layout.position_1, key_states)
            values.index_copy_(2, layout.position_1, value_states)
            return keys, values
        end = layout.written + 1
        keys[:, :, layout.written : end] = key_states
        values[:, :, layout.written : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def _allocate(self, states: Tensor) -> tuple[Tensor, int, int]:
        heads, size = states.shape[1], states.shape[3]
        # attention at fixed shapes multiplies positions that are not written by 0, which must not be NaN
        make = states.new_empty if self._layout.position_1 is None else states.new_zeros
        return make(self._num_positions * heads * size), heads, size

    def _views(self) -> list[Tensor]:
        """Return keys and values as `[R, heads, L, D]`."""
        rows, length = self._layout.rows, self._layout.length
        return [
            flat[: rows * length * heads * size].view(rows, heads, length, size) for flat, heads, size in self._buffers
        ]

    def get_seq_length(self) -> int:
        """Return the number of positions before those that are computed now."""
        return 0 if self._layout.prefill is not None else self._layout.written

    def move(self, kept_B: Tensor, *, rows: int, length: int) -> None:
        """Move these rows, in this order, to another layout."""
        written = self._layout.written
        for view, (flat, heads, size) in zip(self._views(), self._buffers, strict=True):
            live = view[kept_B, :, :written]
            flat[: rows * length * heads * size].view(rows, heads, length, size)[: len(kept_B), :, :written] = live


class KvMemory:
    """The cache of a model with memory for a number of positions, over all rows together."""

    def __init__(self, policy: Policy, num_positions: int) -> None:
        self.num_positions = num_positions
        self.policy = policy
        self.layout = Layout()
        self._layers = [KvLayer(self.layout, num_positions) for _ in range(policy.model.config.num_hidden_layers)]
        self.cache = DynamicCache()
        self.cache.layers = list(self._layers)

    def fits(self, rows: int, length: int) -> bool:
        """Return whether a layout fits the memory."""
        return rows * length <= self.num_positions

    def begin(self, *, rows: int, length: int, written: int) -> None:
        """Begin a wave: `prefill` will write the first `written` positions of each row."""
        assert self.fits(rows, length), "more rows than there is memory for"
        self.layout.rows, self.layout.length, self.layout.written = rows, length, written

    def move(self, kept_B: Tensor, *, rows: int, length: int) -> None:
        """Keep these rows, in this order, in a layout of `rows` rows of `length` positions."""
        assert self.fits(rows, length), "more rows than there is memory for"
        for layer in self._layers:
            layer.move(kept_B, rows=rows, length=length)
        self.layout.rows, self.layout.length = rows, length

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Run the model on `[B, S]` tokens; return the hidden states of the last ones, `[B, H]`."""
        with named("decoding" if self.layout.prefill is None else "prefill", ids.device):
            hidden: Tensor = self.policy.model.base_model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
            ).last_hidden_state
        return hidden[:, -1]
