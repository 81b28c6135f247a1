"""Config and seed -> the one thing that changes as a trial runs; and that thing <-> a folder.

A checkpoint is a folder of `model.safetensors`, `optimizer.safetensors` and `state.json`; nothing in it is unpickled.
The position in the random table is (seed, step): there is no other generator to save.
"""

import json
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from oneshot.config import TrialConfig
from oneshot.errors import DataError, UserError
from oneshot.grpo.floor import Floor
from oneshot.grpo.hf import HfGenerate
from oneshot.grpo.lockstep import Lockstep
from oneshot.grpo.policy import Policy, load_policy
from oneshot.grpo.rollout import Engine
from oneshot.grpo.weights import Weights, split_weights
from oneshot.tasks import prompts
from oneshot.tasks.benchmarks import Suite, load_suites
from oneshot.tasks.examples import check_fit, check_labels, load_examples, load_shots
from oneshot.tasks.grading import Grader
from oneshot.tasks.problems import Problem
from oneshot.tasks.prompts import Shot

CHECKPOINT_FORMAT = 2
CPU_KV_GIB = 4.0
"""Default of `rollout.kv_gib` on a CPU, where memory that is not touched costs nothing."""


@dataclass(slots=True, kw_only=True)
class TrialState:
    """A trial between two steps: what is trained, what it is trained and judged on, and how far it is."""

    seed: int
    step: int
    """Steps done."""
    baseline: dict[str, float]
    """`pass_at_1` of each suite before step 1, which gains are measured against."""
    started: bool
    """Whether the evaluation before step 1 has been made."""
    accelerator: Accelerator
    policy: Policy
    weights: Weights
    reference: Any | None
    """The frozen start, where `kl_coef` is not 0."""
    optimizer: Any
    examples: tuple[Problem, ...]
    prompts: tuple[tuple[int, ...], ...]
    """Token ids of each example's prompt."""
    shots: tuple[Shot, ...]
    suites: tuple[Suite, ...]
    kv_gib: float
    """Memory for keys and values, which decides how many rows are decoded at a time, and so the last digits."""
    grader: Grader
    floor: Floor
    engine_name: str

    @property
    def engine(self) -> Engine:
        """For rollouts and evaluations alike."""
        return HfGenerate() if self.engine_name == "hf" else Lockstep(kv_gib=self.kv_gib)


def new_state(config: TrialConfig, *, seed: int, grader: Grader) -> TrialState:
    """Loads everything that a trial needs, at step 0.

    Raises:
        UserError: a model, example or suite is not as it should be, or a prompt leaves no room for a completion.
    """
    suites = load_suites(config)
    for suite in suites:
        _ = suite.problems  # missing data are told before a model is loaded
    examples, shots = load_examples(config.examples), load_shots(config.prompt)
    check_fit(config, len(examples))
    check_labels(config.examples, grader)
    use_cpu = config.model.device == "cpu" or not torch.cuda.is_available()
    if config.model.device == "cuda" and use_cpu:
        raise UserError("model.device: cuda, but torch sees no GPU here; use auto or cpu")
    # accelerate's state is the process', and keeps the device of the trial that a worker had before
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=use_cpu)
    policy = load_policy(config.model)
    if config.prompt.stop == "turn":
        policy.eos_ids = tuple(sorted({*policy.eos_ids, *prompts.turn_ends(policy.tokenizer)}))
    weights = split_weights(policy.model, config.model)
    policy.model.to(accelerator.device)
    trains = config.train.num_steps > 0
    reference = deepcopy(policy.model).requires_grad_(False) if trains and config.loss.kl_coef != 0 else None
    if config.train.activation_checkpointing:
        _checkpoint_activations(policy.model)
    for parameter in weights.master.values():
        parameter.data = parameter.data.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        weights.master.values(),
        lr=config.optim.lr,
        betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        fused=True,
    )
    optimizer = accelerator.prepare(optimizer)
    prompt_ids = tuple(
        tuple(
            prompts.encode(
                example.prompt,
                suffix=config.prompt.train_suffix,
                template=config.prompt.template,
                shots=shots,
                tokenizer=policy.tokenizer,
            )
        )
        for example in examples
    )
    for example, ids in zip(examples, prompt_ids, strict=True):
        if len(ids) + config.rollout.max_tokens > policy.max_positions:
            raise DataError(
                f"examples: {example.id}: prompt of {len(ids)} tokens and rollout.max_tokens "
                f"{config.rollout.max_tokens} are longer than the model's {policy.max_positions} positions; lower "
                "rollout.max_tokens"
            )
    return TrialState(
        seed=seed,
        step=0,
        baseline={},
        started=False,
        accelerator=accelerator,
        policy=policy,
        weights=weights,
        reference=reference,
        optimizer=optimizer,
        examples=examples,
        prompts=prompt_ids,
        shots=shots,
        suites=suites,
        kv_gib=config.rollout.kv_gib or _free_for_kv_gib(weights, accelerator.device, trains=trains),
        grader=grader,
        floor=Floor(policy.model),
        engine_name=config.rollout.engine,
    )


def _free_for_kv_gib(weights: Weights, device: torch.device, *, trains: bool) -> float:
    """Half of the device memory that gradients and optimiser leave; on a CPU always the same."""
    if device.type == "cpu":
        return CPU_KV_GIB
    free, _ = torch.cuda.mem_get_info(device)
    to_come = sum(parameter.nbytes for parameter in weights.compute.values())
    to_come += 3 * sum(parameter.nbytes for parameter in weights.master.values())
    return max(free - to_come * trains, 0) / 2 / 2**30


def _checkpoint_activations(model: Any) -> None:
    """Has each layer computed again in the backward pass, without putting the model into training mode (dropout)."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def save_state(state: TrialState, folder: Path, *, with_optimizer: bool) -> None:
    """Writes a checkpoint into an empty folder."""
    master = state.weights.master
    save_file({name: tensor.detach().contiguous() for name, tensor in master.items()}, folder / "model.safetensors")
    if with_optimizer:
        save_file(_optimizer_tensors(master.items(), state.optimizer), folder / "optimizer.safetensors")
    facts = {
        "format": CHECKPOINT_FORMAT,
        "seed": state.seed,
        "step": state.step,
        "started": state.started,
        "baseline": state.baseline,
        "kv_gib": state.kv_gib,
    }
    (folder / "state.json").write_text(json.dumps(facts, indent=2))


def checkpoint_step(folder: Path) -> int:
    """Steps that a checkpoint has behind it."""
    step: int = json.loads((folder / "state.json").read_text())["step"]
    return step


def load_state(state: TrialState, folder: Path) -> None:
    """Puts a checkpoint's weights, optimiser and step into a fresh state of the same trial."""
    load_weights(state, folder)
    state.baseline = json.loads((folder / "state.json").read_text())["baseline"]
    tensors = load_file(folder / "optimizer.safetensors")
    for name, parameter in state.weights.master.items():
        if f"{name}/step" in tensors:
            state.optimizer.state[parameter] = {
                key: tensors[f"{name}/{key}"].to(parameter.device) for key in ("step", "exp_avg", "exp_avg_sq")
            }


def load_weights(state: TrialState, folder: Path) -> None:
    """Puts a checkpoint's weights and step into a fresh state: enough to evaluate them."""
    facts = json.loads((folder / "state.json").read_text())
    assert facts["format"] == CHECKPOINT_FORMAT and facts["seed"] == state.seed, "a checkpoint of another trial"
    with torch.no_grad():
        for name, tensor in load_file(folder / "model.safetensors").items():
            state.weights.master[name].copy_(tensor)
    state.weights.publish()
    state.step, state.started = facts["step"], facts["started"]
    state.kv_gib = facts["kv_gib"]


def _optimizer_tensors(parameters: Iterable[tuple[str, Tensor]], optimizer: Any) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.contiguous()
        for name, parameter in parameters
        for key, value in optimizer.state.get(parameter, {}).items()
    }
