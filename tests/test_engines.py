"""One behaviour suite over every rollout engine; `hf`, plain `generate`, is the oracle."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy import stats

from oneshot.config import ModelConfig, PromptConfig
from oneshot.grpo.hf import HfGenerate
from oneshot.grpo.lockstep import Lockstep, sample
from oneshot.grpo.policy import Policy, completion_logprobs, load_policy, make_rows
from oneshot.grpo.rollout import Completion, Engine, Request, Sampling, uniforms
from oneshot.tasks.prompts import encode

ENGINES: dict[str, Callable[[], Engine]] = {
    "lockstep": lambda: Lockstep(wave_rows=1024),
    "lockstep in small waves": lambda: Lockstep(wave_rows=5),
    "hf": HfGenerate,
}
PROMPTS = ("47+38=?", "12*7=?", "9-3=?", "85+37=?")


@pytest.fixture(scope="module", params=["tiny:qwen2", "tiny:llama"])
def policy(request: pytest.FixtureRequest) -> Policy:
    """A shipped organism in float64, where two ways of computing agree to the last token."""
    return load_policy(ModelConfig(path=request.param, dtype="float64"))


def prompt(policy: Policy, text: str) -> tuple[int, ...]:
    return tuple(encode(text, suffix="", config=PromptConfig(template="plain"), tokenizer=policy.tokenizer))


def requests(policy: Policy, *, rows: int) -> list[Request]:
    return [
        Request(prompt_ids=prompt(policy, text), row_keys=tuple((7, index, row) for row in range(rows)))
        for index, text in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_greedy_equals_plain_generate(policy: Policy, engine: str) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=56)
    expected = HfGenerate().generate(policy, requests(policy, rows=2), sampling)
    found = ENGINES[engine]().generate(policy, requests(policy, rows=2), sampling)
    assert [[c.token_ids for c in row] for row in found] == [[c.token_ids for c in row] for row in expected]


@pytest.mark.parametrize("engine", ENGINES)
def test_logprobs_are_those_of_the_trainers_forward(policy: Policy, engine: str) -> None:
    asked = requests(policy, rows=3)
    found = ENGINES[engine]().generate(policy, asked, Sampling(temperature=0.7, max_tokens=20))
    pairs = [(request.prompt_ids, c) for request, row in zip(asked, found, strict=True) for c in row]
    rows = make_rows([p for p, _ in pairs], [c.token_ids for _, c in pairs], pad_id=policy.pad_id, device=policy.device)
    with torch.no_grad():
        logprobs_GT, _ = completion_logprobs(policy.model, rows, temperature=0.7)
    for logprobs_T, (_, completion) in zip(logprobs_GT, pairs, strict=True):
        expected = logprobs_T[: len(completion.token_ids)].tolist()
        # generate gives its logits in float32, whatever the model's dtype
        assert list(completion.logprobs) == pytest.approx(expected, abs=1e-5 if engine == "hf" else 1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_end_token_is_counted_once_and_a_cut_is_said(policy: Policy, engine: str) -> None:
    for completions in ENGINES[engine]().generate(
        policy, requests(policy, rows=8), Sampling(temperature=1.0, max_tokens=24)
    ):
        for completion in completions:
            ends = [position for position, token in enumerate(completion.token_ids) if token in policy.eos_ids]
            assert len(completion.logprobs) == len(completion.token_ids) <= 24
            if completion.truncated:
                assert not ends
                assert len(completion.token_ids) == 24
            else:
                assert ends == [len(completion.token_ids) - 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_first_tokens_have_the_models_distribution(policy: Policy, engine: str) -> None:
    """Chi-square of 2,000 first tokens against the softmax; p below 1e-4 would be one false alarm in 10,000."""
    ids = prompt(policy, "47+38=?")
    asked = [Request(prompt_ids=ids, row_keys=tuple((3, row) for row in range(2000)))]
    (completions,) = ENGINES[engine]().generate(policy, asked, Sampling(temperature=1.0, max_tokens=1))
    with torch.no_grad():
        expected = policy.model(torch.tensor([ids])).logits[0, -1].softmax(dim=-1) * 2000
    counts = Counter(completion.token_ids[0] for completion in completions)
    common = [token for token in range(len(expected)) if expected[token] >= 5]
    observed = [counts[token] for token in common]
    rest = 2000 - sum(observed)
    expected_counts = [expected[token].item() for token in common]
    chi_square = stats.chisquare([*observed, rest], [*expected_counts, 2000 - sum(expected_counts)])
    assert chi_square.pvalue > 1e-4


def by_key(asked: list[Request], found: list[list[Completion]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    return {
        key: completion.token_ids
        for request, row in zip(asked, found, strict=True)
        for key, completion in zip(request.row_keys, row, strict=True)
    }


@pytest.mark.parametrize("wave_rows", [1024, 16, 5, 1])
def test_order_of_rows_and_size_of_waves_change_no_token(policy: Policy, wave_rows: int) -> None:
    asked = requests(policy, rows=6)
    sampling = Sampling(temperature=1.0, max_tokens=56)
    expected = by_key(asked, Lockstep(wave_rows=1024).generate(policy, asked, sampling))
    turned = [Request(prompt_ids=r.prompt_ids, row_keys=r.row_keys[::-1]) for r in asked[::-1]]
    assert by_key(turned, Lockstep(wave_rows=wave_rows).generate(policy, turned, sampling)) == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_update_is_seen_at_once(policy: Policy, engine: str) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=8)
    built = ENGINES[engine]()
    asked = requests(policy, rows=2)
    before = built.generate(policy, asked, sampling)
    head = policy.model.get_output_embeddings().weight
    with torch.no_grad():
        head.mul_(1.5)
        try:
            after = built.generate(policy, asked, sampling)
            fresh = ENGINES[engine]().generate(policy, asked, sampling)
        finally:
            head.div_(1.5)
    assert after == fresh
    assert after != before


def test_inverse_cdf_by_hand() -> None:
    # probabilities 1/4, 0, 1/2, 1/4: cumulative 0.25, 0.25, 0.75, 1
    logits = torch.tensor([0.25, 0.0, 0.5, 0.25], dtype=torch.float64).log().repeat(6, 1)
    drawn = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999999])
    tokens, logprobs = sample(logits, drawn, temperature=1.0)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    assert logprobs[2].item() == pytest.approx(-0.6931471805599453)


def test_a_token_of_probability_zero_is_never_drawn_not_even_at_the_end() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    tokens, _ = sample(logits, torch.tensor([1.0 - 2**-53], dtype=torch.float64), temperature=1.0)
    assert tokens.tolist() == [1]


def test_temperature_sharpens_and_zero_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    _, warm = sample(logits, torch.tensor([0.9]), temperature=1.0)
    _, cold = sample(logits, torch.tensor([0.9]), temperature=0.5)
    assert warm.item() == pytest.approx(-0.3132617)  # -ln(1 + e^-1)
    assert cold.item() == pytest.approx(-0.1269280)  # -ln(1 + e^-2)
    assert sample(logits, torch.tensor([0.0]), temperature=0.0)[0].tolist() == [1]


def test_uniforms_depend_on_the_key_alone() -> None:
    table = uniforms([(0, 1), (0, 2)], 4)
    assert (uniforms([(0, 2)], 4)[0] == table[1]).all()
    assert (uniforms([(0, 2)], 2)[0] == table[1, :2]).all()
    assert table.min() >= 0
    assert table.max() < 1
