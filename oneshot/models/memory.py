"""A trial, its model's shape and its strategy -> each process's memory, part by part, phase by phase.

The rollout holds keys and values, the update holds gradients and activations; the peak is the larger of the two.
docs/memory.md explains each term and compares it with measurements.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from oneshot.config.trial import TrialConfig
from oneshot.models.activations import (
    PROMPT_TOKENS,
    MicroBatch,
    backward_bytes,
    layer_bytes,
    micro_batch,
    model_bytes,
    update_rows,
)
from oneshot.models.shapes import ModelShape
from oneshot.tasks.benchmarks import Suite

Strategy = Literal["single", "ddp", "fsdp"]  # one process; several with a whole model each; several with a shard each
CPU_KV_GIB = 4.0  # default of `rollout.kv_gib` on a CPU, where untouched memory costs nothing
DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Logits that an update holds at a time, by device: 128 MiB and 1 GiB in float32."""
NUM_BLOCKS = 16
"""On a GPU a product as wide as the vocabulary is summed in this many blocks of a chunk's rows."""
LIVE_SHARE = 0.85
"""Decoding drops ended rows once fewer than this share of rows is live; a drop copies one layer's keys or values."""
PREFILL_TOKENS = 2**14
"""Tokens of different prompts that are computed at a time, padding included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """GPU memory of one process of a trial, in GiB: what lasts, and the peak of each phase."""

    weights: float  # weights that compute, also a critic's; with fsdp none of them last
    optimiser: float  # master weights if they are separate, and AdamW's two moments, also a critic's
    reference: float
    decoding: float  # rollout: the copy of the weights that vLLM has, or that fsdp gathers
    kv: float
    sampling: float  # rollout: logits and random numbers, and the activations of prompts and decode steps
    gradients: float
    gathered: float  # update: the layers that fsdp has gathered, and their gradients before the reduce-scatter
    activations: float
    head: float  # update: logits of a chunk of tokens, and the gradient of the output head

    @property
    def lasting_gib(self) -> float:
        """Return the memory that every phase has."""
        return self.weights + self.optimiser + self.reference

    @property
    def rollout_gib(self) -> float:
        """Return the peak while completions are decoded."""
        return self.lasting_gib + self.decoding + self.kv + self.sampling

    @property
    def update_gib(self) -> float:
        """Return the peak of the update; without training it equals the lasting memory."""
        return self.lasting_gib + self.gradients + self.gathered + self.activations + self.head

    @property
    def peak_gib(self) -> float:
        """Return the larger of the two peaks."""
        return max(self.rollout_gib, self.update_gib)

    @property
    def kept_gib(self) -> float:
        """Return the peak if memory for keys and values lasts during the update."""
        return max(self.rollout_gib, self.update_gib + self.kv)


class _Moment(NamedTuple):
    """Bytes at one moment of an update, without what lasts."""

    gradients: float = 0.0
    gathered: float = 0.0
    activations: float = 0.0
    head: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """Bytes and counts that the phases share."""

    shape: ModelShape
    strategy: Strategy
    num_processes: int
    cpu_offload: bool
    compute: int  # bytes per number in the compute precision
    master: int  # bytes per number in the optimiser's precision
    num_params: int
    num_trained: int
    has_reference: bool
    trains: bool
    critic: float  # weights of a critic's own model, as a share of the policy's
    on_gpu: bool
    copy: float  # the engine's own copy of the weights, 0 if it decodes with the trainer's

    @property
    def wide(self) -> int:
        """Return the bytes of a logit."""
        return max(4, self.compute)

    @property
    def trained_head(self) -> int:
        """Return the number of the head's weights with a gradient: none with an adapter."""
        return self.shape.head_params if self.num_trained == self.num_params else 0

    @property
    def is_mixed(self) -> bool:
        return self.compute != self.master

    @property
    def shard(self) -> float:
        """Return the share of a sharded tensor that one GPU holds."""
        return (0.0 if self.cpu_offload else 1.0) / self.num_processes if self.strategy == "fsdp" else 1.0


def footprint(
    config: TrialConfig,
    shape: ModelShape,
    *,
    strategy: Strategy = "single",
    num_processes: int = 1,
    cpu_offload: bool = False,
    gpu_gib: float | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    suites: Sequence[Suite] = (),
) -> Memory:
    """Return the memory that each process needs; `gpu_gib` is what it may use of its GPU, None on a CPU."""
    adapter = config.model.adapter
    master = DTYPE_BYTES[config.model.dtype]
    added = 0 if adapter is None else shape.adapter_params(adapter)
    trains = config.train.num_steps > 0
    sizes = _Sizes(
        shape=shape,
        strategy=strategy,
        num_processes=num_processes,
        cpu_offload=cpu_offload,
        compute=DTYPE_BYTES[config.model.compute_dtype],
        master=master,
        num_params=shape.num_params + added,
        num_trained=shape.num_params if adapter is None else added,
        has_reference=config.has_reference and adapter is None,
        trains=trains,
        critic=critic_share(config, shape) if trains else 0.0,
        on_gpu=gpu_gib is not None,
        copy=_copy(config, shape),
    )
    lasting = _lasting(sizes)
    free = None if gpu_gib is None else gpu_gib * 2**30 - sum(lasting.values())
    kv, sampling = _rollout(config, sizes, free, prompt_tokens=prompt_tokens, suites=suites)
    share = config.rollout.vllm.gpu_memory_utilization
    if sizes.copy and gpu_gib is not None and share is not None:  # which then counts everything that vLLM has
        kv = max(share * gpu_gib * 2**30 - sizes.copy, 0.0)
    worst = max(_update(config, sizes, prompt_tokens=prompt_tokens), key=sum) if trains else _Moment()
    if sizes.copy and gpu_gib is None:  # where vLLM cannot sleep
        lasting["weights"] += lasting["decoding"] + kv
        lasting["decoding"] = kv = 0.0
    num_bytes = {**lasting, "kv": kv, "sampling": sampling, **worst._asdict()}
    return Memory(**{part: size / 2**30 for part, size in num_bytes.items()})


def critic_share(config: TrialConfig, shape: ModelShape) -> float:
    """Return the weights of a critic's own model over the policy's: it has no output head of its own."""
    if config.critic is None or config.critic.share == "body":
        return 0.0
    return 1.0 if shape.is_tied else 1 - shape.head_params / shape.num_params


def _copy(config: TrialConfig, shape: ModelShape) -> float:
    """Return the bytes of the weights that vLLM has beside the trainer's; 0 with another engine."""
    rollout = config.rollout
    if rollout.engine != "vllm":
        return 0.0
    compute = DTYPE_BYTES[config.model.compute_dtype]
    layers = shape.num_layers * shape.layer_params * (1 if rollout.vllm.quantization == "fp8" else compute)
    return (layers + compute * shape.root_params) / rollout.vllm.tensor_parallel


def _lasting(sizes: _Sizes) -> dict[str, float]:
    """Return the bytes of weights, optimiser and reference in every phase, and of the copy that fsdp decodes with."""
    whole = sizes.compute * sizes.num_params
    trained = sizes.master * sizes.num_trained
    moments = 2 * trained if sizes.trains else 0
    reference = whole if sizes.has_reference else 0
    if sizes.strategy != "fsdp":
        optimiser = (moments + (trained if sizes.is_mixed else 0)) * (1 + sizes.critic)
        weights = whole * (1 + sizes.critic)
        return {"weights": weights, "optimiser": optimiser, "reference": reference, "decoding": sizes.copy}
    # computing weights are gathered from the master's shards; untrained ones have no master
    frozen = sizes.compute * (sizes.num_params - sizes.num_trained)
    sharded = {"weights": frozen, "optimiser": trained + moments, "reference": reference}
    return {**{part: size * sizes.shard for part, size in sharded.items()}, "decoding": sizes.copy or whole}


def _rollout(
    config: TrialConfig, sizes: _Sizes, free: float | None, *, prompt_tokens: int, suites: Sequence[Suite]
) -> tuple[float, float]:
    """Return the bytes of keys and values, and of logits and tokens, of the largest wave."""
    rollout = config.rollout
    kv_bytes = CPU_KV_GIB * 2**30 if free is None else max(free, 0.0) / 2
    if rollout.kv_gib is not None:
        kv_bytes = rollout.kv_gib * 2**30
    groups = math.ceil(rollout.num_groups / sizes.num_processes)
    has_rollout = sizes.trains and config.train.method == "grpo"
    calls = [(groups, rollout.group_size, rollout.max_tokens)] if has_rollout else []
    calls += [
        (math.ceil((suite.count or 0) / sizes.num_processes), suite.samples, suite.max_tokens) for suite in suites
    ]
    # a CPU has no product of narrow matrices with a wide result: the head is cast first
    cast = sizes.shape.head_params * sizes.wide if sizes.compute != sizes.wide and not sizes.on_gpu else 0
    # of a decoder layer: its input, norms and attention, and gate, up and their product
    token_bytes = sizes.compute * (4 * sizes.shape.hidden + 3 * sizes.shape.intermediate)
    waves = [(0.0, 0.0)]
    for prompts, samples, max_tokens in calls:
        rows, position_bytes = prompts * samples, sizes.shape.kv_numbers * sizes.compute
        row_bytes = position_bytes * (prompt_tokens + max_tokens)
        live = min(rows, max(1, int(kv_bytes / (position_bytes * (prompt_tokens + 1)))))  # each with its first token
        moving = 1 / (2 * sizes.shape.num_layers)  # one layer's keys or values, when rows are dropped or grow
        kv = min(max(kv_bytes, row_bytes), rows * row_bytes) * (1 + moving)
        chunk = min(live, max(1, CHUNK_LOGITS["cuda" if sizes.on_gpu else "cpu"] // sizes.shape.vocabulary))
        # two buffers of logits; per position a uniform, a token and its log-probability
        drawing = 2 * chunk * sizes.shape.vocabulary * sizes.wide + live * max_tokens * (2 * sizes.wide + 8) + cast
        # rows that have waited, or think in rounds, are computed again, each with its own tokens
        waits = rows * row_bytes > kv_bytes or any(suite.thinking for suite in suites)
        prefill = max(prompt_tokens, min(PREFILL_TOKENS, math.inf if waits else prompts * prompt_tokens)) * token_bytes
        graphs = live * token_bytes if sizes.on_gpu else 0
        if sizes.copy:  # vLLM holds all of its keys and values, and three tables of logits
            kv = kv_bytes
            live = min(live, rollout.vllm.max_num_seqs)
            drawing = 3 * live * sizes.shape.vocabulary * sizes.wide
        waves.append((kv, graphs + max(drawing, prefill)))
    return max(waves, key=sum)


def _update(config: TrialConfig, sizes: _Sizes, *, prompt_tokens: int) -> Iterator[_Moment]:
    """Yield the moments at which an update's memory may peak."""
    shape = sizes.shape
    num_rows, max_tokens = update_rows(config)
    rows_per_process = math.ceil(num_rows / sizes.num_processes)
    batch = micro_batch(config, num_rows=rows_per_process, max_tokens=max_tokens, prompt_tokens=prompt_tokens)
    kept = model_bytes(config, shape, batch, compute_bytes=sizes.compute, on_gpu=sizes.on_gpu)
    # gradients of an optimiser step's earlier micro-batches
    summed = 0.0 if batch.is_only else sizes.master * sizes.num_trained * sizes.shard
    most = CHUNK_LOGITS["cuda" if sizes.on_gpu else "cpu"] // shape.vocabulary
    chunk = min(num_rows * max_tokens, max(1, most))
    logits = 2 * chunk * shape.vocabulary * sizes.wide
    root = sizes.compute * shape.root_params if sizes.strategy == "fsdp" else 0
    yield _Moment(
        gradients=summed, gathered=root, activations=kept, head=logits + _head_bytes(config, sizes, batch, chunk=chunk)
    )
    head_gradients = sizes.compute * (sizes.trained_head + batch.num_scored * shape.hidden)
    yield _Moment(
        gradients=summed,
        gathered=root + _gathered(sizes),
        activations=kept + backward_bytes(shape, batch, compute_bytes=sizes.compute),
        head=logits + head_gradients,
    )
    if sizes.strategy == "fsdp":
        # one layer later: its activations and weights are freed, its gradients are being reduced
        activations = kept
        if not config.train.activation_checkpointing:
            freed = layer_bytes(config, shape, batch, compute_bytes=sizes.compute, on_gpu=sizes.on_gpu)
            activations = kept - freed + backward_bytes(shape, batch, compute_bytes=sizes.compute)
        yield _Moment(
            gradients=summed,
            gathered=root + _gathered(sizes) / 2 + _reduced(sizes, shape.layer_params),
            activations=activations,
            head=logits + head_gradients,
        )
    yield _Moment(
        gradients=_gradients_at_end(sizes, summed),
        gathered=root + (_reduced(sizes, shape.root_params) if config.model.adapter is None else 0.0),
        activations=2 * sizes.compute * batch.num_tokens * shape.hidden,
        head=logits,
    )


def _head_bytes(config: TrialConfig, sizes: _Sizes, batch: MicroBatch, *, chunk: float) -> float:
    """Return the head's bytes besides its logits: gradients of hidden states and weights, and casts of either."""
    shape = sizes.shape
    hidden = 2 * batch.num_scored * shape.hidden * sizes.compute
    weight = sizes.trained_head * sizes.wide
    is_cast = sizes.compute != sizes.wide
    narrow = chunk * shape.vocabulary * sizes.compute if is_cast else 0
    if sizes.on_gpu:
        product = chunk / NUM_BLOCKS * shape.vocabulary * sizes.wide if config.loss.entropy_coef else 0
        rounded = sizes.compute * sizes.trained_head if is_cast else 0
        return hidden + weight + max(product, narrow, rounded)
    return hidden + weight + max(weight if is_cast else 0, narrow)


def _gradients_at_end(sizes: _Sizes, summed: float) -> float:
    """Return the bytes of all gradients at the end of a backward pass: its own, and their sum in master precision."""
    whole = sizes.master * sizes.num_trained * sizes.shard
    if sizes.strategy == "fsdp":
        return whole
    own = sizes.compute * sizes.num_trained
    # the sum over processes copies one parameter at a time
    sent = sizes.master * sizes.trained_head if sizes.strategy == "ddp" else 0
    return max(own + summed, whole + sent) if sizes.is_mixed else max(summed, own) + sent


def _gathered(sizes: _Sizes) -> float:
    """Return the bytes of the two layers that fsdp has gathered: the current one and the next."""
    return 2 * sizes.compute * sizes.shape.layer_params if sizes.strategy == "fsdp" else 0.0


def _reduced(sizes: _Sizes, num_params: int) -> float:
    """Return the bytes of gathered weights' gradients, and of their float32 copies in the reduce-scatter."""
    if sizes.strategy != "fsdp":
        return 0.0
    # the previous layer's copies are freed when these start; if they are cast first, a little later (measured)
    trained = num_params * sizes.num_trained / sizes.num_params
    return trained * (sizes.compute + sizes.master * (2 + sizes.is_mixed + 1 / sizes.num_processes))
