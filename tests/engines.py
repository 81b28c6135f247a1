"""Engines, prompts and small models that the tests of engines share."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from oneshot.models.source import SHIPPED
from oneshot.policy.policy import Policy
from oneshot.rollout.engine import Completion, Engine, PromptRequest
from oneshot.rollout.hf import HfGenerate
from oneshot.rollout.lockstep import Lockstep
from oneshot.tasks.prompts import encode

PROMPTS = ("47+38=?", "12*7=?", "9-3=?", "85+37=?")


def in_waves(policy: Policy, rows: int) -> Lockstep:
    """Of so many rows of up to 64 positions (the prompts here have up to 8 tokens, the completions up to 56)."""
    return Lockstep(kv_gib=(rows + 0.5) * policy.kv_bytes * 64 / 2**30)


ENGINES: dict[str, Callable[[Policy], Engine]] = {
    "lockstep": lambda _: Lockstep(kv_gib=1.0),
    "lockstep in small waves": lambda policy: in_waves(policy, 5),
    "lockstep at fixed shapes": lambda _: Lockstep(kv_gib=1.0, fixed_shapes=True),
    "hf": lambda _: HfGenerate(),
}
"""Those that run everywhere, in any precision."""


def prompt(policy: Policy, text: str) -> tuple[int, ...]:
    return tuple(encode(text, suffix="", template="plain", tokenizer=policy.tokenizer))


def requests(policy: Policy, *, rows: int, max_tokens: int) -> list[PromptRequest]:
    return [
        PromptRequest(
            prompt_ids=prompt(policy, text),
            row_keys=tuple((7, index, row) for row in range(rows)),
            max_tokens=max_tokens,
        )
        for index, text in enumerate(PROMPTS)
    ]


def by_key(asked: Sequence[PromptRequest], found: list[list[Completion]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    return {
        key: completion.token_ids
        for request, row in zip(asked, found, strict=True)
        for key, completion in zip(request.row_keys, row, strict=True)
    }


def headed_model(kind: str, folder: Path) -> Path:
    """An untrained model with heads of 32 numbers, of a size that vLLM has kernels for, and a shipped tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "qwen2")
    torch.manual_seed(1)
    config = {"qwen2": Qwen2Config, "llama": LlamaConfig}[kind](
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=kind == "qwen2",
        initializer_range=0.2,  # far from even probabilities
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
