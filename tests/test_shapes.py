"""Model folders and names -> the sizes that decide a cost: by hand, and those of real weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT
from transformers import AutoModelForCausalLM

from oneshot.config.model import AdapterConfig
from oneshot.config.trial import TrialConfig
from oneshot.models.shapes import KNOWN_SHAPES, ModelShape, model_shape
from oneshot.policy.lora import attach

MakeConfig = Callable[..., TrialConfig]
FACTS = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
}


def shape_of(folder: Path, make: MakeConfig, **facts: object) -> ModelShape | None:
    (folder / "config.json").write_text(json.dumps(facts))
    return model_shape(make(model={"path": str(folder)}))


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_the_shape_of_a_shipped_model_is_that_of_its_weights(tiny_config: MakeConfig, name: str) -> None:
    shape = model_shape(tiny_config(model={"path": f"tiny:{name}"}))
    model = AutoModelForCausalLM.from_pretrained(PROJECT / "oneshot" / "tiny" / name)
    assert shape is not None
    # norms and biases are left out
    assert shape.num_params == pytest.approx(model.num_parameters(), rel=0.02)
    adapter = AdapterConfig(r=4)
    model.requires_grad_(False)
    attach(model, adapter, seed=0)
    assert shape.adapter_params(adapter) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_shape_by_hand(tiny_config: MakeConfig, tmp_path: Path) -> None:
    shape = shape_of(tmp_path, tiny_config, **FACTS)
    assert shape is not None
    # keys and values are 2 heads of 8 / 4: 4 wide; a layer 2 x 64 + 2 x 8 x 4 + 3 x 8 x 16 = 576; embeddings 2 x 80
    assert (shape.layer_params, shape.num_params, shape.kv_numbers) == (576, 2 * 576 + 160, 2 * 2 * 4)


def test_tied_embeddings_are_there_once(tiny_config: MakeConfig, tmp_path: Path) -> None:
    untied = shape_of(tmp_path, tiny_config, **FACTS)
    tied = shape_of(tmp_path, tiny_config, **FACTS, tie_word_embeddings=True)
    assert untied is not None and tied is not None
    assert untied.num_params - tied.num_params == 80


def test_an_adapter_by_hand(tiny_config: MakeConfig, tmp_path: Path) -> None:
    shape = shape_of(tmp_path, tiny_config, **FACTS)
    assert shape is not None
    # beside q (8 to 8) and v (8 to 4), at rank 3, in 2 layers: 2 x 3 x (16 + 12)
    assert shape.adapter_params(AdapterConfig(r=3, targets=["q_proj", "v_proj"])) == 168
    # all: q and o 16, k and v 12, gate, up and down 24
    assert shape.adapter_params(AdapterConfig(r=3)) == 2 * 3 * (2 * 16 + 2 * 12 + 3 * 24)


def test_of_another_kind_of_model_no_shape_is_guessed(tiny_config: MakeConfig, tmp_path: Path) -> None:
    assert shape_of(tmp_path, tiny_config, d_model=8) is None


@pytest.mark.parametrize(
    ("path", "billions"),
    [
        ("Qwen/Qwen2.5-Math-1.5B", 1.54),
        ("Qwen/Qwen2.5-Math-7B", 7.61),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1.78),
        ("meta-llama/Llama-3.2-3B-Instruct", 3.21),
        ("allenai/OLMo-2-0425-1B", 1.48),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.135),
    ],
)
def test_known_models_have_as_many_parameters_as_their_cards_say(path: str, billions: float) -> None:
    assert KNOWN_SHAPES[path].num_params == pytest.approx(billions * 1e9, rel=0.005)
