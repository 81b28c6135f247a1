"""A kept training and a precision -> its policy as a plain transformers model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter
from transformers import GenerationConfig

from oneshot.errors import OneshotError
from oneshot.export.kept import Kept
from oneshot.export.source import SourceModel
from oneshot.policy.loading import load_policy
from oneshot.policy.lora import attach, merge
from oneshot.policy.policy import Policy, end_turns
from oneshot.training.state import read_tensors

SHARD = "5GB"  # largest size of a file of weights


def load_kept(kept: Kept, files: Iterable[Path], *, dtype: str) -> Policy:
    """Load the trial's base model with its final weights, each rounded once.

    An adapter is merged in float32 or wider, before the weights are rounded.

    Raises OneshotError: the checkpoint is not of this model.
    """
    adapter, target = kept.config.model.adapter, getattr(torch, dtype)
    wide = target if adapter is None else torch.promote_types(getattr(torch, kept.config.model.dtype), target)
    policy = load_policy(kept.config.model.model_copy(update={"dtype": str(wide).removeprefix("torch.")}))
    if adapter is not None:
        attach(policy.model, adapter, seed=kept.selection.trial.seed)
    trained = {
        name: parameter
        for name, parameter in policy.model.named_parameters()
        if adapter is None or parameter.requires_grad
    }
    missing = trained.keys() - _take(trained, files, wide=adapter is not None)
    if missing:
        raise OneshotError(f"{kept.label}: its checkpoint lacks {len(missing)} weights, such as {min(missing)}")
    if adapter is not None:
        merge(policy.model)
        for parameter in policy.model.parameters():
            parameter.data = parameter.data.to(target)
    end_turns(policy, kept.config.prompt)
    return policy


@torch.no_grad()
def _take(trained: dict[str, Parameter], files: Iterable[Path], *, wide: bool) -> set[str]:
    """Load the files' tensors into the model one by one; with `wide` keep the tensors' precision."""
    names: set[str] = set()
    for path in files:
        for name, tensor in read_tensors([path]):
            if name not in trained:
                raise OneshotError(f"{path}: {name}: no such weight in the model")
            if wide:
                trained[name].data = tensor
            else:
                trained[name].copy_(tensor)
            names.add(name)
    return names


def save_model(policy: Policy, source: SourceModel, folder: Path) -> dict[str, Any]:
    """Write config and weights with `save_pretrained`; return the generation config that belongs to them.

    It has the trial's end tokens, which may be more than the base model's.
    """
    original = policy.model.generation_config
    # `save_pretrained` validates the generation config, and a hub model's may break today's rules
    policy.model.generation_config = GenerationConfig()
    policy.model.save_pretrained(folder, max_shard_size=SHARD)
    policy.model.generation_config = original
    eos_ids = list(policy.eos_ids)
    config = source.generation or original.to_diff_dict()
    kept = {name: value for name, value in config.items() if name not in ("_from_model_config", "transformers_version")}
    return {"pad_token_id": policy.pad_id, **kept, "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids}
