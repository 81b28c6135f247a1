"""The arithmetic floor against a count by hand."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from oneshot.grpo.floor import arithmetic, matmul_flops_per_s

SHAPE = {
    "vocab_size": 10, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 2,
}  # fmt: skip


@pytest.mark.parametrize("is_tied", [True, False])
def test_weights_by_hand(is_tied: bool) -> None:
    # a layer: q and o 4x4, k and v 4x2, three 4x6 of the MLP, two norms of 4: 16+16+8+8+72+8 = 128; a last norm: 4
    counted = arithmetic(AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, tie_word_embeddings=is_tied)))
    assert (counted.body, counted.head) == (2 * 128 + 4, 40)


def test_a_step_by_hand() -> None:
    # forward: 2 * (260 * (3 + 5) + 40 * 5) = 4,560; rollout 1, update 3, reference 1 of them
    counted = arithmetic(AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)))
    assert counted.flops(prompt_tokens=3, completion_tokens=5, with_reference=True) == 5 * 4560
    assert counted.flops(prompt_tokens=3, completion_tokens=5, with_reference=False) == 4 * 4560


def test_the_matmul_rate_is_measured_once() -> None:
    rate = matmul_flops_per_s("cpu", torch.float32, torch.get_num_threads())
    assert rate > 1e8
    assert matmul_flops_per_s("cpu", torch.float32, torch.get_num_threads()) == rate
