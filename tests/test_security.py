"""What must not run, listen or be read: docs/security.md says why."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from oneshot.config.model import ModelConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import ModelError
from oneshot.models.source import SHIPPED
from oneshot.plan.keys import identify_trial
from oneshot.policy.loading import load_policy

EVIL = """
from pathlib import Path
from transformers import Qwen2Config, Qwen2ForCausalLM
Path({mark!r}).touch()

class EvilConfig(Qwen2Config):
    model_type = "evil"

class EvilModel(Qwen2ForCausalLM):
    config_class = EvilConfig
"""


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that brings code, which leaves a mark when it is run."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "evil"
    shutil.copytree(SHIPPED / "qwen2", folder)
    (folder / "evil.py").write_text(EVIL.format(mark=str(tmp_path / "mark")))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    return folder


def test_a_models_own_code_is_not_run_unless_the_sweep_says_so(with_code: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"to run it, set model.trust_remote_code: true"):
        load_policy(ModelConfig(path=str(with_code)))
    assert not (tmp_path / "mark").exists()
    load_policy(ModelConfig(path=str(with_code), trust_remote_code=True))
    assert (tmp_path / "mark").exists(), "the mark shows nothing if the code never runs"


def test_running_a_models_code_is_part_of_what_a_training_is(tiny_config: Callable[..., TrialConfig]) -> None:
    plain, trusting = (tiny_config(model={"trust_remote_code": trust}) for trust in (False, True))
    assert "trust_remote_code" not in (identify_trial(plain).contents or {}), "keys of before stay"
    assert identify_trial(plain).keys(plain, [0]) != identify_trial(trusting).keys(trusting, [0])


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(SHIPPED / "qwen2", folder)
    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no .safetensors files, and pickles are not loaded"):
        load_policy(ModelConfig(path=str(folder)))


LISTEN = """
import psutil
from oneshot.sweep.cluster.nodes import joined
with joined(None):
    import ray
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        for one in process.net_connections(kind="inet"):
            if one.status == psutil.CONN_LISTEN:
                print(process.name(), one.laddr.ip)
"""


@pytest.mark.cluster
@pytest.mark.ray
def test_an_embedded_ray_listens_on_loopback_alone(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LISTEN], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    listeners = [line.rpartition(" ")[2] for line in done.stdout.splitlines()]
    assert len(listeners) > 3
    assert {ip.removeprefix("::ffff:") for ip in listeners} <= {"127.0.0.1", "::1"}, done.stdout
