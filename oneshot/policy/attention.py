"""Attention over a pack: a prompt attends to itself, a completion to its prompt and to itself.

It is registered with transformers as `oneshot`, so that any decoder that uses transformers' attention interface can run
packed. Inputs that are not packs go to SDPA.

Shapes: `[1, heads, N, D]` in, `[1, N, heads, D]` out, as in transformers; N tokens of a pack, D size of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from oneshot.policy.packing import Block

NAME = "oneshot"


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    *, blocks: Sequence[Block] | None = None, scaling: float | None = None, sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Compute attention as transformers calls it; `blocks` marks a pack.

    Raises NotImplementedError: the model has a soft cap or attention sinks, which packs do not support.
    """
    repeats = query.shape[1] // key.shape[1]
    is_modified = rest.get("softcap") is not None or rest.get("s_aux") is not None
    is_shared = attention_mask is None or attention_mask.shape[1:3] == (1, 1)  # one mask for all heads
    if blocks is None and query.shape[2] == 1 and is_shared and not is_modified:
        return _attend_one(query, key, value, attention_mask, scaling=scaling), None
    if blocks is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **rest
        )
        return output
    if is_modified:
        raise NotImplementedError("attention with a soft cap or sinks")
    num_tokens = [block.num_tokens for block in blocks]
    parts = [
        _attend(block, q, repeat_kv(k, repeats), repeat_kv(v, repeats), scaling=scaling, window=sliding_window)
        for block, q, k, v in zip(
            blocks, query.split(num_tokens, 2), key.split(num_tokens, 2), value.split(num_tokens, 2), strict=True
        )
    ]
    return torch.cat(parts, dim=1), None


def _attend_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float | None) -> Tensor:
    """Attend from one position, with the queries of a key head as positions, so that its keys are read once."""
    grouped = query.unflatten(1, (key.shape[1], -1)).squeeze(3)
    output: Tensor = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return output.flatten(1, 2)[:, None]


def _attend(
    block: Block, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
) -> Tensor:
    """Attend within one prompt and its completions: `[1, heads, n, D]` each -> `[1, n, heads, D]`."""
    split = [block.num_prompt, sum(block.lengths)]
    (query_P, query_C), (key_P, key_C), (value_P, value_C) = (x.split(split, dim=2) for x in (query, key, value))
    prompt_mask = None if window is None else _causal(block.prompt_lags, window)
    out_P = scaled_dot_product_attention(
        query_P, key_P, value_P, attn_mask=prompt_mask, is_causal=window is None, scale=scaling
    )
    if block.width == 0:
        return out_P.transpose(1, 2)
    num_rows = len(block.lengths)
    out_GT = scaled_dot_product_attention(
        _padded(block, query_C),
        torch.cat([key_P.expand(num_rows, -1, -1, -1), _padded(block, key_C)], dim=2),
        torch.cat([value_P.expand(num_rows, -1, -1, -1), _padded(block, value_C)], dim=2),
        attn_mask=_causal(block.lags, window),
        scale=scaling,
    )
    rows_C = out_GT.transpose(1, 2).flatten(0, 1)
    out_C = rows_C if block.is_even else rows_C.index_select(0, block.packed_index)
    return torch.cat([out_P.transpose(1, 2), out_C[None]], dim=1)


def _causal(lags: Tensor, window: int | None) -> Tensor:
    """Return which keys a query attends to: its own and earlier ones, within the window if there is one."""
    return lags >= 0 if window is None else (lags >= 0) & (lags < window)


def _padded(block: Block, packed: Tensor) -> Tensor:
    """Pad completions into rows: `[1, heads, sum(lengths), D]` -> `[G, heads, width, D]`."""
    rows_C = packed[0].transpose(0, 1)
    rows = rows_C if block.is_even else rows_C.index_select(0, block.padded_index)
    padded: Tensor = rows.unflatten(0, (len(block.lengths), block.width)).transpose(1, 2)
    return padded


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
