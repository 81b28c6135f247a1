"""Completions that have not ended: their keys, tokens and random numbers.

Shapes: B rows, T completion positions, V vocabulary, N numbers of a token: its log-probability, and if asked for the
entropy of its distribution and the KL of the uniform one from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from oneshot.rollout.engine import Completion
from oneshot.rollout.sampling import below_one, uniforms
from oneshot.rollout.stops import Stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A completion, and its tokens so far if it has waited for memory."""

    place: tuple[int, int]  # its request, and its key's index there
    key: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    max_tokens: int
    tokens: tuple[int, ...] = ()
    numbers: tuple[tuple[float, ...], ...] = ()  # N of each token
    stopped: bool = False

    @property
    def prefix(self) -> tuple[int, ...]:
        """Return the prompt and the tokens so far."""
        return self.prompt_ids + self.tokens

    @property
    def num_left(self) -> int:
        """Return how many tokens it may still add."""
        return self.max_tokens - len(self.tokens)

    def completion(self, eos_ids: Sequence[int]) -> Completion:
        """Return the completion of a row that has ended."""
        has_end = self.stopped or self.tokens[-1] in eos_ids
        logprobs, *of_distribution = self.numbers
        entropies, uniform_kls = of_distribution or ((), ())
        return Completion(
            token_ids=self.tokens,
            logprobs=logprobs,
            truncated=not has_end,
            stopped=self.stopped,
            entropies=entropies,
            uniform_kls=uniform_kls,
        )


class Draws:
    """The random numbers of some rows, and what is drawn with them."""

    def __init__(self, rows: Sequence[Row], *, ends_V: Tensor, dtype: torch.dtype, num_numbers: int) -> None:
        """Take the rows, which tokens end a completion, the dtype of the logits, and N."""
        device, num_positions = ends_V.device, max(row.num_left for row in rows)
        table = np.zeros((len(rows), num_positions))
        most = max(row.max_tokens for row in rows)
        for place, (row, drawn) in enumerate(zip(rows, uniforms([row.key for row in rows], most), strict=True)):
            table[place, : row.num_left] = drawn[len(row.tokens) : row.max_tokens]
        self.rows = list(rows)
        self.num_drawn = 0
        self._uniforms_TB = below_one(torch.from_numpy(table), dtype).T.contiguous().to(device)
        self._tokens_TB = torch.empty(num_positions, len(rows), dtype=torch.long, device=device)
        self._numbers_TNB = torch.empty(num_positions, num_numbers, len(rows), dtype=dtype, device=device)
        self._limit_B = torch.tensor([row.num_left for row in rows], device=device)
        self._ends_V = ends_V
        self._num_read = 0  # drawn tokens that `stop` has read
        self.has_ended_B, self._is_stopped_B = (
            torch.zeros(len(rows), dtype=torch.bool, device=device) for _ in range(2)
        )

    @property
    def uniforms_B(self) -> Tensor:
        """Return the random numbers of the next tokens."""
        return self._uniforms_TB[self.num_drawn]

    @property
    def is_complete(self) -> bool:
        """Return whether every row has all tokens that it may have."""
        return self.num_drawn == len(self._tokens_TB)

    def add(self, tokens_B: Tensor, numbers_NB: Tensor) -> None:
        """Append each row's next token, also to rows that have ended."""
        self._tokens_TB[self.num_drawn], self._numbers_TNB[self.num_drawn] = tokens_B, numbers_NB
        self.num_drawn += 1
        is_last_B = self._ends_V[tokens_B] & ~self.has_ended_B
        self._limit_B = self._limit_B.masked_fill(is_last_B, self.num_drawn)
        self.has_ended_B = self._limit_B <= self.num_drawn

    def stop(self, stops: Stops) -> None:
        """End each row at the token that completes a stop string, if it was drawn since the last call."""
        first = max(0, self._num_read - stops.window)
        lengths = self._limit_B.clamp(max=self.num_drawn).tolist()
        for place, drawn in enumerate(self._tokens_TB[first : self.num_drawn].T.tolist()):
            if lengths[place] <= self._num_read:  # it has ended before
                continue
            before = [] if first else self.rows[place].tokens[-stops.window :]
            tokens = [*before, *drawn[: lengths[place] - first]]
            end = stops.end(tokens, num_read=len(before) + self._num_read - first)
            if end is not None:
                self._limit_B[place] = first + end - len(before)
                self._is_stopped_B[place] = True
        self._num_read = self.num_drawn
        self.has_ended_B = self._limit_B <= self.num_drawn

    def are_finite(self, num_last: int) -> bool:
        """Return whether the last tokens' numbers are finite."""
        return bool(self._numbers_TNB[max(0, self.num_drawn - num_last) : self.num_drawn].isfinite().all())

    def advanced(self, places_B: Tensor) -> list[Row]:
        """Return these rows with their tokens up to their end."""
        tokens_TB, numbers_TNB = (x[: self.num_drawn, ..., places_B] for x in (self._tokens_TB, self._numbers_TNB))
        length_B, stopped_B = self._limit_B[places_B].clamp(max=self.num_drawn), self._is_stopped_B[places_B]
        columns = (places_B, length_B, stopped_B, tokens_TB.T, numbers_TNB.permute(2, 1, 0))
        return [
            replace(
                self.rows[place],
                tokens=self.rows[place].tokens + tuple(tokens[:length]),
                numbers=tuple(
                    before + tuple(drawn[:length])
                    for before, drawn in zip(self.rows[place].numbers or [()] * len(numbers), numbers, strict=True)
                ),
                stopped=stopped,
            )
            for place, length, stopped, tokens, numbers in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def keep(self, kept_B: Tensor) -> None:
        """Keep these rows, in this order."""
        self.rows = [self.rows[place] for place in kept_B.tolist()]
        self._uniforms_TB, self._tokens_TB = self._uniforms_TB[:, kept_B], self._tokens_TB[:, kept_B]
        self._numbers_TNB, self._limit_B = self._numbers_TNB[..., kept_B], self._limit_B[kept_B]
        self.has_ended_B, self._is_stopped_B = self.has_ended_B[kept_B], self._is_stopped_B[kept_B]
