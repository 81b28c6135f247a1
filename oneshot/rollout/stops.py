"""Token ids and stop strings -> the token that completes the first stop string.

Stop strings may be the texts of special tokens, such as `<|im_start|>`, so special tokens are decoded as text.
"""

from collections.abc import Sequence
from typing import Any

NUM_BEFORE = 4
"""Tokens decoded before those that can be part of a stop string: a tokenizer may drop a space at the beginning."""


class Stops:
    """The stop strings of a call, and the tokenizer that reads completions."""

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._strings = tuple(strings)
        self.window = NUM_BEFORE + max((len(string.encode()) for string in strings), default=0)
        """Last tokens that are enough to find a stop string in, since a token has at least one byte."""

    def end(self, token_ids: Sequence[int], *, num_read: int = 0) -> int | None:
        """Return the number of tokens up to and with the first that completes a stop string, or None.

        The first `num_read` tokens are known to complete none.
        """
        if not self._find(token_ids[max(0, num_read + 1 - self.window) :]):
            return None
        ends = range(num_read + 1, len(token_ids) + 1)
        return next((end for end in ends if self._find(token_ids[max(0, end - self.window) : end])), None)

    def _find(self, token_ids: Sequence[int]) -> bool:
        text = text_of(self._tokenizer, token_ids)
        return any(string in text for string in self._strings)


def text_of(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Return the text of some tokens with that of special tokens."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def cut_at_stop(tokenizer: Any, token_ids: Sequence[int], strings: Sequence[str]) -> str:
    """Return the text before the first stop string, without special tokens."""
    whole = text_of(tokenizer, token_ids)
    first = min((string for string in strings if string in whole), key=whole.index)
    num = num_before(tokenizer, token_ids, first)
    before = text_of(tokenizer, token_ids[:num])
    # the token after these may begin with text of its own
    between = whole[len(before) : whole.index(first)]
    return str(tokenizer.decode(list(token_ids[:num]), skip_special_tokens=True)) + between


def num_before(tokenizer: Any, token_ids: Sequence[int], string: str) -> int:
    """Return the number of tokens before those that have a part of the string, of which the last completes it."""
    start, num = text_of(tokenizer, token_ids).index(string), len(token_ids) - 1
    while len(text_of(tokenizer, token_ids[:num])) > start:
        num -= 1
    return num
