"""A trial's config -> the identity of its training: its contents by digest, and the key made from them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from oneshot.config.model import InitConfig
from oneshot.config.trial import TRIAL_VERSION, TrialConfig
from oneshot.errors import DataError, ModelError
from oneshot.models.source import folder_digest, is_commit, local_folder
from oneshot.tasks.examples import check_fit, identify, identify_shots
from oneshot.tasks.functions import learning_code
from oneshot.tasks.solutions import identify_solutions, is_sampled, sampling_models

KEY_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialIdentity:
    """The contents of a cell's model, examples and shots. `contents` is None while some of them are unknown."""

    contents: dict[str, Any] | None = None
    waits_for: str | None = None
    provisional: tuple[str, ...] = ()  # sets that are not fetched yet, so that only their names are known

    def keys(self, config: TrialConfig, seeds: Sequence[int]) -> list[str] | list[None]:
        """Return the key of this cell with each seed."""
        return [None] * len(seeds) if self.contents is None else trial_keys(config, seeds, self.contents)


def identify_trial(config: TrialConfig) -> TrialIdentity:
    """Return digests of the model's files (or its hub commit), of each example, and of each shot.

    Raises UserError: a model or an example is missing.
    """
    if config.script is not None:
        return TrialIdentity(contents={"script": config.script.model_dump(mode="json")})
    shots = identify_shots(config.prompt)
    digests, provisional = _identify_examples(config)
    contents: dict[str, Any] = {"examples": digests, "shots": shots.digests}
    if (config.train.method == "grpo" or is_sampled(config.examples)) and (code := learning_code(config)):
        contents["code"] = code
    folder = local_folder(config.model.path)
    if config.model.trust_remote_code:
        contents["trust_remote_code"] = True
    if folder is not None:
        contents["model"] = folder_digest(folder)
    elif not needs_commit(config):
        contents["model"] = f"{config.model.path}@{config.model.revision}"
    else:
        revision = config.model.revision or "main"
        return TrialIdentity(waits_for=f"the commit of {config.model.path}@{revision}, which `run` resolves")
    return TrialIdentity(contents=contents, provisional=(*provisional, *shots.provisional))


def _identify_examples(config: TrialConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the digests of what a trial trains on, and the sets that are not fetched yet."""
    if config.train.method == "grpo" or config.train.num_steps == 0:
        examples = identify(config.examples)
        if config.train.method == "grpo":
            check_fit(config, len(examples.ids))
        return examples.digests, examples.provisional
    models = {path: _sampling_model(path) for path in sampling_models(config.examples)}
    demonstrated = identify_solutions(config.examples, models)
    return demonstrated.digests, demonstrated.provisional


def _sampling_model(path: str) -> str:
    """Return the digest of a model that samples solutions. Raises DataError: it is neither here nor a hub commit."""
    name, _, revision = path.partition("@")
    if is_commit(revision):
        return path
    try:
        folder = local_folder(name)
    except ModelError as error:
        raise DataError(f"solution.from: {str(error).partition(': ')[2]}") from error
    if folder is None:
        raise DataError(f"solution.from: {path}: write owner/name@COMMIT, since a branch can move")
    return folder_digest(folder)


def needs_commit(config: TrialConfig) -> bool:
    """Return whether the trial's model is on the hub under a branch or tag, which can move."""
    is_on_hub = config.script is None and local_folder(config.model.path) is None
    return is_on_hub and not is_commit(config.model.revision)


def trial_keys(config: TrialConfig, seeds: Sequence[int], contents: dict[str, Any]) -> list[str]:
    """Return the key for each seed: 16 hex digits of sha256 over canonical JSON of everything that changes training.

    A key leaves out names, resources, storage and evaluation; the number of steps if the learning rate is constant; how
    work is split (`microbatch_tokens`, `kv_gib`), which may change last digits; and settings without effect on
    this trial.
    """
    dump = config.model_dump(mode="json")
    for path in inert_paths(config):
        section, _, name = path.partition(".")
        del dump[section][name]
    # left out at their defaults, so that older keys stay valid
    if config.reward.grader == "strict":
        del dump["reward"]["grader"]
    for name in ("call", "with_", "terms"):
        if not dump["reward"][name]:
            del dump["reward"][name]
    for rule in (dump["reward"], *dump["reward"].get("terms", {}).values()):
        if rule["by"] is None:
            del rule["by"]
    for section, name, default in (
        ("rollout", "correction", "none"),
        ("rollout", "resample", 0),
        ("reward", "overlong", None),
        ("loss", "ratio", "token"),
        ("loss", "surrogate", "ppo"),
        ("loss", "mask_truncated", False),
    ):
        if dump[section].get(name) == default:
            dump[section].pop(name, None)
    if config.rollout.engine == "auto":  # what it is until a plan chooses
        dump["rollout"]["engine"] = "lockstep"
    if config.rollout.engine == "vllm":
        dump["rollout"]["vllm"] = {"quantization": config.rollout.vllm.quantization}
    if not config.optim.schedule.has_length:
        del dump["optim"]["schedule"]
    hashed = {
        "trial_version": TRIAL_VERSION,
        **contents,
        "precision": [dump["model"]["dtype"], dump["model"]["mixed_precision"]],
        "prompt": [dump["prompt"]["template"], dump["prompt"]["train_suffix"], dump["prompt"]["stop"]],
        "optim": dump["optim"],
        **(_of_sft(config, dump) if config.train.method == "sft" else _of_grpo(dump)),
    }
    if config.model.adapter is not None:
        hashed["adapter"] = dump["model"]["adapter"]
    if config.model.max_positions is not None:
        hashed["positions"] = [config.model.max_positions, config.model.rope_scaling]
    if config.optim.schedule.has_length:
        hashed["num_steps"] = config.train.num_steps
    init = config.model.init
    canonical = (
        json.dumps({**hashed, **_start(config, init, seed), "seed": seed}, sort_keys=True, separators=(",", ":"))
        for seed in seeds
    )
    return [sha256(text.encode()).hexdigest()[:KEY_LENGTH] for text in canonical]


def _start(config: TrialConfig, init: InitConfig | None, seed: int) -> dict[str, Any]:
    """Return the weights that a seed begins from, and what the KL term compares with if there is one."""
    if init is None:
        return {}
    return {"init": [*init.of(seed), *([init.reference] if config.has_reference else [])]}


def _of_grpo(dump: dict[str, Any]) -> dict[str, Any]:
    sections = {section: dump[section] for section in ("reward", "rollout", "advantage", "loss")}
    if dump["critic"] is not None:
        sections["critic"] = dump["critic"]
    return {**sections, "updates_per_rollout": dump["train"]["updates_per_rollout"]}


def _of_sft(config: TrialConfig, dump: dict[str, Any]) -> dict[str, Any]:
    """Return what changes SFT besides prompts and optimiser; how solutions are sampled if a model samples them."""
    train = [dump["train"][name] for name in ("batch_size", "max_length", "too_long")]
    settings = {"sft": [dump["prompt"]["thinking"], dump["loss"]["aggregation"], *train]}
    if is_sampled(config.examples):
        rollout = [dump["rollout"][name] for name in ("temperature", "max_tokens")]
        settings["sampled"] = [*rollout, config.reward.grader]
    return settings


def inert_paths(config: TrialConfig) -> list[str]:
    """Return settings that have no effect on this trial's training, whatever their value."""
    paths = ["rollout.kv_gib"]
    if config.rollout.engine != "vllm":
        paths.append("rollout.vllm")
    if config.train.updates_per_rollout == 1:
        # the ratio is always 1
        paths += [f"loss.{name}" for name in ("clip_low", "clip_high", "ratio", "surrogate")]
    if config.reward.kind != "random":
        paths.append("reward.probability")
    if config.advantage.baseline == "none":
        paths += ["advantage.normalize_std", "advantage.eps"]
    elif not config.advantage.normalize_std or config.critic is not None:
        paths.append("advantage.eps")
    if config.critic is not None and config.critic.share == "none":
        paths.append("critic.coef")
    if config.critic is not None and config.train.updates_per_rollout == 1:
        paths.append("critic.clip")  # values are still those before the update
    return paths
