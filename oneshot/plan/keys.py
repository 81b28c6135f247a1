"""A trial's config -> what identifies its training: contents by digest, and a key of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from oneshot.config.trial import TRIAL_VERSION, TrialConfig
from oneshot.models.source import folder_digest, is_commit, local_folder
from oneshot.tasks.examples import check_fit, identify, identify_shots

KEY_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialIdentity:
    """What a cell's model, examples and shots are by content; `facts` are None while something is not known yet."""

    facts: dict[str, Any] | None = None
    waits_for: str | None = None
    provisional: tuple[str, ...] = ()
    """Sets of which nothing but the name is known before they are fetched."""

    def keys(self, config: TrialConfig, seeds: Sequence[int]) -> list[str] | list[None]:
        """The key of this cell with each seed."""
        return [None] * len(seeds) if self.facts is None else trial_keys(config, seeds, self.facts)


def identify_trial(config: TrialConfig) -> TrialIdentity:
    """Contents by digest: of the model's files (or its hub commit), of each example, and of each shot.

    Raises:
        UserError: a model or an example is not there.
    """
    if config.script is not None:
        return TrialIdentity(facts={"script": config.script.model_dump(mode="json")})
    examples = identify(config.examples)
    check_fit(config, len(examples.ids))
    shots = identify_shots(config.prompt)
    facts: dict[str, Any] = {"examples": examples.digests, "shots": shots.digests}
    folder = local_folder(config.model.path)
    if config.model.trust_remote_code:
        facts["trust_remote_code"] = True
    if folder is not None:
        facts["model"] = folder_digest(folder)
    elif not needs_commit(config):
        facts["model"] = f"{config.model.path}@{config.model.revision}"
    else:
        revision = config.model.revision or "main"
        return TrialIdentity(waits_for=f"the commit of {config.model.path}@{revision}, which `run` resolves")
    return TrialIdentity(facts=facts, provisional=(*examples.provisional, *shots.provisional))


def needs_commit(config: TrialConfig) -> bool:
    """Whether the trial's model is on the hub, under a name that may come to mean something else."""
    is_on_hub = config.script is None and local_folder(config.model.path) is None
    return is_on_hub and not is_commit(config.model.revision)


def trial_keys(config: TrialConfig, seeds: Sequence[int], contents: dict[str, Any]) -> list[str]:
    """For each seed, first 16 hex digits of sha256 over the canonical JSON of everything that changes training.

    Not in it: names, resources, storage, evaluation; the number of steps, while the learning rate is constant; how
    work is split (`microbatch_tokens`, `kv_gib`), which may move last digits but asks the same question; knobs that
    this trial cannot feel.
    """
    dump = config.model_dump(mode="json")
    for path in inert_paths(config):
        section, _, name = path.partition(".")
        del dump[section][name]
    facts = {
        "trial_version": TRIAL_VERSION,
        **contents,
        "precision": [dump["model"]["dtype"], dump["model"]["mixed_precision"]],
        "prompt": [dump["prompt"]["template"], dump["prompt"]["train_suffix"], dump["prompt"]["stop"]],
        "reward": dump["reward"],
        "rollout": dump["rollout"],
        "advantage": dump["advantage"],
        "loss": dump["loss"],
        "optim": dump["optim"],
        "updates_per_rollout": dump["train"]["updates_per_rollout"],
    }
    if config.model.adapter is not None:  # absent from older keys, which name trainings of the whole model
        facts["adapter"] = dump["model"]["adapter"]
    canonical = (json.dumps({**facts, "seed": seed}, sort_keys=True, separators=(",", ":")) for seed in seeds)
    return [sha256(text.encode()).hexdigest()[:KEY_LENGTH] for text in canonical]


def inert_paths(config: TrialConfig) -> list[str]:
    """Settings that move nothing in this trial's training, whatever their value."""
    found = ["rollout.kv_gib"]
    if config.train.updates_per_rollout == 1:
        found += ["loss.clip_low", "loss.clip_high"]  # the ratio is always 1
    if config.reward.kind != "random":
        found.append("reward.probability")
    if config.advantage.baseline == "none":
        found += ["advantage.normalize_std", "advantage.eps"]
    elif not config.advantage.normalize_std:
        found.append("advantage.eps")
    return found
