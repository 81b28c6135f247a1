"""A model's path -> the policy: its model, its tokenizer, and the ids that end or pad a completion."""

import contextlib
import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from oneshot.config.trial import ModelConfig, PromptConfig
from oneshot.errors import ModelError
from oneshot.models.source import local_folder
from oneshot.policy.forward import use_packs
from oneshot.tasks.prompts import turn_ends

log = logging.getLogger(__name__)


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


def load_policy(config: ModelConfig) -> Policy:
    """Load the model and tokenizer of a shipped, local or hub model, on the CPU and in evaluation mode.

    Raises ModelError: there is no such model, it has no EOS token, or its logits are not `head(last hidden state)`.
    """
    disable_progress_bar()  # a sweep loads weights in every trial
    # it makes a plan for each new shape, which takes half a second, and packs have new shapes in every step
    torch.backends.cuda.enable_cudnn_sdp(False)
    log.info("attention on a GPU: flash, memory-efficient or plain kernels; cuDNN's are off")
    folder = local_folder(config.path)
    source, revision = (str(folder), None) if folder else (config.path, config.revision)
    try:
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": config.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        dtype = getattr(torch, config.dtype)
        # safetensors only: a pickle can run any code
        model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: {config.path}: cannot be loaded: {_reason(error)}") from error
    # no dropout in training either: the released recipe has none, and rollout and update must agree on logprobs
    model.eval()
    eos_ids = _eos_ids(model, tokenizer)
    if not eos_ids:
        raise ModelError(f"model.path: {config.path}: no EOS token in its generation config or tokenizer")
    _check_head(model, config.path)
    num_kv = _num_kv(model, config.path)
    if not use_packs(model):
        log.info("%s cannot run packed; its update repeats the prompt in every row", config.path)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    return Policy(
        model=model,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=pad_id,
        max_positions=int(model.config.max_position_embeddings),
        num_kv=num_kv,
    )


def end_turns(policy: Policy, config: PromptConfig) -> None:
    """With `prompt.stop: turn`, also end completions at the tokens that end a chat turn."""
    if config.stop == "turn":
        policy.eos_ids = tuple(sorted({*policy.eos_ids, *turn_ends(policy.tokenizer)}))


def _reason(error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return "it contains code of its own; to run it, set model.trust_remote_code: true"
    if "safetensors" in text:
        return "it has no .safetensors files, and pickles are not loaded; save it with `save_pretrained`"
    return text


def _eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end a completion, from the generation config and the tokenizer."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({token for token in [*ids, tokenizer.eos_token_id] if token is not None}))


@torch.no_grad()
def _check_head(model: Any, path: str) -> None:
    """Refuse models that transform their logits after the head: our loss would be that of another model."""
    ids = torch.tensor([[0, 1]])
    direct = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)
    if not torch.allclose(direct.float(), model(input_ids=ids).logits.float(), atol=1e-3, rtol=1e-3):
        raise ModelError(
            f"model.path: {path}: its logits are not head(hidden state) (soft-capped or scaled ones are not supported)"
        )


@torch.no_grad()
def _num_kv(model: Any, path: str) -> int:
    """Return how many numbers a model's cache holds per token, measured on two tokens."""
    try:
        cache = model.base_model(input_ids=torch.tensor([[0, 0]]), use_cache=True).past_key_values
        numbers: int = sum(tensor.numel() for layer in cache.layers for tensor in (layer.keys, layer.values))
    except AttributeError as error:  # transformers has no common interface to a cache's contents
        raise ModelError(
            f"model.path: {path}: its cache has no keys and values per layer (a state-space model?); the rollout needs "
            "them"
        ) from error
    return numbers // 2


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


def decode(policy: Policy, token_ids: Sequence[int]) -> str:
    """Return a completion's text without special tokens."""
    return str(policy.tokenizer.decode(list(token_ids), skip_special_tokens=True))
