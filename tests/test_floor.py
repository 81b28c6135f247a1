"""The floor against a count by hand."""

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from oneshot.training.roofline import Floor

SHAPE = {
    "vocab_size": 10, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 2,
}  # fmt: skip


def floor(**changes: object) -> Floor:
    return Floor(AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **changes)))


@pytest.mark.parametrize("is_tied", [True, False])
def test_products_by_hand(is_tied: bool) -> None:
    # a layer: q and o 4x4, k and v 4x2, three 4x6 of the MLP: 16+16+8+8+72 = 120; the head 4x10 = 40; no norms
    counted = floor(tie_word_embeddings=is_tied)
    assert counted.flops(body_tokens=1, head_tokens=0) == 2 * 2 * 120
    assert counted.flops(body_tokens=0, head_tokens=1) == 2 * 40
    assert counted.flops(body_tokens=8, head_tokens=5) == 2 * (240 * 8 + 40 * 5)


def test_a_step_is_rollout_update_and_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    # a token's products take 1 s in the body and 10 s in the head when decoded; 2 and 20 s forward, 4 and 40 s backward
    seconds = {("forward", 4): (1.0, 10.0), ("forward", 100): (2.0, 20.0), ("backward", 100): (4.0, 40.0)}
    counted = floor()
    monkeypatch.setattr(counted, "token_s", lambda phase, rows: seconds[phase, rows])
    given = {"prompt_tokens": 3, "completion_tokens": 5, "decode_rows": 4, "update_rows": 100}
    rollout, forward, backward = 1 * 8 + 10 * 5, 2 * 8 + 20 * 5, 4 * 8 + 40 * 5
    assert counted.step_s(**given, with_reference=False) == rollout + forward + backward
    assert counted.step_s(**given, with_reference=True) == rollout + 2 * forward + backward


def test_products_are_timed_once_a_size() -> None:
    counted = floor()
    first = counted.token_s("backward", 100)
    assert min(first) > 0
    assert counted.token_s("backward", 127) is first  # both are timed at 64 rows
    assert counted.token_s("backward", 128) is not first
