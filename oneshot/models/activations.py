"""A trial's micro-batch and a model's shape -> the bytes that the forward pass keeps for the backward pass.

The terms are the tensors that transformers' Llama and Qwen2 layers save with the attention of policy/attention.py, as
seen by `torch.autograd.graph.saved_tensors_hooks`. tests/test_memory.py compares the two.
"""

from dataclasses import dataclass

from oneshot.config.trial import TrialConfig
from oneshot.models.shapes import ModelShape
from oneshot.tasks.solutions import is_sampled, size_of_solutions

NORM_BYTES = 4  # RMSNorm always computes in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The longest possible pack: one prompt, followed by completions of full length."""

    num_tokens: float
    num_rows: float
    prompt: int
    width: int  # computed tokens of a completion: all but its last
    is_only: bool  # whether it is the only micro-batch of an optimiser step

    @property
    def num_scored(self) -> float:
        """Return the number of tokens whose log-probability is computed."""
        return self.num_rows * (self.width + 1)


SFT_TOKENS = 4096
"""Assumed length of the longest solution if its text is not here and nothing limits it."""
PROMPT_TOKENS = 256  # assumed length of a prompt: a plan has no tokenizer to count with
CHARACTERS_A_TOKEN = 2  # of a solution: few, as more of them would need less memory


def update_rows(config: TrialConfig) -> tuple[int, int]:
    """Return how many completions or solutions an optimiser step learns from, and how long they can be."""
    train, rollout = config.train, config.rollout
    if train.method == "sft":
        return _solutions(config)
    return rollout.num_groups * rollout.group_size // train.updates_per_rollout, rollout.max_tokens


def _solutions(config: TrialConfig) -> tuple[int, int]:
    train = config.train
    number, characters = size_of_solutions(config.examples)
    lengths = [PROMPT_TOKENS + max(characters) // CHARACTERS_A_TOKEN] if characters else []
    if is_sampled(config.examples):
        lengths.append(PROMPT_TOKENS + config.rollout.max_tokens)
    limit = train.max_length or config.model.max_positions
    expected = max(lengths) if lengths else limit or SFT_TOKENS
    return min(train.batch_size, number or train.batch_size), min(expected, limit or expected)


def micro_batch(config: TrialConfig, *, num_rows: int, max_tokens: int, prompt_tokens: int) -> MicroBatch:
    """Return the largest micro-batch of an optimiser step on `num_rows` completions.

    A step of SFT has a prompt for each solution, of which the longest leave the least room to others: its pack is one
    of the longest solutions.
    """
    if config.train.method == "sft":
        return _of_solutions(config, num_rows=num_rows, max_tokens=max_tokens, prompt_tokens=prompt_tokens)
    width = max_tokens - 1
    all_tokens = prompt_tokens + num_rows * width
    num_tokens = max(min(all_tokens, config.train.microbatch_tokens), prompt_tokens + width)
    return MicroBatch(
        num_tokens=num_tokens,
        num_rows=(num_tokens - prompt_tokens) / width if width else num_rows,
        prompt=prompt_tokens,
        width=width,
        is_only=num_tokens == all_tokens,
    )


def _of_solutions(config: TrialConfig, *, num_rows: int, max_tokens: int, prompt_tokens: int) -> MicroBatch:
    prompt = min(prompt_tokens, max_tokens - 1)
    width = max_tokens - prompt - 1
    rows = max(1, min(num_rows, config.train.microbatch_tokens // max_tokens))
    return MicroBatch(
        num_tokens=rows * (prompt + width), num_rows=rows, prompt=prompt, width=width, is_only=rows == num_rows
    )


def layer_bytes(
    config: TrialConfig, shape: ModelShape, batch: MicroBatch, *, compute_bytes: int, on_gpu: bool
) -> float:
    """Return the bytes that one decoder layer keeps of a micro-batch."""
    adapter = config.model.adapter
    trained = set(shape.linear if adapter is None else shape.adapted(adapter))
    tokens, query = batch.num_tokens, shape.num_heads * shape.head_dim
    norms = 2 * shape.hidden * NORM_BYTES
    numbers = 3 * shape.intermediate  # gate, its activation and up
    if adapter is None:
        numbers += 2 * shape.hidden  # the inputs of both norms, for their weights' gradients
    else:
        numbers += adapter.r * len(trained)
    # a matrix's input is kept if the matrix or its adapter is trained
    inputs = {("q_proj", "k_proj", "v_proj"): shape.hidden, ("o_proj",): query}
    inputs |= {("gate_proj", "up_proj"): shape.hidden, ("down_proj",): shape.intermediate}
    numbers += sum(size for names, size in inputs.items() if trained & {*names})
    attended = _attention_bytes(shape, batch, compute_bytes=compute_bytes, on_gpu=on_gpu)
    return tokens * (norms + compute_bytes * numbers) + attended


def _attention_bytes(shape: ModelShape, batch: MicroBatch, *, compute_bytes: int, on_gpu: bool) -> float:
    """Return the bytes that the attention of one layer keeps: as one call on a GPU in bfloat16, else with masks."""
    tokens, query = batch.num_tokens, shape.num_heads * shape.head_dim
    keys = batch.prompt + batch.num_rows * (batch.prompt + batch.width)  # each completion's after its prompt's
    if on_gpu and compute_bytes == 2:
        numbers = 2 * tokens * query + 2 * keys * shape.num_kv_heads * shape.head_dim  # queries, output; keys, values
        return compute_bytes * numbers + 4 * tokens * shape.num_heads  # the normalisers
    padded = batch.num_rows * batch.width
    # a CPU keeps the prompt's keys and values as views of all, a GPU repeats both to every head
    stored = 2 * query * keys if on_gpu else 2 * shape.num_kv_heads * shape.head_dim * (tokens + keys - batch.prompt)
    numbers = (
        query * (tokens + 2 * padded + batch.prompt)  # queries, as rows again, and outputs
        + stored
        + batch.width * (batch.prompt + batch.width)  # the additive mask
    )
    return compute_bytes * numbers + 4 * shape.num_heads * (padded + batch.prompt)


def model_bytes(
    config: TrialConfig, shape: ModelShape, batch: MicroBatch, *, compute_bytes: int, on_gpu: bool
) -> float:
    """Return the bytes that the whole decoder keeps for the backward pass."""
    layer = layer_bytes(config, shape, batch, compute_bytes=compute_bytes, on_gpu=on_gpu)
    stream = batch.num_tokens * shape.hidden
    is_checkpointed = config.train.activation_checkpointing
    kept = shape.num_layers * stream * compute_bytes + layer if is_checkpointed else shape.num_layers * layer
    last_norm = stream * NORM_BYTES + (stream * compute_bytes if config.model.adapter is None else 0)
    rotary = 2 * batch.num_tokens * shape.head_dim * compute_bytes
    return kept + last_norm + rotary


def backward_bytes(shape: ModelShape, batch: MicroBatch, *, compute_bytes: int) -> float:
    """Return the bytes that the last layer's backward pass adds: gradients of its feed-forward part."""
    return batch.num_tokens * compute_bytes * 2 * (shape.intermediate + shape.hidden)
