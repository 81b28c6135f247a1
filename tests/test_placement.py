"""No tensor is made on the CPU where the model is elsewhere: prefill, decoding, a rollout, an update.

Under `FakeTensorMode` operations compute shapes only, and refuse operands on different devices. The device is `meta`,
since torch without CUDA has no backward pass for tensors that claim to be on a GPU. So this finds what is created on
the wrong device; it runs no branch that is for GPUs alone.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, Qwen2Config

from oneshot.config.loss import LossConfig
from oneshot.policy import attention, output_head
from oneshot.policy.forward import Scored, completion_logprobs
from oneshot.policy.output_head import LossOutput, Workspace, logits
from oneshot.policy.packing import Pack, pack
from oneshot.rollout.engine import Completion
from oneshot.rollout.sampling import sample
from oneshot.training.loss import token_loss
from oneshot.training.mismatch import Mismatch

THERE = torch.device("meta")
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
CONFIGS = {"qwen2": Qwen2Config, "llama": LlamaConfig}


@pytest.fixture(autouse=True)
def refuses_mixed_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(output_head.CHUNK_LOGITS, "meta", 3 * SIZES["vocab_size"])
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def made(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    with THERE:
        model = AutoModelForCausalLM.from_config(CONFIGS[kind](**SIZES), dtype=dtype).eval()
    model.config._attn_implementation = attention.NAME
    return model


def packed() -> Pack:
    """Two blocks: uneven completions, an empty one, and one of a single prompt token."""
    return pack([[1, 2, 3], [4]], [0, 0, 0, 1], [[1, 2, 3], [4, 5], [6], [7, 8]], range(4), device=THERE)


def test_mixed_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(3, device=THERE) + torch.zeros(3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_entropy", [True, False])
@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_an_update_stays_on_its_device(
    precision: torch.dtype, with_entropy: bool, is_whole: bool, is_checkpointed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if is_whole:
        monkeypatch.setattr(attention, "_takes_whole_packs", lambda *_: True)
    model = made("qwen2", precision)
    scored = Scored(model)
    if is_checkpointed:
        scored.checkpoint_activations()
    batch = packed()
    num_tokens = len(batch.targets_M)
    head = model.get_output_embeddings()
    space = Workspace.for_chunks(head, num_tokens=num_tokens)
    weights_M = batch.spread(torch.ones(4, device=THERE))
    config = LossConfig(entropy_coef=0.001 if with_entropy else 0.0)
    completions = tuple(Completion(token_ids=(1,) * n, logprobs=(-1.0,) * n, truncated=False) for n in batch.lengths)
    mismatch = Mismatch(completions, THERE)
    sampled_M = mismatch.sampled(batch, like=weights_M)
    reference_M = completion_logprobs(model, batch, temperature=0.6, space=space)

    def loss_of(logprobs_n: Tensor, entropy_n: Tensor | None, where: slice) -> LossOutput:
        mismatch.add(sampled_M[where], logprobs_n)
        return token_loss(
            logprobs_n, None, reference_M[where], weights_M[where], weights_M[where], config, entropy=entropy_n
        )

    loss, metrics = scored(batch, temperature=0.6, space=space, loss_of=loss_of, with_entropy=with_entropy)
    loss.backward()
    assert {value.device for value in (loss, *metrics.values())} == {THERE}
    # a fake kernel does not look at these
    assert {batch.segments.query_starts.device, batch.segments.key_starts.device} == {THERE}
    assert {parameter.grad.device for parameter in model.parameters()} == {THERE}


@pytest.mark.parametrize("kind", CONFIGS)
def test_prefill_decoding_and_sampling_stay_on_their_device(kind: str) -> None:
    model = made(kind)
    head = model.get_output_embeddings()
    space = Workspace.empty(head, num_rows=2)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3], [0, 5, 6]], device=THERE)
        for _ in range(3):
            seen = torch.ones(2, cache.get_seq_length() + ids.shape[1], dtype=torch.long, device=THERE)
            hidden = model.base_model(
                input_ids=ids, attention_mask=seen, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            scores, cdf = space.rows(2)
            logits(hidden, head, temperature=0.7, out=scores)
            uniforms = torch.full((2,), 0.5, device=THERE)
            tokens, logprobs = sample(scores, uniforms, cdf_BV=cdf)
            ids = tokens[:, None]
    assert {tokens.device, logprobs.device} == {THERE}
