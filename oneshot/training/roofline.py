"""A step's tokens -> the seconds that its matrix products alone need on this machine.

`perf/efficiency` is this floor divided by the measured time. It counts what no engine can leave out: each prompt once,
and each completion token once in the rollout, once forward and backward in the update, and once forward in the
reference if there is one (2 operations per weight and token forward, 4 backward: Kaplan et al., arXiv 2001.08361,
section 2.1). The trial's process times the products of the model's own weights, with as many rows as a decode step or a
micro-batch has. Attention, norms, sampling and the optimiser are left out. The floor is therefore below what is
reachable, most of all for models with small layers.
"""

import time
from typing import Any, Literal

import torch
from torch import Tensor

Phase = Literal["forward", "backward"]

MAX_ROWS = {"cpu": 1024, "cuda": 8192}  # largest number of rows of a timed product: the rate hardly rises beyond
NUM_TRIES = 3


class Floor:
    """The matrix products of one model, timed at their first use."""

    def __init__(self, model: Any) -> None:
        """Take a causal language model; embeddings are looked up, not multiplied, and experts are not counted."""
        embedding, self._head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        self._body = [p for p in model.parameters() if p.dim() == 2 and p is not embedding and p is not self._head]
        self._seconds: dict[tuple[Phase, int], tuple[float, float]] = {}

    @property
    def can_measure(self) -> bool:
        """Return whether this process has the weights: with fsdp and an engine of its own, none has."""
        size: int = self._head.untyped_storage().nbytes()
        return size > 0

    def flops(self, *, body_tokens: int, head_tokens: int) -> float:
        """Return the operations of the forward products; those of the backward products are twice as many."""
        body: int = sum(p.numel() for p in self._body)
        head: int = self._head.numel()
        return 2.0 * (body * body_tokens + head * head_tokens)

    def step_s(
        self, *, prompt_tokens: int, completion_tokens: int, decode_rows: int, update_rows: int, with_reference: bool
    ) -> float:
        """Return the seconds of one step's products: rollout, update, and reference if there is one."""

        def seconds(phase: Phase, rows: int) -> float:
            body_s, head_s = self.token_s(phase, rows)
            return body_s * (prompt_tokens + completion_tokens) + head_s * completion_tokens

        forward = seconds("forward", update_rows) * (1 + int(with_reference))
        return seconds("forward", decode_rows) + forward + seconds("backward", update_rows)

    def token_s(self, phase: Phase, rows: int) -> tuple[float, float]:
        """Return the seconds per token of the body's and of the head's products, with `rows` tokens at a time."""
        rows = min(rows, MAX_ROWS[self._head.device.type])
        rows = 1 << (rows.bit_length() - 1)  # rounded down to a power of two, so that few sizes are timed
        if (phase, rows) not in self._seconds:
            body_s, head_s = _best_s(self._body, phase, rows), _best_s([self._head], phase, rows)
            self._seconds[phase, rows] = body_s / rows, head_s / rows
        return self._seconds[phase, rows]


@torch.no_grad()
def _best_s(weights: list[Tensor], phase: Phase, rows: int) -> float:
    """Return the shortest time of a few passes over weights `[out, in]`, without allocation in between."""
    if not weights:
        return 0.0
    widest, largest = max(max(weight.shape) for weight in weights), max(weight.numel() for weight in weights)
    left, right, gradient = (weights[0].new_ones(size) for size in (rows * widest, rows * widest, largest))
    best_s = float("inf")
    for _ in range(NUM_TRIES):
        start_s = time.perf_counter()
        for weight in weights:
            num_out, num_in = weight.shape
            inputs, outputs = left[: rows * num_in].view(rows, num_in), right[: rows * num_out].view(rows, num_out)
            if phase == "forward":
                torch.mm(inputs, weight.T, out=outputs)
            else:
                torch.mm(outputs, weight, out=inputs)
                torch.mm(outputs.T, inputs, out=gradient[: weight.numel()].view_as(weight))
        if weights[0].is_cuda:
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s
