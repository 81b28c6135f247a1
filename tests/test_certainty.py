"""Rewards for certainty: by hand, of every engine's numbers, in trials, and where they are refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import headed_model, requests
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from oneshot.config.file import read
from oneshot.config.model import ModelConfig
from oneshot.config.reward import Certainty, RewardConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import SweepFileError
from oneshot.plan import plan
from oneshot.plan.keys import trial_keys
from oneshot.plan.plan import make_plan
from oneshot.policy.loading import load_policy
from oneshot.rollout.engine import Sampling
from oneshot.rollout.lockstep import Lockstep
from oneshot.rollout.sampling import distribution
from oneshot.tasks.certainty import certainty
from oneshot.tasks.grading import Grader
from oneshot.tasks.rewards import judge, rewards
from oneshot.training.checkpoint import load_state, save_state
from oneshot.training.loop import train
from oneshot.training.metrics import StepMetrics
from oneshot.training.state import new_state

MakeConfig = Callable[..., TrialConfig]
LN2 = math.log(2)
NO_EVAL: dict[str, Any] = {"at_start": False, "suites": {}}
MEASURES: tuple[Certainty, ...] = ("self_certainty", "token_entropy", "sequence_entropy", "probability")


# by hand: p = [1/2, 1/4, 1/8, 1/8], and the uniform distribution over the same four tokens
# H(p) = (1/2 * 1 + 1/4 * 2 + 2 * 1/8 * 3) ln 2 = 1.75 ln 2; the uniform one has 2 ln 2
# KL(u | p) = -ln 4 + (1 + 2 + 3 + 3) / 4 ln 2 = 0.25 ln 2; of the uniform one 0


def test_a_distributions_entropy_and_distance_from_uniform_by_hand() -> None:
    probs = torch.tensor([[1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 4] * 4, [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    logits = torch.cat([probs[:2].log() + torch.tensor([[7.0], [-3.0]]), torch.tensor([[0.0, -900, -900, -900]])])
    entropies, uniform_kls = distribution(logits, probs_BV=torch.empty_like(logits))
    assert entropies.tolist() == pytest.approx([1.75 * LN2, 2 * LN2, 0.0])
    # of the last, -ln 4 + 3 / 4 * 900
    assert uniform_kls.tolist() == pytest.approx([0.25 * LN2, 0.0, 675 - 2 * LN2])


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("self_certainty", (0.25 + 0) / 2 * LN2),
        ("token_entropy", -(1.75 + 2) / 2 * LN2),
        ("sequence_entropy", -3 * LN2),
        ("probability", 1 / 8),
    ],
)
def test_a_completions_reward_by_hand(by: Certainty, expected: float) -> None:
    # the first token of p, with probability 1/2, and then one of the uniform distribution, with 1/4
    reward = certainty(by, logprobs=(-LN2, -2 * LN2), entropies=(1.75 * LN2, 2 * LN2), uniform_kls=(0.25 * LN2, 0.0))
    assert reward == pytest.approx(expected)


def test_logits_beyond_the_tokenizer_count() -> None:
    # four tokens of 1/4, and four logits that give next to nothing: KL is -ln 8 + (4 ln 4 + 4 (20 + ln 4)) / 8
    logits = torch.tensor([[0.0] * 4 + [-20.0] * 4], dtype=torch.float64)
    _, (uniform_kl,) = distribution(logits, probs_BV=torch.empty_like(logits))
    assert uniform_kl.item() == pytest.approx(10 - LN2, abs=1e-7)


@given(
    st.integers(1, 6).flatmap(
        lambda num: st.lists(st.lists(st.floats(-30, 30), min_size=num, max_size=num), min_size=1, max_size=4)
    ),
    st.floats(-50, 50),
)
def test_a_constant_on_all_logits_changes_nothing_and_neither_number_is_negative(
    rows: list[list[float]], shift: float
) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    plain, moved = (distribution(each, probs_BV=torch.empty_like(each)) for each in (logits, logits + shift))
    for one, other in zip(plain, moved, strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), abs=1e-9)
        assert min(one.tolist()) >= 0
    assert max(plain[0].tolist()) <= math.log(logits.shape[1]) + 1e-12


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_is_seen_in_both(bad: float) -> None:
    logits = torch.tensor([[0.0, bad, 1.0]])
    assert not any(number.isfinite().any() for number in distribution(logits, probs_BV=torch.empty_like(logits)))


# rewards of a group


def paid(values: list[float], texts: list[str], grader: Grader, **config: Any) -> Any:
    reward = RewardConfig.model_validate(config)
    judged = [
        judge(text, "85", reward, grader, token_ids=tuple(map(ord, text)), certainties={"token_entropy": value})
        for text, value in zip(texts, values, strict=True)
    ]
    return rewards(judged, reward, grader, keys=[(0, 0, place) for place in range(len(texts))])


def test_equal_completions_have_equal_rewards_whatever_rounding_gave_them(grader: Grader) -> None:
    group = paid([-0.5, -0.7, -0.5000001], ["a", "b", "a"], grader, kind="certainty", by="token_entropy")
    assert group.values == [-0.5, -0.7, -0.5]


def test_certainty_can_be_a_term_of_a_sum(grader: Grader) -> None:
    terms = {"right": {}, "sure": {"kind": "certainty", "by": "token_entropy", "weight": 0.5}}
    group = paid([-0.5, -0.7], ["So \\boxed{85}.", "84"], grader, kind="sum", terms=terms)
    assert group.values == pytest.approx([1 - 0.25, 0 - 0.35])
    assert group.terms == {"right": [1.0, 0.0], "sure": [-0.5, -0.7]}


# trials


def run(config: TrialConfig, grader: Grader) -> list[StepMetrics]:
    return list(train(config, new_state(config, seed=0, grader=grader)))


def test_a_trials_rewards_are_those_of_its_sampler(tiny_config: MakeConfig, grader: Grader) -> None:
    """The first rollout of each measure is the same, so its rewards can be compared."""
    trials = {
        by: run(tiny_config(eval=NO_EVAL, train={"num_steps": 1}, reward={"kind": "certainty", "by": by}), grader)[0]
        for by in MEASURES
    }
    step = trials["sequence_entropy"]
    metrics = step.metrics
    assert metrics["reward/mean"] == pytest.approx(
        -metrics["rollout/entropy"] * metrics["rollout/length_mean"], rel=1e-5
    )
    by_sequence = [one.reward for one in step.sampled]
    assert [one.reward for one in trials["probability"].sampled] == pytest.approx([math.exp(x) for x in by_sequence])
    assert all(one.reward > 0 for one in trials["self_certainty"].sampled)
    # a mean of negative entropies is near to that of log-probabilities, which have it as their expectation
    per_token = [one.reward / one.num_tokens for one in step.sampled]
    entropies = [one.reward for one in trials["token_entropy"].sampled]
    assert max(entropies) < 0
    assert sum(entropies) / len(entropies) == pytest.approx(sum(per_token) / len(per_token), abs=0.3)


@pytest.mark.parametrize("by", MEASURES)
def test_training_on_certainty_makes_the_policy_more_certain(
    tiny_config: MakeConfig, grader: Grader, by: Certainty
) -> None:
    config = tiny_config(
        eval=NO_EVAL,
        reward={"kind": "certainty", "by": by},
        rollout={"num_groups": 8},
        optim={"lr": 1e-3},
        loss={"kl_coef": 0.0, "entropy_coef": 0.0},
        train={"num_steps": 8},
    )
    steps = run(config, grader)
    assert steps[-1].metrics["reward/mean"] > steps[0].metrics["reward/mean"]


@pytest.mark.parametrize("by", ["self_certainty", "token_entropy"])
def test_a_trial_that_resumes_is_the_whole_one(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, by: Certainty
) -> None:
    config = tiny_config(eval=NO_EVAL, train={"num_steps": 3}, reward={"kind": "certainty", "by": by})
    whole = run(config, grader)
    begun = new_state(config, seed=0, grader=grader)
    steps = train(config, begun)
    next(steps)
    save_state(begun, tmp_path, with_optimizer=True)
    resumed = new_state(config, seed=0, grader=grader)
    load_state(resumed, tmp_path)
    assert [step.sampled for step in train(config, resumed)] == [step.sampled for step in whole[1:]]


def test_only_rewards_that_need_distributions_ask_for_them() -> None:
    assert [RewardConfig(kind="certainty", by=by).of_distribution for by in MEASURES] == [
        ("self_certainty",),
        ("token_entropy",),
        (),
        (),
    ]
    assert RewardConfig().of_distribution == ()


def test_without_being_asked_no_engine_gives_numbers_of_distributions() -> None:
    policy = load_policy(ModelConfig(path="tiny:qwen2"))
    found = Lockstep(kv_gib=1.0).generate(policy, requests(policy, rows=1, max_tokens=4), Sampling(temperature=1.0))
    assert {(completion.entropies, completion.uniform_kls) for row in found for completion in row} == {((), ())}


# keys and refusals


def test_a_reward_without_certainty_keeps_its_key(tiny_config: MakeConfig) -> None:
    """Both keys are those from before there was a reward for certainty."""
    contents = {"model": "m", "examples": ["e"]}
    terms = {"right": {"kind": "outcome"}, "coin": {"kind": "random", "weight": 0.5}}
    assert trial_keys(tiny_config(), [0], contents) == ["2c27b78675183fc0"]
    assert trial_keys(tiny_config(reward={"kind": "sum", "terms": terms}), [0], contents) == ["a9c03a64d08d6fc5"]


def test_each_measure_has_a_key_of_its_own(tiny_config: MakeConfig) -> None:
    configs = [tiny_config(), *(tiny_config(reward={"kind": "certainty", "by": by}) for by in MEASURES)]
    configs += [tiny_config(reward={"kind": "sum", "terms": {"a": {"kind": "certainty", "by": by}}}) for by in MEASURES]
    assert len({trial_keys(config, [0], {"model": "m"})[0] for config in configs}) == 9


@pytest.mark.parametrize(
    "reward", [{"kind": "certainty"}, {"by": "probability"}, {"kind": "sum", "terms": {"a": {"by": "probability"}}}]
)
def test_certainty_and_its_measure_belong_together(tiny_config: MakeConfig, reward: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="`kind: certainty` and `by` belong together; set both or none"):
        tiny_config(reward=reward)


def test_without_a_baseline_certainty_is_refused_where_rewards_count(tiny_config: MakeConfig) -> None:
    sections = {"reward": {"kind": "certainty", "by": "probability"}, "advantage": {"baseline": "none"}}
    with pytest.raises(ValidationError, match=r"advantage\.baseline: none is for .* set advantage\.baseline: group"):
        tiny_config(**sections)
    assert tiny_config(**sections, train={"method": "sft"}).train.method == "sft"


SWEEP = """
version: 1
name: choice
question: Which engine?
seeds: [0]
trial:
  model: {{path: "{path}"}}
  examples: ["arithmetic:47+38"]
  prompt: {{template: plain}}
  reward: {{kind: certainty, by: {by}}}
  rollout: {{max_tokens: 24, engine: {engine}}}
resources: {{gpus: 1}}
"""


def engine_of(folder: Path, by: Certainty, engine: str) -> str:
    text = SWEEP.format(path=folder, by=by, engine=engine)
    return make_plan(read(text, name="s.yaml")).trials[0].config.rollout.engine


def test_vllm_is_refused_for_rewards_that_need_what_it_does_not_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "has_vllm", lambda: True)
    folder = headed_model("qwen2", tmp_path)
    assert [engine_of(folder, by, "auto") for by in MEASURES] == ["lockstep", "lockstep", "vllm", "vllm"]
    assert engine_of(folder, "probability", "vllm") == "vllm"
    with pytest.raises(
        SweepFileError,
        match=r"s\.yaml:11: .*rollout\.engine: vllm: .*reward token_entropy needs the distribution of each token, of "
        r"which vLLM gives the drawn token only; set reward\.by: .*; or set rollout\.engine: lockstep",
    ):
        engine_of(folder, "token_entropy", "vllm")
