"""A model's path -> the policy, after checks that its weights, head, cache and tokenizer are those of a language model.

A model is refused before anything is trained if a weight is missing, left over or not finite.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from oneshot.config.model import ModelConfig
from oneshot.errors import ModelError
from oneshot.models.source import local_folder, max_positions, reached_positions, read_config, scaled
from oneshot.models.weight_files import check_weight_files
from oneshot.policy.forward import use_packs
from oneshot.policy.policy import Policy

log = logging.getLogger(__name__)

OUR_KERNELS = ("sdpa", "eager", None)
"""Values of a config's attention implementation that need no further package."""


def load_policy(config: ModelConfig) -> Policy:
    """Load the model and tokenizer of a shipped, local or hub model, on the CPU and in evaluation mode.

    Raises ModelError: there is no such model, its weights do not fit its config, it has no EOS token, or its logits are
    not `head(last hidden state)`.
    """
    disable_progress_bar()  # a sweep loads weights in every trial
    # it makes a plan for each new shape, which takes half a second, and packs have new shapes in every step
    torch.backends.cuda.enable_cudnn_sdp(False)
    log.info("attention on a GPU: flash, memory-efficient or plain kernels; cuDNN's are off")
    folder = local_folder(config.path)
    if folder is not None:
        read_config(config.path)
        check_weight_files(folder)
    try:
        model, tokenizer = _load(config)
    except (MemoryError, ModelError):
        raise
    except Exception as error:  # transformers raises errors of any kind for a folder that it cannot read
        raise ModelError(f"model.path: {config.path}: cannot be loaded: {_reason(error)}") from error
    # no dropout in training either: the released recipe has none, and rollout and update must agree on logprobs
    model.eval()
    eos_ids = _eos_ids(model, tokenizer)
    if not eos_ids:
        raise ModelError(f"model.path: {config.path}: no EOS token in its generation config or tokenizer")
    _check_finite(model, config.path)
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
        max_positions=reached_positions(config, max_positions(model.config.to_dict())),
        num_kv=num_kv,
    )


def load_tokenizer(config: ModelConfig) -> tuple[Any, int]:
    """Return a model's tokenizer and the largest number of tokens that a trial may use, without its weights.

    Raises ModelError: they cannot be loaded.
    """
    try:
        tokenizer, settings = _load_settings(config)
    except (MemoryError, ModelError):
        raise
    except Exception as error:  # as for the model
        raise ModelError(f"model.path: {config.path}: cannot be loaded: {_reason(error)}") from error
    return tokenizer, reached_positions(config, max_positions(settings.to_dict()))


def _source(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Return what transformers loads from, and how."""
    folder = local_folder(config.path)
    options = {"revision": None if folder else config.revision, "trust_remote_code": config.trust_remote_code}
    return str(folder or config.path), options


def _load_settings(config: ModelConfig) -> tuple[Any, Any]:
    """Return the tokenizer and the config, which reaches `max_positions`."""
    source, options = _source(config)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    settings = AutoConfig.from_pretrained(source, **options)
    for name, value in scaled(config, settings.to_dict()).items():
        setattr(settings, name, value)
    return tokenizer, settings


def _load(config: ModelConfig) -> tuple[Any, Any]:
    """Return the model, whose weights are all there, and its tokenizer."""
    source, options = _source(config)
    tokenizer, settings = _load_settings(config)
    if getattr(settings, "quantization_config", None) is not None:
        raise ModelError(f"model.path: {config.path}: its weights are quantised; use the model's plain weights")
    if settings._attn_implementation not in OUR_KERNELS:
        log.info("%s asks for %s; torch's attention is used", config.path, settings._attn_implementation)
        settings._attn_implementation = None
    # safetensors only: a pickle can run any code
    options |= {"config": settings, "dtype": getattr(torch, config.dtype), "output_loading_info": True}
    result: Any = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **options)
    model, loaded = result
    _check_all_loaded(loaded, config.path)
    return model, tokenizer


def _check_all_loaded(loaded: Mapping[str, Any], path: str) -> None:
    """Refuse a model of which a tensor was made up, or a folder with tensors that the model does not have."""
    missing = sorted(loaded["missing_keys"])
    more = sorted(name for name in loaded["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq"))
    parts = [f"{_some(names)} {what}" for names, what in ((missing, "missing"), (more, "left over")) if names]
    if parts:
        raise ModelError(
            f"model.path: {path}: its weights do not fit its config.json: {'; '.join(parts)}; "
            "save the model again with `save_pretrained`"
        )


def _some(names: list[str]) -> str:
    """Name the first of some tensors, as the subject of a sentence."""
    if len(names) > 3:
        return f"{', '.join(names[:3])} and {len(names) - 3} more are"
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it contains code of its own; to run it, set model.trust_remote_code: true"
    if "safetensors" in str(error) and isinstance(error, OSError):
        return "it has no .safetensors files, and pickles are not loaded; save it with `save_pretrained`"
    text = str(error).strip().partition("\n")[0]
    # these say nothing without their type: KeyError('nosuch')
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"


def _check_finite(model: Any, path: str) -> None:
    """Refuse weights that are NaN or infinite."""
    for name, parameter in model.named_parameters():
        if not all(end.isfinite() for end in parameter.detach().aminmax()):
            raise ModelError(f"model.path: {path}: {name} has NaN or infinite numbers; use weights that are whole")


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
