"""A kept training -> what its export says of itself: the model card (README.md) and the facts (oneshot.json)."""

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
"""Of an evaluation, what the card shows, and under which name."""
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
"""What the card shows of the config; all of it is in oneshot.json."""


def identity(kept: Kept, dtype: str) -> str:
    """Names an export's contents: two of one identity are the same model."""
    return f"{kept.asked.key}-{kept.step}-{dtype}"


def base_model(kept: Kept) -> dict[str, str]:
    """What the trial began with: `path`, and of a hub model its `revision`."""
    model = kept.config.model
    return {"path": model.path} | ({"revision": model.revision} if model.revision else {})


def facts(kept: Kept, *, dtype: str, files: dict[str, str]) -> dict[str, Any]:
    """What oneshot.json says; `files`: name -> sha256."""
    asked = kept.asked
    return {
        "format": FORMAT,
        "identity": identity(kept, dtype),
        "key": asked.key,
        "label": kept.label,
        "sweep": asked.sweep.config.name if asked.sweep is not None else None,
        "cell": asked.trial.cell,
        "seed": asked.trial.seed,
        "step": kept.step,
        "dtype": dtype,
        "merged_adapter": kept.config.model.adapter is not None,
        "base_model": base_model(kept),
        "config": kept.config.model_dump(mode="json"),
        "evaluations": [
            {name: getattr(one, name) for name in ("suite", "digest", "step", "num_completions", "metrics")}
            for one in kept.evaluations
        ],
        "last_attempt_on": {
            name: kept.attempt[name] for name in ("versions", "gpu", "platform") if name in kept.attempt
        },
        "exported_with": {name: version(name) for name in ("oneshot", "torch", "transformers")}
        | {"python": platform.python_version()},
        "files": files,
    }


def card(kept: Kept, source: SourceModel, *, dtype: str) -> str:
    """The model card, with the metadata that hubs read."""
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
    config, sweep = kept.config, kept.asked.sweep
    of_sweep = f" of the sweep `{sweep.config.name}`" if sweep is not None else ""
    base = "@".join(base_model(kept).values())
    yield f"# {kept.label}\n"
    yield f"`{base}` after {kept.step} steps of GRPO ({config.reward.kind} reward) on:\n"
    yield from (f"- {_said(example)}" for example in config.examples)
    yield f"\nTraining `{kept.asked.key}`, seed {kept.asked.trial.seed}{of_sweep}, by oneshot. Weights: {dtype}."
    if sweep is not None and sweep.config.question:
        yield f"\nThe sweep asks: {sweep.config.question}"
    if config.model.adapter is not None:
        yield (
            f"\nTrained as a low-rank adapter (rank {config.model.adapter.r}, alpha {config.model.adapter.alpha:g}), "
            "which is merged into these weights."
        )
    yield "\n## Accuracy\n"
    yield from _table(kept)
    yield "\n## Settings\n\n| setting | value |\n|---|---|"
    settings = flat(config.model_dump(mode="json"))
    yield from (f"| `{path}` | {_said(settings[path])} |" for path in SETTINGS)
    yield "\nEvery setting, and every number of these evaluations: `oneshot.json`."
    yield "\n## How it was made\n\n| | |\n|---|---|"
    versions = kept.attempt.get("versions", {})
    yield f"| trained with | {', '.join(f'{name} {number}' for name, number in versions.items()) or 'not on record'} |"
    yield f"| last attempt on | {kept.attempt.get('gpu') or 'a CPU'} |"
    yield f"| written by | `oneshot export {kept.asked.key}`, oneshot {version('oneshot')} |"
    yield "\n## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
    remote = ", trust_remote_code=True" if config.model.trust_remote_code else ""
    yield f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{remote})'
    yield f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{remote})\n```'
    yield "\nThe tokenizer is the base model's. `generation_config.json` ends where the trial's completions do."
    yield "\n## Licence\n"
    if source.licence:
        yield f"That of the base model, whose card says: {', '.join(source.licence.values())}."
    else:
        yield "These weights derive from the base model's and are under its licence, which its card does not state."


def _table(kept: Kept) -> Iterator[str]:
    last = [one for one in kept.evaluations if one.step == kept.step]
    if not last:
        yield "No evaluation of these weights is on record."
        return
    start = {one.digest: one.metrics for one in kept.evaluations if one.step == 0}
    yield "| suite | completions | measure | at the start | now | gain |\n|---|---|---|---|---|---|"
    for one in last:
        for measure in (name for name in MEASURES if name in one.metrics):
            now, before = one.metrics[measure], start.get(one.digest, {}).get(measure)
            known = ("-", "-") if before is None else (f"{before:.3f}", f"{now - before:+.3f}")
            yield f"| {one.suite} | {one.num_completions} | {MEASURES[measure]} | {known[0]} | {now:.3f} | {known[1]} |"
    yield (
        "\nMeasured by the trial itself, on one seed. strict: the last `\\boxed{}` is right; lenient: any answer that "
        "math-verify extracts is."
    )


def _said(value: Any) -> str:
    """A value as code in one line of Markdown."""
    text = value if isinstance(value, str) else json.dumps(value if _is_plain(value) else value.model_dump(mode="json"))
    line = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{line}`" if line else "(empty)"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | dict)
