"""Model folders with faults, such as people have: each is refused in one line, before anything is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from oneshot.config.model import ModelConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import ModelError, UserError
from oneshot.models.shapes import check_positions
from oneshot.models.source import local_folder, max_positions, read_config
from oneshot.policy.loading import load_policy
from oneshot.policy.policy import check_ids
from oneshot.tasks.prompts import encode, turn_ends


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The llama organism as a folder of its own."""
    source = local_folder("tiny:llama")
    assert source is not None
    shutil.copytree(source, tmp_path / "model")
    return tmp_path / "model"


def configure(folder: Path, *, drop: tuple[str, ...] = (), **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in drop}
    (folder / "config.json").write_text(json.dumps(kept | settings))


def change(folder: Path, of: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Write other weights, with the names that `of` gives them."""
    weights = {name: tensor.contiguous() for name, tensor in of(load_file(folder / "model.safetensors")).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_policy(ModelConfig(path=str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Weights that do not fit the config: transformers would draw what is missing.


def test_tensors_with_another_prefix_are_refused(folder: Path) -> None:
    change(folder, lambda weights: {name.replace("model.", "transformer.", 1): w for name, w in weights.items()})
    message = refused(folder)
    assert "its weights do not fit its config.json: lm_head.weight, model.embed_tokens.weight, " in message
    assert "more are missing; transformer.embed_tokens.weight, " in message


def test_a_missing_matrix_is_named(folder: Path) -> None:
    change(
        folder, lambda weights: {name: w for name, w in weights.items() if name != "model.layers.2.mlp.up_proj.weight"}
    )
    assert "config.json: model.layers.2.mlp.up_proj.weight is missing; save the model again" in refused(folder)


def test_an_untied_model_without_a_head_is_refused(folder: Path) -> None:
    configure(folder, tie_word_embeddings=False)
    assert "lm_head.weight is missing" in refused(folder)


@pytest.mark.parametrize(("num_layers", "found"), [(6, "more are missing"), (2, "more are left over")])
def test_more_or_fewer_layers_than_weights_are_refused(folder: Path, num_layers: int, found: str) -> None:
    configure(folder, num_hidden_layers=num_layers)
    assert found in refused(folder)


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    configure(folder, intermediate_size=144)
    assert "model.path" in refused(folder)


def test_all_tensors_of_a_shipped_model_are_loaded() -> None:
    source = local_folder("tiny:llama")
    assert source is not None
    policy = load_policy(ModelConfig(path="tiny:llama"))
    loaded = dict(policy.model.named_parameters())
    for name, tensor in load_file(source / "model.safetensors").items():
        assert torch.equal(loaded[name], tensor)


# Broken files.


def in_shards(folder: Path) -> Path:
    """Cut the weights into two files; return the second."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {name: files[index >= len(names) // 2] for index, name in enumerate(names)}
    for file in files:
        save_file(
            {name: weights[name] for name in names if places[name] == file}, folder / file, metadata={"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / files[1]


def test_whole_shards_are_loaded(folder: Path) -> None:
    in_shards(folder)
    load_policy(ModelConfig(path=str(folder)))


def test_a_missing_shard_is_named(folder: Path) -> None:
    in_shards(folder).unlink()
    assert "files that are not there: model-00002-of-00002.safetensors; copy the whole model" in refused(folder)


def test_a_pointer_of_git_lfs_is_told_from_weights(folder: Path) -> None:
    in_shards(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "model-00002-of-00002.safetensors: a Git LFS pointer instead of weights; run `git lfs pull`" in refused(
        folder
    )


@pytest.mark.parametrize("size", [0, 4, 100, 500_000])
def test_a_file_that_ends_early_is_named(folder: Path, size: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert str(weights) in refused(folder)


def test_a_file_that_is_no_safetensors_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(2000))
    assert str(folder / "model.safetensors") in refused(folder)


def test_numbers_that_are_not_finite_are_named(folder: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["model.layers.3.mlp.down_proj.weight"][5, 7] = torch.inf
        return weights

    change(folder, spoil)
    assert "model.layers.3.mlp.down_proj.weight has NaN or infinite numbers" in refused(folder)


# config.json


@pytest.mark.parametrize("text", ['{"model_type": "llama",}', "", "[]", "\ufeff{}"])
def test_a_config_that_cannot_be_read_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json: not "):
        read_config(str(folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"torch_dtype": "auto"}, "cannot be loaded: "),
        ({"quantization_config": {"bits": 4, "quant_method": "gptq"}}, "its weights are quantised"),
        ({"rope_scaling": {"rope_type": "nosuch", "factor": 8.0}}, "cannot be loaded: KeyError: 'nosuch'"),
        ({"model_type": "nosuch"}, "cannot be loaded: "),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(folder: Path, settings: dict[str, Any], message: str) -> None:
    configure(folder, drop=("dtype", "rope_parameters"), **settings)
    assert message in refused(folder)


def test_a_config_that_asks_for_a_missing_package_is_loaded_without_it(folder: Path) -> None:
    configure(folder, attn_implementation="flash_attention_2")
    load_policy(ModelConfig(path=str(folder)))


# Rope scaling that depends on the length: a rollout sees a growing sequence, an update the whole.


@pytest.mark.parametrize(
    ("rope", "most"),
    [
        ({}, 256),
        ({"rope_scaling": None}, 256),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 256),
        ({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 32}}, 32),
        ({"original_max_position_embeddings": 64, "rope_parameters": {"rope_type": "longrope"}}, 64),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 256),
    ],
)
def test_positions_end_where_scaling_begins(rope: dict[str, Any], most: int) -> None:
    assert max_positions({"max_position_embeddings": 256, **rope}) == most


def test_a_model_with_long_rope_is_used_up_to_the_length_where_it_changes(folder: Path) -> None:
    scaling = {
        "rope_type": "longrope", "short_factor": [1.0] * 12, "long_factor": [4.0] * 12,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    configure(folder, drop=("rope_parameters",), rope_theta=10000.0, rope_scaling=scaling)
    assert load_policy(ModelConfig(path=str(folder))).max_positions == 32
    config = {"model": {"path": str(folder)}, "examples": ["arithmetic:1+1"], "rollout": {"max_tokens": 31}}
    check_positions(TrialConfig.model_validate(config))
    config["rollout"] = {"max_tokens": 32}
    with pytest.raises(
        UserError, match=r"rollout\.max_tokens: 32, but .* has 32 positions for a prompt and its comple"
    ):
        check_positions(TrialConfig.model_validate(config))
    # no completion is sampled without training
    check_positions(TrialConfig.model_validate(config | {"train": {"num_steps": 0}}))


# Tokenizers and chat templates.


def with_template(folder: Path, template: str) -> Any:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return load_policy(ModelConfig(path=str(folder)))


def test_a_token_beyond_the_vocabulary_is_refused_where_it_is_used(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [{"id": 99, "content": "<|im_start|>", **flags}]
    path.write_text(json.dumps(tokenizer))
    policy = with_template(folder, "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")
    check_ids(policy, encode("1+1", suffix="", template="plain", tokenizer=policy.tokenizer))
    with pytest.raises(ModelError, match=r"has token 99 \('<\|im_start\|>'\), but the model only 99 rows"):
        check_ids(policy, encode("1+1", suffix="", template="chat", tokenizer=policy.tokenizer))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
            "leaves out the prompt",
        ),
        ("{{ raise_exception('Conversation roles must alternate') }}", "fails .*Conversation roles must alternate"),
        ("{% for m in messages %}{{ m.content }", "fails .*unexpected"),
        ("", None),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_one_line(folder: Path, template: str, message: str | None) -> None:
    policy = with_template(folder, template)
    with pytest.raises(ModelError, match=message):
        encode("1+1", suffix="", template="chat", tokenizer=policy.tokenizer)
    if message and "fails" in message:
        with pytest.raises(ModelError, match=message):
            turn_ends(policy.tokenizer)
