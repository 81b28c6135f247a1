"""Config and state -> one `StepMetrics` a step: GRPO, top to bottom.

A step samples groups of completions with the current policy, rewards and compares them within their group, and takes
one or more optimiser steps on them. Differs from the paper's text, as its released code does: one update a rollout (so
the clip is never active), log-probabilities and entropy at the sampling temperature.

Shapes: G completions of the step, group after group; N groups of K.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean

import psutil
import torch

from oneshot.config import TrialConfig
from oneshot.grpo.advantage import group_advantages, zero_std_groups
from oneshot.grpo.evaluate import Evaluation, evaluate
from oneshot.grpo.lockstep import Lockstep
from oneshot.grpo.policy import decode
from oneshot.grpo.rollout import Completion, Request, Sampling
from oneshot.grpo.state import TrialState
from oneshot.grpo.update import Batch, update
from oneshot.tasks.grading import extract_boxed
from oneshot.tasks.rewards import reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One training completion, as it is shown to people."""

    example_id: str
    completion: str
    reward: float
    num_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one step gave; step 0 is the evaluation before training and has no completions."""

    step: int
    metrics: dict[str, float]
    evaluations: tuple[Evaluation, ...]
    sampled: tuple[Sampled, ...]


def train(config: TrialConfig, state: TrialState) -> Iterator[StepMetrics]:
    """Runs the trial from where `state` is to its last step; `state` is that of the yielded step at each yield.

    Raises:
        TrialError: the loss or its gradient is not finite.
    """
    if not state.started:
        evaluations = _evaluate(config, state)
        state.started = True
        if evaluations:
            yield StepMetrics(step=0, metrics=_merged(evaluations), evaluations=evaluations, sampled=())
    while state.step < config.train.num_steps:
        yield train_step(config, state)


def train_step(config: TrialConfig, state: TrialState) -> StepMetrics:
    """One rollout, its updates, and the evaluations due after it."""
    start_s = time.perf_counter()
    batch = roll_out(config, state)
    rollout_s = time.perf_counter() - start_s
    metrics = {**_batch_metrics(batch, config), **update(config, state, batch)}
    step_s = time.perf_counter() - start_s
    state.step += 1
    metrics |= {
        "perf/step_s": step_s,
        "perf/rollout_s": rollout_s,
        "perf/update_s": step_s - rollout_s,
        "perf/tokens_per_s": batch.num_tokens / step_s,
        "perf/efficiency": _floor_s(config, state, batch) / step_s,
        "system/rss_gib": psutil.Process().memory_info().rss / 2**30,
    }
    if torch.cuda.is_available():
        metrics["system/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    evaluations = _evaluate(config, state)
    return StepMetrics(
        step=state.step,
        metrics=metrics | _merged(evaluations),
        evaluations=evaluations,
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
    )


def _floor_s(config: TrialConfig, state: TrialState, batch: Batch) -> float:
    """Seconds that the step's matrix products take on this machine."""
    positions = max(len(prompt_ids) for prompt_ids in state.prompts) + config.rollout.max_tokens
    wave_rows = Lockstep(kv_gib=state.kv_gib).wave_rows(state.policy, num_positions=positions)
    return state.floor.step_s(
        prompt_tokens=sum(len(prompt_ids) for prompt_ids in state.prompts),
        completion_tokens=batch.num_tokens,
        decode_rows=min(wave_rows, len(batch.completions)),
        update_rows=min(config.train.microbatch_tokens, batch.num_tokens),
        with_reference=state.reference is not None,
    )


def roll_out(config: TrialConfig, state: TrialState) -> Batch:
    """Samples the step's groups, the examples taking turns; each completion is judged as soon as it has ended."""
    group_size, num_examples = config.rollout.group_size, len(state.examples)
    groups = range(config.rollout.num_groups)
    requests = [
        Request(
            prompt_ids=prompt_ids,
            row_keys=tuple(
                (state.seed, state.step, group * group_size + k)
                for group in groups[example::num_examples]
                for k in range(group_size)
            ),
        )
        for example, prompt_ids in enumerate(state.prompts)
    ]
    judged: dict[tuple[int, int], Future[tuple[str, float]]] = {}

    def judge(example: int, completion: Completion) -> tuple[str, float]:
        text = decode(state.policy, completion.token_ids)
        return text, reward(text, state.examples[example].answer, config.reward, state.grader)

    sampling = Sampling(temperature=config.rollout.temperature, max_tokens=config.rollout.max_tokens)
    # one thread, since a grader answers one question at a time; it mostly waits for the grader's own process
    with ThreadPoolExecutor(max_workers=1) as pool:

        def ended(example: int, row: int, completion: Completion) -> None:
            judged[example, row] = pool.submit(judge, example, completion)

        by_example = state.engine.generate(state.policy, requests, sampling, ended)
    # back to group order, in which the examples take turns: an update on some groups then sees all of them
    order = [
        (group % num_examples, group // num_examples * group_size + k) for group in groups for k in range(group_size)
    ]
    texts, rewards = zip(*(judged[place].result() for place in order), strict=True)
    dtype = torch.float64 if config.model.dtype == "float64" else torch.float32
    rewards_G = torch.tensor(rewards, dtype=dtype, device=state.policy.device)
    return Batch(
        example_G=tuple(example for example, _ in order),
        completions=tuple(by_example[example][row] for example, row in order),
        texts=texts,
        rewards_G=rewards_G,
        advantages_G=group_advantages(rewards_G, group_size=group_size, config=config.advantage),
    )


def _batch_metrics(batch: Batch, config: TrialConfig) -> dict[str, float]:
    graded_G = batch.rewards_G[batch.rewards_G.isfinite()]
    rewards_NK = batch.rewards_G.view(-1, config.rollout.group_size)
    return {
        "reward/mean": graded_G.mean().item() if len(graded_G) else 0.0,
        "reward/frac_groups_zero_std": zero_std_groups(rewards_NK).float().mean().item(),
        "reward/ungraded": float(len(batch.rewards_G) - len(graded_G)),
        "rollout/entropy": -sum(sum(c.logprobs) for c in batch.completions) / batch.num_tokens,
        "rollout/length_mean": batch.num_tokens / len(batch.completions),
        "rollout/truncated": fmean(completion.truncated for completion in batch.completions),
        "rollout/empty": fmean(not text.strip() for text in batch.texts),
        "rollout/boxed": fmean(extract_boxed(text) is not None for text in batch.texts),
    }


def _evaluate(config: TrialConfig, state: TrialState) -> tuple[Evaluation, ...]:
    """The suites that are due after this step; those of step 0 become the baseline of `gain`."""
    evaluations = []
    for suite in state.suites:
        due = suite.is_due(
            state.step,
            num_steps=config.train.num_steps,
            at_start=config.eval.at_start,
            also_at=config.eval.also_at,
        )
        if not due:
            continue
        evaluation = evaluate(
            state.policy,
            suite,
            engine=state.engine,
            grader=state.grader,
            prompt=config.prompt,
            seed=state.seed,
            step=state.step,
        )
        accuracy = evaluation.metrics[f"eval/{suite.name}/pass_at_1"]
        if state.step == 0:
            state.baseline[suite.name] = accuracy
        if suite.name in state.baseline:
            evaluation.metrics[f"eval/{suite.name}/gain"] = accuracy - state.baseline[suite.name]
        evaluations.append(evaluation)
    return tuple(evaluations)


def _merged(evaluations: tuple[Evaluation, ...]) -> dict[str, float]:
    return {name: value for evaluation in evaluations for name, value in evaluation.metrics.items()}
