"""The update's gradient: the same however the work is split, and the one that theory says."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from conftest import small_model
from losses import grpo_loss
from torch import Tensor

from oneshot.config.advantage import AdvantageConfig
from oneshot.config.loss import LossConfig
from oneshot.config.trial import TrialConfig
from oneshot.policy import attention, output_head
from oneshot.policy.forward import hidden_states, use_packs
from oneshot.policy.output_head import Workspace, head_loss, token_logprobs
from oneshot.policy.packing import Pack, micro_batches, pack
from oneshot.policy.weights import split_weights
from oneshot.rollout.engine import Completion
from oneshot.tasks.grading import Grader
from oneshot.training.advantage import group_advantages
from oneshot.training.loss import BatchTotals, LossOutput, token_loss, token_weights
from oneshot.training.mismatch import Mismatch
from oneshot.training.state import TrainingState, new_state
from oneshot.training.update import Batch, Old, add_gradient, update

MakeConfig = Callable[..., TrialConfig]
CPU = torch.device("cpu")
PROMPTS = ((5, 6, 7, 8, 9), (10, 11))
PROMPT_OF = (0, 0, 0, 1, 1, 0)
COMPLETIONS = ((12, 13, 14, 15, 1), (16, 1), (1,), (17, 18, 19), (20, 21, 22, 23, 24, 25, 1), (26, 27, 28))
ADVANTAGES = (1.2, -0.4, 0.0, 0.7, -1.1, 0.3)


def gradient(model: Any, packs: list[Pack], config: LossConfig) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of all completions, off-policy and with a reference, pack by pack."""
    model.zero_grad()
    lengths_G = torch.tensor([float(len(c)) for c in COMPLETIONS], dtype=torch.float64)
    totals = BatchTotals(num_tokens=int(lengths_G.sum()), num_sequences=len(COMPLETIONS), max_tokens=8)
    weights_G = token_weights(lengths_G, config, totals)
    advantages_G = torch.tensor(ADVANTAGES, dtype=torch.float64)
    # whatever the old policy and the reference say, it is the same however tokens are packed
    old = {g: -torch.linspace(1, 3, len(c), dtype=torch.float64) - g / 10 for g, c in enumerate(COMPLETIONS)}
    loss = 0.0
    for batch in packs:
        members = torch.tensor(batch.members)
        old_M = torch.cat([old[g] for g in batch.members])
        advantages_M, weights_M = batch.spread(advantages_G[members]), batch.spread(weights_G[members])

        def loss_of(
            logprobs_n: Tensor, entropy_n: Tensor | None, where: slice, old_M: Tensor = old_M,
            advantages_M: Tensor = advantages_M, weights_M: Tensor = weights_M,
        ) -> LossOutput:  # fmt: skip
            return token_loss(
                logprobs_n, old_M[where], old_M[where] - 0.1, advantages_M[where], weights_M[where], config,
                entropy=entropy_n,
            )  # fmt: skip

        output_head = model.get_output_embeddings()
        output = head_loss(
            hidden_states(model, batch), output_head, batch.targets_M, loss_of, temperature=0.6, with_entropy=True,
            space=Workspace.for_chunks(output_head, num_tokens=len(batch.targets_M)),
        )  # fmt: skip
        output.loss.backward()
        loss += output.loss.item()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_gradient(model: Any, config: LossConfig) -> tuple[float, dict[str, Tensor]]:
    """The same by the plainest way: a row a completion, all its logits, autograd, and the padded loss."""
    model.zero_grad()
    width = max(len(c) for c in COMPLETIONS)
    logprobs, entropies, old, mask = [], [], [], []
    for g, (p, completion) in enumerate(zip(PROMPT_OF, COMPLETIONS, strict=True)):
        ids = torch.tensor([[*PROMPTS[p], *completion]])
        logits = model(ids).logits[0, len(PROMPTS[p]) - 1 : -1] / 0.6
        log_softmax = logits.log_softmax(dim=-1)
        pad = (0, width - len(completion))
        logprobs.append(torch.nn.functional.pad(log_softmax.gather(1, torch.tensor(completion)[:, None])[:, 0], pad))
        entropies.append(torch.nn.functional.pad(-(log_softmax.exp() * log_softmax).sum(dim=-1), pad))
        old.append(torch.nn.functional.pad(-torch.linspace(1, 3, len(completion), dtype=torch.float64) - g / 10, pad))
        mask.append(torch.nn.functional.pad(torch.ones(len(completion), dtype=torch.float64), pad))
    output = grpo_loss(
        torch.stack(logprobs), torch.stack(old), torch.stack(old) - 0.1, torch.tensor(ADVANTAGES, dtype=torch.float64),
        torch.stack(mask), config, entropy_GT=torch.stack(entropies),
        totals=BatchTotals(num_tokens=sum(map(len, COMPLETIONS)), num_sequences=len(COMPLETIONS), max_tokens=8),
    )  # fmt: skip
    output.loss.backward()
    return output.loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def cut(members: list[int], max_tokens: int) -> list[Pack]:
    cuts = micro_batches(PROMPTS, PROMPT_OF, COMPLETIONS, members, max_tokens=max_tokens)
    return [pack(PROMPTS, PROMPT_OF, COMPLETIONS, one, device=CPU) for one in cuts]


def one_by_one(order: list[int]) -> list[Pack]:
    return [pack(PROMPTS, PROMPT_OF, COMPLETIONS, [member], device=CPU) for member in order]


SPLITS: dict[str, Callable[[], list[Pack]]] = {
    "one pack": lambda: cut([0, 1, 2, 3, 4, 5], 1000),
    "packs of at most 12 tokens": lambda: cut([0, 1, 2, 3, 4, 5], 12),
    "each alone, its prompt repeated": lambda: one_by_one([0, 1, 2, 3, 4, 5]),
    "each alone, backwards": lambda: one_by_one([5, 4, 3, 2, 1, 0]),
    "prompts in turns": lambda: [pack(PROMPTS, PROMPT_OF, COMPLETIONS, [3, 5, 4, 0, 2, 1], device=CPU)],
}
CONFIG = LossConfig(kl_coef=0.05, entropy_coef=0.02)


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "mistral, a window of 4"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("is_packed", [True, False])
def test_any_split_order_and_packing_gives_the_plain_gradient(kind: str, split: str, is_packed: bool) -> None:
    model = small_model(kind)
    wanted_loss, wanted = plain_gradient(model, CONFIG)
    if is_packed:
        assert use_packs(model)
    loss, found = gradient(model, SPLITS[split](), CONFIG)
    # Mistral's norms round to float32 in between
    tolerance = 1e-10 if kind != "mistral, a window of 4" else 1e-7
    assert loss == pytest.approx(wanted_loss, abs=tolerance)
    assert found.keys() == wanted.keys()
    assert max((found[name] - wanted[name]).abs().max() for name in wanted) < tolerance


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_of_any_size_give_the_plain_gradient(
    monkeypatch: pytest.MonkeyPatch, aggregation: Any, chunk: int
) -> None:
    model = small_model("gpt_neox")
    config = LossConfig(kl_coef=0.05, entropy_coef=0.02, aggregation=aggregation)
    wanted_loss, wanted = plain_gradient(model, config)
    use_packs(model)
    monkeypatch.setitem(output_head.CHUNK_LOGITS, "cpu", chunk * 40)
    loss, found = gradient(model, SPLITS["one pack"](), config)
    assert loss == pytest.approx(wanted_loss, abs=1e-10)
    assert max((found[name] - wanted[name]).abs().max() for name in wanted) < 1e-10


def test_a_head_with_a_bias_gets_its_gradient_too() -> None:
    torch.manual_seed(1)
    linear = torch.nn.Linear(8, 30).double()
    hidden, targets = torch.randn(5, 8, dtype=torch.float64, requires_grad=True), torch.tensor([3, 0, 29, 7, 7])

    def loss_of(logprobs: Tensor, entropy: Tensor | None, where: slice) -> LossOutput:
        assert entropy is not None
        return LossOutput(loss=(logprobs.exp() * 2 + entropy.square()).sum(), metrics={})

    space = Workspace.empty(linear, num_rows=2)
    head_loss(hidden, linear, targets, loss_of, temperature=0.7, with_entropy=True, space=space).loss.backward()
    inputs = [hidden, linear.weight, linear.bias]
    found = [x.grad for x in inputs]
    log_softmax = (linear(hidden) / 0.7).log_softmax(dim=-1)
    picked = log_softmax.gather(1, targets[:, None])[:, 0]
    assert (token_logprobs(hidden, linear, targets, temperature=0.7, space=space) - picked).abs().max() < 1e-12
    entropy = -(log_softmax.exp() * log_softmax).sum(dim=-1)
    wanted = torch.autograd.grad((picked.exp() * 2 + entropy.square()).sum(), inputs)
    assert max((a - b).abs().max() for a, b in zip(found, wanted, strict=True)) < 1e-12


def test_an_unlikely_tokens_logprob_does_not_underflow() -> None:
    linear = torch.nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0], [200.0]]))
    space = Workspace.empty(linear, num_rows=1)
    assert token_logprobs(torch.ones(1, 1), linear, torch.tensor([0]), temperature=1.0, space=space).item() == -200.0


def test_finite_differences_agree_with_the_gradient() -> None:
    model = small_model("gpt_neox")
    use_packs(model)
    packs = SPLITS["one pack"]()
    _, found = gradient(model, packs, CONFIG)
    for name in ("gpt_neox.embed_in.weight", "gpt_neox.layers.0.attention.query_key_value.weight", "lm_head.weight"):
        weight = dict(model.named_parameters())[name]
        place = int(found[name].abs().argmax())
        losses = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                weight.view(-1)[place] += shift
            losses.append(gradient(model, packs, CONFIG)[0])
            with torch.no_grad():
                weight.view(-1)[place] -= shift
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(found[name].view(-1)[place].item(), rel=1e-5)


def test_on_policy_the_gradient_is_that_of_reinforce() -> None:
    """REINFORCE (Williams 1992): minus the mean of advantage times the gradient of the log-probability."""
    torch.manual_seed(2)
    logits_GTV = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    tokens_GT = torch.randint(5, (4, 3))
    logprobs_GT = logits_GTV.log_softmax(dim=-1).gather(2, tokens_GT[..., None])[..., 0]
    advantages_G, mask_GT = torch.randn(4, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    config = LossConfig(kl_coef=0.0, entropy_coef=0.0)
    (found,) = torch.autograd.grad(
        grpo_loss(logprobs_GT, None, None, advantages_G, mask_GT, config).loss, logits_GTV, retain_graph=True
    )
    (wanted,) = torch.autograd.grad(-(advantages_G[:, None] * logprobs_GT).mean(), logits_GTV)
    assert (found - wanted).abs().max() < 1e-15


def test_a_two_armed_bandit_gets_its_policy_gradient() -> None:
    """Averaged over all groups of two, weighed by how likely they are, against the derivative by hand.

    Arm 1 pays, with probability p = sigmoid(theta). Only a group of both arms has any signal: advantages +-1/2 without
    the deviation. Its two tokens' gradients are 1/2 * ((1/2)(1 - p) + (-1/2)(-p)) = 1/4, and it comes with 2p(1 - p):
    p(1 - p) / 2 in all, half of d p / d theta = p(1 - p), since the baseline contains the completion itself.
    """
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    p = torch.sigmoid(theta)
    expected = torch.zeros((), dtype=torch.float64)
    for arms in product((0, 1), repeat=2):
        logprobs_GT = torch.stack([p.log() if arm else (1 - p).log() for arm in arms])[:, None]
        rewards_G = torch.tensor(arms, dtype=torch.float64)
        advantages_G = group_advantages(rewards_G, group_size=2, config=AdvantageConfig(normalize_std=False))
        loss = grpo_loss(
            logprobs_GT, None, None, advantages_G, torch.ones(2, 1), LossConfig(kl_coef=0.0, entropy_coef=0.0)
        ).loss
        (slope,) = torch.autograd.grad(loss, theta, retain_graph=True)
        expected -= logprobs_GT.detach().sum().exp() * slope
    assert expected.item() == pytest.approx((p * (1 - p) / 2).item(), abs=1e-12)


def judged(state: TrainingState, rewards: list[float], config: TrialConfig) -> Batch:
    """A step's batch of made-up completions."""
    rewards_G = torch.tensor(rewards, dtype=torch.float64)
    ids = [tuple(range(5 + g, 9 + 2 * g)) for g in range(len(rewards))]
    completions = tuple(Completion(token_ids=c, logprobs=(0.0,) * len(c), truncated=False) for c in ids)
    return Batch(
        example_G=(0,) * len(rewards),
        completions=completions,
        texts=("",) * len(rewards),
        correct_G=tuple(reward == 1 for reward in rewards),
        rewards_G=rewards_G,
        advantages_G=group_advantages(rewards_G, group_size=config.rollout.group_size, config=config.advantage),
        mismatch=Mismatch(completions, torch.device("cpu")),
    )


REWARDS = [1.0, 0.0, 0.0, 1.0] + [1.0] * 4 + [0.0] * 4 + [0.0, 0.0, 1.0, 0.0]


def test_what_agrees_within_its_group_is_skipped_without_a_trace_in_the_gradient(
    tiny_config: MakeConfig, grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {"model": {"path": "tiny:qwen2", "dtype": "float64"}, "loss": {"kl_coef": 0.0, "entropy_coef": 0.0}}
    config = tiny_config(**sections)
    found = []
    for skips in (True, False):
        state = new_state(config, seed=0, grader=grader)
        batch = judged(state, REWARDS, config)
        if not skips:
            monkeypatch.setattr("oneshot.training.update._has_no_gradient", lambda *_: False)
        metrics, num_trained = add_gradient(config, state, batch, range(len(REWARDS)), Old())
        grads = {name: p.grad for name, p in state.weights.master.items()}
        found.append((metrics, num_trained, grads))
    (metrics, num_trained, grads), (all_metrics, num_all, all_grads) = found
    assert (num_trained, num_all) == (8, 16)
    assert metrics.keys() == all_metrics.keys()
    for name in metrics:
        assert metrics[name] == pytest.approx(all_metrics[name], abs=1e-12)
    assert max((grads[name] - all_grads[name]).abs().max() for name in grads) < 1e-8  # norms round to float32


def test_a_step_that_skips_everything_still_moves_as_a_zero_gradient_does(
    tiny_config: MakeConfig, grader: Grader
) -> None:
    config = tiny_config(loss={"kl_coef": 0.0, "entropy_coef": 0.0}, optim={"lr": 1e-3})
    state = new_state(config, seed=0, grader=grader)
    update(config, state, judged(state, REWARDS, config))
    moved = {name: p.detach().clone() for name, p in state.weights.master.items()}
    metrics = update(config, state, judged(state, [1.0] * 16, config))
    assert metrics["loss/frac_skipped"] == 1.0
    assert metrics["loss/grad_norm"] == 0.0
    # Adam's moments go on: the weights move although nothing was computed
    assert any(not torch.equal(moved[name], p) for name, p in state.weights.master.items())


@pytest.mark.parametrize("loss", [{"kl_coef": 0.001, "entropy_coef": 0.0}, {"kl_coef": 0.0, "entropy_coef": 0.001}])
def test_nothing_is_skipped_where_kl_or_entropy_ask_for_it(
    tiny_config: MakeConfig, grader: Grader, loss: dict[str, float]
) -> None:
    config = tiny_config(loss=loss)
    state = new_state(config, seed=0, grader=grader)
    metrics = update(config, state, judged(state, [1.0] * 16, config))
    assert metrics["loss/frac_skipped"] == 0.0


def test_activation_checkpointing_changes_no_gradient(tiny_config: MakeConfig, grader: Grader) -> None:
    grads = []
    for is_on in (False, True):
        config = tiny_config(
            model={"path": "tiny:llama", "dtype": "float64"}, train={"activation_checkpointing": is_on}
        )
        state = new_state(config, seed=0, grader=grader)
        add_gradient(config, state, judged(state, REWARDS, config), range(16), Old())
        grads.append({name: p.grad for name, p in state.weights.master.items()})
    assert max((grads[0][name] - grads[1][name]).abs().max() for name in grads[0]) < 1e-12


def test_bfloat16_computes_and_float32_is_optimised(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(model={"path": "tiny:qwen2", "mixed_precision": "bf16"}, optim={"lr": 1e-5})
    state = new_state(config, seed=0, grader=grader)
    before = {name: p.detach().clone() for name, p in state.weights.master.items()}
    metrics = update(config, state, judged(state, REWARDS, config))
    assert {p.dtype for p in state.policy.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in state.weights.master.values()} == {torch.float32}
    for name, master in state.weights.master.items():
        assert torch.equal(state.weights.compute[name], master.to(torch.bfloat16))
    # a rate this small is lost on most bfloat16 weights, and on no float32 one
    assert all(not torch.equal(before[name], p) for name, p in state.weights.master.items())
    exact = tiny_config(model={"path": "tiny:qwen2"}, optim={"lr": 1e-5})
    state = new_state(exact, seed=0, grader=grader)
    wanted = update(exact, state, judged(state, REWARDS, exact))
    assert metrics["loss/grad_norm"] == pytest.approx(wanted["loss/grad_norm"], rel=0.05)


def test_a_model_whose_attention_packs_do_not_know_runs_in_rows() -> None:
    model = small_model("gpt-j, which packs cannot run")
    assert not use_packs(model)
    assert model.config._attn_implementation != attention.NAME
    wanted_loss, wanted = plain_gradient(model, CONFIG)
    loss, found = gradient(model, SPLITS["one pack"](), CONFIG)
    assert loss == pytest.approx(wanted_loss, abs=1e-10)
    assert max((found[name] - wanted[name]).abs().max() for name in wanted) < 1e-10


def test_split_weights_share_tensors_in_one_precision(tiny_config: MakeConfig) -> None:
    model = small_model("gpt_neox")
    weights = split_weights(model, tiny_config().model)
    assert all(weights.master[name] is p for name, p in model.named_parameters())
