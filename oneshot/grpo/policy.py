"""A model's path -> the policy (weights, tokenizer, device), and the log-probabilities of its completions.

Shapes: G completions, T completion positions, S positions of prompt and completion, N tokens picked out of all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from oneshot.config import ModelConfig
from oneshot.errors import ModelError
from oneshot.models import local_folder

CHUNK_LOGITS = 2**25
"""Logits that exist at a time when log-probabilities are taken: 128 MiB in float32."""


@dataclass(slots=True, kw_only=True)
class Policy:
    """A causal language model, its tokenizer and the ids that end or pad a completion."""

    model: Any
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    max_positions: int
    """Prompt and completion together may not be longer."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device


def load_policy(config: ModelConfig) -> Policy:
    """Loads weights and tokenizer of a shipped, local or hub model, on the CPU and in evaluation mode.

    Raises:
        ModelError: there is no such model, it has no EOS token, or its logits are not `head(last hidden state)`.
    """
    disable_progress_bar()  # "loading weights" of every trial of a sweep is no news
    folder = local_folder(config.path)
    source, revision = (str(folder), None) if folder else (config.path, config.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=getattr(torch, config.dtype))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: {config.path}: cannot be loaded: {error}") from error
    # dropout off, in training too: the released recipe has none, and a rollout's logprobs must be the update's
    model.eval()
    eos_ids = _eos_ids(model, tokenizer)
    if not eos_ids:
        raise ModelError(f"model.path: {config.path}: neither its generation config nor its tokenizer has an EOS token")
    _check_head(model, config.path)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    return Policy(
        model=model,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=pad_id,
        max_positions=int(model.config.max_position_embeddings),
    )


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


def set_threads(num_threads: int) -> None:
    """Torch's threads within an operation: `resources.cpus`, in Ray and out of it, since it moves last digits."""
    torch.set_num_threads(num_threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Prompts with their completions, padded at the right: causal attention never looks there."""

    ids_GS: Tensor
    num_prompt_G: Tensor
    num_completion_G: Tensor

    @property
    def mask_GT(self) -> Tensor:
        """1.0 on completion tokens, `[G, T]` with T the longest completion."""
        positions_T = torch.arange(int(self.num_completion_G.max()), device=self.ids_GS.device)
        return (positions_T[None, :] < self.num_completion_G[:, None]).float()


def make_rows(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, pad_id: int, device: torch.device
) -> Rows:
    """Token ids of some prompts and their completions -> one padded batch."""
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids = [[*p, *c, *[pad_id] * (width - len(p) - len(c))] for p, c in zip(prompts, completions, strict=True)]
    return Rows(
        ids_GS=torch.tensor(ids, device=device),
        num_prompt_G=torch.tensor([len(p) for p in prompts], device=device),
        num_completion_G=torch.tensor([len(c) for c in completions], device=device),
    )


def completion_logprobs(model: Any, rows: Rows, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token, and entropy of the distribution it came from, both `[G, T]`.

    Natural log, at the sampling temperature, as the released code takes both. Positions past a completion hold 0.
    """
    mask_GT = rows.mask_GT.bool()
    # the token at position s is predicted at s - 1
    predicted_GT = rows.num_prompt_G[:, None] + torch.arange(mask_GT.shape[1], device=mask_GT.device)
    row_N, position_N = mask_GT.nonzero(as_tuple=True)[0], predicted_GT[mask_GT]
    targets_N = rows.ids_GS[row_N, position_N]
    hidden_GSH = model.base_model(input_ids=rows.ids_GS, use_cache=False).last_hidden_state
    hidden_NH = hidden_GSH[row_N, position_N - 1]
    logprobs_N, entropy_N = token_logprobs(hidden_NH, model.get_output_embeddings(), targets_N, temperature=temperature)
    zeros_GT = torch.zeros(mask_GT.shape, dtype=logprobs_N.dtype, device=mask_GT.device)
    return zeros_GT.masked_scatter(mask_GT, logprobs_N), zeros_GT.masked_scatter(mask_GT, entropy_N)


def token_logprobs(hidden_NH: Tensor, head: Any, targets_N: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Hidden states -> log-probability of the targets and entropy, `[N]` each, chunk by chunk.

    The logits of a chunk are made again in the backward pass, so that never more than one chunk's exist.
    """
    vocabulary = head.weight.shape[0]
    chunk = max(1, CHUNK_LOGITS // vocabulary)
    if len(targets_N) <= chunk:
        return _chunk_logprobs(hidden_NH, head, targets_N, temperature)
    parts = [
        checkpoint(_chunk_logprobs, hidden, head, targets, temperature, use_reentrant=False)
        for hidden, targets in zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _chunk_logprobs(hidden_NH: Tensor, head: Any, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits_NV = head(hidden_NH)
    if logits_NV.dtype in (torch.bfloat16, torch.float16):
        logits_NV = logits_NV.float()
    log_softmax_NV = (logits_NV / temperature).log_softmax(dim=-1)
    logprobs_N = log_softmax_NV.gather(1, targets_N[:, None]).squeeze(1)
    return logprobs_N, -(log_softmax_NV.exp() * log_softmax_NV).sum(dim=1)


def decode(policy: Policy, token_ids: Sequence[int]) -> str:
    """A completion's text, without its special tokens."""
    text: str = policy.tokenizer.decode(list(token_ids), skip_special_tokens=True)
    return text
