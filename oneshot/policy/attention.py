"""Queries, keys and values as transformers has them -> attention, also over packs.

It is registered with transformers as `oneshot`, so that any decoder that uses transformers' attention interface can run
packed. Inputs that are not packs go to SDPA.

A pack goes through one causal kernel where that works: on a GPU, in bfloat16 or float16, without a sliding window.
Elsewhere it goes through SDPA with masks (packed_attention.py has both). A probe decides before the first pack, and the
log says how.

Shapes: `[1, heads, N, D]` in, `[1, N, heads, D]` out, as in transformers; N tokens of a pack, D size of a head. Keys
and values may have fewer heads than queries.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from oneshot.policy.packed_attention import attend_at_once, attend_by_block
from oneshot.policy.packing import Pack, pack

log = logging.getLogger(__name__)

NAME = "oneshot"


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    *, batch: Pack | None = None, scaling: float | None = None, sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Compute attention as transformers calls it; `batch` marks a pack.

    Raises NotImplementedError: the model has a soft cap or attention sinks, which packs do not support.
    """
    is_modified = rest.get("softcap") is not None or rest.get("s_aux") is not None
    is_shared = attention_mask is None or attention_mask.shape[1:3] == (1, 1)  # one mask for all heads
    if batch is None and query.shape[2] == 1 and is_shared and not is_modified:
        return _attend_one(query, key, value, attention_mask, scaling=scaling), None
    if batch is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **rest
        )
        return output
    if is_modified:
        raise NotImplementedError("attention with a soft cap or sinks")
    shape = (query.shape[1], key.shape[1], query.shape[3])
    if sliding_window is None and _takes_whole_packs(query.device, query.dtype, shape):
        return attend_at_once(batch, query, key, value, scaling=scaling), None
    return attend_by_block(batch, query, key, value, scaling=scaling, window=sliding_window), None


def _attend_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float | None) -> Tensor:
    """Attend from one position, with the queries of a key head as positions, so that its keys are read once."""
    grouped = query.unflatten(1, (key.shape[1], -1)).squeeze(3)
    output: Tensor = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return output.flatten(1, 2)[:, None]


@cache
def _takes_whole_packs(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> bool:
    """Return whether a pack goes through one causal kernel; `shape` is query heads, key heads and head size."""
    if device.type == "cpu":
        return False
    reason = reason_against(device, dtype, shape)
    if reason is None:
        log.info("attention of packs: one causal kernel")
    else:
        log.info("attention of packs: SDPA with masks instead of one causal kernel: %s", reason)
    return reason is None


def reason_against(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> str | None:
    """Return why packs cannot go through one causal kernel; None if it agrees with SDPA on a small pack."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"there is none for {dtype}"
    try:
        distance = _distance_from_sdpa(device, dtype, shape)
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None if distance < _MAX_DISTANCE else f"on a small pack it is {distance:.1e} from SDPA"


_MAX_DISTANCE = 0.03
"""A rounding error of bfloat16 is 0.004; one wrong token of the probe's 309 would be 0.06."""


def _distance_from_sdpa(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
    """Return the largest relative error of output and gradients of `attend_at_once`, on random numbers."""
    # prompts and completions shorter and longer than a kernel's tile, one of them empty
    lengths = (131, 2, 1, 66, 41)
    batch = pack([[0] * 70, [0] * 3], [0, 0, 0, 0, 1], [[0] * length for length in lengths], range(5), device=device)
    generator = torch.Generator().manual_seed(0)
    heads = (shape[0], shape[1], shape[1], shape[0])
    *inputs, out_grad = (
        torch.randn(1, len(batch.ids_N), num_heads, shape[2], generator=generator).to(device, dtype).transpose(1, 2)
        for num_heads in heads
    )
    results = []
    # a checkpointed layer counts what is saved for its backward pass
    with torch.enable_grad(), saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
        for attend in (attend_at_once, attend_by_block):
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            output = attend(batch, *leaves, scaling=None)
            results.append([output, *torch.autograd.grad(output, leaves, out_grad.transpose(1, 2))])
    distances = [(ours - theirs).norm() / theirs.norm() for ours, theirs in zip(*results, strict=True)]
    return torch.stack(distances).max().item()


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
