"""A step's tokens -> the seconds that its matrix products alone take on this machine.

`perf/efficiency` is that floor over the measured step. Counted is what no engine can leave out: each prompt once, each
completion token once in the rollout, once forward and backward in the update, and once forward in the reference if
there is one (2 operations a weight and token forward, 4 backward: Kaplan et al., arXiv 2001.08361, section 2.1). The
products are timed in the process that reports them, with the model's own weights one after the other, and with as many
rows as their phase has: those decoded at a time in the rollout, those of a micro-batch in the update. Attention, norms,
sampling and the optimiser are left out, so that the floor is below what is reachable, most of all for models whose
layers are small.
"""

import time
from typing import Any, Literal

import torch
from torch import Tensor

Phase = Literal["forward", "backward"]

MAX_ROWS = {"cpu": 1024, "cuda": 8192}
"""Rows of a timed product: the rate hardly rises beyond, and the time that it takes does."""
NUM_TRIES = 3


class Floor:
    """The products of one model, timed when first asked for."""

    def __init__(self, model: Any) -> None:
        """Takes a causal language model; embeddings are looked up, not multiplied, and experts are not counted."""
        embedding, self._head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        self._body = [p for p in model.parameters() if p.dim() == 2 and p is not embedding and p is not self._head]
        self._found: dict[tuple[Phase, int], tuple[float, float]] = {}

    def flops(self, *, body_tokens: int, head_tokens: int) -> float:
        """Of the forward products of so many tokens; those of a backward are twice as many."""
        body: int = sum(p.numel() for p in self._body)
        head: int = self._head.numel()
        return 2.0 * (body * body_tokens + head * head_tokens)

    def step_s(
        self, *, prompt_tokens: int, completion_tokens: int, decode_rows: int, update_rows: int, with_reference: bool
    ) -> float:
        """Seconds of one step's products: rollout, update, and reference if there is one."""

        def seconds(phase: Phase, rows: int) -> float:
            body_s, head_s = self.token_s(phase, rows)
            return body_s * (prompt_tokens + completion_tokens) + head_s * completion_tokens

        forward = seconds("forward", update_rows) * (1 + int(with_reference))
        return seconds("forward", decode_rows) + forward + seconds("backward", update_rows)

    def token_s(self, phase: Phase, rows: int) -> tuple[float, float]:
        """Seconds a token of the body's and of the head's products, where so many tokens are multiplied at a time."""
        rows = min(rows, MAX_ROWS[self._head.device.type])
        rows = 1 << (rows.bit_length() - 1)  # to a power of two, so that few sizes are timed
        if (phase, rows) not in self._found:
            body_s, head_s = _best_s(self._body, phase, rows), _best_s([self._head], phase, rows)
            self._found[phase, rows] = body_s / rows, head_s / rows
        return self._found[phase, rows]


@torch.no_grad()
def _best_s(weights: list[Tensor], phase: Phase, rows: int) -> float:
    """The shortest of a few passes over these weights, each `[out, in]`; results go into memory that is there."""
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
