"""Config and seed -> a trial's state, the only thing that changes while it runs."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, ModelError, UserError
from oneshot.models.memory import CPU_KV_GIB, Strategy
from oneshot.policy import lora
from oneshot.policy.forward import Scored
from oneshot.policy.fsdp import Sharded, shard_reference, shard_weights
from oneshot.policy.loading import load_policy
from oneshot.policy.output_head import Workspace
from oneshot.policy.packing import Pack
from oneshot.policy.policy import Policy, check_ids, end_turns
from oneshot.policy.weights import Weights, split_weights
from oneshot.policy.world import World
from oneshot.rollout.engine import Engine
from oneshot.rollout.hf import HfGenerate
from oneshot.rollout.lockstep import Lockstep
from oneshot.rollout.vllm import Vllm
from oneshot.tasks import prompts
from oneshot.tasks.benchmarks import Suite, load_suites
from oneshot.tasks.examples import check_fit, check_labels, load_examples, load_shots
from oneshot.tasks.grading import Grader
from oneshot.tasks.problems import Problem
from oneshot.tasks.prompts import Shot, end_id
from oneshot.tasks.solutions import Demonstration, Sampled, load_demonstrations
from oneshot.training.critic import Critic, new_body, new_critic
from oneshot.training.demonstrations import encode_demonstrations
from oneshot.training.evaluate import longest_completion, prompt_ids
from oneshot.training.free_memory import most_gib
from oneshot.training.loss_scale import LossScale
from oneshot.training.optimizer import adamw
from oneshot.training.roofline import Floor

log = logging.getLogger(__name__)

Reference = Callable[..., Tensor]
"""The policy's frozen start: a pack, `temperature`, `space` -> log-probabilities of completion tokens, `[M]`."""


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """A trial between two steps: its policy and optimiser, its examples and suites, and its progress."""

    seed: int
    step: int  # steps done
    baseline: dict[str, float]  # `pass_at_1` of each suite before step 1, from which gains are measured
    started: bool  # whether the evaluation before step 1 is done
    world: World
    policy: Policy
    weights: Weights
    reference: Reference | None  # the frozen start, unless `kl_coef` is 0
    optimizer: Any
    critic: Critic | None = None
    examples: tuple[Problem, ...]
    prompts: tuple[tuple[int, ...], ...]  # token ids of each example's prompt
    prompt_of: tuple[int, ...] = ()  # SFT: the prompt of each solution
    solutions: tuple[tuple[int, ...], ...] = ()  # SFT: token ids of each solution
    num_cut: int = 0  # SFT: solutions whose end is cut off
    shots: tuple[Shot, ...]
    suites: tuple[Suite, ...]
    kv_gib: float
    """Memory for keys and values; it limits the rows that are decoded at a time, and so changes last digits."""
    grader: Grader
    floor: Floor
    engine: Engine  # of rollouts and evaluations
    loss_scale: LossScale

    def limit_kv(self, kv_gib: float) -> None:
        """Set `kv_gib`, also the engine's."""
        self.kv_gib = kv_gib
        if isinstance(self.engine, Lockstep | Vllm):
            self.engine.kv_gib = kv_gib


def new_state(
    config: TrialConfig,
    *,
    seed: int,
    grader: Grader,
    strategy: Strategy = "single",
    cpu_offload: bool = False,
    gpu_share: float = 1.0,
    keeps_kv: bool = False,
    sampled: Sampled = MappingProxyType({}),
    start: Path | None = None,
) -> TrainingState:
    """Load everything that a trial needs, at step 0; each of its processes calls this.

    `gpu_share` is the part of its GPU that the trial may use. With `keeps_kv`, memory for keys and values and CUDA
    graphs last as long as the trial, except with `fsdp`, whose decoding weights move in every step. `sampled` has the
    solutions of SFT examples that a model samples. `start` is a checkpoint whose weights replace the model's
    (`model.init`).

    Raises UserError: a model, example or suite cannot be used, or a prompt leaves too few positions for a completion.
    """
    suites = load_suites(config)
    for suite in suites:
        _ = suite.problems  # report missing data before a model is loaded
    trains_sft = config.train.method == "sft" and config.train.num_steps > 0
    demonstrations = load_demonstrations(config.examples, sampled) if trains_sft else ()
    examples, shots = load_examples(config.examples), load_shots(config.prompt)
    if not trains_sft:
        check_fit(config, len(examples))
    check_labels(config.examples, grader)
    world = new_world(config)
    policy = load_policy(config.model)
    frozen = begin_from(policy, config, start)
    end_turns(policy, config.prompt)
    weights, reference, critic = _place(
        config, policy, world, seed=seed, strategy=strategy, cpu_offload=cpu_offload, frozen=frozen
    )
    optimizer = adamw(weights.master.values(), config.optim, lr=config.optim.lr)
    kv_gib = config.rollout.kv_gib or _kv_gib(config, weights, reference, critic, world, share=gpu_share)
    lasts = keeps_kv and strategy != "fsdp"
    state = TrainingState(
        seed=seed,
        step=0,
        baseline={},
        started=False,
        world=world,
        policy=policy,
        weights=weights,
        reference=reference,
        optimizer=world.accelerator.prepare(optimizer),
        critic=critic,
        examples=examples,
        prompts=() if trains_sft else tuple(_encode(config, policy, example, shots) for example in examples),
        shots=shots,
        suites=suites,
        kv_gib=kv_gib,
        grader=grader,
        floor=Floor(policy.model),
        loss_scale=LossScale.of(config.model),
        engine=HfGenerate() if config.rollout.engine == "hf" else Lockstep(kv_gib=kv_gib, lasts=lasts),
    )
    if trains_sft:
        _take_demonstrations(config, state, demonstrations)
    if config.rollout.engine == "vllm":
        state.engine = Vllm(
            model=config.model,
            settings=config.rollout.vllm,
            max_positions=_longest(config, state),
            kv_gib=kv_gib,
            num_processes=world.size,
        )
    return state


def begin_from(policy: Policy, config: TrialConfig, start: Path | None) -> Any | None:
    """Replace a loaded policy's weights by a checkpoint's; return a copy of the model before if it is the reference.

    Raises UserError: there is no checkpoint, as outside of a sweep; or its weights are those of another model.
    """
    init = config.model.init
    if init is None:
        return None
    if start is None:
        raise UserError(f"model.init: the weights of {init.sweep} are in a store; use `oneshot run` or `oneshot trial`")
    before = None
    if init.reference == "model" and config.has_reference:
        before = deepcopy(policy.model)
        for parameter in before.parameters():
            parameter.data = parameter.data.to(getattr(torch, config.model.compute_dtype))
    weights = dict(policy.model.named_parameters())
    with torch.no_grad():
        for name, value in read_tensors(sorted(start.glob("model*.safetensors"))):
            if name not in weights or weights[name].shape != value.shape:
                raise ModelError(f"model.init: {init.sweep}: {name} of its weights does not fit {config.model.path}")
            weights[name].copy_(value)
    return before


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of each tensor in a checkpoint's files."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                yield key, file.get_tensor(key)


def _take_demonstrations(config: TrialConfig, state: TrainingState, demonstrations: Sequence[Demonstration]) -> None:
    """Encode what SFT learns. Raises UserError: it is too long, or its end would not end completions."""
    policy = state.policy
    encoded = encode_demonstrations(
        config, demonstrations, shots=state.shots, tokenizer=policy.tokenizer, max_positions=policy.max_positions
    )
    for ids in (*encoded.prompts, *encoded.solutions):
        check_ids(policy, ids)
    state.prompts, state.prompt_of = encoded.prompts, encoded.prompt_of
    state.solutions, state.num_cut = encoded.solutions, encoded.num_cut
    if encoded.num_cut:
        log.warning("%d of %d solutions are cut: their end is not learned", encoded.num_cut, len(encoded.solutions))
    end = end_id(template=config.prompt.template, tokenizer=policy.tokenizer)
    if end not in policy.eos_ids:
        raise DataError(
            f"prompt.stop: eos: solutions end with {policy.tokenizer.decode([end])}, which would not end completions; "
            "use stop: turn"
        )


def new_world(config: TrialConfig) -> World:
    """Choose the trial's device and join its processes."""
    use_cpu = config.model.device == "cpu" or not torch.cuda.is_available()
    if config.model.device == "cuda" and use_cpu:
        raise UserError("model.device: cuda, but torch sees no GPU here; use auto or cpu")
    # accelerate's state is global, and keeps the device of this process' previous trial
    AcceleratorState._reset_state(reset_partial_state=True)
    num_partners = config.rollout.vllm.tensor_parallel if config.rollout.engine == "vllm" else 1
    return World(Accelerator(cpu=use_cpu), num_partners)


def _longest(config: TrialConfig, state: TrainingState) -> int:
    """Return the largest length of a prompt and its completion, in training and evaluation."""
    lengths = [] if state.solutions else [len(ids) + config.rollout.max_tokens for ids in state.prompts]
    for suite in state.suites:
        prompts = (prompt_ids(state.policy, suite, problem, shots=state.shots) for problem in suite.problems)
        lengths.append(max(map(len, prompts)) + longest_completion(state.policy, suite))
    return min(max(lengths, default=1), state.policy.max_positions)


def _encode(config: TrialConfig, policy: Policy, example: Problem, shots: Sequence[Shot]) -> tuple[int, ...]:
    """Return the token ids of an example's prompt, if they leave enough positions for a completion."""
    ids = prompts.encode_for_training(example.prompt, config.prompt, shots=shots, tokenizer=policy.tokenizer)
    check_ids(policy, ids)
    if len(ids) >= policy.max_positions:
        raise DataError(
            f"examples: {example.id}: prompt of {len(ids)} tokens leaves none of the model's {policy.max_positions} "
            "positions for a completion; use a shorter prompt or another model"
        )
    if len(ids) + config.rollout.max_tokens > policy.max_positions:
        raise DataError(
            f"examples: {example.id}: prompt of {len(ids)} tokens and rollout.max_tokens {config.rollout.max_tokens} "
            f"are longer than the model's {policy.max_positions} positions; lower rollout.max_tokens"
        )
    return tuple(ids)


def _place(
    config: TrialConfig,
    policy: Policy,
    world: World,
    *,
    seed: int,
    strategy: Strategy,
    cpu_offload: bool,
    frozen: Any | None,
) -> tuple[Weights, Reference | None, Critic | None]:
    """Move a loaded policy to its device, whole or in shards; return its weights, and reference and critic if any."""
    device, model = world.accelerator.device, policy.model
    has_reference = config.has_reference
    if config.model.adapter is not None:
        model.requires_grad_(False)
        lora.attach(model, config.model.adapter, seed=seed)
    if config.trains_critic and strategy == "fsdp":
        raise UserError("advantage.baseline: a critic cannot be sharded (fsdp); use a GPU with more memory or LoRA")
    body = new_body(config, model)
    weights: Weights
    if strategy == "fsdp":
        weights = shard_weights(model, config.model, world=world, cpu_offload=cpu_offload)
    else:
        weights = split_weights(model, config.model)
        for parameter in weights.master.values():
            parameter.data = parameter.data.to(device)
    model.to(device)
    reference: Reference | None = None
    if has_reference and config.model.adapter is not None:
        reference = _without_adapter(weights)
    elif has_reference and strategy == "fsdp":
        reference = shard_reference(frozen or model, config.model, world=world, cpu_offload=cpu_offload)
    elif has_reference:
        reference = Scored((deepcopy(model) if frozen is None else frozen.to(device)).requires_grad_(False))
    if isinstance(weights, Sharded) and config.rollout.engine == "vllm":
        weights.stop_decoding()
    if config.train.activation_checkpointing:
        weights.scored.checkpoint_activations()
    critic = new_critic(config, body, weights, device=device) if config.trains_critic else None
    return weights, reference, critic


def _without_adapter(weights: Weights) -> Reference:
    """Return a reference that is the policy with its adapter switched off, without a copy of the weights."""

    def reference(batch: Pack, *, temperature: float, space: Workspace) -> Tensor:
        with lora.switched_off(weights.scored):
            logprobs: Tensor = weights.scored(batch, temperature=temperature, space=space)
        return logprobs

    return reference


def _kv_gib(
    config: TrialConfig,
    weights: Weights,
    reference: Reference | None,
    critic: Critic | None,
    world: World,
    *,
    share: float,
) -> float:
    """Return half of what weights and optimiser leave of the trial's share of the GPU; a constant on a CPU."""
    device = world.accelerator.device
    if device.type == "cpu":
        return CPU_KV_GIB
    trains = config.train.num_steps > 0
    left = most_gib(device, share=share) - lasting_gib(weights, reference, critic, device=device, trains=trains)
    if config.rollout.engine == "vllm":  # which has weights of its own
        left -= sum(value.nbytes for value in weights.compute.values()) / 2**30 / world.num_partners
    return -world.largest(-max(left, 0) / 2)  # the smallest number of all processes


def lasting_gib(
    weights: Weights, reference: Reference | None, critic: Critic | None, *, device: torch.device, trains: bool
) -> float:
    """Return the memory of a trial's weights, AdamW's moments, reference and critic on a device."""
    frozen = reference.parameters() if isinstance(reference, torch.nn.Module) else ()
    both = [weights] if critic is None else [weights, critic.weights]
    held = {p for each in both for p in (*each.compute.values(), *each.master.values(), *each.scored.parameters())}
    held |= set(frozen)
    moments = 2 * [value for each in both for value in each.master.values()] if trains else []
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in (*held, *moments)]
    # an engine of its own leaves fsdp's decoding weights without memory
    return sum(part.nbytes for part in parts if part.device == device and part.untyped_storage().nbytes()) / 2**30
