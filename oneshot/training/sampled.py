"""Examples with `solution: {from: MODEL}` -> the model's completions that are kept as solutions.

They are sampled once for each training, before its first step, as rollouts sample: with the same prompts, temperature
and lengths. The trial's folder keeps them, so that an attempt that resumes learns the same texts.
"""

import logging
from functools import partial
from pathlib import Path

import torch

from oneshot.config.examples import POLICY, SampledSolutions
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError
from oneshot.models.memory import CPU_KV_GIB
from oneshot.policy.loading import load_policy
from oneshot.policy.policy import Policy, decode, end_turns
from oneshot.rollout.engine import Completion, PromptRequest, Sampling
from oneshot.rollout.lockstep import Lockstep
from oneshot.tasks import prompts
from oneshot.tasks.examples import load_shots
from oneshot.tasks.grading import Grader
from oneshot.tasks.problems import Problem
from oneshot.tasks.rewards import judge
from oneshot.tasks.solutions import to_sample
from oneshot.training.evaluate import grade_each
from oneshot.training.free_memory import release
from oneshot.training.state import begin_from

log = logging.getLogger(__name__)

_STREAM = 0x501  # separates these completions from those of rollouts and evaluations


def sample_solutions(
    config: TrialConfig, *, seed: int, device: torch.device, grader: Grader, start: Path | None = None
) -> dict[str, list[str]]:
    """Return the completions that are kept for each example that asks for some, by its id; `seed` is the trial's.

    `start` is a checkpoint with the weights that the trial's own model begins from, for `model.init`.
    """
    kept: dict[str, list[str]] = {}
    wanted = to_sample(config.examples)
    for path in dict.fromkeys(rule.from_ for _, rule in wanted):
        policy = _load(config, path, start)
        policy.model.to(device)
        for problem, rule in wanted:
            if rule.from_ == path:
                own = rule.model_copy(update={"seed": seed if rule.seed is None else rule.seed})
                kept[problem.id] = texts = _sample(config, policy, problem, own, grader)
                level = logging.INFO if texts else logging.WARNING
                log.log(level, "%s: kept %d of %d completions of %s", problem.id, len(texts), rule.samples, path)
        del policy
        release(device)
    return kept


def _load(config: TrialConfig, path: str, start: Path | None) -> Policy:
    """Load a sampling model in the precision that rollouts compute in."""
    name, _, revision = path.partition("@")
    other = {} if path == POLICY else {"path": name, "revision": revision or None, "trust_remote_code": False}
    policy = load_policy(config.model.model_copy(update={"dtype": config.model.compute_dtype, **other}))
    if path == POLICY:
        begin_from(policy, config, start)
    end_turns(policy, config.prompt)
    return policy


def _sample(config: TrialConfig, policy: Policy, problem: Problem, rule: SampledSolutions, grader: Grader) -> list[str]:
    """Return the texts of a problem's completions that have ended, and are right unless the rule keeps any.

    Raises DataError: the prompt leaves too few positions for a completion.
    """
    shots, tokenizer = load_shots(config.prompt), policy.tokenizer
    ids = prompts.encode_for_training(problem.prompt, config.prompt, shots=shots, tokenizer=tokenizer)
    if len(ids) + config.rollout.max_tokens > policy.max_positions:
        raise DataError(
            f"examples: {problem.id}: prompt of {len(ids)} tokens and rollout.max_tokens {config.rollout.max_tokens} "
            f"are longer than the {policy.max_positions} positions of {rule.from_}; lower rollout.max_tokens"
        )
    place = int(problem.digest[:8], 16)
    request = PromptRequest(
        prompt_ids=tuple(ids),
        row_keys=tuple((int(rule.seed or 0), _STREAM, place, sample) for sample in range(rule.samples)),
        max_tokens=config.rollout.max_tokens,
    )
    sampling = Sampling(temperature=config.rollout.temperature)

    def grade(_request: int, completion: Completion) -> str | None:
        text = decode(policy, completion.token_ids)
        is_kept = rule.keep == "any" or judge(text, problem.answer, config.reward, grader).correct is True
        return text if is_kept and not completion.truncated and text.strip() else None

    engine = Lockstep(kv_gib=config.rollout.kv_gib or CPU_KV_GIB)
    graded = grade_each(partial(engine.generate, policy, [request], sampling), grade, grader=grader)
    return [text for _, text in sorted(graded.items()) if text is not None]
