"""Prompts and completions -> packed micro-batches: each prompt once, no padding, and indices for attention.

A pack is one row of tokens: a prompt, then its completions, then the next prompt, and so on. A completion's last token
is left out, because it predicts nothing.

Shapes: N tokens of the pack, M completion tokens of the pack, G completions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, groupby

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Block:
    """A prompt and its completions within a pack: `num_prompt` tokens, then `lengths[g]` of each completion."""

    num_prompt: int
    lengths: tuple[int, ...]
    device: torch.device

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens."""
        return self.num_prompt + sum(self.lengths)

    @property
    def width(self) -> int:
        """Return the length of the padded completions."""
        return max(self.lengths, default=0)

    @property
    def is_even(self) -> bool:
        """Return whether all completions have one length, so that padding them is a view."""
        return min(self.lengths, default=0) == self.width

    @cached_property
    def padded_index(self) -> Tensor:
        """Return each padded position's index among the packed tokens, `[G * width]`; padding has index 0."""
        starts_G = torch.tensor([0, *self.lengths[:-1]]).cumsum(0)
        position_T = torch.arange(self.width)
        is_token_GT = position_T < torch.tensor(self.lengths)[:, None]
        return (starts_G[:, None] + position_T).where(is_token_GT, 0).flatten().to(self.device)

    @cached_property
    def packed_index(self) -> Tensor:
        """Return each packed token's index among the padded positions, `[sum(lengths)]`."""
        rows = [g * self.width + torch.arange(length) for g, length in enumerate(self.lengths)]
        return torch.cat(rows).to(self.device)

    @cached_property
    def lags(self) -> Tensor:
        """Return each completion position minus each key position, `[width, num_prompt + width]`."""
        query = torch.arange(self.num_prompt, self.num_prompt + self.width, device=self.device)
        return query[:, None] - torch.arange(self.num_prompt + self.width, device=self.device)

    @cached_property
    def prompt_lags(self) -> Tensor:
        """Return the same within the prompt, `[num_prompt, num_prompt]`."""
        position = torch.arange(self.num_prompt, device=self.device)
        return position[:, None] - position


@dataclass(frozen=True, kw_only=True)
class Segments:
    """What attends causally to what: each prompt to itself, each completion to a copy of its prompt and to itself.

    Empty completions are no segments. Starts are those among all queries or keys, `[segments + 1]`, in int32.
    """

    query_starts: Tensor
    key_starts: Tensor
    max_query: int
    max_key: int


@dataclass(frozen=True, kw_only=True)
class Pack:
    """One micro-batch."""

    members: tuple[int, ...]  # the completions' indices, in packed order
    lengths: tuple[int, ...]  # number of tokens of each completion, the last included
    ids_N: Tensor
    positions_N: Tensor
    blocks: tuple[Block, ...]
    source_M: Tensor  # the packed token that predicts each completion token
    targets_M: Tensor

    @cached_property
    def segments(self) -> Segments:
        """Return the segments of all blocks, in packed order."""
        queries, keys = [], []
        for block in self.blocks:
            lengths = [length for length in block.lengths if length]
            queries += [block.num_prompt, *lengths]
            keys += [block.num_prompt, *(block.num_prompt + length for length in lengths)]
        starts = (
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.ids_N.device)
            for lengths in (queries, keys)
        )
        query_starts, key_starts = starts
        return Segments(query_starts=query_starts, key_starts=key_starts, max_query=max(queries), max_key=max(keys))

    def joined(self, values: Mapping[int, Tensor] | Sequence[Tensor]) -> Tensor:
        """Return the values of the completions' tokens, `[M]`, from those of each completion by its index."""
        return torch.cat([values[member] for member in self.members])

    def spread(self, values_G: Tensor) -> Tensor:
        """Repeat each completion's value for its tokens: `[G] -> [M]`."""
        lengths_G = torch.tensor(self.lengths, device=values_G.device)
        return values_G.repeat_interleave(lengths_G, output_size=sum(self.lengths))  # a GPU would have to be asked


def pack(
    prompts: Sequence[Sequence[int]],
    prompt_of: Sequence[int],
    completions: Sequence[Sequence[int]],
    members: Iterable[int],
    *,
    device: torch.device,
) -> Pack:
    """Pack these completions after their prompts; those of one prompt must be adjacent."""
    order = tuple(members)
    ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    blocks = []
    for prompt, of_prompt in groupby(order, key=lambda member: prompt_of[member]):
        prompt_ids, group = prompts[prompt], [completions[member] for member in of_prompt]
        ids += prompt_ids
        positions += range(len(prompt_ids))
        last = len(ids) - 1
        for completion in group:
            source += [last, *range(len(ids), len(ids) + len(completion) - 1)]
            positions += range(len(prompt_ids), len(prompt_ids) + len(completion) - 1)
            ids += completion[:-1]
        lengths = tuple(len(completion) - 1 for completion in group)
        blocks.append(Block(num_prompt=len(prompt_ids), lengths=lengths, device=device))
    return Pack(
        members=order,
        lengths=tuple(len(completions[member]) for member in order),
        ids_N=torch.tensor(ids, device=device),
        positions_N=torch.tensor(positions, device=device),
        blocks=tuple(blocks),
        source_M=torch.tensor(source, device=device),
        targets_M=torch.tensor(list(chain.from_iterable(completions[member] for member in order)), device=device),
    )


def in_order(prompt_of: Sequence[int], completions: Sequence[Sequence[int]], members: Iterable[int]) -> list[int]:
    """Sort completions by prompt, longest first."""
    return sorted(members, key=lambda member: (prompt_of[member], -len(completions[member])))


def micro_batches(
    prompts: Sequence[Sequence[int]],
    prompt_of: Sequence[int],
    completions: Sequence[Sequence[int]],
    members: Iterable[int],
    *,
    max_tokens: int,
) -> list[list[int]]:
    """Cut completions into packs of at most `max_tokens` tokens, prompts included; a single one may be longer.

    Completions of one prompt stay together, longest first, so that attention needs little padding.
    """
    batches: list[list[int]] = []
    num_tokens = max_tokens
    for member in in_order(prompt_of, completions, members):
        begins_prompt = not batches or prompt_of[batches[-1][-1]] != prompt_of[member]
        added = len(completions[member]) - 1 + (len(prompts[prompt_of[member]]) if begins_prompt else 0)
        if not batches or num_tokens + added > max_tokens:
            batches.append([])
            num_tokens, added = 0, len(completions[member]) - 1 + len(prompts[prompt_of[member]])
        batches[-1].append(member)
        num_tokens += added
    return batches
