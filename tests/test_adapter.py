"""Low-rank adapters: beside the weights, alone trained, alone kept, and gone when merged."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_processes import of_training

from oneshot.config.model import AdapterConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import ModelError
from oneshot.plan.keys import identify_trial
from oneshot.policy.loading import load_policy
from oneshot.policy.lora import attach, merge, switched_off
from oneshot.tasks.grading import Grader
from oneshot.training.checkpoint import load_state, save_state
from oneshot.training.loop import train
from oneshot.training.state import TrainingState, new_state

MakeConfig = Callable[..., TrialConfig]
LORA = {"path": "tiny:qwen2", "dtype": "float64", "adapter": {"kind": "lora", "r": 4, "alpha": 8.0}}
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def model(tiny_config: MakeConfig) -> Any:
    return load_policy(tiny_config(model={"path": "tiny:qwen2", "dtype": "float64"}).model).model


def fill(model: Any) -> None:
    """Makes the adapter say something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))


def test_an_adapter_adds_nothing_at_first(model: Any) -> None:
    before = model(IDS).logits
    attach(model, AdapterConfig(r=4), seed=0)
    assert torch.equal(model(IDS).logits, before)


def test_an_adapter_is_what_its_formula_says(model: Any) -> None:
    # W x + (alpha / r) B A x, on one layer: 6 / 4 = 1.5
    layer = deepcopy(model.model.layers[0].self_attn.q_proj)
    attach(model, AdapterConfig(r=4, alpha=6.0, targets=["q_proj"]), seed=0)
    fill(model)
    adapted = model.model.layers[0].self_attn.q_proj
    a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    x = torch.linspace(-1, 1, layer.in_features, dtype=torch.float64)[None]
    assert torch.allclose(adapted(x), layer(x) + 1.5 * x @ a.T @ b.T, atol=1e-12)
    assert a.shape == (4, layer.in_features) and b.shape == (layer.out_features, 4)


def test_the_seed_decides_the_first_values_and_nothing_else_does(model: Any) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.rand(3)
        copy = deepcopy(model)
        attach(copy, AdapterConfig(r=4), seed=seed)
        found.append(copy.model.layers[0].mlp.up_proj.lora_A["default"].weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_switched_off_it_is_the_model_without_it(model: Any) -> None:
    before = model(IDS).logits
    attach(model, AdapterConfig(r=4), seed=0)
    fill(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not torch.allclose(model(IDS).logits, before)
    with switched_off(model):
        assert torch.equal(model(IDS).logits, before)
    assert not torch.allclose(model(IDS).logits, before)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_merged_it_is_a_plain_model_of_the_same_logits(model: Any) -> None:
    plain = deepcopy(model)
    attach(model, AdapterConfig(r=4), seed=0)
    fill(model)
    wanted = model(IDS).logits
    merge(model)
    assert torch.allclose(model(IDS).logits, wanted, atol=1e-10)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear


def test_all_linear_leaves_the_head_alone(model: Any) -> None:
    attach(model, AdapterConfig(r=4), seed=0)
    named = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert named == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_layer_that_is_not_there_is_refused_by_name(model: Any) -> None:
    with pytest.raises(ModelError, match=r"q_prjo: the model has no such layer; use some of down_proj, .*q_proj"):
        attach(model, AdapterConfig(targets=["q_prjo"]), seed=0)
    with pytest.raises(ModelError, match=r"lm_head: the output head cannot have one"):
        attach(model, AdapterConfig(targets=["lm_head"]), seed=0)


def states(config: TrialConfig, grader: Grader) -> Iterator[TrainingState]:
    while True:
        yield new_state(config, seed=0, grader=grader)


def test_a_trial_trains_the_adapter_alone_and_has_no_second_copy(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(model=LORA, optim={"lr": 1e-3}, loss={"kl_coef": 0.1})
    state = new_state(config, seed=0, grader=grader)
    frozen = {n: p.detach().clone() for n, p in state.policy.model.named_parameters() if not p.requires_grad}
    assert all("lora_" in name for name in state.weights.master)
    storages = {p.untyped_storage().data_ptr() for p in state.policy.model.parameters()}
    steps = list(train(config, state))
    assert state.reference is not None
    # the reference is the policy without its adapter: at first they are the same
    assert steps[1].metrics["loss/kl"] == pytest.approx(0, abs=1e-12)
    assert steps[2].metrics["loss/kl"] > 1e-9
    assert all(torch.equal(p, frozen[n]) for n, p in state.policy.model.named_parameters() if n in frozen)
    assert {p.untyped_storage().data_ptr() for p in state.policy.model.parameters()} == storages
    assert any(p.abs().max() > 0 for name, p in state.weights.master.items() if "lora_B" in name)


@pytest.mark.parametrize("precision", [{}, {"dtype": "float32", "mixed_precision": "bf16"}])
def test_a_checkpoint_is_the_adapters_alone_and_goes_on_bit_for_bit(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, precision: dict[str, str]
) -> None:
    short = {"num_groups": 2, "max_tokens": 8}  # a CPU takes its time over bfloat16
    config = tiny_config(model={**LORA, **precision}, train={"num_steps": 3}, rollout=short, eval={"suites": {}})
    whole, begun, resumed = (state for state, _ in zip(states(config, grader), range(3), strict=False))
    wanted = list(train(config, whole))
    steps = train(config, begun)
    for _ in range(2):
        next(steps)
    save_state(begun, tmp_path, with_optimizer=True)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == whole.weights.master.keys()
    assert all("lora_" in name for name in saved)
    load_state(resumed, tmp_path)
    (last,) = train(config, resumed)
    assert of_training([last]) == of_training(wanted[-1:])
    assert all(torch.equal(p, whole.weights.master[name]) for name, p in resumed.weights.master.items())


def test_an_adapter_is_another_training_and_none_keeps_its_key(tiny_config: MakeConfig) -> None:
    keys = []
    adapters: list[dict[str, Any] | None] = [None, {}, {"r": 8}, {"targets": ["v_proj", "q_proj"]}]
    for model in ({}, *({"adapter": one} for one in adapters), {"adapter": {"targets": ["q_proj", "v_proj"]}}):
        config = tiny_config(model={"path": "tiny:qwen2", **model})
        keys.append(identify_trial(config).keys(config, [0])[0])
    assert keys[0] == keys[1]
    assert keys[4] == keys[5]
    assert len(set(keys)) == 4


def test_large_checkpoints_are_in_parts(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(eval={"suites": {}})
    one, other = new_state(config, seed=0, grader=grader), new_state(config, seed=0, grader=grader)
    list(train(config, one))
    monkeypatch.setattr("oneshot.training.checkpoint.PART_BYTES", 300_000)
    save_state(one, tmp_path, with_optimizer=True)
    parts = sorted(path.name for path in tmp_path.glob("model*.safetensors"))
    assert parts[:2] == ["model-2.safetensors", "model-3.safetensors"] and "model.safetensors" in parts
    load_state(other, tmp_path)
    assert all(torch.equal(p, one.weights.master[name]) for name, p in other.weights.master.items())
    assert len(other.optimizer.state) == len(one.optimizer.state)
