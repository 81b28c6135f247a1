"""A kept training -> the model card (README.md) and the metadata (oneshot.json) of its export."""

import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from oneshot.config.paths import flat
from oneshot.export.kept import Kept
from oneshot.export.source import SourceModel
from oneshot.models.source import local_folder
from oneshot.version import __version__

FORMAT = 1
MEASURES = {"pass_at_1": "strict", "pass_at_1_lenient": "lenient", "avg_at_k": "avg@k", "pass_at_k": "pass@k"}
"""Measures that the card shows, and their names there."""


def identity(kept: Kept, dtype: str) -> str:
    """Return the identity of an export's contents: exports with one identity are the same model."""
    return f"{kept.selection.key}-{kept.step}-{dtype}"


def base_model(kept: Kept) -> dict[str, str]:
    """Return the base model's `path`, and for a hub model its `revision`."""
    model = kept.config.model
    return {"path": model.path} | ({"revision": model.revision} if model.revision else {})


def _base(kept: Kept) -> str:
    """Return the base model for people, and the first stage of staged training."""
    init, base = kept.config.model.init, "@".join(base_model(kept).values())
    if init is None:
        return base
    key, step = init.of(kept.selection.trial.seed)
    return f"{base} after step {step} of training {key} (sweep {init.sweep})"


def describe(kept: Kept, *, dtype: str, files: dict[str, str]) -> dict[str, Any]:
    """Return the contents of oneshot.json; `files`: name -> sha256."""
    selection = kept.selection
    return {
        "format": FORMAT,
        "identity": identity(kept, dtype),
        "key": selection.key,
        "label": kept.label,
        "sweep": selection.sweep.config.name if selection.sweep is not None else None,
        "cell": selection.trial.cell,
        "seed": selection.trial.seed,
        "step": kept.step,
        "dtype": dtype,
        "merged_adapter": kept.config.model.adapter is not None,
        "base_model": base_model(kept),
        "config": kept.config.model_dump(mode="json"),
        "evaluations": [
            {name: getattr(evaluation, name) for name in ("suite", "digest", "step", "num_completions", "metrics")}
            for evaluation in kept.evaluations
        ],
        "last_attempt_on": {
            name: kept.attempt[name] for name in ("versions", "gpu", "platform") if name in kept.attempt
        },
        "exported_with": {"oneshot": __version__, **{name: version(name) for name in ("torch", "transformers")}}
        | {"python": platform.python_version()},
        "files": files,
    }


def card(kept: Kept, source: SourceModel, *, dtype: str) -> str:
    """Return the model card with the metadata that hubs read."""
    on_hub = local_folder(kept.config.model.path) is None
    data = ModelCardData(
        base_model=kept.config.model.path if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["oneshot", "sft"] if kept.config.train.method == "sft" else ["oneshot", "grpo", "rlvr"],
        license=source.licence.get("license"),
        license_name=source.licence.get("license_name"),
        license_link=source.licence.get("license_link"),
    )
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["code"] = _code
    return templates.get_template("card.md.j2").render(
        kept=kept,
        selection=kept.selection,
        config=kept.config,
        settings=_settings(kept),
        base=_base(kept),
        rows=list(_rows(kept)),
        versions=kept.attempt.get("versions", {}),
        licence=source.licence,
        hub_metadata=data.to_yaml(),
        dtype=dtype,
        oneshot_version=__version__,
    )


_BOTH = (
    *("model.dtype", "model.mixed_precision", "prompt.template", "prompt.train_suffix"),
    *("optim.lr", "optim.weight_decay", "optim.schedule.kind", "train.num_steps"),
)
_METHOD = {
    "grpo": (
        *("rollout.num_groups", "rollout.group_size", "rollout.temperature", "rollout.max_tokens", "loss.kl_coef"),
        *("loss.entropy_coef", "loss.clip_low", "loss.clip_high", "train.updates_per_rollout"),
    ),
    "sft": ("loss.aggregation", "train.batch_size", "train.max_length", "train.too_long"),
}
"""Settings that the card shows: of both methods, and of each."""


def _settings(kept: Kept) -> dict[str, Any]:
    """Return the settings that the card shows, by path."""
    every = flat(kept.config.model_dump(mode="json"))
    return {path: every[path] for path in (*_BOTH, *_METHOD[kept.config.train.method])}


def _rows(kept: Kept) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of accuracies."""
    start = {evaluation.digest: evaluation.metrics for evaluation in kept.evaluations if evaluation.step == 0}
    for evaluation in kept.evaluations:
        for measure in (name for name in MEASURES if evaluation.step == kept.step and name in evaluation.metrics):
            now, base = evaluation.metrics[measure], start.get(evaluation.digest, {}).get(measure)
            before, gain = ("-", "-") if base is None else (f"{base:.3f}", f"{now - base:+.3f}")
            count = "-" if evaluation.num_completions is None else str(evaluation.num_completions)
            yield evaluation.suite, count, MEASURES[measure], before, f"{now:.3f}", gain


def _shown(model: BaseModel) -> Any:
    """Return an example as a sweep file would write it."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _code(value: Any) -> str:
    """Return a value as code on one line of Markdown."""
    text = value if isinstance(value, str) else json.dumps(value, default=_shown)
    line = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{line}`" if line else "(empty)"
