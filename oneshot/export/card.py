"""A kept training -> the model card (README.md) and the metadata (oneshot.json) of its export."""

import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from huggingface_hub import ModelCardData

from oneshot.config.paths import flat
from oneshot.export.kept import Kept
from oneshot.export.source import SourceModel
from oneshot.models.source import local_folder

FORMAT = 1
MEASURES = {"pass_at_1": "strict", "pass_at_1_lenient": "lenient", "avg_at_k": "avg@k", "pass_at_k": "pass@k"}
"""Measures that the card shows, and their names there."""
SETTINGS = (
    "model.dtype",
    "model.mixed_precision",
    "prompt.template",
    "prompt.train_suffix",
    "rollout.num_groups",
    "rollout.group_size",
    "rollout.temperature",
    "rollout.max_tokens",
    "loss.kl_coef",
    "loss.entropy_coef",
    "loss.clip_low",
    "loss.clip_high",
    "optim.lr",
    "optim.weight_decay",
    "train.num_steps",
    "train.updates_per_rollout",
)
"""Settings that the card shows; oneshot.json has all of them."""


def identity(kept: Kept, dtype: str) -> str:
    """Return the identity of an export's contents: exports with one identity are the same model."""
    return f"{kept.selection.key}-{kept.step}-{dtype}"


def base_model(kept: Kept) -> dict[str, str]:
    """Return the base model's `path`, and for a hub model its `revision`."""
    model = kept.config.model
    return {"path": model.path} | ({"revision": model.revision} if model.revision else {})


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
        "exported_with": {name: version(name) for name in ("oneshot", "torch", "transformers")}
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
        tags=["oneshot", "grpo", "rlvr"],
        license=source.licence.get("license"),
        license_name=source.licence.get("license_name"),
        license_link=source.licence.get("license_link"),
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_lines(kept, source, dtype=dtype)) + "\n"


def _lines(kept: Kept, source: SourceModel, *, dtype: str) -> Iterator[str]:
    config, sweep, seed = kept.config, kept.selection.sweep, kept.selection.trial.seed
    of_sweep = f" of the sweep `{sweep.config.name}`" if sweep is not None else ""
    base = "@".join(base_model(kept).values())
    yield f"# {kept.label}\n"
    yield f"`{base}` after {kept.step} steps of GRPO ({config.reward.kind} reward) on:\n"
    yield from (f"- {_code(example)}" for example in config.examples)
    yield f"\nTraining `{kept.selection.key}`, seed {seed}{of_sweep}, by oneshot. Weights: {dtype}."
    if sweep is not None and sweep.config.question:
        yield f"\nQuestion of the sweep: {sweep.config.question}"
    if config.model.adapter is not None:
        yield (
            f"\nTrained as a low-rank adapter (rank {config.model.adapter.r}, alpha {config.model.adapter.alpha:g}), "
            "merged into these weights."
        )
    yield "\n## Accuracy\n"
    yield from _table(kept)
    yield "\n## Settings\n\n| setting | value |\n|---|---|"
    settings = flat(config.model_dump(mode="json"))
    yield from (f"| `{path}` | {_code(settings[path])} |" for path in SETTINGS)
    yield "\n`oneshot.json` has all settings and all numbers of the evaluations."
    yield "\n## How it was made\n\n| | |\n|---|---|"
    versions = kept.attempt.get("versions", {})
    yield f"| trained with | {', '.join(f'{name} {number}' for name, number in versions.items()) or 'not recorded'} |"
    yield f"| last attempt on | {kept.attempt.get('gpu') or 'a CPU'} |"
    yield f"| written by | `oneshot export {kept.selection.key}`, oneshot {version('oneshot')} |"
    yield "\n## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
    remote = ", trust_remote_code=True" if config.model.trust_remote_code else ""
    yield f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{remote})'
    yield f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{remote})\n```'
    yield "\nThe tokenizer is the base model's. `generation_config.json` has the trial's end tokens."
    yield "\n## Licence\n"
    if source.licence:
        yield f"The base model's licence. Its card says: {', '.join(source.licence.values())}."
    else:
        yield "These weights derive from the base model's and are under its licence, which its card does not state."


def _table(kept: Kept) -> Iterator[str]:
    last = [evaluation for evaluation in kept.evaluations if evaluation.step == kept.step]
    if not last:
        yield "No evaluation of these weights is on record."
        return
    start = {evaluation.digest: evaluation.metrics for evaluation in kept.evaluations if evaluation.step == 0}
    yield "| suite | completions | measure | at the start | now | gain |\n|---|---|---|---|---|---|"
    for row in last:
        for measure in (name for name in MEASURES if name in row.metrics):
            now, base = row.metrics[measure], start.get(row.digest, {}).get(measure)
            before, gain = ("-", "-") if base is None else (f"{base:.3f}", f"{now - base:+.3f}")
            yield f"| {row.suite} | {row.num_completions} | {MEASURES[measure]} | {before} | {now:.3f} | {gain} |"
    yield (
        "\nThe trial measured these numbers itself, on one seed. strict: the last `\\boxed{}` is right; lenient: any "
        "answer that math-verify extracts is right."
    )


def _code(value: Any) -> str:
    """Return a value as code on one line of Markdown."""
    text = value if isinstance(value, str) else json.dumps(value if _is_plain(value) else value.model_dump(mode="json"))
    line = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{line}`" if line else "(empty)"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | dict)
