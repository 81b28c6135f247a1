"""What tests share: the folder of given data, configs of tiny trials, one grader."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oneshot.config import TrialConfig
from oneshot.tasks.grading import Grader

PROJECT = Path(__file__).parent.parent
SHARED = PROJECT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of given data beside the checkout, which users do not have."""
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}: real data and golden numbers are not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def grader() -> Iterator[Grader]:
    with Grader(timeout_s=5.0) as grader:
        yield grader


@pytest.fixture
def tiny_config() -> Callable[..., TrialConfig]:
    """A tiny trial that takes a second; sections given as keywords are merged into it."""

    def make(**sections: Any) -> TrialConfig:
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

    return make
