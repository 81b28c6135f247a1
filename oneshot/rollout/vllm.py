"""Prompts -> completions by vLLM in this process, with the policy's weights pushed before each rollout.

Trainer and engine share the device: the engine gives its memory back while the weights are trained. Token ids go in and
come out, so nothing is tokenised twice. A completion's key seeds its draws, so that they depend neither on the order of
requests nor on their number; log-probabilities may differ in their last digits.

vLLM is imported when the engine starts: it takes seconds, and is an extra (`pip install 'oneshot-lab[vllm]'`).
"""

import gc
import logging
import math
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneshot.config.model import ModelConfig
from oneshot.config.trial import VllmConfig
from oneshot.errors import TrialError, UserError, first_line
from oneshot.models.engines import version_fault, vllm_version
from oneshot.models.source import local_folder
from oneshot.policy.lora import merged
from oneshot.policy.policy import Policy
from oneshot.policy.weights import Weights
from oneshot.rollout.engine import Completion, Ended, NotFiniteError, PromptRequest, Sampling, ignore
from oneshot.rollout.stops import Stops

log = logging.getLogger(__name__)

SEED_BITS = {"cpu": 32, "cuda": 63}
"""Bits of a seed that vLLM reads, by device."""
BLOCK_TOKENS = 32
"""Positions in a block of keys and values on a CPU, where 128 is the default: short prompts fill no block of that size,
and only whole blocks are shared between completions."""
NUM_CHECKED = 64
"""Numbers of each tensor that are compared after a push."""


@dataclass(slots=True, kw_only=True)
class Vllm:
    """An engine that samples from its own copy of the policy's weights."""

    model: ModelConfig
    settings: VllmConfig
    max_positions: int
    """Largest length of a prompt and its completion."""
    kv_gib: float
    num_processes: int = 1
    _llm: Any = None
    _version: int | None = None  # of the weights that it has
    _is_asleep: bool = False
    _num_requests: int = 0

    def wake(self, policy: Policy, weights: Weights) -> None:
        """Take memory back, and the policy's weights if they have changed; all processes of the trial must call it.

        Raises UserError: vLLM is missing, has an unsupported version, or cannot run the model or fit into the memory.
        """
        if self._llm is None:
            self._start(policy)
        if self._is_asleep:
            self._llm.wake_up()
            self._is_asleep = False
        if self._version != weights.version:
            self._push(policy, weights)
            self._version = weights.version

    def rest(self) -> None:
        """Give the memory of weights, keys and values back; on a CPU vLLM keeps it."""
        if self._llm is not None and self._sleeps and not self._is_asleep:
            self._llm.sleep(level=2)  # forgets the weights: the next ones are pushed
            self._is_asleep, self._version = True, None

    def release(self) -> None:
        """Close the engine and free what it has, so that the next trial of this process can start its own."""
        if self._llm is None:
            return
        from vllm.model_executor.model_loader.reload.layerwise import LAYERWISE_INFO

        if self._is_asleep:  # memory can only be freed while it is mapped
            self._llm.wake_up()
        LAYERWISE_INFO.clear()  # holds every layer with its weights after a push
        # ends vLLM's process groups, and torch's default one: the trial is over
        self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._version, self._is_asleep = None, None, False
        gc.collect()

    def generate(
        self, policy: Policy, requests: Sequence[PromptRequest], sampling: Sampling, ended: Ended = ignore
    ) -> list[list[Completion]]:
        """Return the completions of each request, in the order of its keys.

        Raises NotFiniteError, and UserError: numbers of the tokens' distributions are asked for.
        """
        if sampling.with_distribution:
            raise UserError("rollout.engine: vllm does not return the tokens' distributions; use lockstep or hf")
        assert self._llm is not None and not self._is_asleep, "the engine is awake"
        from vllm.inputs import TokensPrompt

        engine = self._llm.llm_engine
        is_reset = engine.reset_prefix_cache()  # so that numbers do not depend on earlier calls
        assert is_reset, "no earlier request is left"
        places: dict[str, tuple[int, int]] = {}
        found: dict[tuple[int, int], Completion] = {}
        with torch.random.fork_rng(devices=_devices(policy.device)), self._cleared(places):
            for index, request in enumerate(requests):
                prompt = TokensPrompt(prompt_token_ids=list(request.prompt_ids))
                for row, key in enumerate(request.row_keys):
                    name = str(self._num_requests)
                    self._num_requests += 1
                    places[name] = (index, row)
                    engine.add_request(name, prompt, _parameters(policy, request, sampling, key))
            for name, completion in self._ended(Stops(policy.tokenizer, sampling.stop) if sampling.stop else None):
                place = places.pop(name)
                found[place] = completion
                ended(*place, completion)
        return [[found[index, row] for row in range(len(request.row_keys))] for index, request in enumerate(requests)]

    def _ended(self, stops: Stops | None) -> Iterator[tuple[str, Completion]]:
        """Yield each request's name and completion when it ends; one with a stop string is aborted there."""
        engine = self._llm.llm_engine
        num_read: dict[str, int] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                name, tokens = output.request_id, output.outputs[0].token_ids
                stop = None if stops is None else stops.end(tokens, num_read=num_read.get(name, 0))
                num_read[name] = len(tokens)
                if stop is not None and not output.finished:
                    engine.abort_request([name])
                if stop is not None or output.finished:
                    yield name, _completion(output, stop)

    @contextmanager
    def _cleared(self, waiting: Mapping[str, object]) -> Iterator[None]:
        """Abort the requests that still wait when an error ends the call, which leaves nothing for the next one."""
        try:
            yield
        finally:
            if waiting:
                self._llm.llm_engine.abort_request(list(waiting))

    @property
    def _sleeps(self) -> bool:
        return bool(self._llm.llm_engine.vllm_config.model_config.enable_sleep_mode)

    def _start(self, policy: Policy) -> None:
        if fault := version_fault(vllm_version()):
            raise UserError(f"rollout.engine: vllm: {fault}")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine runs in this process, beside the trainer
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        with _process_restored(policy.device):
            from vllm import LLM
            from vllm.platforms import current_platform

            if current_platform.device_type != policy.device.type:
                raise UserError(
                    f"rollout.engine: vllm: the trial is on {policy.device.type}, but this vLLM is built for "
                    f"{current_platform.device_type or 'a device that is not here'}; install the other build, or set "
                    "rollout.engine: lockstep"
                )
            if policy.device.type == "cpu" and self.settings.tensor_parallel > 1:
                _remove_shared_memory()
            try:
                self._llm = LLM(**self._options(policy))
            except torch.OutOfMemoryError:  # which is tried again with less
                _clear_failed_start()
                raise
            except (ValueError, RuntimeError, AssertionError) as error:
                _clear_failed_start()
                raise UserError(
                    f"rollout.engine: vllm: cannot start with {self.model.path}: {_reason(error)}; see rollout.kv_gib "
                    "and rollout.vllm, or set rollout.engine: lockstep"
                ) from error
        log.info(
            "rollouts by vLLM %s, %s", vllm_version(), "asleep during updates" if self._sleeps else "without sleep"
        )

    def _options(self, policy: Policy) -> dict[str, Any]:
        """Return the arguments of vLLM's `LLM`."""
        on_gpu = policy.device.type == "cuda"
        folder = local_folder(self.model.path)
        options: dict[str, Any] = {
            "model": str(folder or self.model.path),
            "revision": None if folder else self.model.revision,
            "dtype": str(policy.model.dtype).removeprefix("torch."),
            "load_format": "dummy",  # weights are pushed before the first token
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # without top_p and penalties of the model's authors
            "logprobs_mode": "processed_logprobs",
            "max_model_len": self.max_positions,
            "max_num_seqs": self.settings.max_num_seqs,
            "enforce_eager": self.settings.enforce_eager or not on_gpu,
            "enable_prefix_caching": True,
            "async_scheduling": False,
            "enable_sleep_mode": on_gpu,
            "quantization": {"none": None, "fp8": "fp8_per_tensor"}[self.settings.quantization],
            "tensor_parallel_size": self.settings.tensor_parallel,
            "distributed_executor_backend": "external_launcher" if self.num_processes > 1 else "uni",
            "disable_log_stats": True,
            "seed": 0,
        }
        if self.model.rope_scaling != "none":
            names = ("max_position_embeddings", "rope_parameters")
            options["hf_overrides"] = {name: getattr(policy.model.config, name) for name in names}
        if on_gpu and self.settings.gpu_memory_utilization is not None:
            options["gpu_memory_utilization"] = self.settings.gpu_memory_utilization
        else:
            options["kv_cache_memory_bytes"] = int(self.kv_gib * 2**30)
            # without effect then, but vLLM refuses to start if less than this share of the GPU is free
            options["gpu_memory_utilization"] = 0.01
        if not on_gpu:
            options["block_size"] = BLOCK_TOKENS
        return options

    def _push(self, policy: Policy, weights: Weights) -> None:
        """Replace the engine's weights, and check a sample of each tensor that it keeps as it was sent."""
        sent: dict[str, _Sent] = {}

        def checkpoint() -> Iterator[tuple[str, Tensor]]:
            for name, value in merged(policy.model, weights.whole_values()):
                sent[name] = _Sent(shape=tuple(value.shape), sample=_sample(value))
                yield name, value
                if is_tied and name.endswith("embed_tokens.weight"):
                    # on a CPU the head has a packed copy of its own, which only a tensor of its name replaces
                    yield "lm_head.weight", value

        is_tied = policy.model.config.tie_word_embeddings
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": checkpoint()})
        ((wrong, num_checked),) = self._llm.collective_rpc(_compare, args=(sent,))
        assert num_checked, "norms have the same form in every build"
        if wrong:
            raise TrialError(
                f"vLLM has not taken the trainer's weights: {len(wrong)} of {num_checked} tensors differ "
                f"({', '.join(wrong[:3])})"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """What is compared of a tensor after a push."""

    shape: tuple[int, ...]
    sample: Tensor


def _sample(value: Tensor) -> Tensor:
    """Return some numbers of a tensor, evenly spread over it."""
    flat = value.detach().reshape(-1)
    return flat[:: max(1, len(flat) // NUM_CHECKED)].clone()


def _compare(worker: Any, sent: dict[str, _Sent]) -> tuple[list[str], int]:
    """Return which of the sent tensors the worker's model has differently, and how many could be compared.

    Left out are tensors in another form: packed for a CPU's products, quantised, or divided between processes.
    """
    model = worker.get_model()
    held = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for fused, parts in getattr(model, "packed_modules_mapping", {}).items():
        for name in [name for name in held if f".{fused}." in name]:
            names = [name.replace(f".{fused}.", f".{part}.") for part in parts]
            rows = [sent[part].shape[0] for part in names if part in sent]
            if sum(rows) == len(held[name]):
                held |= dict(zip(names, held[name].split(rows), strict=True))
    both = {
        name: held[name]
        for name, tensor in sent.items()
        if name in held and (tuple(held[name].shape), held[name].dtype) == (tensor.shape, tensor.sample.dtype)
    }
    wrong = [name for name, value in both.items() if not torch.equal(_sample(value), sent[name].sample)]
    return wrong, len(both)


def _parameters(policy: Policy, request: PromptRequest, sampling: Sampling, key: tuple[int, ...]) -> Any:
    """Return a request's own parameters: requests that share one share its noise."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    digest = int.from_bytes(sha256(repr(key).encode()).digest()[:8], "big")
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=request.max_tokens,
        seed=digest >> (64 - SEED_BITS[policy.device.type]) if sampling.temperature else None,
        stop_token_ids=[token for token in policy.eos_ids if token >= 0],
        ignore_eos=True,  # the policy says what ends a completion; so the end token is kept
        logprobs=0,
        detokenize=False,
        # stop strings are looked for here, since vLLM has no tokenizer
        output_kind=RequestOutputKind.CUMULATIVE if sampling.stop else RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def _completion(output: Any, stop: int | None) -> Completion:
    """Return a request's tokens, at most up to the one that completes a stop string."""
    (sampled,) = output.outputs
    tokens = tuple(sampled.token_ids)[:stop]
    logprobs = tuple(at[token].logprob for token, at in zip(tokens, sampled.logprobs[:stop], strict=True))
    if not all(map(math.isfinite, logprobs)):
        raise NotFiniteError("vLLM's log-probabilities are NaN or infinite")
    return Completion(
        token_ids=tokens,
        logprobs=logprobs,
        truncated=stop is None and sampled.finish_reason == "length",
        stopped=stop is not None,
    )


def _clear_failed_start() -> None:
    """Free what a start that failed has left in this process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def _reason(error: Exception) -> str:
    """Return an error's own words, which pydantic puts on its third line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return lines[2] if len(lines) > 2 and "validation error" in lines[0] else first_line(error)


def _remove_shared_memory() -> None:
    """Remove what earlier trials have left: on a CPU, vLLM's processes share memory of one fixed name for all trials.

    Processes that use it keep it. Those of this trial create theirs later, when all of them have begun to start.
    """
    for path in Path("/dev/shm").glob("-tp:*cpushm_*"):
        path.unlink(missing_ok=True)


def _devices(device: torch.device) -> list[torch.device]:
    """Return the devices whose random states are kept, besides the CPU."""
    return [device] if device.type == "cuda" else []


@contextmanager
def _process_restored(device: torch.device) -> Iterator[None]:
    """Undo what vLLM's start changes of this process: random states, torch's threads, environment variables."""
    states = random.getstate(), np.random.get_state()
    variables, threads, set_threads = dict(os.environ), torch.get_num_threads(), torch.set_num_threads
    try:
        with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=_devices(device)):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads = set_threads  # on a CPU vLLM replaces it by a warning
        torch.set_num_threads(threads)
        for name in set(os.environ) - set(variables):
            if not name.startswith("VLLM_"):
                del os.environ[name]
        os.environ.update(variables)
