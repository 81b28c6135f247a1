"""One suite of laws over every rollout engine; `hf`, plain `generate`, is the oracle.

Laws that an engine does not promise are left out of it by name, with the reason.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain

import pytest
import torch
from engines import ENGINES, PROMPTS, by_key, headed_model, prompt, requests
from scipy import stats

from oneshot.config.evaluation import ThinkingConfig
from oneshot.config.model import ModelConfig
from oneshot.config.trial import VllmConfig
from oneshot.errors import UserError
from oneshot.policy.forward import completion_logprobs
from oneshot.policy.loading import load_policy
from oneshot.policy.output_head import Workspace
from oneshot.policy.packing import pack
from oneshot.policy.policy import Policy
from oneshot.policy.weights import Weights, split_weights
from oneshot.rollout.budget import Forced, force
from oneshot.rollout.engine import Completion, Ended, Engine, NotFiniteError, PromptRequest, Sampling, ignore
from oneshot.rollout.hf import HfGenerate
from oneshot.rollout.vllm import Vllm

TINY = ("tiny:qwen2", "tiny:llama")
HEADED = ("qwen2", "llama")
"""Untrained models whose heads are large enough for vLLM; those of the shipped ones have 24 numbers."""


@dataclass(slots=True, kw_only=True)
class Subject:
    """A policy and an engine that samples from it."""

    policy: Policy
    weights: Weights
    make: Callable[[], Engine]
    engine: Engine
    atol: float  # of log-probabilities: generate's are float32, whatever the model's dtype

    def generate(self, asked: list[PromptRequest], sampling: Sampling, ended: Ended = ignore) -> list[list[Completion]]:
        """The completions, with the weights as they are."""
        self.engine.wake(self.policy, self.weights)
        return self.engine.generate(self.policy, asked, sampling, ended)

    def renewed(self) -> None:
        """Replaces the engine by a new one."""
        self.engine.release()
        self.engine = self.make()


@cache
def tiny(path: str) -> tuple[Policy, Weights]:
    config = ModelConfig(path=path, dtype="float64")  # in which two ways of computing agree to the last token
    policy = load_policy(config)
    return policy, split_weights(policy.model, config)


CASES = [
    *(pytest.param((engine, path), id=f"{engine}, {path}") for engine in ENGINES for path in TINY),
    *(pytest.param(("vllm", kind), id=f"vllm, {kind}", marks=pytest.mark.vllm) for kind in HEADED),
]


@pytest.fixture(scope="module", params=CASES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """One engine for all laws: a vLLM takes seconds to start, and a process can have only one."""
    name, model = request.param
    if name == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed here")
        folder = headed_model(model, tmp_path_factory.mktemp(model))
        config = ModelConfig(path=str(folder), dtype="float32")
        policy = load_policy(config)
        weights = split_weights(policy.model, config)
        settings = VllmConfig(max_num_seqs=64)

        def make() -> Engine:
            return Vllm(model=config, settings=settings, max_positions=80, kv_gib=0.25)

        subject = Subject(policy=policy, weights=weights, make=make, engine=make(), atol=1e-4)
    else:
        policy, weights = tiny(model)
        build = ENGINES[name]
        subject = Subject(
            policy=policy,
            weights=weights,
            make=lambda: build(policy),
            engine=build(policy),
            atol=1e-5 if name == "hf" else 1e-9,
        )
    yield subject
    subject.engine.release()


def test_greedy_equals_plain_generate(subject: Subject) -> None:
    sampling = Sampling(temperature=0.0)
    asked = requests(subject.policy, rows=2, max_tokens=56)
    expected = HfGenerate().generate(subject.policy, asked, sampling)
    assert by_key(asked, subject.generate(asked, sampling)) == by_key(asked, expected)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (0.7, 0.8), (0.0, 1.0)])
def test_logprobs_are_those_of_the_trainers_forward(subject: Subject, temperature: float, top_p: float) -> None:
    """At the sampling temperature, of all tokens; greedy ones at temperature 1."""
    if top_p < 1 and isinstance(subject.engine, Vllm):
        pytest.skip("vLLM's are those of the tokens that top_p leaves")
    policy, asked = subject.policy, requests(subject.policy, rows=3, max_tokens=20)
    found = subject.generate(asked, Sampling(temperature=temperature, top_p=top_p))
    pairs = [(request.prompt_ids, c) for request, row in zip(asked, found, strict=True) for c in row]
    batch = pack([p for p, _ in pairs], range(len(pairs)), [c.token_ids for _, c in pairs], range(len(pairs)),
                 device=policy.device)  # fmt: skip
    space = Workspace.for_chunks(policy.model.get_output_embeddings(), num_tokens=len(batch.targets_M))
    logprobs_M = completion_logprobs(policy.model, batch, temperature=temperature or 1.0, space=space)
    for logprobs_T, (_, completion) in zip(logprobs_M.split(batch.lengths), pairs, strict=True):
        assert list(completion.logprobs) == pytest.approx(logprobs_T.tolist(), abs=subject.atol)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (0.7, 0.8), (0.0, 1.0)])
def test_numbers_of_distributions_are_those_of_a_plain_forward_pass(
    subject: Subject, temperature: float, top_p: float
) -> None:
    """They are those of the whole vocabulary at the sampling temperature, and asking for them changes no token."""
    asked = requests(subject.policy, rows=3, max_tokens=20)
    plain = subject.generate(asked, Sampling(temperature=temperature, top_p=top_p))
    sampling = Sampling(temperature=temperature, top_p=top_p, with_distribution=True)
    if isinstance(subject.engine, Vllm):
        with pytest.raises(UserError, match="vllm does not return the tokens' distributions; use lockstep or hf"):
            subject.generate(asked, sampling)
        return
    found = subject.generate(asked, sampling)
    bare = [[replace(completion, entropies=(), uniform_kls=()) for completion in row] for row in found]
    assert bare == plain
    for request, row in zip(asked, found, strict=True):
        for completion in row:
            ids = torch.tensor([request.prompt_ids + completion.token_ids])
            with torch.no_grad():
                logits_TV = subject.policy.model(ids).logits[0, len(request.prompt_ids) - 1 : -1]
            logprobs_TV = (logits_TV.double() / (temperature or 1.0)).log_softmax(dim=-1)
            entropies_T = -(logprobs_TV.exp() * logprobs_TV).sum(dim=-1)
            uniform_kls_T = -logprobs_TV.mean(dim=-1) - math.log(logprobs_TV.shape[-1])
            assert completion.entropies == pytest.approx(entropies_T.tolist(), abs=subject.atol)
            assert completion.uniform_kls == pytest.approx(uniform_kls_T.tolist(), abs=subject.atol)


def test_the_end_token_is_counted_once_and_a_cut_is_said(subject: Subject) -> None:
    asked = requests(subject.policy, rows=16, max_tokens=24)
    found = [c for row in subject.generate(asked, Sampling(temperature=1.0)) for c in row]
    assert {completion.truncated for completion in found} == {True, False}
    for completion in found:
        ends = [place for place, token in enumerate(completion.token_ids) if token in subject.policy.eos_ids]
        assert len(completion.logprobs) == len(completion.token_ids) <= 24
        if completion.truncated:
            assert not ends
            assert len(completion.token_ids) == 24
        else:
            assert ends == [len(completion.token_ids) - 1]


def test_first_tokens_have_the_models_distribution(subject: Subject) -> None:
    """Chi-square of 2,000 first tokens against the softmax; p below 1e-4 would be one false alarm in 10,000."""
    ids = prompt(subject.policy, PROMPTS[0])
    asked = [PromptRequest(prompt_ids=ids, row_keys=tuple((3, row) for row in range(2000)), max_tokens=1)]
    (completions,) = subject.generate(asked, Sampling(temperature=1.0))
    with torch.no_grad():
        expected = subject.policy.model(torch.tensor([ids])).logits[0, -1].softmax(dim=-1) * 2000
    counts = Counter(completion.token_ids[0] for completion in completions)
    common = [token for token in range(len(expected)) if expected[token] >= 5]
    observed = [counts[token] for token in common]
    rest = 2000 - sum(observed)
    expected_counts = [expected[token].item() for token in common]
    chi_square = stats.chisquare([*observed, rest], [*expected_counts, 2000 - sum(expected_counts)])
    assert chi_square.pvalue > 1e-4


def test_top_p_draws_only_the_most_likely_tokens_each_as_often_as_it_should(subject: Subject) -> None:
    """Chi-square of 2,000 first tokens against the softmax of the fewest tokens that reach 0.8."""
    ids, sampling = prompt(subject.policy, PROMPTS[0]), Sampling(temperature=2.0, top_p=0.8)
    asked = [PromptRequest(prompt_ids=ids, row_keys=tuple((4, row) for row in range(2000)), max_tokens=1)]
    (completions,) = subject.generate(asked, sampling)
    with torch.no_grad():
        logits = subject.policy.model(torch.tensor([ids])).logits[0, -1]
    probs, tokens = (logits / 2.0).softmax(dim=-1).sort(descending=True)
    num = int((probs.cumsum(0) < 0.8).sum()) + 1
    counts = Counter(completion.token_ids[0] for completion in completions)
    nucleus = tokens[:num].tolist()
    assert len(nucleus) > 3
    assert set(counts) <= set(nucleus)
    kept = probs[:num].double()
    expected = kept / kept.sum() * 2000
    assert stats.chisquare([counts[token] for token in nucleus], expected.tolist()).pvalue > 1e-4


def test_each_request_has_its_own_limit(subject: Subject) -> None:
    asked = requests(subject.policy, rows=3, max_tokens=40)
    whole = subject.generate(asked, Sampling(temperature=1.0))
    limits = (3, 40, 1, 17)
    cut = [replace(request, max_tokens=limit) for request, limit in zip(asked, limits, strict=True)]
    for limit, long, short in zip(limits, whole, subject.generate(cut, Sampling(temperature=1.0)), strict=True):
        assert [completion.token_ids for completion in short] == [c.token_ids[:limit] for c in long]
        assert [c.truncated for c in short] == [c.truncated or len(c.token_ids) > limit for c in long]


def test_a_stop_string_ends_a_completion_at_the_token_that_completes_it(subject: Subject) -> None:
    asked, tokenizer = requests(subject.policy, rows=6, max_tokens=40), subject.policy.tokenizer
    plain = subject.generate(asked, Sampling(temperature=1.0))
    # what some completion has in its middle, and the text of a special token, which others may end with
    long = next(completion for completion in chain(*plain) if len(completion.token_ids) > 8)
    stop = (tokenizer.decode(long.token_ids[6:8]), tokenizer.decode([subject.policy.eos_ids[0]]))
    found = subject.generate(asked, Sampling(temperature=1.0, stop=stop))
    for expected, completion in zip(chain(*plain), chain(*found), strict=True):
        texts = [tokenizer.decode(expected.token_ids[:end]) for end in range(1, len(expected.token_ids) + 1)]
        ends = [end for end, text in enumerate(texts, 1) if any(string in text for string in stop)]
        length = ends[0] if ends else len(texts)
        assert completion.token_ids == expected.token_ids[:length]
        assert completion.logprobs == pytest.approx(expected.logprobs[:length], abs=subject.atol)
        assert (completion.stopped, completion.truncated) == (bool(ends), not ends)
    assert any(completion.token_ids[-1] not in subject.policy.eos_ids for completion in chain(*found))


def test_a_budget_of_thinking_is_kept_whatever_the_order_of_requests(subject: Subject) -> None:
    policy, end = subject.policy, "7"  # which the shipped organisms write, and the untrained models by chance
    config = ThinkingConfig(end=end, max_tokens=18, min_waits=1, wait="W", then="So", answer_tokens=9)
    asked = requests(policy, rows=5, max_tokens=18)

    def forced(some: list[PromptRequest]) -> dict[tuple[int, ...], Forced]:
        found: dict[tuple[int, ...], Forced] = {}
        subject.engine.wake(policy, subject.weights)
        keep = lambda request, row, completion: found.update({some[request].row_keys[row]: completion})  # noqa: E731
        force(subject.engine, policy, some, Sampling(temperature=1.0), config, keep)
        return found

    found = forced(asked)
    assert len(found) == 20
    for completion in found.values():
        text = policy.tokenizer.decode(completion.token_ids[: completion.thinking_tokens])
        assert completion.thinking_tokens <= 18
        assert completion.waits == 1 or completion.forced_end
        assert text.count("W") >= completion.waits
        assert end not in text
        assert 1 <= len(completion.answer_ids) <= 9
        assert completion.token_ids[-len(completion.answer_ids) :] == completion.answer_ids
    turned = [replace(request, row_keys=request.row_keys[::-1]) for request in asked[::-1]]
    assert forced(turned) == found
    assert forced([replace(asked[2], row_keys=asked[2].row_keys[3:4])]).items() <= found.items()


def test_each_completion_is_handed_over_once(subject: Subject) -> None:
    asked = requests(subject.policy, rows=7, max_tokens=40)
    handed: dict[tuple[int, int], Completion] = {}

    def ended(request: int, row: int, completion: Completion) -> None:
        assert (request, row) not in handed
        handed[request, row] = completion

    found = subject.generate(asked, Sampling(temperature=1.0), ended)
    assert [[handed[request, row] for row in range(7)] for request in range(len(asked))] == found


def test_an_error_of_the_caller_leaves_nothing_for_the_next_call(subject: Subject) -> None:
    asked, sampling = requests(subject.policy, rows=2, max_tokens=12), Sampling(temperature=1.0)
    expected = subject.generate(asked, sampling)

    def failing(request: int, row: int, completion: Completion) -> None:
        raise RuntimeError("a reader that fails")

    with pytest.raises(RuntimeError, match="a reader that fails"):
        subject.generate(asked, sampling, failing)
    assert by_key(asked, subject.generate(asked, sampling)) == by_key(asked, expected)


def test_the_same_call_gives_the_same_bits(subject: Subject) -> None:
    asked, sampling = requests(subject.policy, rows=4, max_tokens=24), Sampling(temperature=1.0)
    expected = subject.generate(asked, sampling)
    subject.generate(asked[:1], sampling)  # what it leaves behind is not seen
    assert subject.generate(asked, sampling) == expected


def test_order_and_division_of_requests_change_no_token(subject: Subject) -> None:
    if isinstance(subject.engine, HfGenerate):
        pytest.skip("hf does not promise it: it seeds torch's generator with a request's keys")
    asked, sampling = requests(subject.policy, rows=5, max_tokens=40), Sampling(temperature=1.0)
    expected = by_key(asked, subject.generate(asked, sampling))
    turned = [replace(request, row_keys=request.row_keys[::-1]) for request in asked[::-1]]
    assert by_key(turned, subject.generate(turned, sampling)) == expected
    alone = [replace(asked[2], row_keys=asked[2].row_keys[3:4])]
    assert by_key(alone, subject.generate(alone, sampling)).items() <= expected.items()
    crowd = [replace(request, row_keys=(*request.row_keys, *((9, row) for row in range(30)))) for request in asked]
    assert expected.items() <= by_key(crowd, subject.generate(crowd, sampling)).items()


def test_a_weight_update_is_seen_at_once(subject: Subject) -> None:
    asked, sampling = requests(subject.policy, rows=2, max_tokens=8), Sampling(temperature=1.0)
    before = subject.generate(asked, sampling)
    parameters = list(subject.policy.model.parameters())
    try:
        for parameter in parameters:
            parameter.data.mul_(1.25)
        subject.weights.publish()
        after = subject.generate(asked, sampling)
        subject.renewed()
        fresh = subject.generate(asked, sampling)
    finally:
        for parameter in parameters:
            parameter.data.div_(1.25)
        subject.weights.publish()
    assert after == fresh
    assert after != before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(subject: Subject, temperature: float) -> None:
    if isinstance(subject.engine, HfGenerate):
        pytest.skip("hf does not promise it: it is for comparison only")
    weight = subject.policy.model.get_output_embeddings().weight.data
    kept = weight[3].clone()
    try:
        weight[3] = torch.nan
        subject.weights.publish()
        with pytest.raises(NotFiniteError, match="NaN or infinite"):
            subject.generate(requests(subject.policy, rows=2, max_tokens=8), Sampling(temperature=temperature))
    finally:
        weight[3] = kept
        subject.weights.publish()
