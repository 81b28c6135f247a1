"""Prompts -> completions by the usual rollout engine, in which all live rows take their next token together.

A step's completions share few prompts. Each prompt is prefilled once, and its keys and values are copied to its rows.
The cache is allocated once per wave and written in place. Finished rows are dropped. Prompts of equal length need no
padding and no attention mask; others are padded on the left.

Shapes: P distinct prompts, B live rows, T completion positions, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from oneshot.models.memory import LIVE_SHARE
from oneshot.policy.output_head import Workspace, logits
from oneshot.policy.policy import Policy
from oneshot.rollout.cuda_graphs import FixedStep
from oneshot.rollout.engine import Completion, Ended, NotFiniteError, PromptRequest, Sampling, ignore
from oneshot.rollout.sampling import below_one, likeliest, sample, uniforms

CHECK_STEPS = {"cpu": 1, "cuda": 8}
"""Steps between two counts of the live rows: on a GPU a count waits for all earlier kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lockstep:
    """An engine that decodes as many rows at a time as have their keys and values within `kv_gib`."""

    kv_gib: float
    fixed_shapes: bool | None = None
    """Whether steps run at few sizes, for CUDA graphs; None: only on a GPU. A model with a sliding window never does,
    because its layers may need different masks."""

    def wave_rows(self, policy: Policy, *, num_positions: int) -> int:
        """Return how many rows of `num_positions` tokens, prompt included, are decoded at a time."""
        return max(1, int(self.kv_gib * 2**30 / (policy.kv_bytes * num_positions)))

    def generate(
        self, policy: Policy, requests: Sequence[PromptRequest], sampling: Sampling, ended: Ended = ignore
    ) -> list[list[Completion]]:
        """Return the completions of each request, in the order of its keys."""
        rows = [(index, row) for index, request in enumerate(requests) for row in range(len(request.row_keys))]
        # a wave of rows with equal prompt lengths needs no padding
        rows.sort(key=lambda row: len(requests[row[0]].prompt_ids))
        longest = max(len(request.prompt_ids) for request in requests)
        wave_rows = self.wave_rows(policy, num_positions=longest + sampling.max_tokens)
        fixed_shapes = policy.device.type == "cuda" if self.fixed_shapes is None else self.fixed_shapes
        fixed_shapes = fixed_shapes and not _has_window(policy.model)
        completions: dict[tuple[int, int], Completion] = {}
        for start in range(0, len(rows), wave_rows):
            wave = rows[start : start + wave_rows]

            def row_ended(place: int, completion: Completion, wave: list[tuple[int, int]] = wave) -> None:
                completions[wave[place]] = completion
                ended(*wave[place], completion)

            prompts = sorted({index for index, _ in wave})
            _decode(
                policy,
                [requests[index].prompt_ids for index in prompts],
                [prompts.index(index) for index, _ in wave],
                [requests[index].row_keys[row] for index, row in wave],
                sampling,
                row_ended,
                fixed_shapes=fixed_shapes,
            )
        return [
            [completions[index, row] for row in range(len(request.row_keys))] for index, request in enumerate(requests)
        ]


class KvLayer(DynamicLayer):
    """A cache layer: keys and values, `[B, heads, capacity, head_dim]`, written in place up to `length`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self.keys: Tensor
        self.values: Tensor
        self.num_rows = 0
        self.length = 0
        self.fixed: tuple[int, int, Tensor] | None = None
        """For fixed sizes: rows and positions to work on, and the position to write."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append `[B, heads, new, head_dim]`; return views of everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            self.num_rows, self.length = key_states.shape[0], key_states.shape[-2]
            return key_states, value_states
        if self.fixed is not None:
            rows, length, position = self.fixed
            self.keys[:rows].index_copy_(2, position, key_states)
            self.values[:rows].index_copy_(2, position, value_states)
            return self.keys[:rows, :, :length], self.values[:rows, :, :length]
        end = self.length + key_states.shape[-2]
        keys, values = self.keys[: self.num_rows, :, :end], self.values[: self.num_rows, :, :end]
        keys[:, :, self.length :] = key_states
        values[:, :, self.length :] = value_states
        self.length = end
        return keys, values

    def get_seq_length(self) -> int:
        """Return the number of positions written so far."""
        return self.length

    def spread(self, prompt_B: Tensor, *, capacity: int, clean: bool) -> None:
        """Turn one row per prompt into one per completion, with `capacity` positions.

        With `clean` the new memory is zero: attention over a fixed length multiplies unwritten positions by 0.
        """
        for name in ("keys", "values"):
            prompts = getattr(self, name)
            shape = (len(prompt_B), prompts.shape[1], capacity, prompts.shape[3])
            buffer = prompts.new_zeros(shape) if clean else prompts.new_empty(shape)
            buffer[:, :, : self.length] = prompts[prompt_B]
            setattr(self, name, buffer)
        self.num_rows = len(prompt_B)

    def keep(self, kept_B: Tensor) -> None:
        """Keep these rows, in this order, in the same memory."""
        for buffer in (self.keys, self.values):
            buffer[: len(kept_B), :, : self.length] = buffer[kept_B, :, : self.length]
        self.num_rows = len(kept_B)


def _has_window(model: Any) -> bool:
    """Return whether layers may attend to a window only, and so need different masks."""
    return model.config.to_dict().get("sliding_window") is not None


class _Wave:
    """The rows that are decoded together: their caches, masks and positions."""

    def __init__(self, policy: Policy, prompts: Sequence[Sequence[int]]) -> None:
        device = policy.device
        width = max(len(prompt) for prompt in prompts)
        self._model = policy.model
        self._padded = any(len(prompt) < width for prompt in prompts)
        self._ids_PS = torch.tensor([[policy.pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
        self._mask_BS = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self._layers = [KvLayer() for _ in range(policy.model.config.num_hidden_layers)]
        self._cache = DynamicCache()
        self._cache.layers = list(self._layers)
        self._fixed: FixedStep | None = None

    def prefill(self, prompt_B: Tensor, *, max_tokens: int, fixed: bool) -> Tensor:
        """Run each prompt once; return the hidden states that predict the rows' first tokens, `[B, H]`."""
        positions_PS = (self._mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        hidden_PH = self._forward(self._ids_PS, positions_PS, self._prompt_mask() if self._padded else None)
        width = self._ids_PS.shape[1]
        for layer in self._layers:
            layer.spread(prompt_B, capacity=width + max_tokens, clean=fixed)
        self._mask_BS = self._mask_BS[prompt_B]
        self._next_B1 = self._mask_BS.sum(dim=1, keepdim=True)
        if fixed:
            start_B = width - self._next_B1.squeeze(1)
            self._fixed = FixedStep(start_B, capacity=width + max_tokens)
        return hidden_PH[prompt_B]

    def _prompt_mask(self) -> Tensor:
        """Return which positions of padded prompts attend to which, `[P, 1, S, S]`; padding attends to itself."""
        if _has_window(self._model):
            return self._mask_BS  # `[P, S]`, from which the model makes a mask for each kind of layer
        size = self._mask_BS.shape[1]
        causal_SS = torch.ones(size, size, dtype=torch.bool, device=self._mask_BS.device).tril()
        itself_SS = torch.eye(size, dtype=torch.bool, device=self._mask_BS.device)
        return (causal_SS & self._mask_BS.bool()[:, None, :] | itself_SS)[:, None]

    def step(self, tokens_B: Tensor) -> Tensor:
        """Process each row's token; return the hidden states that predict the next ones, `[B, H]`."""
        if self._fixed is not None:
            return self._fixed_step(self._fixed, tokens_B)
        if self._padded:
            self._mask_BS = torch.cat([self._mask_BS, self._mask_BS.new_ones(len(tokens_B), 1)], dim=1)
        hidden_BH = self._forward(tokens_B[:, None], self._next_B1, self._mask_BS if self._padded else None)
        self._next_B1 += 1
        return hidden_BH

    def _fixed_step(self, fixed: FixedStep, tokens_B: Tensor) -> Tensor:
        position = self._layers[0].length
        size = fixed.sizes(len(tokens_B), position)
        for layer in self._layers:
            layer.fixed = (*size, fixed.position)
            layer.length += 1
        return fixed.run(self._forward, tokens_B, position, size)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        hidden: Tensor = self._model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        return hidden[:, -1]

    def keep(self, kept_B: Tensor) -> None:
        """Drop all other rows."""
        for layer in self._layers:
            layer.keep(kept_B)
        self._mask_BS, self._next_B1 = self._mask_BS[kept_B], self._next_B1[kept_B]
        if self._fixed is not None:
            self._fixed.keep(kept_B)


@torch.no_grad()
def _decode(
    policy: Policy,
    prompts: list[tuple[int, ...]],
    prompt_of_row: list[int],
    row_keys: list[tuple[int, ...]],
    sampling: Sampling,
    ended: Callable[[int, Completion], None],
    *,
    fixed_shapes: bool,
) -> None:
    """Decode one wave, given its prompts and each row's prompt and key; call `ended(row, completion)` for each."""
    device, num_rows, num_positions = policy.device, len(row_keys), sampling.max_tokens
    head = policy.model.get_output_embeddings()
    temperature = sampling.temperature or 1.0
    wave = _Wave(policy, prompts)
    hidden_BH = wave.prefill(torch.tensor(prompt_of_row, device=device), max_tokens=num_positions, fixed=fixed_shapes)
    space = Workspace.empty(head, num_rows=num_rows)
    dtype = space.logits_nV.dtype
    uniforms_TB = below_one(torch.from_numpy(uniforms(row_keys, num_positions)), dtype).T.contiguous().to(device)
    tokens_TB = torch.empty(num_positions, num_rows, dtype=torch.long, device=device)
    logprobs_TB = torch.empty(num_positions, num_rows, dtype=dtype, device=device)
    ends_V = torch.zeros(len(head.weight), dtype=torch.bool, device=device)
    ends_V[[token for token in policy.eos_ids if 0 <= token < len(ends_V)]] = True
    row_of = list(range(num_rows))
    has_ended_B = torch.zeros(num_rows, dtype=torch.bool, device=device)
    for position in range(num_positions):
        logits_BV, cdf_BV = space.rows(len(row_of))
        logits(hidden_BH, head, temperature=temperature, out=logits_BV)
        if sampling.temperature == 0.0:
            tokens_B, logprobs_B = likeliest(logits_BV)
        else:
            tokens_B, logprobs_B = sample(logits_BV, uniforms_TB[position], cdf_BV=cdf_BV)
        tokens_TB[position], logprobs_TB[position] = tokens_B, logprobs_B
        has_ended_B |= ends_V[tokens_B]
        is_last = position + 1 == num_positions
        is_check = is_last or (position + 1) % CHECK_STEPS[device.type] == 0
        gone_B = torch.ones_like(has_ended_B) if is_last else has_ended_B
        num_live = len(row_of)
        if is_check:
            num_live -= int(gone_B.sum())
            since_last = logprobs_TB[max(0, position + 1 - CHECK_STEPS[device.type]) : position + 1]
            if not since_last.isfinite().all():
                raise NotFiniteError(f"logits are NaN or infinite at completion token {position + 1} or just before it")
        if num_live == 0 or num_live < LIVE_SHARE * len(row_of):
            for place, completion in zip(
                gone_B.nonzero().squeeze(1).tolist(),
                _completions(tokens_TB[: position + 1, gone_B], logprobs_TB[: position + 1, gone_B], ends_V),
                strict=True,
            ):
                ended(row_of[place], completion)
            if num_live == 0:
                return
            kept_B = (~gone_B).nonzero().squeeze(1)
            wave.keep(kept_B)
            row_of = [row_of[place] for place in kept_B.tolist()]
            uniforms_TB, tokens_TB, logprobs_TB = uniforms_TB[:, kept_B], tokens_TB[:, kept_B], logprobs_TB[:, kept_B]
            has_ended_B, tokens_B = has_ended_B[kept_B], tokens_B[kept_B]
        hidden_BH = wave.step(tokens_B)


def _completions(tokens_TB: Tensor, logprobs_TB: Tensor, ends_V: Tensor) -> list[Completion]:
    """Return each row's tokens up to its first end token; a row without one is truncated."""
    ends_TB = ends_V[tokens_TB]
    has_end_B = ends_TB.any(dim=0)
    length_B = torch.where(has_end_B, ends_TB.int().argmax(dim=0) + 1, len(tokens_TB))
    return [
        Completion(token_ids=tuple(tokens[:length]), logprobs=tuple(logprobs[:length]), truncated=not has_end)
        for tokens, logprobs, length, has_end in zip(
            tokens_TB.T.tolist(), logprobs_TB.T.tolist(), length_B.tolist(), has_end_B.tolist(), strict=True
        )
    ]
