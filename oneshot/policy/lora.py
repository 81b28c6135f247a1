"""A model and an adapter's settings -> low-rank layers beside its own, which are trained in their place.

LoRA (Hu et al., arXiv 2106.09685) by peft, put into the model as it is: its class, its attention and its head stay. The
layers are never merged while a trial runs: the policy that samples is the policy that is trained, and the reference is
the same model with the layers switched off, so that there is no second copy of its weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import Linear

from oneshot.config.trial import AdapterConfig
from oneshot.errors import ModelError

_START = 0xADA
"""Sets an adapter's first values apart from the completions' random table."""


def attach(model: Any, config: AdapterConfig, *, seed: int) -> None:
    """Puts the layers in place, with gradients for them alone; the trial's seed decides their first values.

    At first they add nothing: one of each pair of matrices is zero.

    Raises:
        ModelError: the model has no layer of one of the names.
    """
    head = model.get_output_embeddings()  # its product is ours (head.py), which knows no adapter
    names = {layer: name.rpartition(".")[2] for name, layer in model.named_modules()}
    known = sorted({name for layer, name in names.items() if isinstance(layer, Linear) and layer is not head})
    if config.targets != "all-linear" and names[head] in config.targets:
        raise ModelError(f"model.adapter.targets: {names[head]}: the output head cannot have one; leave it out")
    if unknown := [name for name in config.targets if name not in known and config.targets != "all-linear"]:
        raise ModelError(
            f"model.adapter.targets: {unknown[0]}: the model has no such layer; there is {', '.join(known)}"
        )
    settings = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # divided by r, as a number
        target_modules=config.targets,
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence((seed, _START)).generate_state(1)[0]))
        inject_adapter_in_model(settings, model)
    for layer in _layers(model).values():
        layer.eval()  # as the model is


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """The model without its adapter."""
    layers = _layers(model).values()
    # not by `enable_adapters`, which takes gradients off too: FSDP looks at them in its first forward, and then reduces
    # the adapter's in the wrong precision for good
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def merge(model: Any) -> None:
    """Adds the adapter to the weights, once and in float32 or wider, and leaves a model as transformers made it."""
    for name, layer in _layers(model).items():
        plain = layer.get_base_layer()
        wide = torch.promote_types(plain.weight.dtype, torch.float32)
        (active,) = layer.active_adapters
        delta = layer.get_delta_weight(active)
        plain.weight.data = (plain.weight.to(wide) + delta.to(wide)).to(plain.weight.dtype)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
    del model.peft_config
    model.requires_grad_(True)


def _layers(model: Any) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
