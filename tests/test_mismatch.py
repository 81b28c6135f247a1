"""How far the sampler is from the trainer: by hand, in a real trial, and with weights that moved in between."""

import math
from collections.abc import Callable

import pytest
import torch

from oneshot.config.trial import TrialConfig
from oneshot.policy.packing import pack
from oneshot.rollout.engine import Completion
from oneshot.tasks.grading import Grader
from oneshot.training.grpo import roll_out, train_step
from oneshot.training.loss import correction
from oneshot.training.mismatch import Mismatch
from oneshot.training.state import new_state
from oneshot.training.update import Old, _old_logprobs, add_gradient, update

MakeConfig = Callable[..., TrialConfig]
EXACT = {"model": {"path": "tiny:qwen2", "dtype": "float64"}}


def test_the_numbers_by_hand(tiny_config: MakeConfig, grader: Grader) -> None:
    state = new_state(tiny_config(**EXACT, eval={"suites": {}}), seed=0, grader=grader)
    completions = [
        Completion(token_ids=(5, 6), logprobs=(math.log(0.5), math.log(0.5)), truncated=True),
        Completion(token_ids=(7,), logprobs=(math.log(0.25),), truncated=True),
    ]
    mismatch = Mismatch(completions, torch.device("cpu"))
    batch = pack([[1, 2]], [0, 0], [c.token_ids for c in completions], [0, 1], device=torch.device("cpu"))
    trained_M = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    sampled_M = mismatch.sampled(batch, like=trained_M)
    assert sampled_M.tolist() == [math.log(0.5), math.log(0.5), math.log(0.25)]
    mismatch.add(sampled_M, trained_M)
    # k3 of ratios 1, 1/2 and 1: 0, 1/2 - log(1/2) - 1, 0
    one = math.log(2) - 0.5
    assert mismatch.metrics(state.world) == pytest.approx(
        {"rollout/mismatch_kl": one / 3, "rollout/mismatch_max": one, "rollout/mismatch_share": 1 / 3}
    )


@pytest.mark.parametrize("updates", [1, 2])
def test_the_sampler_is_the_policy_that_is_trained(tiny_config: MakeConfig, grader: Grader, updates: int) -> None:
    config = tiny_config(**EXACT, train={"updates_per_rollout": updates}, eval={"suites": {}})
    state = new_state(config, seed=0, grader=grader)
    for _ in range(2):
        metrics = train_step(config, state).metrics
        assert 0 <= metrics["rollout/mismatch_kl"] <= metrics["rollout/mismatch_max"] < 1e-12
        assert metrics["rollout/mismatch_share"] == 0


@pytest.mark.parametrize("updates", [1, 2])
def test_a_sampler_with_other_weights_is_seen(tiny_config: MakeConfig, grader: Grader, updates: int) -> None:
    config = tiny_config(**EXACT, train={"updates_per_rollout": updates}, eval={"suites": {}})
    state = new_state(config, seed=0, grader=grader)
    batch = roll_out(config, state)
    with torch.no_grad():
        state.policy.model.model.layers[0].mlp.down_proj.weight.zero_()  # as a push that left a layer out
    assert update(config, state, batch)["rollout/mismatch_kl"] > 1e-3


def test_a_step_that_computes_nothing_has_no_mismatch(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(loss={"kl_coef": 0.0, "entropy_coef": 0.0}, reward={"kind": "format"}, eval={"suites": {}})
    state = new_state(config, seed=0, grader=grader)
    batch = roll_out(config, state)
    batch.advantages_G.zero_()
    assert not any("mismatch" in name for name in update(config, state, batch))


def test_the_correction_by_hand() -> None:
    trained, sampled = (torch.tensor(values).log() for values in ([0.5, 0.25, 0.9], [0.5, 0.5, 0.1]))
    trained.requires_grad_()
    weights = correction(trained, sampled)
    assert weights.tolist() == pytest.approx([1.0, 0.5, 2.0])  # 9 is cut
    assert not weights.requires_grad


@pytest.mark.parametrize(("updates", "ratio"), [(1, "token"), (2, "token"), (2, "sequence")])
def test_the_correction_weights_the_gradient_of_a_sampler_that_differs(
    tiny_config: MakeConfig, grader: Grader, updates: int, ratio: str
) -> None:
    """All probabilities of the sampler are twice too large: every token's weight, and so the gradient, is a half."""
    gradients = {}
    for kind in ("none", "token"):
        config = tiny_config(
            **EXACT,
            rollout={"correction": kind},
            train={"updates_per_rollout": updates},
            loss={"kl_coef": 0.0, "entropy_coef": 0.0, "ratio": ratio},
            reward={"kind": "random"},
            eval={"suites": {}},
        )
        state = new_state(config, seed=0, grader=grader)
        batch = roll_out(config, state)
        for completion in batch.completions:
            object.__setattr__(completion, "logprobs", tuple(p + math.log(2) for p in completion.logprobs))
        whole = state.policy.model.get_output_embeddings().weight
        add_gradient(
            config,
            state,
            batch,
            range(len(batch.completions)),
            Old(logprobs=_old_logprobs(config, state, batch) if updates > 1 else None),
        )
        gradients[kind] = whole.grad.clone()
    torch.testing.assert_close(gradients["token"], gradients["none"] / 2)


def test_without_a_difference_the_correction_changes_nothing(tiny_config: MakeConfig, grader: Grader) -> None:
    losses = []
    for kind in ("none", "token"):
        config = tiny_config(**EXACT, rollout={"correction": kind}, eval={"suites": {}})
        losses.append(train_step(config, new_state(config, seed=0, grader=grader)).metrics)
    names = [name for name in losses[0] if name.startswith("loss/")]
    assert [losses[1][name] for name in names] == pytest.approx([losses[0][name] for name in names], rel=1e-9)
