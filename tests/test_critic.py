"""PPO's critic: its advantages and loss by hand, its gradient by plain autograd, its trial resumed bit for bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT
from pydantic import ValidationError
from spread import norms_as_wide_as_their_input
from test_gradient import REWARDS, judged
from torch import Tensor

from oneshot.config.advantage import AdvantageConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.plan.keys import trial_keys
from oneshot.tasks.grading import Grader
from oneshot.training.checkpoint import load_state, save_state
from oneshot.training.critic import estimates, gae, signed, value_loss
from oneshot.training.loop import train
from oneshot.training.state import TrainingState, new_state
from oneshot.training.update import update

MakeConfig = Callable[..., TrialConfig]
CRITIC = {"advantage": {"baseline": "critic"}}
SHARES = ["none", "body"]


def doubles(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_advantages_by_hand() -> None:
    """With gamma 0.9 and lambda 0.8; the last token is followed by nothing.

    delta = [0.9 * 0.6 - 0.5, 0.9 * 0.8 - 0.6, 1 - 0.8] = [0.04, 0.12, 0.2]
    A = [0.04 + 0.72 * 0.264, 0.12 + 0.72 * 0.2, 0.2] = [0.23008, 0.264, 0.2]
    """
    found = gae(doubles([0, 0, 1]), doubles([0.5, 0.6, 0.8]), gamma=0.9, gae_lambda=0.8)
    assert found[0].tolist() == pytest.approx([0.23008, 0.264, 0.2], abs=1e-15)


def test_without_discount_an_advantage_is_the_reward_minus_the_value() -> None:
    values = doubles([0.5, 0.6, 0.8], [0.1, 0.7, 0.0])
    found = gae(doubles([0, 0, 1], [0, 0.25, 0]), values, gamma=1.0, gae_lambda=1.0)
    assert torch.allclose(found, doubles([0.5, 0.4, 0.2], [0.15, -0.45, 0.0]), atol=1e-15)


def test_with_lambda_0_it_is_the_error_of_one_step() -> None:
    found = gae(doubles([0, 0, 1]), doubles([0.5, 0.6, 0.8]), gamma=1.0, gae_lambda=0.0)
    assert torch.allclose(found, doubles([0.1, 0.2, 0.2]), atol=1e-15)


def reference_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """As TRL's and verl's loops over one completion have it."""
    last, found = 0.0, []
    for t in reversed(range(len(rewards))):
        following = values[t + 1] if t < len(rewards) - 1 else 0.0
        last = rewards[t] + gamma * following - values[t] + gamma * lam * last
        found.append(last)
    return found[::-1]


def critic_config(tiny_config: MakeConfig, **sections: Any) -> TrialConfig:
    return tiny_config(**{**CRITIC, "model": {"path": "tiny:qwen2", "dtype": "float64"}, **sections})


def test_a_step_has_the_whitened_advantages_of_trl_and_verl(tiny_config: MakeConfig) -> None:
    config = critic_config(tiny_config, critic={"gamma": 0.95, "gae_lambda": 0.9})
    rewards, lengths = [1.0, 0.0, float("nan"), 0.5], [3, 5, 2, 1]
    generator = torch.Generator().manual_seed(0)
    values = {g: torch.rand(n, generator=generator, dtype=torch.float64) for g, n in enumerate(lengths)}
    found = estimates(torch.tensor(rewards, dtype=torch.float64), values, config=config)
    graded = [0, 1, 3]
    raw = {g: reference_gae([0.0] * (lengths[g] - 1) + [rewards[g]], values[g].tolist(), 0.95, 0.9) for g in graded}
    everything = torch.tensor([a for g in graded for a in raw[g]], dtype=torch.float64)
    assert len(everything) == 9
    for g in graded:
        own = torch.tensor(raw[g], dtype=torch.float64)
        wanted = (own - everything.mean()) * torch.rsqrt(everything.var() + 1e-8)
        assert torch.allclose(found.advantages[g], wanted, atol=1e-12)
        assert torch.allclose(found.returns[g], own + values[g], atol=1e-15)
    assert found.advantages[2].tolist() == [0.0, 0.0], "nobody could judge it"
    assert found.graded_G.tolist() == [True, True, False, True]
    whitened = torch.cat([found.advantages[g] for g in graded])
    assert whitened.mean().item() == pytest.approx(0, abs=1e-12)
    assert whitened.std().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 0.95, 0.99])
def test_a_step_has_verls_numbers(tiny_config: MakeConfig, gamma: float) -> None:
    """Recorded from its functions (the file names the commit), on trajectories of 1 to 8 tokens."""
    golden = json.loads((PROJECT / "tests" / "golden" / "ppo.json").read_text())
    (name,) = (name for name in golden["cases"] if float(name.split()[0]) == gamma)
    case, gae_lambda = golden["cases"][name], float(name.split()[1])
    config = critic_config(tiny_config, critic={"gamma": gamma, "gae_lambda": gae_lambda})
    rewards = torch.tensor(golden["rewards"], dtype=torch.float64)
    values = {g: torch.tensor(row, dtype=torch.float64) for g, row in enumerate(golden["values"])}
    found = estimates(rewards, values, config=config)
    for ours, theirs in ((found.advantages, case["advantages"]), (found.returns, case["returns"])):
        assert [len(row) for row in ours] == [len(row) for row in theirs]
        for row, wanted in zip(ours, theirs, strict=True):
            assert row.tolist() == pytest.approx(wanted, abs=1e-7)  # its means divide by the number of tokens + 1e-8
    new = torch.cat([torch.tensor(row, dtype=torch.float64) for row in golden["new_values"]])
    for clip, wanted in case["value_loss"].items():
        losses = value_loss(new, torch.cat([*found.values]), torch.cat([*found.returns]), clip=float(clip))
        assert losses.mean().item() == pytest.approx(wanted, abs=1e-7)


def test_signs_are_weighed_and_whitening_can_be_left_out() -> None:
    raw, counts = doubles([2.0, -1.0, 5.0]), torch.tensor([[True, True, False]])
    config = AdvantageConfig(baseline="critic", normalize_std=False, negative_weight=0.1)
    assert signed(raw, counts, config=config).tolist() == [[2.0, -0.1, 0.0]]


def test_the_value_loss_by_hand() -> None:
    """Old values 0 and clip 0.5; the returns are 1.

    0.3: not clipped, (1 - 0.3)^2 / 2. 0.9: clipped to 0.5, whose error is larger, (1 - 0.5)^2 / 2.
    -0.9: clipped to -0.5, whose error is smaller, so that the value's own counts, (1 + 0.9)^2 / 2.
    """
    values, old = torch.tensor([0.3, 0.9, -0.9], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    found = value_loss(values, old, torch.ones(3, dtype=torch.float64), clip=0.5)
    assert found.tolist() == pytest.approx([0.245, 0.125, 1.805], abs=1e-15)


def filled_head(state: TrainingState) -> TrainingState:
    """A critic whose head is not zero, so that its body has a gradient."""
    assert state.critic is not None
    with torch.no_grad():
        size = state.critic.head.weight.numel()
        state.critic.head.weight.copy_(torch.linspace(-0.5, 0.5, size, dtype=torch.float64)[None])
        state.critic.head.bias.fill_(0.25)
    return state


def plain_hidden(body: Any, state: TrainingState, completion: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([[*state.prompts[0], *completion]])
    hidden: Tensor = body(input_ids=ids, use_cache=False).last_hidden_state[0, len(state.prompts[0]) - 1 : -1]
    return hidden


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("microbatch_tokens", [24_000, 60])
@norms_as_wide_as_their_input()
def test_the_critics_gradient_is_that_of_plain_autograd(
    tiny_config: MakeConfig, grader: Grader, share: str, microbatch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = critic_config(
        tiny_config,
        critic={"share": share, "coef": 0.3},
        train={"microbatch_tokens": microbatch_tokens},
        loss={"pg_coef": 0.0, "kl_coef": 0.0, "entropy_coef": 0.0},
        optim={"grad_clip": 1e6, "lr": 1e-3},
    )
    state = filled_head(new_state(config, seed=0, grader=grader))
    critic = state.critic
    assert critic is not None
    batch = judged(state, REWARDS, config)
    body = state.policy.model.base_model if share == "body" else critic.reader.model
    num_tokens = batch.num_tokens
    loss = torch.zeros((), dtype=torch.float64)
    for completion, reward in zip(batch.token_ids, REWARDS, strict=True):
        values = critic.values(plain_hidden(body, state, completion))
        loss = loss + 0.5 * (values - reward).square().sum() / num_tokens  # the value's clip is idle before a step
    weights = {**dict(body.named_parameters()), **dict(critic.head.named_parameters())}
    factor = 0.3 if share == "body" else 1.0
    wanted = torch.autograd.grad(factor * loss, list(weights.values()))
    seen: dict[str, Tensor] = {}

    def watch(_critic: Any, metrics: dict[str, float]) -> None:
        assert metrics["critic/loss"] == pytest.approx(loss.item(), abs=1e-12)
        seen.update({name: p.grad.clone() for name, p in weights.items() if p.grad is not None})

    monkeypatch.setattr(
        "oneshot.training.update.take_critic_step", lambda _c, _s, critic, metrics: watch(critic, metrics)
    )
    update(config, state, batch)
    assert seen.keys() == weights.keys()
    for (name, found), expected in zip(seen.items(), wanted, strict=True):
        assert (found - expected).abs().max() < 1e-10, name


def test_a_critic_learns_what_the_policy_is_paid(tiny_config: MakeConfig, grader: Grader) -> None:
    config = critic_config(tiny_config, critic={"lr": 3e-3, "warmup_steps": 99, "clip": 10.0}, train={"num_steps": 100})
    state = new_state(config, seed=0, grader=grader)
    before = {name: p.detach().clone() for name, p in state.weights.master.items()}
    batch = judged(state, [0.25] * 16, config)
    first = update(config, state, batch)
    assert (first["critic/value"], first["critic/return"]) == (0.0, pytest.approx(0.25))
    for _ in range(30):
        last = update(config, state, batch)
    assert last["critic/value"] == pytest.approx(0.25, abs=0.05)
    assert last["critic/loss"] < first["critic/loss"] / 20
    assert all(torch.equal(before[name], p) for name, p in state.weights.master.items()), "the policy waits"


@pytest.mark.parametrize("share", SHARES)
def test_the_policy_learns_after_the_warm_up(tiny_config: MakeConfig, grader: Grader, share: str) -> None:
    config = critic_config(
        tiny_config, critic={"share": share, "warmup_steps": 1}, optim={"lr": 1e-3}, train={"num_steps": 2}
    )
    state = new_state(config, seed=0, grader=grader)
    start = {name: p.detach().clone() for name, p in state.weights.master.items()}
    steps = train(config, state)
    first = next(step for step in steps if step.step == 1)
    assert all(torch.equal(start[name], p) for name, p in state.weights.master.items())
    assert first.metrics["loss/frac_skipped"] == 1.0
    next(steps)
    assert any(not torch.equal(start[name], p) for name, p in state.weights.master.items())


def test_a_step_without_anything_to_learn_has_a_loss_of_0(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(**CRITIC, critic={"share": "body"}, loss={"mask_truncated": True})
    state = new_state(config, seed=0, grader=grader)
    batch = judged(state, REWARDS, config)
    cut = tuple(replace(completion, truncated=True) for completion in batch.completions)
    metrics = update(config, state, replace(batch, completions=cut))
    assert metrics["critic/loss"] == metrics["loss/total"] == 0.0


def test_an_evaluation_alone_has_no_critic(tiny_config: MakeConfig, grader: Grader) -> None:
    assert new_state(tiny_config(**CRITIC, train={"num_steps": 0}), seed=0, grader=grader).critic is None


@pytest.mark.parametrize("share", SHARES)
def test_a_critic_goes_on_bit_for_bit(tiny_config: MakeConfig, grader: Grader, tmp_path: Path, share: str) -> None:
    config = tiny_config(
        **CRITIC, critic={"share": share}, optim={"lr": 1e-4}, train={"num_steps": 4, "updates_per_rollout": 2}
    )
    whole_state = new_state(config, seed=0, grader=grader)
    whole = list(train(config, whole_state))
    state, steps = new_state(config, seed=0, grader=grader), []
    for step in train(config, state):
        steps.append(step)
        if step.step == 2:
            break
    save_state(state, tmp_path, with_optimizer=True)
    resumed = new_state(config, seed=0, grader=grader)
    load_state(resumed, tmp_path)
    steps += list(train(config, resumed))
    for name in ("critic/loss", "critic/value", "critic/grad_norm", "reward/mean", "loss/total"):
        assert [s.metrics.get(name) for s in steps] == [s.metrics.get(name) for s in whole], name
    assert whole_state.critic is not None and resumed.critic is not None
    ours, theirs = whole_state.critic.weights.master, resumed.critic.weights.master
    assert ours.keys() == theirs.keys() and len(ours) == (2 if share == "body" else 2 + len(whole_state.weights.master))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_critic_in_bfloat16_has_a_float32_master_and_head(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(**CRITIC, model={"path": "tiny:qwen2", "mixed_precision": "bf16"})
    state = new_state(config, seed=0, grader=grader)
    critic = state.critic
    assert critic is not None
    update(config, state, judged(state, REWARDS, config))
    assert {p.dtype for p in critic.weights.master.values()} == {torch.float32}
    assert {p.dtype for p in critic.reader.model.parameters()} == {torch.bfloat16}
    for name, master in critic.weights.master.items():
        compute = critic.weights.compute[name]
        assert compute is master if "value_head" in name else torch.equal(compute, master.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"critic": {"lr": 1e-4}}, "critic: has no effect without advantage.baseline: critic"),
        (
            {**CRITIC, "train": {"method": "sft"}, "examples": [{"row": "arithmetic:6*7", "solution": "worked"}]},
            "advantage.baseline: critic has no effect with train.method: sft; remove it",
        ),
        (
            {**CRITIC, "critic": {"warmup_steps": 3}, "train": {"num_steps": 3}},
            "leaves none of the 3 steps to the policy",
        ),
        (
            {"advantage": {"baseline": "none"}, "reward": {"overlong": {"buffer": 4}}},
            "reward.overlong makes other numbers",
        ),
        (
            {**CRITIC, "model": {"path": "tiny:qwen2", "mixed_precision": "fp16"}},
            "fp16 cannot be combined with a critic",
        ),
    ],
)
def test_a_critic_without_use_is_refused(tiny_config: MakeConfig, sections: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        tiny_config(**sections)


def test_a_critic_in_shards_is_refused(tiny_config: MakeConfig, grader: Grader) -> None:
    with pytest.raises(UserError, match="a critic cannot be sharded"):
        new_state(tiny_config(**CRITIC), seed=0, grader=grader, strategy="fsdp")


def keys(config: TrialConfig) -> list[str]:
    return trial_keys(config, [0], {"model": "x"})


def test_keys_have_what_matters(tiny_config: MakeConfig) -> None:
    plain, critic = keys(tiny_config()), keys(tiny_config(**CRITIC))
    assert plain != critic
    assert critic == keys(tiny_config(**CRITIC, critic={"lr": 1e-5, "coef": 0.7})), "coef is for a shared body"
    assert critic != keys(tiny_config(**CRITIC, critic={"lr": 2e-5}))
    assert critic == keys(tiny_config(**CRITIC, critic={"clip": 0.1})), "values are those before the only update"
    twice = {"train": {"updates_per_rollout": 2}}
    assert keys(tiny_config(**CRITIC, **twice)) != keys(tiny_config(**CRITIC, critic={"clip": 0.1}, **twice))
    body = {"share": "body"}
    assert keys(tiny_config(**CRITIC, critic=body)) != keys(tiny_config(**CRITIC, critic={**body, "coef": 0.7}))
