"""The loss against numbers worked by hand, and against those that other libraries' own code gave."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import grpo_loss
from torch import Tensor

from oneshot.config.loss import LossConfig
from oneshot.training.loss import BatchTotals, k3, ratio, surrogate, token_loss, token_weights


def config(**settings: Any) -> LossConfig:
    return LossConfig(**{"kl_coef": 0.0, "entropy_coef": 0.0, **settings})


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_on_policy_ratio_is_one_and_keeps_the_gradient() -> None:
    logprobs = tensor([[-1.0, -2.0]]).requires_grad_()
    on_policy = ratio(logprobs, None)
    assert on_policy.tolist() == [[1.0, 1.0]]
    on_policy.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[1.0, 1.0]]  # d exp(x - c)/dx at 0 is 1


def test_ratio_above_the_clip_earns_no_more() -> None:
    # advantage 2: at ratio 1.2 and at ratio 1.5 the surrogate is -min(2 * 1.5, 2 * 1.2) = -2.4
    values = surrogate(tensor([[1.2, 1.5]]), tensor([2.0]), clip_low=0.2, clip_high=0.2)
    assert values[0].tolist() == pytest.approx([-2.4, -2.4])


def test_ratio_below_the_clip_is_punished_no_less() -> None:
    # advantage -1: ratio 0.5 counts as 0.8, ratio 1.5 counts in full
    values = surrogate(tensor([[0.5, 1.5]]), tensor([-1.0]), clip_low=0.2, clip_high=0.2)
    assert values[0].tolist() == pytest.approx([0.8, 1.5])


def test_k3_by_hand() -> None:
    # log ratio of reference to policy ln 2: 2 - ln 2 - 1 = 0.306853; equal: 0
    values = k3(tensor([[-1.0, -1.0]]), tensor([[-1.0 + 0.6931471805599453, -1.0]]))
    assert values[0].tolist() == pytest.approx([0.3068528194400547, 0.0])


def test_three_ways_to_weigh_a_token_by_hand() -> None:
    # two completions of 3 tokens and 1: 1/4 each; 1/3 and 1, halved; 1 / (2 * 5)
    totals = BatchTotals(num_tokens=4, num_sequences=2, max_tokens=5)
    by_name = {
        name: token_weights(tensor([3.0, 1.0]), config(aggregation=name), totals).tolist()
        for name in ("token_mean", "sequence_mean", "constant")
    }
    assert by_name["token_mean"] == [0.25, 0.25]
    assert by_name["sequence_mean"] == pytest.approx([1 / 6, 1 / 2])
    assert by_name["constant"] == [0.1, 0.1]


def test_padding_may_hold_anything() -> None:
    # the mean of k3 over the two tokens that count: 0 and 0.306853
    logprobs = tensor([[-1.0, torch.nan], [torch.inf, -1.0]]).requires_grad_()
    reference = tensor([[-1.0, -torch.inf], [torch.nan, -1.0 + 0.6931471805599453]])
    entropy = tensor([[0.7, torch.inf], [torch.nan, 0.7]])
    output = grpo_loss(
        logprobs, None, reference, tensor([1.0, 1.0]), tensor([[1, 0], [0, 1]]), config(kl_coef=1.0, entropy_coef=1.0),
        entropy_GT=entropy,
    )  # fmt: skip
    assert output.metrics["loss/kl"].item() == pytest.approx(0.3068528194400547 / 2)
    assert output.metrics["loss/entropy"].item() == pytest.approx(0.7)
    output.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[0, 1] == logprobs.grad[1, 0] == 0.0


def test_tokens_packed_and_padded_have_one_loss() -> None:
    rows, lengths = torch.randn(3, 4, 3, dtype=torch.float64), tensor([4.0, 2.0, 3.0])
    mask = (torch.arange(4) < lengths[:, None]).double()
    advantages = tensor([1.0, -1.0, 0.5])
    for name in ("token_mean", "sequence_mean", "constant"):
        chosen = config(aggregation=name, kl_coef=0.1)
        padded = grpo_loss(rows[..., 0], rows[..., 1], rows[..., 2], advantages, mask, chosen)
        totals = BatchTotals(num_tokens=9, num_sequences=3, max_tokens=4)
        is_token = mask.bool()
        packed = token_loss(
            *(rows[..., k][is_token] for k in range(3)),
            advantages.repeat_interleave(lengths.int()),
            token_weights(lengths, chosen, totals).repeat_interleave(lengths.int()),
            chosen,
        )
        assert packed.loss.item() == pytest.approx(padded.loss.item(), abs=1e-12)


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    # one token: pg -(1 * 0.5) = -0.5; kl 0.306853; entropy 0.7
    output = grpo_loss(
        tensor([[-1.0]]),
        None,
        tensor([[-1.0 + 0.6931471805599453]]),
        tensor([0.5]),
        tensor([[1.0]]),
        config(pg_coef=2.0, kl_coef=0.1, entropy_coef=0.01),
        entropy_GT=tensor([[0.7]]),
    )
    assert output.metrics["loss/pg"].item() == pytest.approx(-0.5)
    assert output.loss.item() == pytest.approx(2.0 * -0.5 + 0.1 * 0.3068528194400547 - 0.01 * 0.7)


def test_a_coefficient_without_its_input_is_refused() -> None:
    row, mask = tensor([[-1.0]]), tensor([[1.0]])
    with pytest.raises(ValueError, match=r"ref_logprobs is None, but kl_coef is 0\.1"):
        grpo_loss(row, None, None, tensor([1.0]), mask, config(kl_coef=0.1))
    with pytest.raises(ValueError, match=r"entropy is None, but entropy_coef is 0\.1"):
        grpo_loss(row, None, None, tensor([1.0]), mask, config(entropy_coef=0.1))


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_micro_batches_add_up_to_the_step(aggregation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(6, 5, dtype=torch.float64, generator=generator)
    old, ref = logprobs + 0.3 * torch.randn(6, 5, dtype=torch.float64, generator=generator), logprobs - 0.1
    advantages = torch.randn(6, dtype=torch.float64, generator=generator)
    mask = (torch.arange(5) < torch.tensor([5, 1, 3, 2, 4, 5])[:, None]).double()
    settings = config(aggregation=aggregation, kl_coef=0.04)
    whole = logprobs.clone().requires_grad_()
    output = grpo_loss(whole, old, ref, advantages, mask, settings)
    output.loss.backward()
    split = logprobs.clone().requires_grad_()
    totals = BatchTotals(num_tokens=20, num_sequences=6, max_tokens=5)
    parts = []
    for rows in ([0, 3], [1], [2, 4, 5]):
        part = grpo_loss(split[rows], old[rows], ref[rows], advantages[rows], mask[rows], settings, totals=totals)
        part.loss.backward()
        parts.append(part.loss.item())
    assert sum(parts) == pytest.approx(output.loss.item(), abs=1e-12)
    assert whole.grad is not None
    assert split.grad is not None
    assert (whole.grad - split.grad).abs().max() < 1e-12


GOLDEN = {
    "trl/grpo": {"aggregation": "sequence_mean"},
    "trl/bnpo": {},
    "trl/dapo": {},
    "trl/dr_grpo": {"aggregation": "constant"},
    "trl/dapo_clip_higher_0.28": {"clip_high": 0.28},
    "trl/grpo_beta0.04_plainkl": {"aggregation": "sequence_mean", "kl_coef": 0.04},
    "trl/dapo_ent0.01": {"entropy_coef": 0.01},
    "verl/vanilla/token-mean": {},
    "verl/vanilla_nodual/token-mean": {},
    "verl/vanilla/seq-mean-token-mean": {"aggregation": "sequence_mean"},
    "verl/vanilla/seq-mean-token-sum-norm": {"aggregation": "constant"},
    "openrlhf/ppo/token": {},
    "openrlhf/ppo/seq": {"aggregation": "sequence_mean"},
    "trl/gspo(grpo,sequence)": {"ratio": "sequence", "aggregation": "sequence_mean"},
    "verl/gspo": {"ratio": "sequence", "aggregation": "sequence_mean"},
    "openrlhf/gspo": {"ratio": "sequence", "aggregation": "sequence_mean"},
    # TRL and Liger name the largest weight, 1 + clip_high, and have no lower bound
    "trl/cispo_eh5": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0},
    "trl/cispo_eh1.2": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.2},
    "verl/cispo": {"surrogate": "cispo", "aggregation": "sequence_mean"},
    "liger/cispo": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.2},
    "liger/grpo": {"aggregation": "sequence_mean"},
    "liger/bnpo": {},
    "liger/dr_grpo": {"aggregation": "constant"},
    "liger/dapo": {},
}


@pytest.mark.parametrize("case", ["hand_2x3", "rand_4x6"])
@pytest.mark.parametrize("key", GOLDEN)
def test_other_libraries_give_the_same_loss_and_gradient(shared: Path, case: str, key: str) -> None:
    golden = json.loads((shared / "golden" / "grpo_losses.json").read_text())["cases"][case]
    given, expected = golden["inputs"], golden["expected"][key]
    logprobs = tensor(given["logps"]).requires_grad_()
    output = grpo_loss(
        logprobs,
        tensor(given["old_logps"]),
        tensor(given["ref_logps"]),
        tensor(given["advantages"]),
        tensor(given["mask"]),
        config(**GOLDEN[key]),
        entropy_GT=tensor(given["entropies"]),
    )
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    assert logprobs.grad is not None
    assert (logprobs.grad - tensor(expected["grad"])).abs().max() < 1e-6


@pytest.mark.parametrize("case", ["hand_2x3", "rand_4x6"])
def test_k3_agrees_with_verl(shared: Path, case: str) -> None:
    golden = json.loads((shared / "golden" / "grpo_losses.json").read_text())["cases"][case]
    given, expected = golden["inputs"], golden["expected"]["verl/kl/k3"]
    values, mask = k3(tensor(given["logps"]), tensor(given["ref_logps"])), tensor(given["mask"])
    assert ((values - tensor(expected["per_token"])) * mask).abs().max() < 1e-6
    assert ((values * mask).sum() / mask.sum()).item() == pytest.approx(expected["token_mean"], abs=1e-6)
