"""Config and state -> one `StepMetrics` per step: GRPO, readable top to bottom.

A step samples groups of completions with the current policy, rewards them, compares them within their group, and takes
one or more optimiser steps. Like the released code, it differs from the paper's text: one update per rollout (so that
the clip is never active), and log-probabilities and entropy at the sampling temperature.

Shapes: G completions of the step, group after group; N groups of K.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from statistics import fmean

import torch

from oneshot.config.reward import Certainty
from oneshot.config.trial import TrialConfig
from oneshot.errors import TrialError
from oneshot.policy.policy import decode
from oneshot.rollout.engine import Completion, NotFiniteError, PromptRequest, Sampling
from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.certainty import certainty
from oneshot.tasks.rewards import Example, GradedCompletion, answer_entropy, judge, rewards
from oneshot.training.advantage import advantages, zero_std_groups
from oneshot.training.evaluate import grade_each
from oneshot.training.free_memory import pop_gpu_peak_gib
from oneshot.training.metrics import Sampled, StepMetrics
from oneshot.training.mismatch import Mismatch
from oneshot.training.order import first_visits, groups_of_step
from oneshot.training.state import TrainingState
from oneshot.training.update import Batch, join_groups, update

logger = logging.getLogger(__name__)


def train_step(config: TrialConfig, state: TrainingState) -> StepMetrics:
    """Make one rollout and its updates."""
    start_s = time.perf_counter()
    try:
        batch = roll_out(config, state)
        redrawn = resample(config, state, batch)
    except NotFiniteError as error:
        raise TrialError(f"{error}, in the rollout of step {state.step + 1}") from error
    entropies = _answer_entropies(config, state, batch) if state.world.is_first else {}
    rollout_s = time.perf_counter() - start_s
    peaks = {"rollout": pop_gpu_peak_gib()}
    state.engine.rest()
    metrics = {**_batch_metrics(batch, config), **redrawn.metrics, **update(config, state, redrawn.kept)}
    step_s = time.perf_counter() - start_s
    peaks["update"] = pop_gpu_peak_gib()
    state.step += 1
    metrics |= {
        "perf/step_s": step_s,
        "perf/rollout_s": rollout_s,
        "perf/update_s": step_s - rollout_s,
        "perf/tokens_per_s": redrawn.num_tokens / step_s,
    }
    # with resampling, an update has other tokens than the rollout; a critic and GSPO have passes of their own
    is_plain = not config.rollout.resample and state.critic is None and config.loss.ratio == "token"
    if state.floor.can_measure and is_plain:
        metrics["perf/efficiency"] = _floor_s(config, state, batch) / step_s
    if torch.cuda.is_available():
        if config.rollout.engine == "vllm":  # torch counts what vLLM has given back
            del peaks["update"]
        metrics |= {f"system/gpu_peak_{phase}_gib": state.world.largest(peak) for phase, peak in peaks.items()}
    return StepMetrics(
        step=state.step,
        metrics=metrics,
        evaluations=(),
        sampled=tuple(
            Sampled(
                example_id=state.examples[example].id,
                completion=text,
                reward=reward,
                num_tokens=len(completion.token_ids),
                truncated=completion.truncated,
            )
            for example, text, reward, completion in zip(
                batch.example_G, batch.texts, batch.rewards_G.tolist(), batch.completions, strict=True
            )
        ),
        visits={state.examples[example].id: accuracy for example, accuracy in _accuracies(batch).items()},
        answer_entropies={state.examples[example].id: entropy for example, entropy in entropies.items()},
    )


def _floor_s(config: TrialConfig, state: TrainingState, batch: Batch) -> float:
    """Return the seconds that the step's matrix products need on this machine if processes share them evenly."""
    lengths = [len(state.prompts[example]) for example in set(batch.example_G)]
    positions = max(lengths) + batch.num_tokens / len(batch.completions)
    kv_rows = int(state.kv_gib * 2**30 / (state.policy.kv_bytes * positions))
    size = state.world.size
    return state.floor.step_s(
        prompt_tokens=sum(lengths),
        completion_tokens=-(-batch.num_tokens // size),
        decode_rows=max(1, min(kv_rows, -(-len(batch.completions) // size))),
        update_rows=min(config.train.microbatch_tokens, batch.num_tokens),
        with_reference=state.reference is not None,
    )


def roll_out(config: TrialConfig, state: TrainingState) -> Batch:
    """Sample and grade the step's groups. Each process takes whole groups, the first rewards, all get the batch."""
    state.engine.wake(state.policy, state.weights)
    example_N = groups_of_step(len(state.examples), config.rollout.num_groups, seed=state.seed, step=state.step)
    return _draw(config, state, list(enumerate(example_N)), draw=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Redrawn:
    """The groups that the update learns from, and what resampling cost."""

    kept: Batch
    num_tokens: int  # of all draws
    metrics: dict[str, float]


def resample(config: TrialConfig, state: TrainingState, first: Batch) -> _Redrawn:
    """Draw groups whose rewards are all equal again, up to `rollout.resample` times (DAPO, arXiv 2503.14476, 3.2).

    Groups that stay without spread are left out: as in DAPO, the update's means are over groups with spread alone. DAPO
    takes other prompts for new draws, until the batch is full; here a group keeps its example. Every metric of rewards
    and completions is that of the first draws, which are an unbiased sample of the policy.
    """
    if not config.rollout.resample:
        return _Redrawn(kept=first, num_tokens=first.num_tokens, metrics={})
    size, batch = config.rollout.group_size, first
    groups = list(enumerate(first.example_G[::size]))
    num_drawn, num_tokens = len(groups), first.num_tokens
    kept: dict[int, tuple[Batch, int]] = {}
    for draw in range(config.rollout.resample + 1):
        if draw:
            batch = _draw(config, state, groups, draw=draw)
            num_drawn, num_tokens = num_drawn + len(groups), num_tokens + batch.num_tokens
        kept |= {group: (batch, place) for place, (group, _) in enumerate(groups) if batch.spread_N[place]}
        groups = [(group, example) for group, example in groups if group not in kept]
        if not groups:
            break
    return _Redrawn(
        kept=join_groups([kept[group] for group in sorted(kept)], size=size, like=first),
        num_tokens=num_tokens,
        metrics={"rollout/groups_drawn": float(num_drawn), "rollout/groups_kept": float(len(kept))},
    )


def _draw(config: TrialConfig, state: TrainingState, groups: Sequence[tuple[int, int]], *, draw: int) -> Batch:
    """Sample and grade (group, example) pairs; `draw` counts how often these groups have been drawn before."""
    group_size = config.rollout.group_size
    rows = sorted(state.world.gather(_sample(config, state, state.world.share(groups), draw)), key=itemgetter(0))
    places, completions, graded = zip(*rows, strict=True)
    example_G = tuple(example for _, example in groups for _ in range(group_size))
    keys = [_key(state, place, draw) for place in places]
    rewarded = state.world.broadcast(_reward(config, state, example_G, graded, keys) if state.world.is_first else None)
    if rewarded.errors and not any(map(math.isfinite, rewarded.values_G)):
        raise TrialError(f"no completion of step {state.step + 1} has a reward: {rewarded.errors[0]}")
    dtype = torch.float64 if config.model.dtype == "float64" else torch.float32
    values_G = torch.tensor(rewarded.values_G, dtype=dtype, device=state.policy.device)
    penalties, terms = overlong_penalties(completions, config), dict(rewarded.terms)
    if config.reward.overlong is not None:
        terms["overlong"] = penalties
    rewards_G = values_G + torch.tensor(penalties, dtype=dtype, device=state.policy.device)
    return Batch(
        example_G=example_G,
        completions=completions,
        texts=tuple(completion.completion for completion in graded),
        correct_G=tuple(completion.correct for completion in graded),
        rewards_G=rewards_G,
        advantages_G=advantages(rewards_G, group_size=group_size, config=config.advantage),
        mismatch=Mismatch(completions, state.policy.device),
        terms=terms,
        num_errors=len(rewarded.errors),
        spread_N=tuple((~zero_std_groups(values_G.view(-1, group_size))).tolist()),
    )


def _sample(
    config: TrialConfig, state: TrainingState, groups: Sequence[tuple[int, int]], draw: int
) -> list[tuple[int, Completion, GradedCompletion]]:
    """Sample (group, example) pairs and grade each completion when it ends; return place, completion and grade."""
    group_size = config.rollout.group_size
    # all groups of an example are one request, so that its prompt is computed once
    places: dict[int, list[int]] = {}
    for group, example in groups:
        places.setdefault(example, []).extend(range(group * group_size, (group + 1) * group_size))
    if not places:  # more processes than groups
        return []
    examples = list(places)
    requests = [
        PromptRequest(
            prompt_ids=state.prompts[example],
            row_keys=tuple(_key(state, place, draw) for place in places[example]),
            max_tokens=config.rollout.max_tokens,
        )
        for example in examples
    ]

    def grade(request: int, completion: Completion) -> tuple[Completion, GradedCompletion]:
        text = decode(state.policy, completion.token_ids)
        answer, ids = state.examples[examples[request]].answer, completion.token_ids
        certainties = _certainties(completion, config.reward.certainties)
        return completion, judge(text, answer, config.reward, state.grader, token_ids=ids, certainties=certainties)

    sampling = Sampling(temperature=config.rollout.temperature, with_distribution=bool(config.reward.of_distribution))
    generate = partial(state.engine.generate, state.policy, requests, sampling)
    if not state.world.reports:
        generate()
        return []
    graded = grade_each(generate, grade, grader=state.grader)
    return [(places[examples[request]][row], *result) for (request, row), result in graded.items()]


def _certainties(completion: Completion, measures: Sequence[Certainty]) -> dict[Certainty, float]:
    """Return how certain the sampler was of a completion, by each of these measures."""
    logprobs, entropies, uniform_kls = completion.logprobs, completion.entropies, completion.uniform_kls
    return {by: certainty(by, logprobs=logprobs, entropies=entropies, uniform_kls=uniform_kls) for by in measures}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rewarded:
    """The rewards of a step."""

    values_G: list[float]  # NaN if a completion could not be graded
    terms: dict[str, list[float]]  # of each term of a sum, before its weight
    errors: list[str]  # what functions raised, one text for each example


def _reward(
    config: TrialConfig,
    state: TrainingState,
    example_G: Sequence[int],
    graded: Sequence[GradedCompletion],
    key_G: Sequence[tuple[int, ...]],
) -> _Rewarded:
    """Return the reward of each completion of a draw. What compares an example's completions sees those of the draw."""
    values_G = [math.nan] * len(graded)
    terms = {name: [math.nan] * len(graded) for name in config.reward.terms}
    errors: list[str] = []
    for example in dict.fromkeys(example_G):
        places = [place for place in range(len(example_G)) if example_G[place] == example]
        keys = [key_G[place] for place in places]
        problem = state.examples[example]
        shown = Example(id=problem.id, problem=problem.prompt, answer=problem.answer)
        group = [graded[place] for place in places]
        rewarded = rewards(group, config.reward, state.grader, keys=keys, example=shown)
        for name, values in (("", rewarded.values), *rewarded.terms.items()):
            row = terms[name] if name else values_G
            for place, reward in zip(places, values, strict=True):
                row[place] = math.nan if reward is None else reward
        errors += rewarded.errors
    for error in errors:
        logger.warning("step %d: no reward: %s", state.step + 1, error)
    return _Rewarded(values_G=values_G, terms=terms, errors=errors)


def _key(state: TrainingState, place: int, draw: int) -> tuple[int, ...]:
    """Return the key of a completion's row of the random table; a group that is drawn again has new ones."""
    return (state.seed, state.step, place, draw) if draw else (state.seed, state.step, place)


def overlong_penalties(completions: Sequence[Completion], config: TrialConfig) -> list[float]:
    """Return what each completion's length adds to its reward: 0, or less in the buffer (DAPO, Eq. 13)."""
    rule, max_tokens = config.reward.overlong, config.rollout.max_tokens
    if rule is None:
        return [0.0] * len(completions)
    left = [max_tokens - rule.buffer - len(completion.token_ids) for completion in completions]
    return [rule.penalty * min(0, tokens) / rule.buffer for tokens in left]


def _accuracies(batch: Batch) -> dict[int, float]:
    """Return, for each example, the share of its graded completions that are right."""
    verdicts: dict[int, list[bool]] = {}
    for example, correct in zip(batch.example_G, batch.correct_G, strict=True):
        if correct is not None:
            verdicts.setdefault(example, []).append(correct)
    return {example: fmean(verdicts_of_example) for example, verdicts_of_example in verdicts.items()}


def _answer_entropies(config: TrialConfig, state: TrainingState, batch: Batch) -> dict[int, float]:
    """Return how much the completions of each example disagree, for examples that no earlier step has visited."""
    num_groups = config.rollout.num_groups
    entropies = {}
    for example in sorted(first_visits(len(state.examples), num_groups, seed=state.seed, step=state.step)):
        places = [place for place, other in enumerate(batch.example_G) if other == example]
        texts, correct = [batch.texts[place] for place in places], [batch.correct_G[place] for place in places]
        entropies[example] = answer_entropy(texts, correct)
    return entropies


def _batch_metrics(batch: Batch, config: TrialConfig) -> dict[str, float]:
    graded_G = batch.rewards_G[batch.rewards_G.isfinite()]
    rewards_NK = batch.rewards_G.view(-1, config.rollout.group_size)
    return {
        "reward/mean": graded_G.mean().item() if len(graded_G) else 0.0,
        "reward/accuracy": fmean(correct or 0.0 for correct in batch.correct_G),
        "reward/frac_groups_zero_std": zero_std_groups(rewards_NK).float().mean().item(),
        "reward/ungraded": float(len(batch.rewards_G) - len(graded_G)),
        **_term_metrics(batch, config),
        "rollout/entropy": -sum(sum(c.logprobs) for c in batch.completions) / batch.num_tokens,
        "rollout/length_mean": batch.num_tokens / len(batch.completions),
        "rollout/truncated": fmean(completion.truncated for completion in batch.completions),
        "rollout/empty": fmean(not text.strip() for text in batch.texts),
        "rollout/boxed": fmean(extract_boxed(text) is not None for text in batch.texts),
    }


def _term_metrics(batch: Batch, config: TrialConfig) -> dict[str, float]:
    """Return the mean of each term of the reward, and the number of examples whose function failed."""
    if not config.reward.calls and not batch.terms:
        return {}
    means = {}
    for name, values in batch.terms.items():
        known = [value for value in values if math.isfinite(value)]
        means[f"reward/{name}"] = fmean(known) if known else 0.0
    has_errors = bool(config.reward.calls or config.reward.terms)
    return {**means, **({"reward/errors": float(batch.num_errors)} if has_errors else {})}
