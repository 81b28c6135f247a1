"""A trial's micro-batch and a model's shape -> what the forward pass keeps for the backward pass, in bytes.

What transformers' Llama and Qwen2 layers keep, tensor by tensor, with the attention of policy/attention.py; read off with
`torch.autograd.graph.saved_tensors_hooks`, and held to it by tests/test_memory.py.
"""

from dataclasses import dataclass

from oneshot.config.trial import TrialConfig
from oneshot.models.shapes import ModelShape

NORM_BYTES = 4
"""RMSNorm computes in float32, whatever the model computes in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """A pack as long as it may be: one prompt, and completions of full length behind it."""

    num_tokens: float
    num_rows: float
    prompt: int
    width: int
    """Tokens of a completion that are computed: all but its last."""
    is_only: bool
    """Whether an optimiser step has no other."""

    @property
    def num_scored(self) -> float:
        """Tokens whose log-probability is asked for."""
        return self.num_rows * (self.width + 1)


def micro_batch(config: TrialConfig, *, num_rows: int, prompt_tokens: int) -> MicroBatch:
    """The largest one of an optimiser step on `num_rows` completions."""
    width = config.rollout.max_tokens - 1
    all_tokens = prompt_tokens + num_rows * width
    num_tokens = max(min(all_tokens, config.train.microbatch_tokens), prompt_tokens + width)
    return MicroBatch(
        num_tokens=num_tokens,
        num_rows=(num_tokens - prompt_tokens) / width if width else num_rows,
        prompt=prompt_tokens,
        width=width,
        is_only=num_tokens == all_tokens,
    )


def layer_bytes(config: TrialConfig, shape: ModelShape, batch: MicroBatch, *, compute_bytes: int) -> float:
    """What one decoder layer keeps of a micro-batch."""
    adapter = config.model.adapter
    computed = set(shape.linear if adapter is None else shape.adapted(adapter))
    tokens, query = batch.num_tokens, shape.num_heads * shape.head_dim
    norms = 2 * shape.hidden * NORM_BYTES
    numbers = 3 * shape.intermediate  # gate, its activation and up
    if adapter is None:
        numbers += 2 * shape.hidden  # a norm's weight wants what it multiplies
    else:
        numbers += adapter.r * len(computed)
    # what a matrix multiplies is kept where it, or the adapter beside it, is trained
    if computed & {"q_proj", "k_proj", "v_proj"}:
        numbers += shape.hidden
    if "o_proj" in computed:
        numbers += query
    if computed & {"gate_proj", "up_proj"}:
        numbers += shape.hidden
    if "down_proj" in computed:
        numbers += shape.intermediate
    padded = batch.num_rows * batch.width
    seen = batch.prompt + batch.width
    attended = query * (
        3 * tokens  # queries, keys and values, these repeated to every head
        + 2 * batch.num_rows * seen  # each completion's keys and values behind its prompt's
        + 2 * padded  # its queries in a row of their own, and what attention gave it
        + batch.prompt
    )
    attended += batch.width * seen  # who may attend to whom, as numbers to be added
    normalisers = 4 * shape.num_heads * (padded + batch.prompt)
    return tokens * (norms + compute_bytes * numbers) + compute_bytes * attended + normalisers


def model_bytes(config: TrialConfig, shape: ModelShape, batch: MicroBatch, *, compute_bytes: int) -> float:
    """What the whole decoder keeps, and what the backward pass adds to it as it begins."""
    layer = layer_bytes(config, shape, batch, compute_bytes=compute_bytes)
    stream = batch.num_tokens * shape.hidden
    if config.train.activation_checkpointing:
        kept = shape.num_layers * stream * compute_bytes + layer
    else:
        kept = shape.num_layers * layer
    last_norm = stream * NORM_BYTES + (stream * compute_bytes if config.model.adapter is None else 0)
    rotary = 2 * batch.num_tokens * shape.head_dim * compute_bytes
    return kept + last_norm + rotary


def backward_bytes(shape: ModelShape, batch: MicroBatch, *, compute_bytes: int) -> float:
    """What the last layer's backward pass has beside what was kept: gradients of its feed-forward part."""
    return batch.num_tokens * compute_bytes * 2 * (shape.intermediate + shape.hidden)
