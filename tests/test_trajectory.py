"""Ten steps of one tiny trial, as they were when `TRIAL_VERSION` was last raised.

Every trial key names that version: two trials of one key have to be the same trial. So a change that moves these
numbers has to raise the version, and `python tests/test_trajectory.py` writes them again.
"""

import json
from pathlib import Path

import pytest

from oneshot.config.trial import TRIAL_VERSION, TrialConfig
from oneshot.tasks.grading import Grader
from oneshot.training.loop import train
from oneshot.training.state import new_state

GOLDEN = Path(__file__).parent / "golden" / "trajectory.json"
CONFIG = TrialConfig.model_validate(
    {
        "model": {"path": "tiny:qwen2", "dtype": "float64", "device": "cpu"},
        "prompt": {"template": "plain", "train_suffix": ""},
        "examples": ["arithmetic:47+38", "arithmetic:12*7"],
        "rollout": {"num_groups": 4, "group_size": 4, "temperature": 1.0, "max_tokens": 48},
        "loss": {"kl_coef": 0.01, "entropy_coef": 0.001},
        "optim": {"lr": 2e-4},
        "train": {"num_steps": 10, "updates_per_rollout": 2},
        "eval": {"every_steps": 5, "suites": {"arithmetic": {"num_problems": 5, "temperature": 1.0}}},
    }
)


def trajectory() -> list[dict[str, float]]:
    with Grader() as grader:
        steps = list(train(CONFIG, new_state(CONFIG, seed=0, grader=grader)))
    kept = [{k: v for k, v in s.metrics.items() if not k.startswith(("perf/", "system/"))} for s in steps]
    return [{"step": step.step, **metrics} for step, metrics in zip(steps, kept, strict=True)]


def test_the_golden_trajectory_moves_only_with_the_trial_version() -> None:
    golden = json.loads(GOLDEN.read_text())
    if golden["trial_version"] != TRIAL_VERSION:
        pytest.fail(
            f"TRIAL_VERSION is {TRIAL_VERSION}, the golden trajectory is of version {golden['trial_version']}: "
            "write it again with `python tests/test_trajectory.py`"
        )
    found = trajectory()
    # exact on one machine; another's matrix products differ in their last digits, which ten steps of Adam enlarge
    for step, then in zip(found, golden["steps"], strict=True):
        now = {name: step[name] for name in then}  # a metric that is new does not make another trial
        assert now == pytest.approx(then, rel=1e-4, abs=1e-6), (
            f"step {then['step']} has moved while TRIAL_VERSION is still {TRIAL_VERSION}: trials of one key would no "
            "longer be the same; raise TRIAL_VERSION in "
            "oneshot/config/trial.py, and run `python tests/test_trajectory.py`"
        )


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"trial_version": TRIAL_VERSION, "steps": trajectory()}, indent=1) + "\n")
