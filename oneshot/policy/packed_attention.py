"""A pack's queries, keys and values -> each prompt's attention to itself, each completion's to its prompt and itself.

There are two ways. One call of torch's kernel for sequences of uneven lengths needs neither masks nor padding, but a
GPU and narrow numbers. SDPA runs anywhere: each prompt is a call, and its completions are another one, as padded rows.

Shapes: `[1, heads, N, D]` in, `[1, N, heads, D]` out; N tokens of the pack, n of a block, G completions of a block, D
size of a head. Keys and values may have fewer heads than queries.
"""

import inspect
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from oneshot.policy.packing import Block, Pack

# torch 2.11's kernel takes fewer key heads without being told
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def attend_at_once(batch: Pack, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None) -> Tensor:
    """Attend within the pack's segments in one call; its queries are the pack's, in their order."""
    segments = batch.segments
    output: Any = varlen_attn(
        query[0].transpose(0, 1),
        _behind_prompts(batch, key[0].transpose(0, 1)),
        _behind_prompts(batch, value[0].transpose(0, 1)),
        segments.query_starts,
        segments.key_starts,
        segments.max_query,
        segments.max_key,
        scale=scaling,
        window_size=(-1, 0),  # causal; the last query of a segment sees its last key
        **_GROUPED,
    )
    whole: Tensor = output[None]
    return whole


def _behind_prompts(batch: Pack, rows: Tensor) -> Tensor:
    """Repeat a prompt's keys or values before those of each of its completions: `[N, heads, D]` -> `[.., heads, D]`."""
    parts: list[Tensor] = []
    for block, of_block in zip(batch.blocks, rows.split([block.num_tokens for block in batch.blocks]), strict=True):
        prompt, *completions = of_block.split([block.num_prompt, *block.lengths])
        completions = [completion for completion in completions if len(completion)]
        # one tensor for all copies, so that their gradients are summed at once, in float32
        first, *copies = prompt.expand(1 + len(completions), -1, -1, -1).unbind()
        parts += [first, *chain.from_iterable(zip(copies, completions, strict=True))]
    return torch.cat(parts)


def attend_by_block(
    batch: Pack, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None = None
) -> Tensor:
    """Attend within each prompt and its completions."""
    num_tokens = [block.num_tokens for block in batch.blocks]
    splits = (tensor.split(num_tokens, 2) for tensor in (query, key, value))
    parts = [
        _attend(block, q, k, v, scaling=scaling, window=window)
        for block, q, k, v in zip(batch.blocks, *splits, strict=True)
    ]
    return torch.cat(parts, dim=1)


def _attend(
    block: Block, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
) -> Tensor:
    """Attend within one prompt and its completions: `[1, heads, n, D]` each -> `[1, n, heads, D]`."""
    split = [block.num_prompt, sum(block.lengths)]
    (query_P, query_C), (key_P, key_C), (value_P, value_C) = (x.split(split, dim=2) for x in (query, key, value))
    prompt_mask = None if window is None else _causal(block.prompt_lags, window)
    out_P = _sdpa(query_P, key_P, value_P, mask=prompt_mask, scaling=scaling)
    if block.width == 0:
        return out_P.transpose(1, 2)
    num_rows = len(block.lengths)
    out_GT = _sdpa(
        _padded(block, query_C),
        torch.cat([key_P.expand(num_rows, -1, -1, -1), _padded(block, key_C)], dim=2),
        torch.cat([value_P.expand(num_rows, -1, -1, -1), _padded(block, value_C)], dim=2),
        mask=_causal(block.lags, window),
        scaling=scaling,
    )
    rows_C = out_GT.transpose(1, 2).flatten(0, 1)
    out_C = rows_C if block.is_even else rows_C.index_select(0, block.packed_index)
    return torch.cat([out_P.transpose(1, 2), out_C[None]], dim=1)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attend with a mask, or causally without one."""
    is_cpu = query.device.type == "cpu"
    if not is_cpu:  # with a mask a GPU has no kernel for fewer key heads but the plain one
        repeats = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=is_cpu
    )


def _causal(lags: Tensor, window: int | None) -> Tensor:
    """Return which keys a query attends to: its own and earlier ones, within the window if there is one."""
    return lags >= 0 if window is None else (lags >= 0) & (lags < window)


def _padded(block: Block, packed: Tensor) -> Tensor:
    """Pad completions into rows: `[1, heads, sum(lengths), D]` -> `[G, heads, width, D]`."""
    rows_C = packed[0].transpose(0, 1)
    rows = rows_C if block.is_even else rows_C.index_select(0, block.padded_index)
    padded: Tensor = rows.unflatten(0, (len(block.lengths), block.width)).transpose(1, 2)
    return padded
