"""Stop strings in token ids, and the nucleus that top_p leaves: laws for all inputs."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from engines import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engines import short_of_memory
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from oneshot.config.trial import ModelConfig
from oneshot.models.source import SHIPPED, local_folder
from oneshot.policy.loading import load_policy
from oneshot.rollout import lockstep, wave
from oneshot.rollout.engine import Sampling
from oneshot.rollout.lockstep import Lockstep
from oneshot.rollout.sampling import nucleus, sample
from oneshot.rollout.stops import Stops, cut_at_stop, num_before, text_of


@cache
def tokenizer_of(name: str) -> Any:
    """A shipped tokenizer of characters, or one of bytes and merges, whose tokens are parts of letters and of words."""
    if name == "characters":
        return AutoTokenizer.from_pretrained(SHIPPED / "qwen2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["</think>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator(["So the end is late, élan é\n\nthen the end so 77 8"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = ("characters", "bytes")
STOPS = st.lists(
    st.one_of(st.sampled_from(["</think>", "<|im_end|>", "é", "So", " e", "\n\n"]), st.text("Soend 7é", min_size=1)),
    min_size=1,
    max_size=3,
)


def ids_of(name: str) -> Any:
    """Lists of tokens: any, and those of texts that are likely to have a stop string."""
    tokenizer = tokenizer_of(name)
    text = st.lists(st.sampled_from(["So", "end", " ", "é", "</think>", "7", "\n"]), max_size=12).map("".join)
    return st.one_of(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40), text.map(tokenizer.encode))


def first_end(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> int | None:
    """Tries every prefix."""
    prefixes = (text_of(tokenizer, ids[:end]) for end in range(1, len(ids) + 1))
    return next((end for end, text in enumerate(prefixes, 1) if any(string in text for string in stop)), None)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150)
@given(data=st.data(), stop=STOPS, step=st.integers(1, 9))
def test_the_end_is_that_of_the_shortest_prefix_read_at_once_or_in_parts(
    name: str, data: st.DataObject, stop: list[str], step: int
) -> None:
    tokenizer, ids = tokenizer_of(name), data.draw(ids_of(name))
    stops = Stops(tokenizer, stop)
    expected = first_end(tokenizer, ids, stop)
    assert stops.end(ids) == expected
    parts = ((ids[:read], max(0, read - step)) for read in range(step, len(ids) + step, step))
    ends = (stops.end(part, num_read=num_read) for part, num_read in parts)
    assert next((end for end in ends if end is not None), None) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100)
@given(data=st.data(), stop=STOPS.map(lambda strings: strings[0]))
def test_what_is_before_a_stop_string_has_no_part_of_it(name: str, data: st.DataObject, stop: str) -> None:
    tokenizer, ids = tokenizer_of(name), data.draw(ids_of(name))
    end = Stops(tokenizer, [stop]).end(ids)
    if end is None:
        return
    num = num_before(tokenizer, ids[:end], stop)
    text = text_of(tokenizer, ids[:end])
    assert len(text_of(tokenizer, ids[:num])) <= text.index(stop) < len(text_of(tokenizer, ids[: num + 1]))


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("a b c b", ("c", "b"), "a "),
        ("47+38=85", ("38",), "47+"),
        # a stop string with a special token, which the graded text never has
        ("so 85<eos>A", ("<eos>A",), "so 85"),
        ("<pad>so 85 A", (" A",), "so 85"),
    ],
)
def test_text_ends_before_its_first_stop_string(text: str, stop: tuple[str, ...], expected: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(local_folder("tiny:qwen2"))
    assert cut_at_stop(tokenizer, tokenizer.encode(text), stop) == expected


@pytest.mark.parametrize("check_steps", [1, 8])
@pytest.mark.parametrize("num_positions", [70, 2000])
def test_rows_that_wait_or_are_seldom_read_stop_at_the_same_token(
    monkeypatch: pytest.MonkeyPatch, check_steps: int, num_positions: int
) -> None:
    policy = load_policy(ModelConfig(path="tiny:qwen2", dtype="float64"))
    asked, sampling = (
        requests(policy, rows=7, max_tokens=56),
        Sampling(temperature=1.0, stop=("So it", "+8=8", "hard.")),
    )
    expected = Lockstep(kv_gib=1.0).generate(policy, asked, sampling)
    monkeypatch.setattr(wave, "LENGTH_STEP", 8)
    monkeypatch.setitem(lockstep.CHECK_STEPS, "cpu", check_steps)
    engine = short_of_memory(policy, num_positions=num_positions)
    found = engine.generate(policy, asked, sampling)
    assert [[c.token_ids for c in row] for row in found] == [[c.token_ids for c in row] for row in expected]
    assert [[c.stopped for c in row] for row in found] == [[c.stopped for c in row] for row in expected]
    assert {c.stopped for row in found for c in row} == {True, False}
    assert (engine.use.num_waited > 0) == (num_positions < 2000)


# top_p


def test_a_nucleus_by_hand() -> None:
    # sorted: 0.5 (token 2), 0.3 (token 0), 0.15, 0.05; 0.7 is reached by the first two, whose sum is 0.8
    probs = torch.tensor([[0.3, 0.05, 0.5, 0.15]], dtype=torch.float64)
    for uniform, token in ((0.0, 2), (0.62, 2), (0.63, 0), (0.999, 0)):  # 0.5 / 0.8 = 0.625
        drawn = nucleus(probs.clone(), torch.tensor([uniform], dtype=torch.float64), top_p=0.7, cdf_BV=probs.clone())
        assert drawn.tolist() == [[token]]


@settings(max_examples=200)
@given(
    logits=st.lists(st.floats(-8, 8), min_size=1, max_size=12),
    top_p=st.floats(0.01, 0.999),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_token_is_drawn_only_if_likelier_ones_do_not_reach_top_p(
    logits: list[float], top_p: float, uniform: float
) -> None:
    scores = torch.tensor([logits], dtype=torch.float64)
    probs = scores.softmax(dim=-1)[0]
    tokens, logprobs = sample(
        scores, torch.tensor([uniform], dtype=torch.float64), cdf_BV=torch.empty_like(scores), top_p=top_p
    )
    token = int(tokens[0])
    assert probs[probs > probs[token]].sum() < top_p + 1e-12
    assert logprobs[0] == pytest.approx(probs[token].log().item(), abs=1e-12)


def test_a_row_of_nan_draws_a_token_of_the_vocabulary_with_top_p_too() -> None:
    logits_BV = torch.tensor([[0.0, torch.nan, 0.0], [0.0, 0.0, 0.0]])
    tokens_B, logprobs_B = sample(logits_BV, torch.tensor([0.5, 0.5]), cdf_BV=torch.empty(2, 3), top_p=0.5)
    assert tokens_B.max() <= 2
    assert logprobs_B.isfinite().tolist() == [False, True]
