"""Positions beyond the model's own: YaRN as transformers has it, how far a model reaches, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig

from oneshot.config.model import ModelConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import ModelError
from oneshot.models.shapes import check_positions
from oneshot.models.source import local_folder, scaled
from oneshot.policy.loading import load_policy, load_tokenizer
from oneshot.tiny.make import make_tokenizer

YARN: dict[str, Any] = {"path": "tiny:qwen2", "max_positions": 1024, "rope_scaling": "yarn"}


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def test_a_scaled_model_is_that_of_transformers_own_yarn() -> None:
    """256 positions to 1,024 are a factor of 4."""
    folder = local_folder("tiny:qwen2")
    config = AutoConfig.from_pretrained(folder)
    config.max_position_embeddings = 1024
    config.rope_parameters = {
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 256,
    }  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    policy = load_policy(ModelConfig(**YARN))
    policy.model.set_attn_implementation("sdpa")
    ids = torch.arange(600)[None] % 90 + 5
    assert policy.max_positions == 1024
    assert torch.equal(logits(policy.model, ids), logits(theirs, ids))
    plain = load_policy(ModelConfig(path="tiny:qwen2"))
    plain.model.set_attn_implementation("sdpa")
    assert (logits(policy.model, ids) - logits(plain.model, ids)).abs().max() > 0.1


def test_yarn_keeps_the_share_of_a_head_that_is_rotated(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    policy = load_policy(ModelConfig(path=str(tmp_path), max_positions=64, rope_scaling="yarn"))
    assert policy.model.config.rope_parameters["partial_rotary_factor"] == 0.25
    assert policy.model.config.rope_parameters["factor"] == 2.0
    # a quarter of 16 numbers are rotated, in pairs
    assert len(policy.model.base_model.rotary_emb.inv_freq) == 2


@pytest.mark.parametrize(
    ("settings", "most"), [({}, 256), ({"max_positions": 100}, 100), ({"max_positions": 256}, 256), (YARN, 1024)]
)
def test_a_trial_may_use_so_many_positions(settings: dict[str, Any], most: int) -> None:
    config = ModelConfig(**{"path": "tiny:qwen2", **settings})
    assert load_policy(config).max_positions == load_tokenizer(config)[1] == most
    sections: dict[str, Any] = {"model": {"path": "tiny:qwen2", **settings}, "examples": ["arithmetic:1+1"]}
    check_positions(TrialConfig.model_validate({**sections, "rollout": {"max_tokens": most - 1}}))


def test_positions_within_the_models_own_leave_it_as_it_is() -> None:
    settings = {"max_position_embeddings": 256}
    assert scaled(ModelConfig(path="x/y", max_positions=200, rope_scaling="yarn"), settings) == {}
    assert scaled(ModelConfig(path="x/y", max_positions=256), settings) == {}


def test_positions_beyond_the_models_own_need_scaling() -> None:
    message = "model.max_positions: 512, but tiny:qwen2 has 256; set model.rope_scaling: yarn to reach more"
    for load in (load_policy, load_tokenizer):
        with pytest.raises(ModelError) as caught:
            load(ModelConfig(path="tiny:qwen2", max_positions=512))
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("rope", "kind"),
    [
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "linear"),
        ({"full_attention": {"rope_type": "default", "rope_theta": 1e4}}, "by layer"),
    ],
)
def test_a_model_that_scales_its_positions_is_not_scaled_again(rope: dict[str, Any], kind: str) -> None:
    config = ModelConfig(path="x/y", max_positions=512, rope_scaling="yarn")
    message = rf"^model.rope_scaling: yarn, but x/y scales its positions already \({kind}\); leave it out$"
    with pytest.raises(ModelError, match=message):
        scaled(config, {"max_position_embeddings": 256, "rope_parameters": rope})


def test_a_model_with_a_base_of_its_own_keeps_it(tmp_path: Path) -> None:
    source = local_folder("tiny:qwen2")
    assert source is not None
    shutil.copytree(source, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    # as older versions of transformers wrote it
    old = {name: value for name, value in json.loads(file.read_text()).items() if name != "rope_parameters"}
    file.write_text(json.dumps({**old, "rope_theta": 5000.0}))
    policy = load_policy(ModelConfig(**{**YARN, "path": str(tmp_path / "model")}))
    assert policy.model.config.rope_parameters["rope_theta"] == 5000.0
