"""The rollout engine: all completions of a step share few prompts, so every live row takes its next token together.

Each prompt is prefilled once and its keys and values are expanded to its rows; the cache is written in place; rows that
are finished are dropped. Prompts of equal length need no padding and no attention mask; others are padded at the left.

Shapes: P distinct prompts, B live rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from oneshot.grpo.policy import Policy
from oneshot.grpo.rollout import Completion, Request, Sampling, uniforms

GROWTH = 128
"""Positions that the cache grows by when it is full."""
LIVE_SHARE = 0.85
"""Rows are dropped once fewer than this share of them is live: a drop copies the cache."""


class LockstepLayer(DynamicLayer):
    """Keys and values of one layer, `[B, heads, capacity, head_dim]`, written in place up to `length`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self.keys: Tensor
        self.values: Tensor
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends `[B, heads, new, head_dim]`; returns views of everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _, size = key_states.shape
            self.keys = key_states.new_empty(batch, heads, 0, size)
            self.values = value_states.new_empty(batch, heads, 0, value_states.shape[-1])
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys, self.values = self._grown(self.keys, end), self._grown(self.values, end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, buffer: Tensor, length: int) -> Tensor:
        batch, heads, _, size = buffer.shape
        grown = buffer.new_empty(batch, heads, -(-length // GROWTH) * GROWTH, size)
        grown[:, :, : self.length] = buffer[:, :, : self.length]
        return grown

    def get_seq_length(self) -> int:
        """Positions written so far."""
        return self.length

    def select(self, rows_B: Tensor) -> None:
        """Keeps these rows, in this order; a row may come several times."""
        self.keys, self.values = self.keys.index_select(0, rows_B), self.values.index_select(0, rows_B)


def sample(logits_BV: Tensor, uniforms_B: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits and one uniform a row -> token and its log-probability, `[B]` each, by inverse CDF.

    The uniform is scaled by the last cumulative sum, so that rounding cannot leave a gap at the end; a token of
    probability 0 is never drawn. Temperature 0 takes the likeliest token, with its log-probability at temperature 1.
    """
    logits_BV = logits_BV.float() if logits_BV.dtype in (torch.bfloat16, torch.float16) else logits_BV
    log_softmax_BV = (logits_BV / (temperature or 1.0)).log_softmax(dim=-1)
    if temperature == 0.0:
        tokens_B1 = log_softmax_BV.argmax(dim=-1, keepdim=True)
    else:
        cdf_BV = log_softmax_BV.exp().cumsum(dim=-1)
        total_B1 = cdf_BV[:, -1:].contiguous()
        wanted_B1 = uniforms_B[:, None].to(cdf_BV.dtype) * total_B1
        last_B1 = torch.searchsorted(cdf_BV, total_B1)
        tokens_B1 = torch.searchsorted(cdf_BV, wanted_B1, right=True).minimum(last_B1)
    return tokens_B1.squeeze(1), log_softmax_BV.gather(1, tokens_B1).squeeze(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lockstep:
    """The engine; `wave_rows` completions are decoded at a time."""

    wave_rows: int

    def generate(self, policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """The completions of each request, in the order of its keys."""
        rows = [(index, key) for index, request in enumerate(requests) for key in request.row_keys]
        # rows of equal prompt length side by side: a wave of them needs no padding
        rows.sort(key=lambda row: len(requests[row[0]].prompt_ids))
        found: dict[tuple[int, tuple[int, ...]], Completion] = {}
        for start in range(0, len(rows), self.wave_rows):
            wave = rows[start : start + self.wave_rows]
            prompts = sorted({index for index, _ in wave})
            completions = _decode_wave(
                policy,
                [requests[index].prompt_ids for index in prompts],
                [prompts.index(index) for index, _ in wave],
                [key for _, key in wave],
                sampling,
            )
            found.update(zip(wave, completions, strict=True))
        return [[found[index, key] for key in request.row_keys] for index, request in enumerate(requests)]


@torch.no_grad()
def _decode_wave(
    policy: Policy,
    prompts: list[tuple[int, ...]],
    prompt_of_row: list[int],
    row_keys: list[tuple[int, ...]],
    sampling: Sampling,
) -> list[Completion]:
    """Prompts, and each row's prompt and key -> each row's completion."""
    device, model = policy.device, policy.model
    table_BT = torch.from_numpy(uniforms(row_keys, sampling.max_tokens)).to(device)
    width = max(len(prompt) for prompt in prompts)
    padded = any(len(prompt) < width for prompt in prompts)
    ids_PS = torch.tensor([[policy.pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask_PS = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    cache = DynamicCache()
    layers = [LockstepLayer() for _ in range(model.config.num_hidden_layers)]
    cache.layers = list(layers)
    hidden_PSH = model.base_model(
        input_ids=ids_PS,
        attention_mask=mask_PS if padded else None,
        position_ids=(mask_PS.cumsum(dim=1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    rows_B = torch.tensor(prompt_of_row, device=device)
    for layer in layers:
        layer.select(rows_B)
    mask_BS = mask_PS[rows_B]
    next_position_B = mask_BS.sum(dim=1)
    head, hidden_BH = model.get_output_embeddings(), hidden_PSH[rows_B, -1]

    num_rows = len(row_keys)
    tokens_GT = torch.full((num_rows, sampling.max_tokens), policy.pad_id, device=device)
    logprobs_GT = torch.zeros((num_rows, sampling.max_tokens), dtype=torch.float64, device=device)
    length_G = torch.full((num_rows,), sampling.max_tokens, device=device)
    finished_G = torch.zeros(num_rows, dtype=torch.bool, device=device)
    eos = torch.tensor(policy.eos_ids, device=device)
    live_B = torch.arange(num_rows, device=device)
    for position in range(sampling.max_tokens):
        tokens_B, logprobs_B = sample(head(hidden_BH), table_BT[live_B, position], temperature=sampling.temperature)
        tokens_GT[live_B, position], logprobs_GT[live_B, position] = tokens_B, logprobs_B.double()
        ended_B = live_B[torch.isin(tokens_B, eos) & ~finished_G[live_B]]
        length_G[ended_B], finished_G[ended_B] = position + 1, True
        keep_B = ~finished_G[live_B]
        num_live = int(keep_B.sum())
        if num_live == 0 or position + 1 == sampling.max_tokens:
            break
        if num_live < LIVE_SHARE * len(live_B):
            kept = keep_B.nonzero().squeeze(1)
            for layer in layers:
                layer.select(kept)
            live_B, tokens_B, mask_BS = live_B[kept], tokens_B[kept], mask_BS[kept]
            next_position_B = next_position_B[kept]
        if padded:
            mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(live_B), 1)], dim=1)
        hidden_BH = model.base_model(
            input_ids=tokens_B[:, None],
            attention_mask=mask_BS if padded else None,
            position_ids=next_position_B[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        next_position_B = next_position_B + 1
    return [
        Completion(token_ids=tuple(tokens[:n]), logprobs=tuple(logprobs[:n]), truncated=not finished)
        for tokens, logprobs, n, finished in zip(
            tokens_GT.tolist(), logprobs_GT.tolist(), length_G.tolist(), finished_G.tolist(), strict=True
        )
    ]
