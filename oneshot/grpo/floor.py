"""A step's tokens -> the seconds that its arithmetic alone takes at this machine's own matmul rate.

`perf/efficiency` is that floor over the measured step. Counted is what no engine can leave out: each prompt once, each
completion token once in the rollout, once forward and backward in the update, and once forward in the reference if
there is one. Attention's own arithmetic, sampling, the optimiser and memory traffic are left out, so that the floor is
below what is reachable, most of all for models whose layers are small.
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

MATMUL_SIZE = {"cpu": 768, "cuda": 8192}
NUM_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Weights that every token passes through, and those of the head, which only predicted tokens do."""

    body: int
    head: int

    def flops(self, *, prompt_tokens: int, completion_tokens: int, with_reference: bool) -> float:
        """Of one step: 2 a weight and token forward, 4 backward (Kaplan et al., arXiv 2001.08361, section 2.1)."""
        forward = 2.0 * (self.body * (prompt_tokens + completion_tokens) + self.head * completion_tokens)
        # rollout: a forward; update: a forward and a backward twice as dear; reference: a forward
        return forward * (1 + 3 + int(with_reference))


def arithmetic(model: Any) -> Arithmetic:
    """Counts a causal language model's weights; embeddings are looked up, not multiplied."""
    head: int = model.get_output_embeddings().weight.numel()
    embedding = model.get_input_embeddings().weight
    is_tied = embedding is model.get_output_embeddings().weight
    total = sum(parameter.numel() for parameter in model.parameters())
    return Arithmetic(body=total - head - (0 if is_tied else embedding.numel()), head=head)


@cache
def matmul_flops_per_s(device_type: str, dtype: torch.dtype, num_threads: int) -> float:  # noqa: ARG001 (of the key)
    """The best rate of a few square products, measured once a process; `num_threads` is a part of the question."""
    size = MATMUL_SIZE[device_type]
    left = torch.ones(size, size, device=device_type, dtype=dtype)
    best_s = float("inf")
    for _ in range(NUM_TRIES):
        start_s = time.perf_counter()
        product = left @ left
        if device_type == "cuda":
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - start_s)
        del product
    return 2.0 * size**3 / best_s
