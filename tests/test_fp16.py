"""float16: a scaled loss with the gradient of float32, steps that overflow, checkpoints of the scale."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gradient import REWARDS, judged

from oneshot.config.model import ModelConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import TrialError
from oneshot.tasks.grading import Grader
from oneshot.training import loss_scale
from oneshot.training.checkpoint import load_state, save_state
from oneshot.training.grpo import roll_out
from oneshot.training.loop import train
from oneshot.training.loss_scale import LossScale
from oneshot.training.metrics import StepMetrics
from oneshot.training.state import TrainingState, new_state
from oneshot.training.update import Old, add_gradient, update

MakeConfig = Callable[..., TrialConfig]
FP16: dict[str, Any] = {"model": {"path": "tiny:qwen2", "mixed_precision": "fp16"}, "eval": {"suites": {}}}
FAR = 2.0**100  # a scale with which every gradient overflows


def gradient(config: TrialConfig, grader: Grader, *, scale: float | None = None) -> torch.Tensor:
    """The unscaled gradient of made-up completions, as one vector."""
    state = new_state(config, seed=0, grader=grader)
    if scale is not None:
        state.loss_scale.value = scale
    add_gradient(config, state, judged(state, REWARDS, config), range(len(REWARDS)), Old())
    return torch.cat([p.grad.flatten() for p in state.weights.master.values()]) / state.loss_scale.value


def test_the_gradient_agrees_with_float32_closer_than_that_of_bfloat16(tiny_config: MakeConfig, grader: Grader) -> None:
    wanted = gradient(tiny_config(), grader)
    off = {}
    for name in ("fp16", "bf16"):
        found = gradient(tiny_config(model={"mixed_precision": name}), grader)
        off[name] = ((found - wanted).norm() / wanted.norm()).item()
    # float16 rounds by 2^-11, bfloat16 by 2^-8
    assert off["fp16"] < 0.01
    assert off["fp16"] < off["bf16"] / 4


def test_without_a_scale_small_gradients_are_lost(tiny_config: MakeConfig, grader: Grader) -> None:
    """A loss divided by so many tokens that its gradients are below 6e-8, which float16 cannot hold."""
    loss = {"kl_coef": 0.0, "entropy_coef": 0.0, "pg_coef": 1e-6}
    wanted = gradient(tiny_config(loss=loss), grader)
    scaled, plain = (gradient(tiny_config(**FP16, loss=loss), grader, scale=scale) for scale in (None, 1.0))
    assert (scaled - wanted).norm() < 0.02 * wanted.norm()
    assert (plain - wanted).norm() > 0.5 * wanted.norm()


def test_float16_computes_and_float32_is_optimised(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(**FP16)
    state = new_state(config, seed=0, grader=grader)
    metrics = update(config, state, judged(state, REWARDS, config))
    assert {p.dtype for p in state.policy.model.parameters()} == {torch.float16}
    assert {p.dtype for p in state.weights.master.values()} == {torch.float32}
    for name, master in state.weights.master.items():
        assert torch.equal(state.weights.compute[name], master.to(torch.float16))
    plain = tiny_config()
    wanted = update(plain, fresh := new_state(plain, seed=0, grader=grader), judged(fresh, REWARDS, plain))
    for name in ("loss/total", "loss/grad_norm"):  # neither is scaled
        assert metrics[name] == pytest.approx(wanted[name], rel=0.01, abs=1e-4)
    assert metrics["optim/loss_scale"] == 2.0**16
    assert metrics["optim/skipped"] == 0


def test_sampler_and_trainer_compute_in_float16(tiny_config: MakeConfig, grader: Grader) -> None:
    """Their distance is 64 times smaller than in bfloat16, as a squared rounding error is: at least 8 times here."""
    distance = {}
    for name in ("fp16", "bf16"):
        config = tiny_config(**{**FP16, "model": {"path": "tiny:qwen2", "mixed_precision": name}})
        state = new_state(config, seed=0, grader=grader)
        distance[name] = update(config, state, roll_out(config, state))["rollout/mismatch_kl"]
    assert 0 < distance["fp16"] < distance["bf16"] / 8


def test_an_overflow_halves_the_scale_and_skips_the_step(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(**FP16, train={"updates_per_rollout": 2})
    state = new_state(config, seed=0, grader=grader)
    state.loss_scale.value = FAR
    before = {name: p.detach().clone() for name, p in state.weights.master.items()}
    metrics = update(config, state, judged(state, [1.0, 0.0, 0.0, 1.0] * 4, config))
    assert metrics["optim/skipped"] == 2
    assert state.loss_scale.value == FAR / 4
    assert "loss/grad_norm" not in metrics
    assert metrics["loss/total"] == pytest.approx(metrics["loss/total"])
    assert all(torch.equal(before[name], p) for name, p in state.weights.master.items())
    assert not state.optimizer.state[next(iter(state.weights.master.values()))]
    # nothing of the gradient that overflowed is left
    state.loss_scale.value = 2.0**10
    assert update(config, state, judged(state, [1.0, 0.0, 0.0, 1.0] * 4, config))["loss/grad_norm"] > 0


def test_a_gradient_that_no_scale_can_make_finite_ends_the_trial(
    tiny_config: MakeConfig, grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**FP16, loss={"pg_coef": 1e6})
    monkeypatch.setattr(loss_scale, "LOWEST", FAR)
    state = new_state(config, seed=0, grader=grader)
    state.loss_scale.value = FAR
    with pytest.raises(TrialError, match=r"loss/grad_norm is (inf|nan) at step 1; the weights of step 0 are kept"):
        update(config, state, judged(state, REWARDS, config))


def test_the_scale_doubles_after_many_finite_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    scale = LossScale.of(ModelConfig(path="x", mixed_precision="fp16"))
    values = []
    for is_finite in (True, True, False, True, True, True, True):
        scale.update(is_finite=is_finite)
        values.append(scale.value / 2**16)
    assert values == [1, 1, 0.5, 0.5, 0.5, 1, 1]
    plain = LossScale.of(ModelConfig(path="x", mixed_precision="bf16"))
    plain.update(is_finite=False)
    assert plain.value == 1


def test_the_scale_is_that_of_torchs_grad_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    scale = LossScale.of(ModelConfig(path="x", mixed_precision="fp16"))
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    for is_finite in (True, False, True, True, True, True, False, False, True, True, True):
        theirs.scale(parameter.sum() * (1.0 if is_finite else torch.inf)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        scale.update(is_finite=is_finite)
        assert scale.value == theirs.get_scale()


def comparable(steps: list[StepMetrics]) -> list[dict[str, float]]:
    return [{k: v for k, v in s.metrics.items() if not k.startswith(("perf/", "system/"))} for s in steps]


def started(config: TrialConfig, grader: Grader) -> TrainingState:
    state = new_state(config, seed=0, grader=grader)
    state.loss_scale.value = 2.0**22  # which overflows at first
    return state


def test_a_trial_resumes_in_the_same_bits(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 4)  # the count since the last overflow matters within the trial
    config = tiny_config(**FP16, train={"num_steps": 6, "updates_per_rollout": 2}, optim={"lr": 1e-3})
    state, whole = started(config, grader), []
    for step in train(config, state):
        whole.append(step)
        if step.step == 3:
            save_state(state, tmp_path, with_optimizer=True)
    assert sum(step.metrics["optim/skipped"] for step in whole[:3]) > 0
    assert json.loads((tmp_path / "state.json").read_text())["loss_scale"][1] > 0
    assert whole[-1].metrics["optim/loss_scale"] > whole[3].metrics["optim/loss_scale"]
    resumed = new_state(config, seed=0, grader=grader)
    load_state(resumed, tmp_path)
    assert comparable(list(train(config, resumed))) == comparable(whole[3:])
    for a, b in zip(resumed.weights.master.values(), state.weights.master.values(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_has_a_scale_only_in_float16(tiny_config: MakeConfig, grader: Grader, tmp_path: Path) -> None:
    for name in ("fp16", "bf16"):
        config = tiny_config(model={"mixed_precision": name}, eval={"suites": {}})
        (folder := tmp_path / name).mkdir()
        save_state(new_state(config, seed=0, grader=grader), folder, with_optimizer=True)
        assert ("loss_scale" in json.loads((folder / "state.json").read_text())) == (name == "fp16")


@pytest.mark.parametrize("method", ["sft", "adapter"])
def test_sft_and_adapters_learn_in_float16(tiny_config: MakeConfig, grader: Grader, method: str) -> None:
    sections: dict[str, Any] = {
        "sft": {"train": {"method": "sft", "num_steps": 1}},
        "adapter": {"model": {**FP16["model"], "adapter": {"r": 4}}, "train": {"num_steps": 1}},
    }
    norms = {}
    for name in ("fp16", "no"):
        chosen = {**FP16, **sections[method]}
        chosen["model"] = {**chosen["model"], "mixed_precision": name}
        config = tiny_config(**chosen)
        (step,) = train(config, new_state(config, seed=0, grader=grader))
        norms[name] = step.metrics["loss/grad_norm"]
        assert ("optim/loss_scale" in step.metrics) == (name == "fp16")
    if method == "sft":  # in the other, float16 may draw another token
        assert norms["fp16"] == pytest.approx(norms["no"], rel=0.01)
    assert norms["fp16"] > 0


def test_float16_with_master_weights_of_bfloat16_is_refused() -> None:
    with pytest.raises(ValueError, match="fp16 needs master weights of float32; remove dtype: bfloat16"):
        ModelConfig(path="x", dtype="bfloat16", mixed_precision="fp16")
