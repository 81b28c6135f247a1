"""Config and state -> one `StepMetrics` a step: GRPO, top to bottom.

A step samples groups of completions with the current policy, rewards and compares them within their group, and takes
one or more optimiser steps on them. Differs from the paper's text, as its released code does: one update a rollout (so
the clip is never active), log-probabilities and entropy at the sampling temperature.

Shapes: G completions of the step, group after group; T token positions.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import psutil
import torch
from torch import Tensor

from oneshot.config import TrialConfig
from oneshot.errors import TrialError
from oneshot.grpo.advantage import group_advantages, zero_std_groups
from oneshot.grpo.evaluate import Evaluation, evaluate
from oneshot.grpo.floor import arithmetic, matmul_flops_per_s
from oneshot.grpo.loss import BatchTotals, grpo_loss
from oneshot.grpo.policy import Rows, completion_logprobs, decode, make_rows
from oneshot.grpo.rollout import Completion, Request, Sampling
from oneshot.grpo.state import TrialState
from oneshot.tasks.grading import extract_boxed
from oneshot.tasks.rewards import rewards


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A step's completions with what the loss needs of them."""

    example_G: tuple[int, ...]
    completions: tuple[Completion, ...]
    texts: tuple[str, ...]
    rewards_G: Tensor
    advantages_G: Tensor


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
    num_tokens = sum(len(completion.token_ids) for completion in batch.completions)
    metrics |= {
        "perf/step_s": step_s,
        "perf/rollout_s": rollout_s,
        "perf/update_s": step_s - rollout_s,
        "perf/tokens_per_s": num_tokens / step_s,
        "perf/efficiency": _floor_s(config, state, num_tokens) / step_s,
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


def _floor_s(config: TrialConfig, state: TrialState, completion_tokens: int) -> float:
    """Seconds that the step's arithmetic takes at the matmul rate of this process."""
    flops = arithmetic(state.policy.model).flops(
        prompt_tokens=sum(len(prompt_ids) for prompt_ids in state.prompts),
        completion_tokens=completion_tokens,
        with_reference=state.reference is not None,
    )
    dtype = torch.bfloat16 if config.model.mixed_precision == "bf16" else state.policy.model.dtype
    return flops / matmul_flops_per_s(state.policy.device.type, dtype, torch.get_num_threads())


def roll_out(config: TrialConfig, state: TrialState) -> Batch:
    """Samples the step's groups, the examples taking turns, and rewards them."""
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
    sampling = Sampling(temperature=config.rollout.temperature, max_tokens=config.rollout.max_tokens)
    with state.accelerator.autocast():
        by_example = state.rollout_engine.generate(state.policy, requests, sampling)
    texts_by_example = [[decode(state.policy, c.token_ids) for c in drawn] for drawn in by_example]
    rewards_by_example = [
        rewards(texts, example.answer, config.reward, state.grader)
        for texts, example in zip(texts_by_example, state.examples, strict=True)
    ]
    # back to group order, in which the examples take turns: an update on some groups then sees all of them
    order = [
        (group % num_examples, group // num_examples * group_size + k) for group in groups for k in range(group_size)
    ]
    example_G = [example for example, _ in order]
    completions = [by_example[example][row] for example, row in order]
    texts = [texts_by_example[example][row] for example, row in order]
    rewards_G = [rewards_by_example[example][row] for example, row in order]
    dtype = torch.float64 if config.model.dtype == "float64" else torch.float32
    rewards_tensor_G = torch.tensor(rewards_G, dtype=dtype, device=state.policy.device)
    return Batch(
        example_G=tuple(example_G),
        completions=tuple(completions),
        texts=tuple(texts),
        rewards_G=rewards_tensor_G,
        advantages_G=group_advantages(rewards_tensor_G, group_size=group_size, config=config.advantage),
    )


def update(config: TrialConfig, state: TrialState, batch: Batch) -> dict[str, float]:
    """The step's optimiser steps, each on whole groups; returns their mean `loss/...` and `rollout/entropy`."""
    num_updates = config.train.updates_per_rollout
    size = len(batch.completions) // num_updates
    old_logprobs = _old_logprobs(config, state, batch) if num_updates > 1 else None
    found: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(batch.completions), size):
        chosen = range(start, start + size)
        for name, value in _optimizer_step(config, state, batch, chosen, old_logprobs).items():
            found[name].append(value)
    return {name: fmean(values) for name, values in found.items()}


def _optimizer_step(
    config: TrialConfig, state: TrialState, batch: Batch, chosen: range, old_logprobs: dict[int, Tensor] | None
) -> dict[str, float]:
    lengths = [len(batch.completions[index].token_ids) for index in chosen]
    totals = BatchTotals(num_tokens=sum(lengths), num_sequences=len(lengths), max_tokens=config.rollout.max_tokens)
    found: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=state.policy.device))
    state.optimizer.zero_grad()
    for indices in _micro_batches(config, state, batch, chosen):
        rows, mask_GT = _rows(state, batch, indices)
        with state.accelerator.autocast():
            logprobs_GT, entropy_GT = completion_logprobs(
                state.policy.model, rows, temperature=config.rollout.temperature
            )
            ref_logprobs_GT = None
            if state.reference is not None:
                with torch.no_grad():
                    ref_logprobs_GT, _ = completion_logprobs(
                        state.reference, rows, temperature=config.rollout.temperature
                    )
        old_GT = None
        if old_logprobs is not None:
            old_GT = torch.nn.utils.rnn.pad_sequence([old_logprobs[index] for index in indices], batch_first=True)
        output = grpo_loss(
            logprobs_GT,
            old_GT,
            ref_logprobs_GT,
            batch.advantages_G[list(indices)],
            mask_GT,
            config.loss,
            entropy_GT=entropy_GT,
            totals=totals,
        )
        state.accelerator.backward(output.loss)
        for name, value in output.metrics.items():
            found[name] = found[name] + value
        found["rollout/entropy"] = found["rollout/entropy"] + (entropy_GT.detach() * mask_GT).sum() / totals.num_tokens
    found["loss/grad_norm"] = state.accelerator.clip_grad_norm_(state.policy.model.parameters(), config.optim.grad_clip)
    metrics = {name: value.item() for name, value in found.items()}
    _check_finite(metrics, state.step + 1)
    state.optimizer.step()
    return metrics


def _check_finite(metrics: dict[str, float], step: int) -> None:
    for name in ("loss/total", "loss/grad_norm"):
        if not torch.isfinite(torch.tensor(metrics[name])):
            raise TrialError(f"{name} is {metrics[name]} at step {step}; the weights of step {step - 1} are kept")


def _micro_batches(config: TrialConfig, state: TrialState, batch: Batch, chosen: range) -> Iterator[tuple[int, ...]]:
    """Completions of like length together, at most `microbatch_tokens` padded tokens a time."""

    def width(index: int) -> int:
        return len(state.prompts[batch.example_G[index]]) + len(batch.completions[index].token_ids)

    taken: list[int] = []
    for index in sorted(chosen, key=width, reverse=True):
        if taken and width(taken[0]) * (len(taken) + 1) > config.train.microbatch_tokens:
            yield tuple(taken)
            taken = []
        taken.append(index)
    yield tuple(taken)


def _rows(state: TrialState, batch: Batch, indices: tuple[int, ...]) -> tuple[Rows, Tensor]:
    rows = make_rows(
        [state.prompts[batch.example_G[index]] for index in indices],
        [batch.completions[index].token_ids for index in indices],
        pad_id=state.policy.pad_id,
        device=state.policy.device,
    )
    return rows, rows.mask_GT


@torch.no_grad()
def _old_logprobs(config: TrialConfig, state: TrialState, batch: Batch) -> dict[int, Tensor]:
    """Each completion's log-probabilities before the step's first update, `[T]` by its index."""
    found: dict[int, Tensor] = {}
    for indices in _micro_batches(config, state, batch, range(len(batch.completions))):
        rows, _ = _rows(state, batch, indices)
        with state.accelerator.autocast():
            logprobs_GT, _ = completion_logprobs(state.policy.model, rows, temperature=config.rollout.temperature)
        for index, logprobs_T in zip(indices, logprobs_GT, strict=True):
            found[index] = logprobs_T[: len(batch.completions[index].token_ids)]
    return found


def _batch_metrics(batch: Batch, config: TrialConfig) -> dict[str, float]:
    graded_G = batch.rewards_G[batch.rewards_G.isfinite()]
    rewards_NK = batch.rewards_G.view(-1, config.rollout.group_size)
    return {
        "reward/mean": graded_G.mean().item() if len(graded_G) else 0.0,
        "reward/frac_groups_zero_std": zero_std_groups(rewards_NK).float().mean().item(),
        "reward/ungraded": float(len(batch.rewards_G) - len(graded_G)),
        "rollout/length_mean": fmean(len(completion.token_ids) for completion in batch.completions),
        "rollout/truncated": fmean(completion.truncated for completion in batch.completions),
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
        with state.accelerator.autocast():
            evaluation = evaluate(
                state.policy,
                suite,
                engine=state.eval_engine,
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
