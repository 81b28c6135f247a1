"""The policy: a model, its tokenizer, and the ids that end or pad a completion."""

import contextlib
import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from oneshot.config.trial import PromptConfig
from oneshot.errors import ModelError
from oneshot.tasks.prompts import turn_ends


@dataclass(slots=True, kw_only=True)
class Policy:
    """A causal language model, its tokenizer and the ids that end or pad a completion."""

    model: Any
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    max_positions: int  # largest length of prompt and completion together
    num_kv: int  # numbers in the keys and values of one token

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return torch.device(self.model.device)

    @property
    def kv_bytes(self) -> int:
        """Return the bytes of one token's keys and values, in the compute precision."""
        return self.num_kv * int(self.model.dtype.itemsize)


def end_turns(policy: Policy, config: PromptConfig) -> None:
    """With `prompt.stop: turn`, also end completions at the tokens that end a chat turn."""
    if config.stop == "turn":
        policy.eos_ids = tuple(sorted({*policy.eos_ids, *turn_ends(policy.tokenizer)}))


def use_cpus(num_threads: int) -> None:
    """Set torch's number of threads per operation, which changes the last digits of results.

    Also make the C library keep freed memory. Returning and allocating a step's activations costs a page fault every
    4 KiB, which was a third of an update (docs/log.md).
    """
    torch.set_num_threads(num_threads)
    with contextlib.suppress(OSError, AttributeError):  # only glibc has mallopt
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _KEEP_MEMORY.items():
            mallopt(parameter, value)


_KEEP_MEMORY = {
    -8: 1,  # M_ARENA_MAX: the forward pass reuses what the backward pass' thread has freed
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD
    -3: 2**25,  # M_MMAP_THRESHOLD: its maximum
}


def check_ids(policy: Policy, ids: Sequence[int]) -> None:
    """Check that the model has a row for each token. Raises ModelError: it has none for one."""
    num_rows = len(policy.model.get_input_embeddings().weight)
    if ids and max(ids) >= num_rows:
        text = policy.tokenizer.decode([max(ids)])
        raise ModelError(
            f"model.path: the prompt has token {max(ids)} ({text!r}), but the model only {num_rows} rows; use the "
            "tokenizer of these weights, or another prompt.template"
        )


def decode(policy: Policy, token_ids: Sequence[int]) -> str:
    """Return a completion's text without special tokens."""
    return str(policy.tokenizer.decode(list(token_ids), skip_special_tokens=True))
