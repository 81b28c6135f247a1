"""A trial's state <-> a checkpoint folder.

A checkpoint has `model.safetensors`, `optimizer.safetensors`, `critic.safetensors` if there is a critic (each in
several parts if it is large), and `state.json`; nothing is pickled. Tensors are whole, however many processes there
are; with an adapter they are only the adapter's. The position in the random table is (seed, step): there is no other
generator to save.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from oneshot.training.critic import Critic
from oneshot.training.state import TrainingState, read_tensors

CHECKPOINT_FORMAT = 2
PART_BYTES = 4 * 2**30  # largest size of a checkpoint's file, and so the additional memory for writing it


def save_state(state: TrainingState, folder: Path, *, with_optimizer: bool) -> None:
    """Write a checkpoint into an empty folder; all processes must call this, and the first writes."""
    into = folder if state.world.is_first else None
    weights = state.weights
    _write(((name, weights.whole(master.detach())) for name, master in weights.master.items()), into, "model")
    if with_optimizer:
        moments = (
            (f"{name}/{moment}", weights.whole(value))
            for name, master in weights.master.items()
            for moment, value in state.optimizer.state.get(master, {}).items()
        )
        _write(moments, into, "optimizer")
        if state.critic is not None:
            _write(_critic_tensors(state.critic), into, "critic")
    metadata = {
        "format": CHECKPOINT_FORMAT,
        "seed": state.seed,
        "step": state.step,
        "started": state.started,
        "baseline": state.baseline,
        "kv_gib": state.kv_gib,
        "num_processes": state.world.size,
    }
    if state.loss_scale.is_used:
        metadata["loss_scale"] = [state.loss_scale.value, state.loss_scale.num_finite]
    if into is not None:
        (into / "state.json").write_text(json.dumps(metadata, indent=2))


def _critic_tensors(critic: Critic) -> Iterator[tuple[str, Tensor]]:
    """Yield the critic's weights and its optimiser's moments."""
    for name, master in critic.weights.master.items():
        yield f"{name}/value", master.detach()
        for moment, value in critic.optimizer.state.get(master, {}).items():
            yield f"{name}/{moment}", value


def _load_critic(critic: Critic, folder: Path) -> None:
    with torch.no_grad():
        for path, tensor in read_tensors(sorted(folder.glob("critic*.safetensors"))):
            name, _, moment = path.rpartition("/")
            master = critic.weights.master[name]
            if moment == "value":
                master.copy_(tensor)
            else:
                critic.optimizer.state[master][moment] = tensor.to(master.device)
    critic.weights.publish()


def _write(tensors: Iterator[tuple[str, Tensor]], folder: Path | None, name: str) -> None:
    """Write tensors to `<name>.safetensors`, `<name>-2.safetensors` and so on; without a folder only gather them."""
    part: dict[str, Tensor] = {}
    num_parts = 0

    def flush(folder: Path) -> None:
        nonlocal num_parts
        num_parts += 1
        save_file(part, folder / (f"{name}.safetensors" if num_parts == 1 else f"{name}-{num_parts}.safetensors"))
        part.clear()

    for key, tensor in tensors:
        if folder is None:
            continue
        if part and sum(value.nbytes for value in part.values()) + tensor.nbytes > PART_BYTES:
            flush(folder)
        part[key] = tensor.cpu().contiguous()
    if folder is not None:
        flush(folder)


def load_state(state: TrainingState, folder: Path) -> None:
    """Load a checkpoint's weights, optimiser and step into a fresh state of the same trial."""
    load_weights(state, folder)
    metadata = json.loads((folder / "state.json").read_text())
    state.baseline = metadata["baseline"]
    if state.loss_scale.is_used:
        state.loss_scale.value, state.loss_scale.num_finite = metadata["loss_scale"]
    for path, tensor in read_tensors(sorted(folder.glob("optimizer*.safetensors"))):
        name, _, moment = path.rpartition("/")
        parameter = state.weights.master[name]
        state.optimizer.state[parameter][moment] = state.weights.part(tensor, parameter)
    if state.critic is not None:
        _load_critic(state.critic, folder)


def load_weights(state: TrainingState, folder: Path) -> None:
    """Load a checkpoint's weights and step into a fresh state, for evaluation."""
    metadata = json.loads((folder / "state.json").read_text())
    assert metadata["format"] == CHECKPOINT_FORMAT and metadata["seed"] == state.seed, "a checkpoint of another trial"
    with torch.no_grad(), state.weights.updating():
        for name, tensor in read_tensors(sorted(folder.glob("model*.safetensors"))):
            master = state.weights.master[name]
            master.copy_(state.weights.part(tensor, master))
        state.weights.publish()
    state.step, state.started = metadata["step"], metadata["started"]
    # with another number of processes, each of these may have less memory
    is_same_size = metadata.get("num_processes", 1) == state.world.size
    state.limit_kv(metadata["kv_gib"] if is_same_size else min(metadata["kv_gib"], state.kv_gib))
