"""A trial's config -> what identifies its training: contents by digest, and a key of them."""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from oneshot.config import TRIAL_VERSION, TrialConfig
from oneshot.models import folder_digest, is_commit, local_folder
from oneshot.tasks.examples import check_fit, identify_shots
from oneshot.tasks.examples import identify as identify_examples

KEY_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a cell's model, examples and shots are by content; `facts` are None while something is not known yet."""

    facts: dict[str, Any] | None = None
    waits_for: str | None = None
    provisional: tuple[str, ...] = ()
    """Sets of which nothing but the name is known before they are fetched."""

    def key(self, config: TrialConfig, seed: int) -> str | None:
        """The key of this cell with a seed."""
        return None if self.facts is None else trial_key(config, seed, self.facts)


def identify(config: TrialConfig) -> Identity:
    """Contents by digest: of the model's files (or its hub commit), of each example, and of each shot.

    Raises:
        UserError: a model or an example is not there.
    """
    examples = identify_examples(config.examples)
    check_fit(config, len(examples.ids))
    facts: dict[str, Any] = {"examples": examples.digests, "shots": identify_shots(config.prompt)}
    folder = local_folder(config.model.path)
    if folder is not None:
        facts["model"] = folder_digest(folder)
    elif is_commit(config.model.revision):
        facts["model"] = f"{config.model.path}@{config.model.revision}"
    else:
        revision = config.model.revision or "main"
        return Identity(waits_for=f"the commit of {config.model.path}@{revision}, which `run` resolves")
    return Identity(facts=facts, provisional=examples.provisional)


def trial_key(config: TrialConfig, seed: int, contents: dict[str, Any]) -> str:
    """First 16 hex digits of sha256 over the canonical JSON of everything that changes training.

    Not in it: names, resources, storage, evaluation; the number of steps, while the learning rate is constant; how
    work is split (`microbatch_tokens`, `kv_gib`), which may move last digits but asks the same question.
    """
    dump = config.model_dump(mode="json")
    facts = {
        "trial_version": TRIAL_VERSION,
        **contents,
        "precision": [dump["model"]["dtype"], dump["model"]["mixed_precision"]],
        "prompt": [dump["prompt"]["template"], dump["prompt"]["train_suffix"], dump["prompt"]["stop"]],
        "reward": dump["reward"],
        "rollout": {name: value for name, value in dump["rollout"].items() if name != "kv_gib"},
        "advantage": dump["advantage"],
        "loss": dump["loss"],
        "optim": dump["optim"],
        "updates_per_rollout": dump["train"]["updates_per_rollout"],
        "seed": seed,
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]
