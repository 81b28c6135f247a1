"""This machine -> what it can do for a sweep: libraries, processors, GPUs, engines, the hub, and where to write."""

import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from oneshot.errors import first_line
from oneshot.models.engines import version_fault, vllm_version
from oneshot.sweep.findings import Finding
from oneshot.version import __version__

LIBRARIES = ("torch", "transformers", "ray", "optuna", "mlflow", "math-verify")
HUB_S = 5.0  # how long the hub may take to answer
ROOMY_GIB = 20  # free space that a small model and its checkpoints need


def check_machine(storage: str) -> list[Finding]:
    """Check this machine without a sweep. Nothing is left on it."""
    return [
        _libraries(),
        _processors(),
        _gpus(),
        _engines(),
        _hub(),
        _folder("storage", Path(storage)) if "://" not in storage else _remote(storage),
        _folder("temporary files", Path(tempfile.gettempdir())),
    ]


def _libraries() -> Finding:
    missing, found = [], [f"oneshot {__version__}", f"python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding(check="libraries", text=f"missing: {', '.join(missing)}; install oneshot-lab again", is_bad=True)
    return Finding(check="libraries", text=", ".join(found), is_bad=False)


def _processors() -> Finding:
    gib = psutil.virtual_memory().total / 2**30
    return Finding(check="processors", text=f"{os.cpu_count()} cores, {gib:.0f} GiB of memory", is_bad=False)


def _gpus() -> Finding:
    import torch  # takes seconds, and only this check needs it

    if not torch.cuda.is_available():
        text = "none that torch can use; tiny models run on the CPU, the paper's models do not"
        return Finding(check="GPUs", text=text, is_bad=False, is_warning=True)
    devices = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
    named = [f"{device.name}, {device.total_memory / 2**30:.0f} GiB" for device in devices]
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    return Finding(check="GPUs", text=f"{'; '.join(named)} ({bf16})", is_bad=False)


def _engines() -> Finding:
    if fault := version_fault(vllm_version()):
        return Finding(check="engines", text=f"lockstep, hf; {fault}", is_bad=False)
    return Finding(check="engines", text="lockstep, hf, vllm", is_bad=False)


def _hub() -> Finding:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE

    try:
        HfApi().model_info("openai-community/gpt2", timeout=HUB_S)
    except Exception as error:  # any reason is the answer
        text = f"{ENDPOINT} does not answer ({first_line(error)}); use local folders, or shipped models (tiny:qwen2)"
        return Finding(check="model hub", text=text, is_bad=False, is_warning=True)
    return Finding(check="model hub", text=f"{ENDPOINT} answers; models are cached in {HF_HUB_CACHE}", is_bad=False)


def _folder(check: str, path: Path) -> Finding:
    """Check that a folder, or the nearest one above it that exists, can be written and has room."""
    exists = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=exists) as file:
            file.write(b"oneshot")
    except OSError as error:
        text = f"{path.absolute()}: cannot be written ({error.strerror}); use --storage, or change its owner"
        return Finding(check=check, text=text, is_bad=True)
    free = shutil.disk_usage(exists).free / 2**30
    is_small = free < ROOMY_GIB
    text = f"{path.absolute()}: {free:.0f} GiB free" + ("; a real model needs more" if is_small else "")
    return Finding(check=check, text=text, is_bad=False, is_warning=is_small)


def _remote(storage: str) -> Finding:
    from oneshot.errors import UserError
    from oneshot.store.store import Store

    try:
        Store(storage).check_writable()
    except UserError as error:
        return Finding(check="storage", text=str(error), is_bad=True)
    return Finding(check="storage", text=f"{storage}: can be written", is_bad=False)
