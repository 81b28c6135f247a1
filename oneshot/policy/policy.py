"""A model's path -> the policy: its weights, its tokenizer, and the ids that end or pad a completion."""

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
    max_positions: int
    """Prompt and completion together may not be longer."""
    num_kv: int
    """Numbers in the keys and values of one token."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def kv_bytes(self) -> int:
        """What the keys and values of one token take, in the precision that the model computes in."""
        itemsize: int = self.model.dtype.itemsize
        return self.num_kv * itemsize


def load_policy(config: ModelConfig) -> Policy:
    """Loads weights and tokenizer of a shipped, local or hub model, on the CPU and in evaluation mode.

    Raises:
        ModelError: there is no such model, it has no EOS token, or its logits are not `head(last hidden state)`.
    """
    disable_progress_bar()  # "loading weights" of every trial of a sweep is no news
    folder = local_folder(config.path)
    source, revision = (str(folder), None) if folder else (config.path, config.revision)
    try:
        known: dict[str, Any] = {"revision": revision, "trust_remote_code": config.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(source, **known)
        # a pickle runs whatever its author wants
        dtype = getattr(torch, config.dtype)
        model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, dtype=dtype, **known)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: {config.path}: cannot be loaded: {_why(error)}") from error
    # dropout off, in training too: the released recipe has none, and a rollout's logprobs must be the update's
    model.eval()
    eos_ids = _eos_ids(model, tokenizer)
    if not eos_ids:
        raise ModelError(f"model.path: {config.path}: neither its generation config nor its tokenizer has an EOS token")
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
    """With `prompt.stop: turn`, has completions end with a turn of the chat, too."""
    if config.stop == "turn":
        policy.eos_ids = tuple(sorted({*policy.eos_ids, *turn_ends(policy.tokenizer)}))


def _why(error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return "it brings code of its own, which runs only where the sweep says model.trust_remote_code: true"
    if "safetensors" in text:
        return "it has no .safetensors files, and pickles are not loaded; save it with `save_pretrained`"
    return text


def _eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a completion: by the generation config, and by the tokenizer."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({token for token in [*ids, tokenizer.eos_token_id] if token is not None}))


@torch.no_grad()
def _check_head(model: Any, path: str) -> None:
    """Refuses models that transform their logits after the head: our loss would be that of another model."""
    ids = torch.tensor([[0, 1]])
    direct = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)
    if not torch.allclose(direct.float(), model(input_ids=ids).logits.float(), atol=1e-3, rtol=1e-3):
        raise ModelError(
            f"model.path: {path}: its logits are not head(hidden state) (soft-capped or scaled ones are not supported)"
        )


@torch.no_grad()
def _num_kv(model: Any, path: str) -> int:
    """What a model's cache holds a token, by its own account of one."""
    try:
        cache = model.base_model(input_ids=torch.tensor([[0, 0]]), use_cache=True).past_key_values
        numbers: int = sum(tensor.numel() for layer in cache.layers for tensor in (layer.keys, layer.values))
    except AttributeError as error:  # transformers has no common word for what a cache holds
        raise ModelError(
            f"model.path: {path}: its cache does not hold keys and values a layer (a state-space model?), which the "
            "rollout needs"
        ) from error
    return numbers // 2


def use_cpus(num_threads: int) -> None:
    """Torch's threads within an operation: `resources.cpus`, in Ray and out of it, since it moves last digits.

    Also has the C library keep memory that was freed: giving a step's activations back and taking them anew costs a
    page fault every 4 KiB, which was a third of an update (docs/log.md).
    """
    torch.set_num_threads(num_threads)
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc goes without
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _KEEP_MEMORY.items():
            mallopt(parameter, value)


_KEEP_MEMORY = {
    -8: 1,  # M_ARENA_MAX: what the backward pass' thread frees is there for the forward pass' one
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD
    -3: 2**25,  # M_MMAP_THRESHOLD, the highest that it takes
}


def decode(policy: Policy, token_ids: Sequence[int]) -> str:
    """A completion's text, without its special tokens."""
    text: str = policy.tokenizer.decode(list(token_ids), skip_special_tokens=True)
    return text
