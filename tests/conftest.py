"""What tests share: the folder of given data, configs of tiny trials, one grader."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run side by side, and threads that wait spin

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, GPTNeoXConfig, MistralConfig

from oneshot.config.trial import TrialConfig
from oneshot.tasks.grading import Grader

PROJECT = Path(__file__).parent.parent
SHARED = PROJECT.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files with tests on Ray first: they take longest, and wait more than they compute."""
    on_ray = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in on_ray)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of given data beside the checkout, which users do not have."""
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}: real data and golden numbers are not part of the project")
    return SHARED


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("ONESHOT_DATA", str(folder))
    return folder


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch, shared: Path) -> Path:
    """The published files."""
    monkeypatch.setenv("ONESHOT_DATA", str(shared / "data"))
    return shared / "data"


@pytest.fixture(scope="session")
def grader() -> Iterator[Grader]:
    with Grader(timeout_s=5.0) as grader:
        yield grader


def make_tiny(**sections: Any) -> TrialConfig:
    """A tiny trial that takes a second; sections given as keywords are merged into it."""
    data: dict[str, Any] = {
        "model": {"path": "tiny:qwen2"},
        "prompt": {"template": "plain", "train_suffix": ""},
        "examples": ["arithmetic:47+38"],
        "rollout": {"num_groups": 4, "group_size": 4, "temperature": 1.0, "max_tokens": 56},
        "loss": {"kl_coef": 0.001, "entropy_coef": 0.001},
        "optim": {"lr": 1e-4, "weight_decay": 0.0},
        "train": {"num_steps": 2},
        "eval": {"suites": {"arithmetic": {"num_problems": 4, "temperature": 1.0}}},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
    return TrialConfig.model_validate(data)


@pytest.fixture
def tiny_config() -> Callable[..., TrialConfig]:
    """What makes tiny trials."""
    return make_tiny


def small_model(kind: str) -> Any:
    """A decoder of some families, in float64 throughout but for the norms of those that compute them in float32."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {
        "gpt_neox": lambda: GPTNeoXConfig(**sizes, intermediate_size=32, max_position_embeddings=64),
        "gpt2": lambda: GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=64),
        "mistral, a window of 4": lambda: MistralConfig(
            **sizes, intermediate_size=32, num_key_value_heads=2, sliding_window=4, max_position_embeddings=64
        ),
        "gpt-j, which packs cannot run": lambda: GPTJConfig(
            vocab_size=40, n_embd=16, n_layer=2, n_head=4, rotary_dim=4, n_positions=64
        ),
    }[kind]()
    return AutoModelForCausalLM.from_config(config).double().eval()
