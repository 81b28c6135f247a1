"""A model's path -> the sizes that decide its memory and time, without loading it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot.config.examples import POLICY
from oneshot.config.model import AdapterConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.models.source import max_positions, reached_positions, read_config
from oneshot.tasks.solutions import sampling_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a Llama-like decoder: attention, gated feed-forward, embeddings. Norms and biases are left out."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    is_tied: bool  # whether the head shares the embeddings' weights
    max_positions: int | None = None  # None if its config does not say

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Return a layer's matrices by their names in transformers: sizes in and out."""
        query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_params(self) -> int:
        """Return the number of weights of one layer."""
        return sum(wide * high for wide, high in self.linear.values())

    @property
    def head_params(self) -> int:
        """Return the number of weights of the output head."""
        return self.vocabulary * self.hidden

    @property
    def root_params(self) -> int:
        """Return the number of weights outside the layers: the embeddings, and an untied head."""
        return self.head_params * (1 if self.is_tied else 2)

    @property
    def num_params(self) -> int:
        """Return the number of all weights."""
        return self.num_layers * self.layer_params + self.root_params

    @property
    def kv_numbers(self) -> int:
        """Return how many numbers the keys and values of one token have."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def adapted(self, adapter: AdapterConfig) -> dict[str, tuple[int, int]]:
        """Return those of a layer's matrices that get an adapter."""
        return {
            name: size
            for name, size in self.linear.items()
            if adapter.targets == "all-linear" or name in adapter.targets
        }

    def adapter_params(self, adapter: AdapterConfig) -> int:
        """Return the number of weights of a low-rank adapter: two matrices per adapted matrix."""
        return self.num_layers * sum(adapter.r * (wide + high) for wide, high in self.adapted(adapter).values())


KNOWN_SHAPES: dict[str, ModelShape] = {
    path: ModelShape(**shape) for path, shape in json.loads(Path(__file__).with_suffix(".json").read_text()).items()
}
"""Shapes of the shipped sweeps' hub models, from their config.json."""


def model_shape(config: TrialConfig) -> ModelShape | None:
    """Return the shape of a known hub model or of a folder's config.json; None for any other model."""
    if config.model.path in KNOWN_SHAPES:
        return KNOWN_SHAPES[config.model.path]
    settings = read_config(config.model.path)
    return None if settings is None else _shape_of(settings)


_NOT_DENSE = ("num_local_experts", "num_experts", "n_routed_experts", "quantization_config")


def _shape_of(settings: dict[str, Any]) -> ModelShape | None:
    # with experts or quantized weights the settings below do not give the sizes
    if any(settings.get(name) for name in _NOT_DENSE):
        return None
    try:
        hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
        return ModelShape(
            num_layers=settings["num_hidden_layers"],
            hidden=hidden,
            intermediate=settings["intermediate_size"],
            num_heads=heads,
            num_kv_heads=settings.get("num_key_value_heads") or heads,
            head_dim=settings.get("head_dim") or hidden // heads,
            vocabulary=settings["vocab_size"],
            is_tied=bool(settings.get("tie_word_embeddings")),
            max_positions=max_positions(settings) if "max_position_embeddings" in settings else None,
        )
    except KeyError:
        return None


def _samples(config: TrialConfig) -> bool:
    """Return whether a training samples from the trial's own model."""
    return config.train.method == "grpo" or any(rule.from_ == POLICY for rule in sampling_rules(config.examples))


def check_positions(config: TrialConfig) -> None:
    """Check that a model has positions for a prompt and what a trial samples or learns, as far as its config is known.

    Raises UserError: it has not; the worker, which knows the prompt's length, would refuse the trial.
    """
    shape = model_shape(config)
    if shape is None or shape.max_positions is None or not config.train.num_steps:
        return
    most = reached_positions(config.model, shape.max_positions)
    if config.train.method == "sft" and (config.train.max_length or 0) > most:
        raise UserError(
            f"train.max_length: {config.train.max_length}, but {config.model.path} has {most} positions; lower it, "
            "or set model.max_positions and model.rope_scaling: yarn"
        )
    if _samples(config) and config.rollout.max_tokens >= most:
        raise UserError(
            f"rollout.max_tokens: {config.rollout.max_tokens}, but {config.model.path} has {most} positions for a "
            "prompt and its completion; lower rollout.max_tokens"
        )
