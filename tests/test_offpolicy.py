"""What is made of the ratio off-policy: GSPO, CISPO and one-sided clips, by hand and against plain autograd."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import small_model
from losses import grpo_loss
from test_gradient import ADVANTAGES, COMPLETIONS, CPU, PROMPT_OF, PROMPTS, REWARDS, judged
from torch import Tensor

from oneshot.config.loss import LossConfig
from oneshot.config.trial import TrialConfig
from oneshot.policy import output_head
from oneshot.policy.forward import completion_logprobs, hidden_states, use_packs
from oneshot.policy.output_head import LossOutput, Workspace, head_loss
from oneshot.policy.packing import pack
from oneshot.tasks.grading import Grader
from oneshot.training.checkpoint import load_state, save_state
from oneshot.training.grpo import train_step
from oneshot.training.loop import train
from oneshot.training.loss import BatchTotals, cispo, sequence_old, surrogate, token_loss, token_weights
from oneshot.training.metrics import StepMetrics
from oneshot.training.state import TrainingState, new_state
from oneshot.training.update import Old, _old_logprobs, add_gradient

MakeConfig = Callable[..., TrialConfig]
ALONE = {"kl_coef": 0.0, "entropy_coef": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "clip-higher": {"loss": {"clip_high": 3.0}},
    "one-sided": {"loss": {"clip_low": 1.0}},
    "gspo": {"loss": {"ratio": "sequence", "aggregation": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4}},
    "cispo": {"loss": {"surrogate": "cispo", "clip_low": 1.0}},
    "dr_grpo": {"loss": {"aggregation": "constant"}, "advantage": {"normalize_std": False}},
    "dapo": {
        "loss": {"clip_high": 0.28, "mask_truncated": True},
        "rollout": {"resample": 2},
        "reward": {"overlong": {"buffer": 8}},
    },
}


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_ratio_of_a_completion_is_its_tokens_geometric_mean() -> None:
    # completions of two tokens and one: ratios 4 and 1 have the mean sqrt(4 * 1) = 2; a ratio of 0.5 is its own mean
    old = tensor([-3.0, -2.0, -1.0])
    logprobs = old + tensor([4.0, 1.0, 0.5]).log()
    base = sequence_old(logprobs, old, [2, 1])
    assert (logprobs - base).exp().tolist() == pytest.approx([2.0, 2.0, 0.5])


def test_cispo_by_hand() -> None:
    # weights 0.5 -> 0.8, 1.1, 1.5 -> 1.2; advantage -2; log-probabilities ln of 0.5, 0.25, 0.125
    logprobs = tensor([0.5, 0.25, 0.125]).log().requires_grad_()
    values = cispo(logprobs, tensor([0.5, 1.1, 1.5]), tensor([-2.0] * 3), clip_low=0.2, clip_high=0.2)
    assert values.tolist() == pytest.approx([w * 2 * math.log(p) for w, p in ((0.8, 0.5), (1.1, 0.25), (1.2, 0.125))])
    values.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([1.6, 2.2, 2.4])  # no token has lost its gradient


def test_a_clip_low_of_1_is_no_lower_bound() -> None:
    ratio = tensor([1e-6, 0.5, 3.0])
    # PPO: advantage -1 keeps every ratio, 3.0 too; advantage 1 keeps those below 1.2
    assert surrogate(ratio, tensor([-1.0]), clip_low=1.0, clip_high=0.2).tolist() == pytest.approx([1e-6, 0.5, 3.0])
    assert surrogate(ratio, tensor([1.0]), clip_low=1.0, clip_high=0.2).tolist() == pytest.approx([-1e-6, -0.5, -1.2])
    # CISPO: only the weight above is cut, for either sign
    logprobs = tensor([-1.0] * 3)
    for sign in (1.0, -1.0):
        found = cispo(logprobs, ratio, tensor([sign]), clip_low=1.0, clip_high=0.2)
        assert found.tolist() == pytest.approx([sign * weight for weight in (1e-6, 0.5, 1.2)])


def test_the_clip_fraction_counts_what_the_surrogate_clips() -> None:
    # ratios 0.5, 1.5, 0.5, 1.5 with advantages 1, 1, -1, -1: PPO's clip takes the gradient of the two that have moved
    # far enough already; CISPO bounds all four weights
    old, logprobs = tensor([[-2.0] * 4]), tensor([[-2.0] * 4]) + tensor([0.5, 1.5, 0.5, 1.5]).log()
    for name, share in (("ppo", 0.5), ("cispo", 1.0)):
        config = LossConfig(**ALONE, surrogate=name)
        output = token_loss(logprobs, old, None, tensor([[1.0, 1.0, -1.0, -1.0]]), tensor([[0.25] * 4]), config)
        assert output.metrics["loss/clip_fraction"].item() == share


def plain_loss(logprobs: list[Tensor], old: list[Tensor], advantages: Tensor, config: LossConfig) -> Tensor:
    """GSPO (Eq. 5) and CISPO (Eq. 4) as the papers write them, one completion after the other, for autograd."""
    num_tokens, losses = sum(map(len, logprobs)), []
    low, high = 1 - config.clip_low, 1 + config.clip_high
    for own, before, advantage in zip(logprobs, old, advantages, strict=True):
        log_ratios = own - before
        ratios = (log_ratios.mean().expand(len(own)) if config.ratio == "sequence" else log_ratios).exp()
        if config.surrogate == "cispo":
            values = ratios.detach().clamp(low, high) * advantage * own
        else:
            values = torch.minimum(ratios * advantage, ratios.clamp(low, high) * advantage)
        share = {"token_mean": 1 / num_tokens, "sequence_mean": 1 / (len(own) * len(logprobs))}[config.aggregation]
        losses.append(-values.sum() * share)
    return torch.stack(losses).sum()


CONFIGS = {
    "gspo": LossConfig(**ALONE, ratio="sequence", aggregation="sequence_mean", clip_low=0.1, clip_high=0.1),
    "gspo, mean over tokens": LossConfig(**ALONE, ratio="sequence", clip_low=0.1, clip_high=0.1),
    "cispo": LossConfig(**ALONE, surrogate="cispo", clip_low=0.1, clip_high=0.1),
    "cispo of completions": LossConfig(**ALONE, surrogate="cispo", ratio="sequence", clip_low=0.1, clip_high=0.1),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_of_tokens_give_the_gradient_of_whole_completions(
    monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    """Two packs, a chunk of the head at a time, against autograd through all logits."""
    config, model = CONFIGS[name], small_model("gpt_neox")
    use_packs(model)
    generator = torch.Generator().manual_seed(0)
    plain, old = [], []
    for place, completion in zip(PROMPT_OF, COMPLETIONS, strict=True):
        logits = model(torch.tensor([[*PROMPTS[place], *completion]])).logits[0, len(PROMPTS[place]) - 1 : -1] / 0.6
        plain.append(logits.log_softmax(dim=-1).gather(1, torch.tensor(completion)[:, None])[:, 0])
        old.append(plain[-1].detach() + 0.3 * torch.randn(len(completion), dtype=torch.float64, generator=generator))
    wanted_loss = plain_loss(plain, old, tensor(ADVANTAGES), config)
    wanted_loss.backward()
    wanted = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setitem(output_head.CHUNK_LOGITS, "cpu", chunk * 40)
    head = model.get_output_embeddings()
    lengths_G = tensor([float(len(completion)) for completion in COMPLETIONS])
    totals = BatchTotals(num_tokens=int(lengths_G.sum()), num_sequences=len(COMPLETIONS), max_tokens=8)
    weights_G, loss, num_clipped = token_weights(lengths_G, config, totals), 0.0, 0.0
    for members in ([0, 1, 5], [2, 3, 4]):
        batch = pack(PROMPTS, PROMPT_OF, COMPLETIONS, sorted(members, key=lambda g: PROMPT_OF[g]), device=CPU)
        own = torch.tensor(batch.members)
        base_M = torch.cat([old[g] for g in batch.members])
        space = Workspace.for_chunks(head, num_tokens=len(base_M))
        if config.ratio == "sequence":
            now_M = completion_logprobs(model, batch, temperature=0.6, space=space)
            base_M = sequence_old(now_M, base_M, batch.lengths)
        advantages_M, weights_M = batch.spread(tensor(ADVANTAGES)[own]), batch.spread(weights_G[own])

        def loss_of(
            logprobs_n: Tensor, _entropy_n: Tensor | None, where: slice, base_M: Tensor = base_M,
            advantages_M: Tensor = advantages_M, weights_M: Tensor = weights_M,
        ) -> LossOutput:  # fmt: skip
            return token_loss(logprobs_n, base_M[where], None, advantages_M[where], weights_M[where], config)

        output = head_loss(
            hidden_states(model, batch), head, batch.targets_M, loss_of, temperature=0.6, with_entropy=False,
            space=space,
        )  # fmt: skip
        output.loss.backward()
        loss += output.loss.item()
        num_clipped += output.metrics["loss/clip_fraction"].item()
    assert 0 < num_clipped < 1  # some are clipped, and some are not
    assert loss == pytest.approx(wanted_loss.item(), abs=1e-12)
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert max((found[key] - wanted[key]).abs().max() for key in wanted) < 1e-10


@pytest.mark.parametrize("name", ["gspo", "cispo of completions"])
def test_the_update_takes_the_ratio_of_whole_completions(
    tiny_config: MakeConfig, grader: Grader, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """After the weights have moved: small packs and chunks against autograd through the model, row by row."""
    config = tiny_config(
        model={"path": "tiny:qwen2", "dtype": "float64"},
        loss=CONFIGS[name].model_dump(),
        train={"updates_per_rollout": 2, "microbatch_tokens": 60},
    )
    state = new_state(config, seed=0, grader=grader)
    batch = judged(state, REWARDS, config)
    old = _old_logprobs(config, state, batch)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in state.weights.master.values():
            parameter += 0.2 * torch.randn_like(parameter) * parameter.abs().mean()
    model = state.policy.model
    monkeypatch.setitem(output_head.CHUNK_LOGITS, "cpu", 3 * len(model.get_output_embeddings().weight))
    metrics, _ = add_gradient(config, state, batch, range(len(REWARDS)), Old(logprobs=old))
    found = {key: p.grad.clone() for key, p in state.weights.master.items()}
    for parameter in state.weights.master.values():
        parameter.grad = None
    logprobs = []
    for completion in batch.completions:
        ids = torch.tensor([[*state.prompts[0], *completion.token_ids]])
        logits = model(input_ids=ids).logits[0, len(state.prompts[0]) - 1 : -1] / config.rollout.temperature
        logprobs.append(logits.log_softmax(dim=-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0])
    loss = plain_loss(logprobs, [old[g] for g in range(len(REWARDS))], batch.advantages_G, config.loss)
    loss.backward()
    assert 0 < metrics["loss/clip_fraction"] < 1
    assert metrics["loss/total"] == pytest.approx(loss.item(), abs=1e-6)  # norms round to float32
    largest = max(p.grad.abs().max() for p in state.weights.master.values())
    assert largest > 1e-3
    for key, parameter in state.weights.master.items():
        assert (found[key] - parameter.grad).abs().max() < 1e-6 * largest, key


def comparable(steps: list[StepMetrics]) -> list[dict[str, float]]:
    return [{k: v for k, v in s.metrics.items() if not k.startswith(("perf/", "system/"))} for s in steps]


def tiny_arm(tiny_config: MakeConfig, name: str, **train: Any) -> TrialConfig:
    sections = {
        "model": {"path": "tiny:qwen2", "dtype": "float64"},
        "optim": {"lr": 1e-3},
        "eval": {"suites": {}},
        "train": {"num_steps": 3, "updates_per_rollout": 4, **train},
        **{section: dict(settings) for section, settings in ARMS[name].items()},
    }
    return tiny_config(**sections)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_learns_with_four_updates_a_rollout_and_resumes_in_the_same_bits(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Any, name: str
) -> None:
    config = tiny_arm(tiny_config, name)
    state = new_state(config, seed=0, grader=grader)
    whole = []
    for step in train(config, state):
        whole.append(step)
        if step.step == 2:
            save_state(state, tmp_path, with_optimizer=True)
    resumed = new_state(config, seed=0, grader=grader)
    load_state(resumed, tmp_path)
    assert comparable(list(train(config, resumed))) == comparable(whole[2:])
    for a, b in zip(resumed.weights.master.values(), state.weights.master.values(), strict=True):
        assert torch.equal(a, b)
    assert whole[-1].metrics["loss/grad_norm"] > 0


def test_the_arms_are_different_trainings(tiny_config: MakeConfig, grader: Grader) -> None:
    norms = {}  # of one rollout with four updates
    for name in ARMS:
        config = tiny_arm(tiny_config, name, num_steps=1)
        norms[name] = train_step(config, new_state(config, seed=0, grader=grader)).metrics["loss/grad_norm"]
    assert len(set(norms.values())) == len(norms), norms


@pytest.mark.parametrize("loss", [{"ratio": "sequence"}, {"surrogate": "cispo"}])
def test_at_one_update_a_rollout_they_are_the_same_training(
    tiny_config: MakeConfig, grader: Grader, loss: dict[str, Any]
) -> None:
    steps = []
    for settings in ({}, loss):
        config = tiny_config(loss=settings, train={"num_steps": 1}, eval={"suites": {}})
        steps.append(comparable([train_step(config, new_state(config, seed=0, grader=grader))]))
    assert steps[0] == steps[1]


def cut(state: TrainingState, config: TrialConfig, places: set[int]) -> Any:
    batch = judged(state, REWARDS, config)
    for place in places:
        object.__setattr__(batch.completions[place], "truncated", True)
    return batch


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_truncated_completions_give_no_loss(tiny_config: MakeConfig, grader: Grader, aggregation: str) -> None:
    """As with TRL's `mask_truncated_completions`: the mask's tokens count in no mean over tokens, but its rows do."""
    sections = {"model": {"path": "tiny:qwen2", "dtype": "float64"}}
    config = tiny_config(**sections, loss={"kl_coef": 0.1, "mask_truncated": True, "aggregation": aggregation})
    state = new_state(config, seed=0, grader=grader)
    batch = cut(state, config, {0, 2})
    metrics, num_trained = add_gradient(config, state, batch, range(4), Old())
    assert num_trained == 2
    width = max(len(batch.completions[g].token_ids) for g in range(4))
    mask, logprobs, entropies = torch.zeros(4, width, dtype=torch.float64), [], []
    for g in range(4):
        ids = batch.completions[g].token_ids
        mask[g, : len(ids)] = g not in {0, 2}
        inputs = torch.tensor([[*state.prompts[0], *ids]])
        logits = state.policy.model(input_ids=inputs).logits[0, len(state.prompts[0]) - 1 : -1]
        log_softmax = (logits / config.rollout.temperature).log_softmax(dim=-1)
        pad = (0, width - len(ids))
        own = log_softmax.gather(1, torch.tensor(ids)[:, None])[:, 0]
        logprobs.append(torch.nn.functional.pad(own, pad))
        entropies.append(torch.nn.functional.pad(-(log_softmax.exp() * log_softmax).sum(dim=-1), pad))
    wanted = grpo_loss(
        torch.stack(logprobs), None, torch.stack(logprobs).detach(), batch.advantages_G[:4], mask, config.loss,
        entropy_GT=torch.stack(entropies),
        totals=BatchTotals(num_tokens=int(mask.sum()), num_sequences=4, max_tokens=config.rollout.max_tokens),
    )  # fmt: skip
    assert metrics["loss/total"] == pytest.approx(wanted.loss.item(), abs=1e-6)


def test_a_step_whose_completions_are_all_truncated_has_no_gradient(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(loss={"mask_truncated": True}, rollout={"max_tokens": 2}, eval={"suites": {}})
    state = new_state(config, seed=0, grader=grader)
    metrics = train_step(config, state).metrics
    assert metrics["rollout/truncated"] == metrics["loss/frac_skipped"] == 1.0
    assert metrics["loss/grad_norm"] == metrics["loss/total"] == 0.0
