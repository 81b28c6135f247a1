"""Prompts -> completions by the usual rollout engine, in which all live rows take their next token together.

A step's completions share few prompts. Each prompt is computed once, and its keys and values are copied to its rows.
Rows begin with room for a few hundred tokens, which grows as they do, and ended rows are dropped. So memory is used by
what is there, not by the longest possible completion. If it is short, the rows with the fewest tokens wait. They are
computed again, with their tokens, once the others have ended.

Shapes: B live rows, H hidden size, V vocabulary, N numbers of a token (rows.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from oneshot.models.memory import LIVE_SHARE
from oneshot.policy.output_head import Workspace, logits
from oneshot.policy.policy import Policy
from oneshot.policy.weights import Weights
from oneshot.rollout.cuda_graphs import FixedStep, rounded_rows
from oneshot.rollout.engine import Completion, Ended, NotFiniteError, PromptRequest, Sampling, ignore
from oneshot.rollout.kv_memory import KvMemory
from oneshot.rollout.rows import Draws, Row
from oneshot.rollout.sampling import distribution, likeliest, sample
from oneshot.rollout.stops import Stops
from oneshot.rollout.wave import Wave, has_window, num_admitted

CHECK_STEPS = {"cpu": 1, "cuda": 8}
"""Steps between two counts of the live rows: on a GPU a count waits for all earlier kernels."""
SORTED_LOGITS = 2**22
"""Largest number of logits that `top_p` sorts at a time: 16 MiB in float32, and a few times more for indices."""


@dataclass(slots=True)
class Use:
    """What a call of `generate` has taken."""

    num_waves: int = 0
    num_waited: int = 0  # rows that waited and were computed again, each time that they did


@dataclass(slots=True, kw_only=True)
class Lockstep:
    """An engine that keeps keys and values within `kv_gib`."""

    kv_gib: float
    fixed_shapes: bool | None = None
    """Whether steps run at few sizes, for CUDA graphs; None: only on a GPU. A model with a sliding window never does,
    because its layers may need different masks."""
    lasts: bool = False
    """Whether memory and graphs last until `release`; the weights must not move until then."""
    use: Use = field(default_factory=Use)
    _memory: tuple[KvMemory, FixedStep | None] | None = None

    def generate(
        self, policy: Policy, requests: Sequence[PromptRequest], sampling: Sampling, ended: Ended = ignore
    ) -> list[list[Completion]]:
        """Return the completions of each request, in the order of its keys."""
        waiting = [
            Row(place=(index, row), key=key, prompt_ids=request.prompt_ids, max_tokens=request.max_tokens)
            for index, request in enumerate(requests)
            for row, key in enumerate(request.row_keys)
        ]
        memory, fixed = self._reserve(policy, waiting)
        completions: dict[tuple[int, int], Completion] = {}

        def row_ended(row: Row) -> None:
            completions[row.place] = row.completion(policy.eos_ids)
            ended(*row.place, completions[row.place])

        self.use = Use()
        try:
            while waiting:
                # rows of equal length need no padding, and rows of one prompt have to be adjacent
                waiting.sort(key=lambda row: (len(row.prefix), row.place))
                num_rows = num_admitted(waiting, memory, fixed=fixed is not None)
                again = _decode(memory, fixed, waiting[:num_rows], sampling, row_ended)
                waiting = waiting[num_rows:] + again
                self.use.num_waves += 1
                self.use.num_waited += len(again)
        finally:
            if not self.lasts:
                self.release()
        return [
            [completions[index, row] for row in range(len(request.row_keys))] for index, request in enumerate(requests)
        ]

    def wake(self, policy: Policy, weights: Weights) -> None:
        """Do nothing: it decodes with the policy's own weights."""

    def rest(self) -> None:
        """Do nothing: memory either lasts or is free already."""

    def release(self) -> None:
        """Free the memory and the graphs that last between calls."""
        self._memory = None

    def _reserve(self, policy: Policy, rows: Sequence[Row]) -> tuple[KvMemory, FixedStep | None]:
        """Return memory for all rows at their longest, or for as many positions as `kv_gib` holds."""
        is_fixed = policy.device.type == "cuda" if self.fixed_shapes is None else self.fixed_shapes
        is_fixed = is_fixed and not has_window(policy.model)
        longest = max(len(row.prompt_ids) + row.max_tokens for row in rows)
        max_rows = rounded_rows(len(rows)) if is_fixed else len(rows)
        # one row can always be decoded
        num_positions = min(max(int(self.kv_gib * 2**30 / policy.kv_bytes), longest), max_rows * longest)
        if self._memory is not None:
            memory, fixed = self._memory
            is_large = memory.num_positions >= num_positions and (fixed is None or fixed.max_rows >= max_rows)
            if memory.policy is policy and is_large:
                return self._memory
            self._memory = None
            del memory, fixed  # freed before the next is made
        fixed = FixedStep(max_rows, device=policy.device) if is_fixed else None
        self._memory = KvMemory(policy, num_positions), fixed
        return self._memory


@torch.no_grad()
def _decode(
    memory: KvMemory, fixed: FixedStep | None, rows: Sequence[Row], sampling: Sampling, ended: Callable[[Row], None]
) -> list[Row]:
    """Decode one wave; call `ended` with each row that ends, and return those that have to wait."""
    policy = memory.policy
    head = policy.model.get_output_embeddings()
    wave = Wave(memory, fixed, rows)
    hidden_BH = wave.prefill()
    space = Workspace.for_chunks(head, num_tokens=len(rows))
    ends_V = torch.zeros(len(head.weight), dtype=torch.bool, device=policy.device)
    ends_V[[token for token in policy.eos_ids if 0 <= token < len(ends_V)]] = True
    num_numbers = 3 if sampling.with_distribution else 1
    draws = Draws(rows, ends_V=ends_V, dtype=space.logits_nV.dtype, num_numbers=num_numbers)
    check_steps, stops = CHECK_STEPS[policy.device.type], Stops(policy.tokenizer, sampling.stop)
    waiting: list[Row] = []
    while True:
        tokens_B, numbers_NB = _draw(hidden_BH, head, draws.uniforms_B, sampling, space)
        draws.add(tokens_B, numbers_NB)
        num_live = len(draws.rows)
        if wave.is_full or draws.is_complete or draws.num_drawn % check_steps == 0:
            if sampling.stop:
                draws.stop(stops)
            num_live -= int(draws.has_ended_B.sum())
            if not draws.are_finite(check_steps):
                raise NotFiniteError(f"logits are NaN or infinite at completion token {draws.num_drawn} or just before")
        if num_live == 0 or wave.is_full or num_live < LIVE_SHARE * len(draws.rows):
            for row in draws.advanced(draws.has_ended_B.nonzero().squeeze(1)):
                ended(row)
            live_B = (~draws.has_ended_B).nonzero().squeeze(1)
            kept_B, rest_B = _oldest(draws.rows, live_B, wave.max_rows(num_live))
            waiting += draws.advanced(rest_B)
            if len(kept_B) == 0:
                return waiting
            wave.keep(kept_B)
            draws.keep(kept_B)
            tokens_B = tokens_B[kept_B]
        hidden_BH = wave.step(tokens_B)


def _oldest(rows: Sequence[Row], live_B: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """Divide rows into those with the most tokens, in their order, and the rest."""
    if num_kept == len(live_B):
        return live_B, live_B[:0]
    by_age = sorted(live_B.tolist(), key=lambda place: -len(rows[place].tokens))
    kept, rest = sorted(by_age[:num_kept]), sorted(by_age[num_kept:])
    return live_B.new_tensor(kept), live_B.new_tensor(rest)


def _draw(
    hidden_BH: Tensor, head: Tensor, uniforms_B: Tensor, sampling: Sampling, space: Workspace
) -> tuple[Tensor, Tensor]:
    """Draw each row's next token, a part of the rows at a time; return it and its numbers, `[N, B]`."""
    parts, num_rows = [], space.num_rows
    if sampling.top_p < 1.0:
        num_rows = min(num_rows, max(1, SORTED_LOGITS // space.logits_nV.shape[1]))
    for hidden_nH, uniforms_n in zip(hidden_BH.split(num_rows), uniforms_B.split(num_rows), strict=True):
        logits_nV, cdf_nV = space.rows(len(hidden_nH))
        logits(hidden_nH, head, temperature=sampling.temperature or 1.0, out=logits_nV)
        of_distribution = distribution(logits_nV, probs_BV=cdf_nV) if sampling.with_distribution else ()
        if sampling.temperature == 0.0:
            tokens_n, logprobs_n = likeliest(logits_nV)
        else:
            tokens_n, logprobs_n = sample(logits_nV, uniforms_n, cdf_BV=cdf_nV, top_p=sampling.top_p)
        parts.append((tokens_n, torch.stack([logprobs_n, *of_distribution])))
    tokens, numbers = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(numbers, dim=1)
