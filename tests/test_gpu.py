"""What only a GPU can show; `pytest -m gpu`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_processes import of_training, processes

from oneshot.config.model import ModelConfig
from oneshot.config.resources import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.policy.loading import load_policy
from oneshot.policy.output_head import Workspace, head_loss
from oneshot.rollout.engine import PromptRequest, Sampling
from oneshot.rollout.hf import HfGenerate
from oneshot.rollout.lockstep import Lockstep
from oneshot.tasks.grading import Grader
from oneshot.tasks.prompts import encode
from oneshot.training.loop import train
from oneshot.training.loss import LossOutput
from oneshot.training.state import new_state
from oneshot.training.trainer import LocalTrainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


def test_captured_steps_decode_as_plain_generate_does() -> None:
    policy = load_policy(ModelConfig(path="tiny:qwen2", dtype="float64"))
    policy.model.to("cuda")
    asked = [
        PromptRequest(
            prompt_ids=tuple(encode(text, suffix="", template="auto", tokenizer=policy.tokenizer)),
            row_keys=tuple((0, index, row) for row in range(5)),
            max_tokens=56,
        )
        for index, text in enumerate(("47+38=?", "9-3=?"))
    ]
    sampling = Sampling(temperature=0.0)
    expected = HfGenerate().generate(policy, asked, sampling)
    for fixed_shapes in (True, False):
        found = Lockstep(kv_gib=1.0, fixed_shapes=fixed_shapes).generate(policy, asked, sampling)
        assert [[c.token_ids for c in row] for row in found] == [[c.token_ids for c in row] for row in expected]


@pytest.mark.parametrize("num_rows", [30, 100])
def test_a_bfloat16_head_sums_in_float32_over_its_chunks(num_rows: int) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 5000, bias=False, device="cuda", dtype=torch.bfloat16)
    hidden = torch.randn(100, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(5000, (100,), device="cuda")

    def loss_of(logprobs: torch.Tensor, entropy: torch.Tensor | None, where: slice) -> LossOutput:
        assert logprobs.dtype == torch.float32
        return LossOutput(loss=-logprobs.mean(), metrics={})

    output = head_loss(
        hidden,
        linear,
        targets,
        loss_of,
        temperature=0.6,
        with_entropy=False,
        space=Workspace.empty(linear, num_rows=num_rows),
    )
    output.loss.backward()
    exact, weight = hidden.detach().float().requires_grad_(), linear.weight.detach().float().requires_grad_()
    loss = torch.nn.functional.cross_entropy(exact @ weight.T / 0.6, targets)
    loss.backward()
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    for narrow, wide in ((hidden.grad, exact.grad), (linear.weight.grad, weight.grad)):
        assert narrow is not None
        assert wide is not None
        assert (narrow.float() - wide).norm() < 0.01 * wide.norm()


def test_the_loss_of_a_bfloat16_head_makes_no_third_buffer() -> None:
    linear = torch.nn.Linear(512, 100_000, bias=False, device="cuda", dtype=torch.bfloat16)
    hidden = torch.randn(2000, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(100_000, (2000,), device="cuda")

    def loss_of(logprobs: torch.Tensor, entropy: torch.Tensor | None, where: slice) -> LossOutput:
        assert entropy is not None
        return LossOutput(loss=(entropy - logprobs).mean(), metrics={})

    space = Workspace.empty(linear, num_rows=1000)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    head_loss(hidden, linear, targets, loss_of, temperature=0.6, with_entropy=True, space=space)
    added_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    # the weights' gradient in float32, and a chunk of logits (or that gradient, half as large) in bfloat16
    assert added_mib < 1.1 * (4 * 512 * 100_000 + 2 * 1000 * 100_000) / 2**20


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_trial_learns_in_16_bits(tiny_config: Callable[..., TrialConfig], grader: Grader, precision: str) -> None:
    config = tiny_config(
        model={"path": "tiny:qwen2", "device": "cuda", "mixed_precision": precision},
        rollout={"num_groups": 8, "group_size": 8},
        train={"num_steps": 16},
        optim={"lr": 2e-4},
        eval={"suites": {}},
    )
    reward = [step.metrics["reward/mean"] for step in train(config, new_state(config, seed=0, grader=grader))]
    assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.2


def test_an_adapter_learns_in_bfloat16(tiny_config: Callable[..., TrialConfig], grader: Grader) -> None:
    config = tiny_config(
        model={"path": "tiny:qwen2", "device": "cuda", "mixed_precision": "bf16", "adapter": {"r": 8, "alpha": 16.0}},
        rollout={"num_groups": 8, "group_size": 8},
        train={"num_steps": 16},
        optim={"lr": 2e-3},
        eval={"suites": {}},
    )
    reward = [step.metrics["reward/mean"] for step in train(config, new_state(config, seed=0, grader=grader))]
    assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp, shards in host memory"])
def test_two_gpus_train_as_one_does(
    tiny_config: Callable[..., TrialConfig], grader: Grader, tmp_path: Path, strategy: str
) -> None:
    config = tiny_config(model={"path": "tiny:llama", "dtype": "float64", "device": "cuda"}, train={"num_steps": 3})
    wanted = list(LocalTrainer(config, seed=0, resources=ResourceConfig(), grader=grader).train())
    work = processes(config, strategy=strategy.split(",")[0], cpu_offload="host" in strategy)
    steps = work.train()
    found = [next(steps) for _ in range(3)]
    work.save(tmp_path, with_optimizer=True)
    work.close()
    resumed = processes(config, strategy=strategy.split(",")[0], cpu_offload="host" in strategy)
    resumed.load(tmp_path)
    found += resumed.train()
    resumed.close()
    for mine, theirs in zip(of_training(found), of_training(wanted), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
