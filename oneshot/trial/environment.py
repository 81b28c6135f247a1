"""A training and this process -> what is recorded of the training and of where its attempt runs."""

import os
import platform
import shutil
import socket
import subprocess
import sys
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from oneshot.errors import UserError
from oneshot.models.engines import has_vllm, vllm_version
from oneshot.models.placement import choose_strategy
from oneshot.plan.trainings import Training
from oneshot.version import __version__


def describe(training: Training) -> dict[str, Any]:
    """Return the contents of trial.json."""
    return {
        "key": training.key,
        "seed": training.seed,
        "config": training.config.model_dump(mode="json"),
        "gpus": training.resources.gpus,
    }


def environment() -> dict[str, Any]:
    """Return where an attempt runs, and the versions of its packages with their digest."""
    versions = _versions() | ({"vllm": vllm_version()} if has_vllm() else {})
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "gpu": _gpu_name(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "env_digest": sha256(repr(sorted(versions.items())).encode()).hexdigest()[:16],
        "argv": sys.argv[:1],
    }


def _gpu_name() -> str:
    """Return the name of the first GPU without importing torch, which this process may not need."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return (subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines() or [""])[0]


def gpu_is_broken() -> bool:
    """Return whether no call on this process' GPU can succeed any more, as after a device-side assert."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def distribution(training: Training) -> dict[str, Any]:
    """Return a training's number of processes, strategy, rollout engine, and the GPUs that it holds."""
    if training.config.script is not None:
        return {"num_processes": 1, "strategy": "single", "engine": "script", "gpus": training.resources.gpus}
    try:
        strategy: str = choose_strategy(training.config, training.resources)
    except UserError:  # a missing model or suite is reported and recorded when it is loaded
        strategy = "unknown"
    engine = training.config.rollout.engine
    resources = training.resources
    return {"num_processes": resources.processes, "strategy": strategy, "engine": engine, "gpus": resources.gpus}


@cache
def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "accelerate", "peft", "math-verify", "numpy")
    try:
        libraries = {name: version(name) for name in names}
    except PackageNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed as a package; install oneshot-lab again with its dependencies"
        ) from error
    return {"oneshot": __version__, **libraries, "python": platform.python_version()}
