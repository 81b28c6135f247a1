"""Config and seed -> the one thing that changes as a trial runs; and that thing <-> a folder.

A checkpoint is a folder of `model.safetensors`, `optimizer.safetensors` (and further parts, where one is large) and
`state.json`; nothing in it is unpickled. Tensors are whole, however many processes there are, and with an adapter they
are the adapter's alone. The position in the random table is (seed, step): there is no other generator to save.
"""

import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.accelerator import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, UserError
from oneshot.models.memory import CPU_KV_GIB
from oneshot.models.placement import Strategy
from oneshot.policy import lora
from oneshot.policy.forward import Scored
from oneshot.policy.fsdp import shard_reference, shard_weights
from oneshot.policy.output_head import Workspace
from oneshot.policy.packing import Pack
from oneshot.policy.policy import Policy, end_turns, load_policy
from oneshot.policy.weights import Weights, named_moments, split_weights
from oneshot.policy.world import World
from oneshot.rollout.engine import Engine
from oneshot.rollout.hf import HfGenerate
from oneshot.rollout.lockstep import Lockstep
from oneshot.tasks import prompts
from oneshot.tasks.benchmarks import Suite, load_suites
from oneshot.tasks.examples import check_fit, check_labels, load_examples, load_shots
from oneshot.tasks.grading import Grader
from oneshot.tasks.problems import Problem
from oneshot.tasks.prompts import Shot
from oneshot.training.free_memory import free_gib, most_gib
from oneshot.training.roofline import Floor

CHECKPOINT_FORMAT = 2
PART_BYTES = 4 * 2**30
"""Largest file of a checkpoint, and so what writing one takes beside the trial's own memory."""


class Reference(Protocol):
    """Log-probabilities of the frozen start: `scored(pack, temperature=..., space=...)`."""

    def __call__(self, batch: Pack, *, temperature: float, space: Workspace) -> Tensor:
        """Of each completion token, `[M]`, without gradient."""
        ...


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
    world: World
    policy: Policy
    weights: Weights
    reference: Reference | None
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


def new_state(
    config: TrialConfig,
    *,
    seed: int,
    grader: Grader,
    strategy: Strategy = "single",
    cpu_offload: bool = False,
    gpu_share: float = 1.0,
) -> TrialState:
    """Loads everything that a trial needs, at step 0; of several processes each calls it (member.py).

    `gpu_share` is what it may have of its GPU, where others are on it.

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
    world = World(Accelerator(cpu=use_cpu))
    policy = load_policy(config.model)
    end_turns(policy, config.prompt)
    trains = config.train.num_steps > 0
    weights, reference = _place(config, policy, world, seed=seed, strategy=strategy, cpu_offload=cpu_offload)
    optimizer = torch.optim.AdamW(
        weights.master.values(),
        lr=config.optim.lr,
        betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        fused=True,
    )
    optimizer = world.accelerator.prepare(optimizer)
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
        world=world,
        policy=policy,
        weights=weights,
        reference=reference,
        optimizer=optimizer,
        examples=examples,
        prompts=prompt_ids,
        shots=shots,
        suites=suites,
        kv_gib=config.rollout.kv_gib or _free_for_kv_gib(weights, world, trains=trains, share=gpu_share),
        grader=grader,
        floor=Floor(policy.model),
        engine_name=config.rollout.engine,
    )


def _place(
    config: TrialConfig, policy: Policy, world: World, *, seed: int, strategy: Strategy, cpu_offload: bool
) -> tuple[Weights, Reference | None]:
    """A loaded policy -> its weights where they compute, whole or in shards, and the reference if there is one."""
    device, model = world.accelerator.device, policy.model
    has_reference = config.train.num_steps > 0 and config.loss.kl_coef != 0
    if config.model.adapter is not None:
        model.requires_grad_(False)
        lora.attach(model, config.model.adapter, seed=seed)
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
        reference = shard_reference(model, config.model, world=world, cpu_offload=cpu_offload)
    elif has_reference:
        reference = Scored(deepcopy(model).requires_grad_(False))
    if config.train.activation_checkpointing:
        weights.scored.checkpoint_activations()
    return weights, reference


def _without_adapter(weights: Weights) -> Reference:
    """The policy with its adapter switched off: no second copy of anything."""

    def logprobs(batch: Pack, *, temperature: float, space: Workspace) -> Tensor:
        with lora.switched_off(weights.scored):
            found: Tensor = weights.scored(batch, temperature=temperature, space=space)
        return found

    return logprobs


def _free_for_kv_gib(weights: Weights, world: World, *, trains: bool, share: float) -> float:
    """Half of what AdamW's moments leave of the device, or of a trial's share of it; on a CPU always the same."""
    device = world.accelerator.device
    if device.type == "cpu":
        return CPU_KV_GIB
    room = min(free_gib(device), most_gib(device, share=share) - torch.cuda.memory_allocated(device) / 2**30)
    held = [p.to_local() if isinstance(p, DTensor) else p for p in weights.master.values()]
    to_come = 2 * sum(part.nbytes for part in held if part.device == device) / 2**30
    return -world.largest(-max(room - to_come * trains, 0) / 2)  # one number for all, the smallest


def save_state(state: TrialState, folder: Path, *, with_optimizer: bool) -> None:
    """Writes a checkpoint into an empty folder; all processes call it, the first writes."""
    into = folder if state.world.is_first else None
    weights = state.weights
    _write(((name, weights.whole(master.detach())) for name, master in weights.master.items()), into, "model")
    if with_optimizer:
        _write(named_moments(weights, state.optimizer), into, "optimizer")
    facts = {
        "format": CHECKPOINT_FORMAT,
        "seed": state.seed,
        "step": state.step,
        "started": state.started,
        "baseline": state.baseline,
        "kv_gib": state.kv_gib,
        "num_processes": state.world.size,
    }
    if into is not None:
        (into / "state.json").write_text(json.dumps(facts, indent=2))


def _write(tensors: Iterator[tuple[str, Tensor]], folder: Path | None, name: str) -> None:
    """Into `<name>.safetensors`, and where that gets too large `<name>-2.safetensors` and so on; or nowhere."""
    part: dict[str, Tensor] = {}
    num_parts = 0

    def flush(folder: Path) -> None:
        nonlocal num_parts
        num_parts += 1
        save_file(part, folder / (f"{name}.safetensors" if num_parts == 1 else f"{name}-{num_parts}.safetensors"))
        part.clear()

    for key, tensor in tensors:
        if folder is None:
            continue  # to have gathered it was this process' part
        if part and sum(one.nbytes for one in part.values()) + tensor.nbytes > PART_BYTES:
            flush(folder)
        part[key] = tensor.cpu().contiguous()
    if folder is not None:
        flush(folder)


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """What parts of a checkpoint hold, a tensor at a time."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                yield key, file.get_tensor(key)


def _parts(folder: Path, name: str) -> list[Path]:
    """The files of a checkpoint's `model` or `optimizer`."""
    return sorted(folder.glob(f"{name}*.safetensors"))


def load_state(state: TrialState, folder: Path) -> None:
    """Puts a checkpoint's weights, optimiser and step into a fresh state of the same trial."""
    load_weights(state, folder)
    state.baseline = json.loads((folder / "state.json").read_text())["baseline"]
    for path, tensor in read_tensors(_parts(folder, "optimizer")):
        name, _, moment = path.rpartition("/")
        parameter = state.weights.master[name]
        state.optimizer.state[parameter][moment] = state.weights.part(tensor, parameter)


def load_weights(state: TrialState, folder: Path) -> None:
    """Puts a checkpoint's weights and step into a fresh state: enough to evaluate them."""
    facts = json.loads((folder / "state.json").read_text())
    assert facts["format"] == CHECKPOINT_FORMAT and facts["seed"] == state.seed, "a checkpoint of another trial"
    with torch.no_grad(), state.weights.updating():
        for name, tensor in read_tensors(_parts(folder, "model")):
            master = state.weights.master[name]
            master.copy_(state.weights.part(tensor, master))
        state.weights.publish()
    state.step, state.started = facts["step"], facts["started"]
    # of another number of processes each may have less room than these had
    is_alike = facts.get("num_processes", 1) == state.world.size
    state.kv_gib = facts["kv_gib"] if is_alike else min(facts["kv_gib"], state.kv_gib)
