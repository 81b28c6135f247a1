"""A trial -> what it is expected to cost: tokens, seconds a step, GPU-hours and memory.

A stated `cost.step_s` counts first, then the median of finished trainings of the same shape in the store, then an
estimate: floating-point operations over what an 80 GB H100 does in bfloat16 at an assumed efficiency. No GPU of that
kind was at hand to measure it on (docs/log.md).
"""

from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from oneshot.config import TrialConfig
from oneshot.models import read_config
from oneshot.store import Store
from oneshot.sweepconfig import CostConfig
from oneshot.tasks import sets
from oneshot.tasks.benchmarks import GENERATED, Suite

PEAK_FLOPS = 989e12
"""Of an H100 SXM, bfloat16, dense."""
EFFICIENCY = 0.2
"""Assumed share of it, over rollout and update together, and evaluation."""
MEAN_TOKENS = 900
"""Expected length of a completion (arXiv 2504.20571, Table 19: about 1,000 on six suites)."""
Basis = Literal["stated", "measured", "estimated", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What decides a model's cost."""

    num_params: float
    kv_numbers: int
    """Numbers in the keys and values of one token."""


KNOWN_SHAPES = {
    "Qwen/Qwen2.5-Math-1.5B": ModelShape(num_params=1.54e9, kv_numbers=14_336),
    "Qwen/Qwen2.5-Math-1.5B-Instruct": ModelShape(num_params=1.54e9, kv_numbers=14_336),
    "Qwen/Qwen2.5-1.5B": ModelShape(num_params=1.54e9, kv_numbers=14_336),
    "Qwen/Qwen2.5-Math-7B": ModelShape(num_params=7.62e9, kv_numbers=28_672),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ModelShape(num_params=1.78e9, kv_numbers=14_336),
    "meta-llama/Llama-3.2-3B-Instruct": ModelShape(num_params=3.21e9, kv_numbers=57_344),
    "allenai/OLMo-2-0425-1B": ModelShape(num_params=1.48e9, kv_numbers=65_536),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ModelShape(num_params=0.135e9, kv_numbers=11_520),
}
"""Of the shipped sweeps' hub models, from their model cards; of a local folder, its config.json is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one trial is expected to cost."""

    train_tokens: int
    eval_tokens: int
    step_s: float | None
    gpu_hours: float | None
    """None: nothing is known of the model."""
    memory_gib: float | None
    """On one GPU's worth of weights, gradients, optimiser, reference and keys and values; activations not in it."""
    basis: Basis


def estimate(
    config: TrialConfig, suites: tuple[Suite, ...], cost: CostConfig, *, gpus: float, measured_s: float | None
) -> Cost:
    """The cost of one trial on `gpus` GPUs, which are taken to share its work evenly."""
    rollout, steps = config.rollout, config.train.num_steps
    length = cost.mean_tokens or min(MEAN_TOKENS, rollout.max_tokens)
    step_tokens = rollout.num_groups * rollout.group_size * length
    eval_tokens = sum(
        _num_problems(suite) * suite.samples * min(length, suite.max_tokens) * _num_evaluations(suite, config)
        for suite in suites
    )
    shape = model_shape(config)
    step_s, basis = _step_s(config, shape, step_tokens, cost, gpus, measured_s)
    hours = None
    if (step_s is not None or steps == 0) and (shape is not None or eval_tokens == 0 or cost.step_s is not None):
        eval_s = 0.0 if shape is None else _seconds(2 * shape.num_params * eval_tokens, gpus)
        hours = gpus * (steps * (step_s or 0.0) + eval_s) / 3600
    return Cost(
        train_tokens=steps * step_tokens,
        eval_tokens=eval_tokens,
        step_s=step_s,
        gpu_hours=hours if gpus else 0.0,
        memory_gib=None if shape is None else memory_gib(config, shape),
        basis=basis if gpus else "stated",
    )


def _step_s(
    config: TrialConfig, shape: ModelShape | None, tokens: int, cost: CostConfig, gpus: float, measured_s: float | None
) -> tuple[float | None, Basis]:
    if cost.step_s is not None:
        return cost.step_s, "stated"
    if measured_s is not None:
        return measured_s, "measured"
    if shape is None or not gpus:
        return None, "unknown"
    # rollout 2N a token, update 6N; reference and old log-probabilities 2N each, where they are computed
    passes = 8 + 2 * (config.loss.kl_coef != 0) + 2 * (config.train.updates_per_rollout > 1)
    passes += 2 * config.train.activation_checkpointing  # each layer's forward again
    return _seconds(passes * shape.num_params * tokens, gpus), "estimated"


def _seconds(operations: float, gpus: float) -> float:
    return operations / (PEAK_FLOPS * EFFICIENCY * gpus) if gpus else 0.0


def memory_gib(config: TrialConfig, shape: ModelShape) -> float:
    """Master weights, gradients and AdamW's two moments; what computes and the reference, where they are apart; KV."""
    size = {"float64": 8, "float32": 4, "bfloat16": 2}[config.model.dtype]
    compute = 2 if config.model.mixed_precision == "bf16" else size
    apart = compute if compute != size else 0
    copies = 4 * size + 2 * apart + (compute if config.loss.kl_coef else 0) if config.train.num_steps else size + apart
    rows = config.rollout.num_groups * config.rollout.group_size
    kv = shape.kv_numbers * compute * rows * config.rollout.max_tokens / 2**30
    kv = min(kv, config.rollout.kv_gib) if config.rollout.kv_gib else min(kv, 16.0)
    return shape.num_params * copies / 2**30 + kv


def model_shape(config: TrialConfig) -> ModelShape | None:
    """Of a hub model that is known, or of a folder by its config.json; None for another one."""
    if config.model.path in KNOWN_SHAPES:
        return KNOWN_SHAPES[config.model.path]
    facts = read_config(config.model.path)
    return None if facts is None else _shape_of(facts)


def _shape_of(facts: dict[str, Any]) -> ModelShape | None:
    """A decoder of the Llama kind: attention, gated feed-forward, embeddings."""
    try:
        hidden, layers, heads = facts["hidden_size"], facts["num_hidden_layers"], facts["num_attention_heads"]
        kv_width = (facts.get("num_key_value_heads") or heads) * (facts.get("head_dim") or hidden // heads)
        layer = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * facts["intermediate_size"]
        embeddings = facts["vocab_size"] * hidden * (1 if facts.get("tie_word_embeddings") else 2)
    except KeyError:
        return None
    return ModelShape(num_params=layers * layer + embeddings, kv_numbers=2 * layers * kv_width)


def _num_problems(suite: Suite) -> int:
    if suite.source in GENERATED:
        return len(suite.problems)
    return suite.num_problems or sets.num_rows(suite.source) or 0


def _num_evaluations(suite: Suite, config: TrialConfig) -> int:
    steps, at_start, also_at = config.train.num_steps, config.eval.at_start, config.eval.also_at
    return len(suite.due_steps(num_steps=steps, at_start=at_start, also_at=also_at))


Shape = tuple[object, ...]
"""What two trainings must have in common, for one's seconds a step to speak for the other's."""


def training_shape(config: TrialConfig, *, gpus: float) -> Shape:
    """Model, precision, and how much is sampled and updated a step."""
    model, rollout = config.model, config.rollout
    sampled = (rollout.num_groups, rollout.group_size, rollout.max_tokens, config.train.updates_per_rollout)
    return (model.path, model.dtype, model.mixed_precision, *sampled, config.loss.kl_coef != 0, gpus)


def measured_steps(store: Store) -> dict[Shape, float]:
    """Median seconds a step of the store's finished trainings that held GPUs, by shape."""
    found: dict[Shape, list[float]] = {}
    for key in store.trainings():
        folder = store.trial(key)
        described, result = folder.read_json("trial.json"), folder.result()
        if described is None or result is None or result.outcome != "finished" or not described.get("gpus"):
            continue
        shape = training_shape(TrialConfig.model_validate(described["config"]), gpus=described["gpus"])
        found.setdefault(shape, []).extend(
            row.metrics["perf/step_s"] for row in folder.rows() if "perf/step_s" in row.metrics
        )
    return {shape: median(seconds) for shape, seconds in found.items() if seconds}
