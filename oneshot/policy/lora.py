"""A model and an adapter's settings -> the model with low-rank layers, which are trained instead of its own weights.

LoRA (Hu et al., arXiv 2106.09685) by peft, injected into the model in place. The layers are not merged while a trial
runs: the policy that samples is the policy that is trained. The reference is the same model with the layers switched
off, so that there is no second copy of its weights.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn import Linear

from oneshot.config.model import AdapterConfig
from oneshot.errors import ModelError

_START = 0xADA  # separates the random stream of an adapter's first values from the completions' random table


def attach(model: Any, config: AdapterConfig, *, seed: int) -> None:
    """Inject the layers, the only ones with gradients; the trial's seed decides their first values.

    At first they add nothing: one matrix of each pair is zero.

    Raises ModelError: the model has no layer with one of the names.
    """
    head = model.get_output_embeddings()  # output_head.py computes its product, without an adapter
    names = {layer: name.rpartition(".")[2] for name, layer in model.named_modules()}
    linear = sorted({name for layer, name in names.items() if isinstance(layer, Linear) and layer is not head})
    if config.targets != "all-linear" and names[head] in config.targets:
        raise ModelError(f"model.adapter.targets: {names[head]}: the output head cannot have one; leave it out")
    if unknown := [name for name in config.targets if name not in linear and config.targets != "all-linear"]:
        raise ModelError(
            f"model.adapter.targets: {unknown[0]}: the model has no such layer; use some of {', '.join(linear)}"
        )
    settings = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft only divides it by r: it need not be an int
        target_modules=config.targets,
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence((seed, _START)).generate_state(1)[0]))
        inject_adapter_in_model(settings, model)
    for layer in _layers(model).values():
        layer.eval()  # like the rest of the model


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """Switch a model's adapter off."""
    layers = _layers(model).values()
    # `enable_adapters` would also switch gradients off: FSDP reads them in its first forward, and would then reduce the
    # adapter's gradients in the wrong precision
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def merged(model: Any, values: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's weights under their names without an adapter, and add the adapter to them on the way.

    `values` are in the order of the model's parameters, in which a layer's weight comes before its adapter.
    """
    layers = _layers(model)
    plain: dict[str, Tensor] = {}  # weights that wait for their adapter
    first: dict[str, Tensor] = {}
    for name, value in values:
        layer, _, rest = name.partition(".base_layer.")
        if rest == "weight":
            plain[layer] = value
        elif ".lora_A." in name:
            first[name.partition(".lora_A.")[0]] = value
        elif ".lora_B." in name:
            layer = name.partition(".lora_B.")[0]
            yield f"{layer}.weight", _sum(plain.pop(layer), first.pop(layer), value, layers[layer])
        else:
            yield (f"{layer}.{rest}" if rest else name), value


def _sum(plain: Tensor, first: Tensor, second: Tensor, layer: Any) -> Tensor:
    """Return a layer's weight with its adapter's product, added in float32 or wider."""
    wide = torch.promote_types(plain.dtype, torch.float32)
    (active,) = layer.active_adapters
    scaling: float = layer.scaling[active]
    return (plain.to(wide) + (second.to(wide) @ first.to(wide)) * scaling).to(plain.dtype)


@torch.no_grad()
def merge(model: Any) -> None:
    """Add the adapter to the weights, and remove its layers."""
    for name, layer in _layers(model).items():
        plain = layer.get_base_layer()
        (active,) = layer.active_adapters
        plain.weight.data = _sum(plain.weight, layer.lora_A[active].weight, layer.lora_B[active].weight, layer)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
    del model.peft_config
    model.requires_grad_(True)


def _layers(model: Any) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
