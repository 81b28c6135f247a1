"""A model's path -> the sizes that decide what it costs, without loading it."""

from dataclasses import dataclass
from typing import Any

from oneshot.config.trial import AdapterConfig, TrialConfig
from oneshot.models.source import read_config


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder of the Llama kind: attention, gated feed-forward, embeddings. Norms and biases are left out."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    is_tied: bool
    """Whether the head's weights are the embeddings'."""

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """A layer's matrices, by the names that transformers gives them: numbers in and out."""
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
        """Weights of one layer."""
        return sum(wide * high for wide, high in self.linear.values())

    @property
    def head_params(self) -> int:
        """Weights of the output head."""
        return self.vocabulary * self.hidden

    @property
    def root_params(self) -> int:
        """Weights outside the layers: embeddings, and the head where it has its own."""
        return self.head_params * (1 if self.is_tied else 2)

    @property
    def num_params(self) -> int:
        """All weights."""
        return self.num_layers * self.layer_params + self.root_params

    @property
    def kv_numbers(self) -> int:
        """Numbers in the keys and values of one token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def adapted(self, adapter: AdapterConfig) -> dict[str, tuple[int, int]]:
        """Those of a layer's matrices that get an adapter."""
        return {
            name: size
            for name, size in self.linear.items()
            if adapter.targets == "all-linear" or name in adapter.targets
        }

    def adapter_params(self, adapter: AdapterConfig) -> int:
        """Weights of a low-rank adapter: two matrices beside each of the layers that it names."""
        return self.num_layers * sum(adapter.r * (wide + high) for wide, high in self.adapted(adapter).values())


_QWEN_1B = ModelShape(
    num_layers=28,
    hidden=1536,
    intermediate=8960,
    num_heads=12,
    num_kv_heads=2,
    head_dim=128,
    vocabulary=151_936,
    is_tied=True,
)
KNOWN_SHAPES = {
    "Qwen/Qwen2.5-Math-1.5B": _QWEN_1B,
    "Qwen/Qwen2.5-Math-1.5B-Instruct": _QWEN_1B,
    "Qwen/Qwen2.5-1.5B": _QWEN_1B,
    "Qwen/Qwen2.5-Math-7B": ModelShape(
        num_layers=28,
        hidden=3584,
        intermediate=18_944,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        vocabulary=152_064,
        is_tied=False,
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ModelShape(
        num_layers=28,
        hidden=1536,
        intermediate=8960,
        num_heads=12,
        num_kv_heads=2,
        head_dim=128,
        vocabulary=151_936,
        is_tied=False,
    ),
    "meta-llama/Llama-3.2-3B-Instruct": ModelShape(
        num_layers=28,
        hidden=3072,
        intermediate=8192,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        vocabulary=128_256,
        is_tied=True,
    ),
    "allenai/OLMo-2-0425-1B": ModelShape(
        num_layers=16,
        hidden=2048,
        intermediate=8192,
        num_heads=16,
        num_kv_heads=16,
        head_dim=128,
        vocabulary=100_352,
        is_tied=False,
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ModelShape(
        num_layers=30,
        hidden=576,
        intermediate=1536,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        vocabulary=49_152,
        is_tied=True,
    ),
}
"""Of the shipped sweeps' hub models, from their config.json; of a local folder, its own is read."""


def model_shape(config: TrialConfig) -> ModelShape | None:
    """Of a hub model that is known, or of a folder by its config.json; None for another one."""
    if config.model.path in KNOWN_SHAPES:
        return KNOWN_SHAPES[config.model.path]
    facts = read_config(config.model.path)
    return None if facts is None else _shape_of(facts)


_NOT_DENSE = ("num_local_experts", "num_experts", "n_routed_experts", "quantization_config")


def _shape_of(facts: dict[str, Any]) -> ModelShape | None:
    if any(
        facts.get(name) for name in _NOT_DENSE
    ):  # experts, or weights of fewer bits: other sizes than these words say
        return None
    try:
        hidden, heads = facts["hidden_size"], facts["num_attention_heads"]
        return ModelShape(
            num_layers=facts["num_hidden_layers"],
            hidden=hidden,
            intermediate=facts["intermediate_size"],
            num_heads=heads,
            num_kv_heads=facts.get("num_key_value_heads") or heads,
            head_dim=facts.get("head_dim") or hidden // heads,
            vocabulary=facts["vocab_size"],
            is_tied=bool(facts.get("tie_word_embeddings")),
        )
    except KeyError:
        return None
