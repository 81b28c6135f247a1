"""The lockstep engine: waves, memory, fixed shapes, kernels; the laws of all engines are in test_engine_contract.py."""

import gc
import weakref
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_model
from engines import ENGINES, PROMPTS, by_key, in_waves, prompt, requests
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import AutoModelForCausalLM, Qwen2Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from oneshot.config.model import ModelConfig
from oneshot.policy import attention, kernels
from oneshot.policy.loading import load_policy
from oneshot.policy.output_head import logits
from oneshot.policy.policy import Policy
from oneshot.rollout import kv_memory, lockstep, rows, wave
from oneshot.rollout.cuda_graphs import rounded_rows
from oneshot.rollout.engine import Completion, NotFiniteError, PromptRequest, Sampling
from oneshot.rollout.hf import HfGenerate
from oneshot.rollout.lockstep import Lockstep
from oneshot.rollout.sampling import below_one, likeliest, sample, uniforms
from oneshot.training.free_memory import release
from oneshot.trial.environment import gpu_is_broken


@pytest.fixture(scope="module", params=["tiny:qwen2", "tiny:llama"])
def policy(request: pytest.FixtureRequest) -> Policy:
    """A shipped organism in float64, where two ways of computing agree to the last token."""
    return load_policy(ModelConfig(path=request.param, dtype="float64"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "mistral, a window of 4", "gpt-j, which packs cannot run"])
def test_other_families_decode_as_plain_generate_does(kind: str, engine: str) -> None:
    model = small_model(kind)
    tokens = model.base_model(torch.tensor([[0, 0]]), use_cache=True).past_key_values.layers[0].keys.numel()
    policy = Policy(model=model, tokenizer=None, eos_ids=(1,), pad_id=0, max_positions=64, num_kv=tokens * 2)
    # of unequal lengths, so that one of them is padded and the window is passed
    asked = [
        PromptRequest(prompt_ids=tuple(range(5, 5 + length)), row_keys=((0, length, 0), (0, length, 1)), max_tokens=12)
        for length in (9, 3)
    ]
    sampling = Sampling(temperature=0.0)
    expected = HfGenerate().generate(policy, asked, sampling)
    found = ENGINES[engine](policy).generate(policy, asked, sampling)
    assert [[c.token_ids for c in row] for row in found] == [[c.token_ids for c in row] for row in expected]


def test_a_completion_is_handed_over_while_others_are_still_decoded(policy: Policy) -> None:
    num_forwards = 0

    def count(*_: object) -> None:
        nonlocal num_forwards
        num_forwards += 1

    handed_after: list[int] = []
    hook = policy.model.base_model.register_forward_hook(count)
    try:
        Lockstep(kv_gib=1.0).generate(
            policy,
            requests(policy, rows=16, max_tokens=56),
            Sampling(temperature=1.0),
            lambda *_: handed_after.append(num_forwards),
        )
    finally:
        hook.remove()
    assert len(handed_after) == 16 * len(PROMPTS)
    assert sum(after < num_forwards for after in handed_after) > len(handed_after) / 2


@pytest.mark.parametrize("rows", [1024, 16, 5])
def test_order_of_rows_and_size_of_waves_change_no_token(policy: Policy, rows: int) -> None:
    asked = requests(policy, rows=6, max_tokens=56)
    sampling = Sampling(temperature=1.0)
    expected = by_key(asked, Lockstep(kv_gib=1.0).generate(policy, asked, sampling))
    turned = [replace(request, row_keys=request.row_keys[::-1]) for request in asked[::-1]]
    assert by_key(turned, in_waves(policy, rows).generate(policy, turned, sampling)) == expected


def test_fixed_shapes_that_change_on_the_way_change_no_token(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(policy, rows=13, max_tokens=56)
    sampling = Sampling(temperature=1.0)
    expected = by_key(asked, Lockstep(kv_gib=1.0).generate(policy, asked, sampling))
    monkeypatch.setattr(wave, "LENGTH_STEP", 16)
    assert by_key(asked, Lockstep(kv_gib=1.0, fixed_shapes=True).generate(policy, asked, sampling)) == expected


@pytest.mark.parametrize("live_share", [0.0, 1.0])
def test_dropping_finished_rows_late_or_at_once_changes_no_token(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, live_share: float
) -> None:
    asked = requests(policy, rows=16, max_tokens=56)
    sampling = Sampling(temperature=1.0)
    expected = by_key(asked, Lockstep(kv_gib=1.0).generate(policy, asked, sampling))
    assert len({len(tokens) for tokens in expected.values()}) > 5  # rows do end at different times
    monkeypatch.setattr(lockstep, "LIVE_SHARE", live_share)
    assert by_key(asked, Lockstep(kv_gib=1.0).generate(policy, asked, sampling)) == expected


def test_counting_the_live_rows_seldom_as_a_gpu_does_changes_no_token(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(policy, rows=16, max_tokens=54)
    sampling = Sampling(temperature=1.0)
    expected = Lockstep(kv_gib=1.0).generate(policy, asked, sampling)
    monkeypatch.setitem(lockstep.CHECK_STEPS, "cpu", 8)
    found = Lockstep(kv_gib=1.0).generate(policy, asked, sampling)
    assert by_key(asked, found) == by_key(asked, expected)
    assert [[c.truncated for c in row] for row in found] == [[c.truncated for c in row] for row in expected]


def test_in_float32_order_and_waves_move_logprobs_by_their_last_digits_only() -> None:
    policy = load_policy(ModelConfig(path="tiny:qwen2"))
    asked = requests(policy, rows=6, max_tokens=24)
    sampling = Sampling(temperature=1.0)
    for whole, waved in zip(
        Lockstep(kv_gib=1.0).generate(policy, asked, sampling),
        in_waves(policy, 5).generate(policy, asked, sampling),
        strict=True,
    ):
        for one, other in zip(whole, waved, strict=True):
            # a last digit may now and then turn a token, and all after it: compared is what both drew
            same = [a == b for a, b in zip(one.token_ids, other.token_ids, strict=False)]
            length = same.index(False) if False in same else len(same)
            assert one.logprobs[:length] == pytest.approx(other.logprobs[:length], abs=1e-5)


def draw(logits: torch.Tensor, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return sample(logits.clone(), below_one(drawn, logits.dtype), cdf_BV=torch.empty_like(logits))


def test_inverse_cdf_by_hand() -> None:
    # probabilities 1/4, 0, 1/2, 1/4: cumulative 0.25, 0.25, 0.75, 1
    logits = torch.tensor([0.25, 0.0, 0.5, 0.25], dtype=torch.float64).log().repeat(6, 1)
    tokens, logprobs = draw(logits, torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999999]))
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    assert logprobs[2].item() == pytest.approx(-0.6931471805599453)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_of_probability_zero_is_never_drawn_not_even_at_the_end(dtype: torch.dtype) -> None:
    # sums of the two living tokens' probabilities on either side of 1, and the largest uniform there is
    for first in torch.linspace(-3, 3, 200):
        logits = torch.tensor([[first, 0.0, -torch.inf, -torch.inf]], dtype=dtype)
        tokens, _ = draw(logits, torch.tensor([1.0 - 2**-53], dtype=torch.float64))
        assert tokens.tolist() == [1]


def test_zero_temperature_takes_the_likeliest() -> None:
    tokens, logprobs = likeliest(torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    assert tokens.tolist() == [1]
    assert logprobs.item() == pytest.approx(-0.3132617)  # -ln(1 + e^-1)


def test_temperature_sharpens() -> None:
    hidden, head = torch.tensor([[0.0, 1.0]]), torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
        warm = logits(hidden, head, temperature=1.0, out=torch.empty(1, 2)).log_softmax(dim=-1)
        cold = logits(hidden, head, temperature=0.5, out=torch.empty(1, 2)).log_softmax(dim=-1)
    assert warm[0, 1].item() == pytest.approx(-0.3132617)  # -ln(1 + e^-1)
    assert cold[0, 1].item() == pytest.approx(-0.1269280)  # -ln(1 + e^-2)


def test_uniforms_depend_on_the_key_alone() -> None:
    table = uniforms([(0, 1), (0, 2)], 4)
    assert (uniforms([(0, 2)], 4)[0] == table[1]).all()
    assert (uniforms([(0, 2)], 2)[0] == table[1, :2]).all()
    assert table.min() >= 0
    assert table.max() < 1


# What a GPU needs, seen on a CPU.

UNEVEN = ("9-3=?", "12*7=?")
"""Prompts of different lengths, so that one is padded."""


def uneven(policy: Policy, *, max_tokens: int, rows: int = 2) -> list[PromptRequest]:
    return [
        PromptRequest(
            prompt_ids=prompt(policy, text),
            row_keys=tuple((5, index, row) for row in range(rows)),
            max_tokens=max_tokens,
        )
        for index, text in enumerate(UNEVEN)
    ]


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_keys_and_values_are_freed_without_a_garbage_collection(
    policy: Policy, fixed_shapes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    num_made = 0

    class Watched(kv_memory.KvLayer):
        def __init__(self, *args: Any) -> None:
            nonlocal num_made
            super().__init__(*args)
            alive.add(self)
            num_made += 1

    monkeypatch.setattr(kv_memory, "KvLayer", Watched)
    engine = Lockstep(kv_gib=in_waves(policy, 1).kv_gib, fixed_shapes=fixed_shapes)
    gc.disable()
    try:
        engine.generate(policy, uneven(policy, rows=4, max_tokens=12), Sampling(temperature=1.0))
        assert (num_made, len(alive)) == (policy.model.config.num_hidden_layers, 0)
    finally:
        gc.enable()


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_masked_decoding_reads_each_key_head_once(
    policy: Policy, fixed_shapes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = policy.model.config
    if config.num_key_value_heads == config.num_attention_heads:
        pytest.skip("each query has a key head of its own")
    num_heads = []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **rest: Any) -> torch.Tensor:
        num_heads.append((query.shape[1], key.shape[1]))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, **rest)

    def wide(module: Any, query: torch.Tensor, *rest: Any, **more: Any) -> Any:
        assert query.shape[2] > 1, "a decode step repeats keys and values"
        return sdpa_attention_forward(module, query, *rest, **more)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(attention, "sdpa_attention_forward", wide)
    engine = Lockstep(kv_gib=1.0, fixed_shapes=fixed_shapes)
    engine.generate(policy, uneven(policy, max_tokens=6), Sampling(temperature=1.0))
    assert set(num_heads) == {(config.num_key_value_heads, config.num_key_value_heads)}


def test_no_position_of_a_padded_prompt_attends_to_nothing(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []

    def watched(module: Any, query: Any, key: Any, value: Any, mask: torch.Tensor | None, **rest: Any) -> Any:
        assert mask is not None
        masks.append(mask)
        return sdpa_attention_forward(module, query, key, value, mask, **rest)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watched)
    Lockstep(kv_gib=1.0).generate(policy, uneven(policy, max_tokens=2), Sampling(temperature=1.0))
    assert masks
    assert all(bool(mask.any(dim=-1).all()) for mask in masks)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "hf"])
def test_logits_that_are_not_finite_are_an_error(engine: str, temperature: float) -> None:
    broken = load_policy(ModelConfig(path="tiny:qwen2", dtype="float32"))
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(NotFiniteError, match="logits are NaN or infinite at completion token 1 "):
        ENGINES[engine](broken).generate(
            broken, requests(broken, rows=2, max_tokens=8), Sampling(temperature=temperature)
        )


def test_a_row_of_nan_draws_a_token_of_the_vocabulary() -> None:
    logits_BV = torch.tensor([[0.0, torch.nan, 0.0], [0.0, torch.inf, 0.0], [0.0, 0.0, 0.0]])
    tokens_B, logprobs_B = sample(logits_BV, torch.tensor([0.5, 0.5, 0.5]), cdf_BV=torch.empty(3, 3))
    assert tokens_B.max() <= 2
    assert logprobs_B.isfinite().tolist() == [False, False, True]


def test_a_policy_does_not_use_cudnn_for_attention() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_policy(ModelConfig(path="tiny:qwen2"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


# Keys and values in little memory.


def short_of_memory(policy: Policy, *, num_positions: int, **options: Any) -> Lockstep:
    """Return an engine with memory for so many positions, over all rows together."""
    return Lockstep(kv_gib=(num_positions + 0.5) * policy.kv_bytes / 2**30, **options)


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("num_positions", [70, 300, 2000])
def test_rows_that_wait_for_memory_get_the_same_tokens(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, num_positions: int, fixed_shapes: bool
) -> None:
    asked = requests(policy, rows=7, max_tokens=56)
    sampling = Sampling(temperature=1.0)
    expected = Lockstep(kv_gib=1.0).generate(policy, asked, sampling)
    monkeypatch.setattr(wave, "LENGTH_STEP", 8)
    engine = short_of_memory(policy, num_positions=num_positions, fixed_shapes=fixed_shapes)
    handed: dict[tuple[int, int], Completion] = {}
    found = engine.generate(policy, asked, sampling, lambda *place: handed.update({place[:2]: place[2]}))
    assert by_key(asked, found) == by_key(asked, expected)
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-9)
        assert one.truncated == other.truncated
    assert len(handed) == 7 * len(PROMPTS)
    # 28 rows of up to 64 positions: 70 hold one of them at its full length, 2,000 all
    assert (engine.use.num_waited > 0) == (num_positions < 2000)


def test_rows_that_wait_make_progress_before_they_wait_again(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wave, "LENGTH_STEP", 8)
    asked = requests(policy, rows=7, max_tokens=56)
    engine = short_of_memory(policy, num_positions=70)
    engine.generate(policy, asked, Sampling(temperature=1.0))
    # from 8 tokens on, the number of tokens doubles each time: 8, 16, 32 and 56
    assert engine.use.num_waited <= 3 * 7 * len(PROMPTS)


def test_prompts_computed_in_portions_change_no_token(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(policy, rows=3, max_tokens=24)
    sampling = Sampling(temperature=1.0)
    expected = Lockstep(kv_gib=1.0).generate(policy, asked, sampling)
    num_tokens: list[int] = []
    hook = policy.model.base_model.register_forward_pre_hook(
        lambda _, __, inputs: num_tokens.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    try:
        for limit in (1, 8, 16, 10_000):
            num_tokens.clear()
            monkeypatch.setattr(wave, "PREFILL_TOKENS", limit)
            found = Lockstep(kv_gib=1.0).generate(policy, asked, sampling)
            assert by_key(asked, found) == by_key(asked, expected)
            longest = max(len(request.prompt_ids) for request in asked)
            assert num_tokens[0] <= max(limit, longest)
    finally:
        hook.remove()


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_memory_that_lasts_is_used_again_until_it_is_released(policy: Policy, fixed_shapes: bool) -> None:
    asked = requests(policy, rows=5, max_tokens=24)
    sampling = Sampling(temperature=1.0)
    expected = Lockstep(kv_gib=1.0).generate(policy, asked, sampling)
    engine = Lockstep(kv_gib=1.0, lasts=True, fixed_shapes=fixed_shapes)
    engine.generate(policy, requests(policy, rows=8, max_tokens=24), sampling)  # what it leaves behind is not seen
    kept = engine._memory
    assert by_key(asked, engine.generate(policy, asked, sampling)) == by_key(asked, expected)
    assert engine._memory is kept
    larger = requests(policy, rows=40, max_tokens=24)
    engine.generate(policy, larger, sampling)
    assert engine._memory is not None and engine._memory is not kept
    engine.release()
    assert engine._memory is None


@given(num_rows=st.integers(1, 5000))
def test_rows_are_rounded_up_by_little(num_rows: int) -> None:
    rounded = rounded_rows(num_rows)
    assert num_rows <= rounded < num_rows + max(16, num_rows)
    assert rounded_rows(rounded) == rounded
    assert rounded.bit_count() == 1 or rounded % 16 == 0


def test_a_thousand_rows_of_uneven_length_are_one_wave_in_24_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths are lognormal, 793 tokens on average, 2% at 3,072; a token of Qwen2.5-1.5B takes 28,672 bytes.

    All lengths are divided by 8 here. 24 GiB are 898,779 positions: 280 rows of a prompt of 128 and 3,072 tokens.
    """
    scale, num_rows, prompt = 8, 1024, tuple(range(1, 17))
    num_positions = 24 * 2**30 // 28_672 // scale
    quantiles = np.exp(6.387 + 0.8 * stats.norm.ppf((np.arange(num_rows) + 0.5) / num_rows))
    lengths = np.minimum(np.ceil(quantiles / scale), 3072 // scale).astype(int)
    np.random.default_rng(0).shuffle(lengths)
    assert lengths.mean() * scale == pytest.approx(793, rel=0.01)
    assert (lengths == 384).mean() == pytest.approx(0.02, abs=0.002)

    def until_the_end(row_keys: list[tuple[int, ...]], num_tokens: int) -> np.ndarray:
        """Draw token 0, which ends a completion and is the first of the vocabulary, at the end of each row only."""
        table = np.full((len(row_keys), num_tokens), 0.6)
        for row, (key,) in enumerate(row_keys):
            table[row, lengths[key] - 1] = 0.0
        return table

    monkeypatch.setattr(rows, "uniforms", until_the_end)
    monkeypatch.setattr(wave, "LENGTH_STEP", wave.LENGTH_STEP // scale)
    sizes = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = Qwen2Config(**sizes, num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=512)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    policy = Policy(model=model, tokenizer=None, eos_ids=(0,), pad_id=0, max_positions=512, num_kv=16)
    asked = [
        PromptRequest(prompt_ids=prompt, row_keys=tuple((row,) for row in range(num_rows)), max_tokens=3072 // scale)
    ]
    engine = short_of_memory(policy, num_positions=num_positions)
    (found,) = engine.generate(policy, asked, Sampling(temperature=1.0))
    assert [len(completion.token_ids) for completion in found] == lengths.tolist()
    assert (engine.use.num_waves, engine.use.num_waited) == (1, 0)
    assert num_rows / (num_positions // (16 + 384)) > 3  # at their longest, the rows would need four waves


def test_the_kernels_of_each_phase_are_logged_once(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    kernels._named.clear()
    caplog.set_level("INFO", logger="oneshot.policy.kernels")
    for _ in range(2):
        Lockstep(kv_gib=1.0).generate(policy, uneven(policy, max_tokens=3), Sampling(temperature=1.0))
    kernel = "_scaled_dot_product_flash_attention_for_cpu"
    assert [record.getMessage() for record in caplog.records] == [
        f"attention in prefill on cpu: {kernel}",
        f"attention in decoding on cpu: {kernel}",
    ]


# A GPU on which no call succeeds any more, as its process sees it.


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_broken_gpu_is_found_and_does_not_keep_a_trial_from_ending(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_broken: bool
) -> None:
    assert not gpu_is_broken()  # there is none

    def call() -> None:
        if is_broken:
            raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", call)
    monkeypatch.setattr(torch.cuda, "empty_cache", call)
    assert gpu_is_broken() == is_broken
    release(torch.device("cuda"))
    warnings = ["cannot free the GPU's memory: RuntimeError: CUDA error: device-side assert triggered"] * is_broken
    assert [record.getMessage() for record in caplog.records] == warnings
