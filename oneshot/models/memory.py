"""A trial, its model's shape and how it is spread -> what each process has in memory, part by part, phase by phase.

The rollout has keys and values where the update has gradients and activations; the peak is the larger. docs/memory.md
explains each term, and what was measured.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from oneshot.config.trial import TrialConfig
from oneshot.models.activations import MicroBatch, backward_bytes, layer_bytes, micro_batch, model_bytes
from oneshot.models.shapes import ModelShape
from oneshot.tasks.benchmarks import Suite

Strategy = Literal["single", "ddp", "fsdp"]
"""One process; several with the whole model each; several with a shard each."""
CPU_KV_GIB = 4.0
"""Default of `rollout.kv_gib` on a CPU, where memory that is not touched costs nothing."""
DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}
PROMPT_TOKENS = 256
"""Assumed of a prompt, which a plan cannot count without a tokenizer."""
CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Logits that exist at a time in an update, by device: 128 MiB and 1 GiB in float32."""
LIVE_SHARE = 0.85
"""Decoding drops ended rows once fewer than this share of them is live: a drop copies one layer's keys or values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one process of a trial has in its GPU's memory, in GiB: what lasts, and either phase's own at its worst."""

    weights: float
    """That compute. Of fsdp there are none that last."""
    optimiser: float
    """Master weights, where they are apart, and AdamW's two moments."""
    reference: float
    decoding: float
    """Rollout: fsdp's whole copy of the weights."""
    kv: float
    sampling: float
    """Rollout: logits, and what is drawn."""
    gradients: float
    gathered: float
    """Update: the layers that fsdp has whole, and their gradients before they are shared out."""
    activations: float
    head: float
    """Update: logits of a chunk of tokens, and the gradient of the output head."""

    @property
    def lasting_gib(self) -> float:
        """What is there in every phase."""
        return self.weights + self.optimiser + self.reference

    @property
    def rollout_gib(self) -> float:
        """Peak while completions are decoded."""
        return self.lasting_gib + self.decoding + self.kv + self.sampling

    @property
    def update_gib(self) -> float:
        """Peak of the update; no more than what lasts where nothing is trained."""
        return self.lasting_gib + self.gradients + self.gathered + self.activations + self.head

    @property
    def peak_gib(self) -> float:
        """The larger of the two."""
        return max(self.rollout_gib, self.update_gib)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """Bytes at one moment of an update, beside what lasts."""

    gradients: float
    gathered: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        return self.gradients + self.gathered + self.activations + self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """Bytes and counts that the phases share."""

    shape: ModelShape
    strategy: Strategy
    num_processes: int
    cpu_offload: bool
    compute: int
    """Bytes of a number that computes."""
    master: int
    """... that the optimiser changes."""
    num_params: int
    num_trained: int
    has_reference: bool
    trains: bool
    on_gpu: bool

    @property
    def wide(self) -> int:
        """Bytes of a logit."""
        return max(4, self.compute)

    @property
    def is_mixed(self) -> bool:
        return self.compute != self.master

    @property
    def shard(self) -> float:
        """Share of what is sharded that one GPU holds."""
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
    """What each process needs; `gpu_gib` is what it may use of its GPU, None where it computes on a CPU."""
    adapter = config.model.adapter
    master = DTYPE_BYTES[config.model.dtype]
    added = 0 if adapter is None else shape.adapter_params(adapter)
    trains = config.train.num_steps > 0
    sizes = _Sizes(
        shape=shape,
        strategy=strategy,
        num_processes=num_processes,
        cpu_offload=cpu_offload,
        compute=2 if config.model.mixed_precision == "bf16" else master,
        master=master,
        num_params=shape.num_params + added,
        num_trained=shape.num_params if adapter is None else added,
        has_reference=trains and config.loss.kl_coef != 0 and adapter is None,
        trains=trains,
        on_gpu=gpu_gib is not None,
    )
    lasting = _lasting(sizes)
    free = None if gpu_gib is None else gpu_gib * 2**30 - sum(lasting)
    kv, sampling = _rollout(config, sizes, free, prompt_tokens=prompt_tokens, suites=suites)
    worst = _Moment(gradients=0.0, gathered=0.0, activations=0.0, head=0.0)
    if trains:
        worst = max(_update(config, sizes, prompt_tokens=prompt_tokens), key=lambda moment: moment.total)
    weights, optimiser, reference, decoding = lasting
    found = Memory(
        weights=weights,
        optimiser=optimiser,
        reference=reference,
        decoding=decoding,
        kv=kv,
        sampling=sampling,
        gradients=worst.gradients,
        gathered=worst.gathered,
        activations=worst.activations,
        head=worst.head,
    )
    return replace(found, **{part.name: getattr(found, part.name) / 2**30 for part in fields(found)})


def _lasting(sizes: _Sizes) -> tuple[float, float, float, float]:
    """Bytes of weights, optimiser and reference in every phase, and of the copy that fsdp decodes with."""
    whole = sizes.compute * sizes.num_params
    trained = sizes.master * sizes.num_trained
    moments = 2 * trained if sizes.trains else 0
    reference = whole if sizes.has_reference else 0
    if sizes.strategy != "fsdp":
        return whole, moments + (trained if sizes.is_mixed else 0), reference, 0.0
    # the master's shards are what the weights that compute are gathered from; what is not trained has none
    frozen = sizes.compute * (sizes.num_params - sizes.num_trained)
    shard = sizes.shard
    return frozen * shard, (trained + moments) * shard, reference * shard, whole


def _rollout(
    config: TrialConfig, sizes: _Sizes, free: float | None, *, prompt_tokens: int, suites: Sequence[Suite]
) -> tuple[float, float]:
    """Bytes of keys and values, and of logits and tokens, of the largest wave."""
    rollout = config.rollout
    room = CPU_KV_GIB * 2**30 if free is None else max(free, 0.0) / 2
    if rollout.kv_gib is not None:
        room = rollout.kv_gib * 2**30
    groups = math.ceil(rollout.num_groups / sizes.num_processes)
    asked = [(groups * rollout.group_size, rollout.max_tokens)] if sizes.trains else []
    asked += [
        (math.ceil((suite.count or 0) / sizes.num_processes) * suite.samples, suite.max_tokens) for suite in suites
    ]
    # a CPU multiplies no narrow matrices into wide ones
    cast = sizes.shape.head_params * sizes.wide if sizes.compute != sizes.wide and not sizes.on_gpu else 0
    found = [(0.0, 0.0)]
    for rows, max_tokens in asked:
        row_bytes = sizes.shape.kv_numbers * sizes.compute * (prompt_tokens + max_tokens)
        live = min(rows, max(1, int(room / row_bytes)))
        dropping = LIVE_SHARE / (2 * sizes.shape.num_layers)
        # two buffers of logits; a uniform, a token and its log-probability a position
        sampling = live * (2 * sizes.shape.vocabulary * sizes.wide + max_tokens * (2 * sizes.wide + 8))
        found.append((live * row_bytes * (1 + dropping), sampling + cast))
    return max(found, key=sum)


def _update(config: TrialConfig, sizes: _Sizes, *, prompt_tokens: int) -> Iterator[_Moment]:
    """The moments that may be an update's worst."""
    rollout, shape = config.rollout, sizes.shape
    # an optimiser step's completions; processes share them row by row
    num_rows = rollout.num_groups * rollout.group_size // config.train.updates_per_rollout
    mine = math.ceil(num_rows / sizes.num_processes)
    batch = micro_batch(config, num_rows=mine, prompt_tokens=prompt_tokens)
    kept = model_bytes(config, shape, batch, compute_bytes=sizes.compute)
    # of an optimiser step's earlier micro-batches
    summed = 0.0 if batch.is_only else sizes.master * sizes.num_trained * sizes.shard
    most = CHUNK_LOGITS["cuda" if sizes.on_gpu else "cpu"] // shape.vocabulary
    chunk = min(num_rows * rollout.max_tokens, max(1, most))
    logits = 2 * chunk * shape.vocabulary * sizes.wide
    root = sizes.compute * shape.root_params if sizes.strategy == "fsdp" else 0
    yield _Moment(
        gradients=summed,
        gathered=root,
        activations=kept,
        head=logits + _head_bytes(config, sizes, batch, chunk=chunk),
    )
    known = sizes.compute * (_head_weights(config, sizes) + batch.num_scored * shape.hidden)
    yield _Moment(
        gradients=summed,
        gathered=root + _gathered(sizes),
        activations=kept + backward_bytes(shape, batch, compute_bytes=sizes.compute),
        head=logits + known,
    )
    if sizes.strategy == "fsdp":
        # one layer on: its activations and weights are let go, its gradients on their way to the sum over processes
        again = config.train.activation_checkpointing
        gone = 0.0 if again else layer_bytes(config, shape, batch, compute_bytes=sizes.compute)
        yield _Moment(
            gradients=summed,
            gathered=root + _gathered(sizes) / 2 + _reduced(sizes, shape.layer_params),
            activations=kept - gone + (0.0 if again else backward_bytes(shape, batch, compute_bytes=sizes.compute)),
            head=logits + known,
        )
    yield _Moment(
        gradients=_gradients_at_end(sizes, summed),
        gathered=root + (_reduced(sizes, shape.root_params) if config.model.adapter is None else 0.0),
        activations=2 * sizes.compute * batch.num_tokens * shape.hidden,
        head=logits,
    )


def _head_weights(config: TrialConfig, sizes: _Sizes) -> int:
    """Weights of the head that have a gradient: beside an adapter none."""
    return sizes.shape.head_params if config.model.adapter is None else 0


def _head_bytes(config: TrialConfig, sizes: _Sizes, batch: MicroBatch, *, chunk: float) -> float:
    """What the head has beside its logits: gradients of hidden states and weights, and what it casts."""
    shape = sizes.shape
    hidden = 2 * batch.num_scored * shape.hidden * sizes.compute
    weight = _head_weights(config, sizes) * sizes.wide
    is_cast = sizes.compute != sizes.wide
    narrow = chunk * shape.vocabulary * sizes.compute if is_cast else 0
    if sizes.on_gpu:
        product = chunk * shape.vocabulary * sizes.wide if config.loss.entropy_coef else 0
        return hidden + weight + max(product, narrow + (weight if is_cast else 0))
    return hidden + weight + max(weight if is_cast else 0, narrow)


def _gradients_at_end(sizes: _Sizes, summed: float) -> float:
    """Of all weights, once a backward pass is through: its own, and their sum in the master's precision."""
    whole = sizes.master * sizes.num_trained * sizes.shard
    if sizes.strategy == "fsdp":
        return whole
    own = sizes.compute * sizes.num_trained
    # what is summed over processes is copied first, a parameter at a time
    is_whole = sizes.num_trained == sizes.num_params
    sent = sizes.master * sizes.shape.head_params if sizes.strategy == "ddp" and is_whole else 0
    return max(own + summed, whole + sent) if sizes.is_mixed else max(summed, own) + sent


def _gathered(sizes: _Sizes) -> float:
    """The layer that fsdp computes with and the next, whole."""
    return 2 * sizes.compute * sizes.shape.layer_params if sizes.strategy == "fsdp" else 0.0


def _reduced(sizes: _Sizes, num_params: int) -> float:
    """Of weights that fsdp has whole: gradients, and the float32 ones on their way to the sum over processes."""
    if sizes.strategy != "fsdp":
        return 0.0
    # those of the layer before are let go when these set out; where they are cast for it, a little later (seen)
    trained = num_params * sizes.num_trained / sizes.num_params
    return trained * (sizes.compute + sizes.master * (2 + sizes.is_mixed + 1 / sizes.num_processes))
