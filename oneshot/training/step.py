"""Packs of completions and a loss -> one optimiser step. Every training method takes its steps here.

A completion is what the model learns from: a sampled completion, or a written solution.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from oneshot.config.trial import TrialConfig
from oneshot.errors import TrialError
from oneshot.policy.output_head import LossOutput
from oneshot.policy.packing import Pack, in_order, micro_batches, pack
from oneshot.policy.weights import Weights
from oneshot.training.critic import Critic
from oneshot.training.schedule import learning_rate
from oneshot.training.state import TrainingState

PackLoss = Callable[[Pack, bool], LossOutput]
"""A pack, and whether it counts -> its part of the step's loss, 0 if it does not count."""


def packs(
    config: TrialConfig,
    state: TrainingState,
    prompt_of: Sequence[int],
    completions: Sequence[Sequence[int]],
    members: Sequence[int],
) -> Iterator[tuple[Pack, bool]]:
    """Yield this process' share of the completions in packs of at most `microbatch_tokens` tokens, and if they count.

    All processes need the same number of packs, because FSDP gathers shards from all at once. A process with fewer
    packs repeats one, which does not count.
    """
    limit, size = config.train.microbatch_tokens, state.world.size
    # dealt out by length, so that all processes have about the same number of tokens
    members = in_order(prompt_of, completions, members)
    shares = [
        micro_batches(state.prompts, prompt_of, completions, members[rank::size], max_tokens=limit)
        for rank in range(size)
    ]
    share = shares[state.world.rank]
    spare = share[-1] if share else members[:1]
    for number in range(max(map(len, shares))):
        counts = number < len(share)
        chosen = share[number] if counts else spare
        yield pack(state.prompts, prompt_of, completions, chosen, device=state.policy.device), counts


def accumulate(
    state: TrainingState,
    packed: Iterable[tuple[Pack, bool]],
    loss: PackLoss,
    *,
    names: Iterable[str],
    weights: Weights | None = None,
) -> dict[str, float]:
    """Add the packs' gradient to the master weights; return the metrics, with 0 for those of `names` without a pack.

    `weights` are the policy's, unless others are given.

    Each process computes its own packs; sums are over all processes.
    """
    weights = weights or state.weights
    metrics = {name: torch.zeros((), device=state.policy.device) for name in names}
    for micro_batch, counts in packed:
        output = loss(micro_batch, counts)
        state.world.accelerator.backward(output.loss * weights.loss_scale)
        for name, value in output.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
        del output  # free the graph before the next one
        weights.collect()
    weights.complete(state.world)
    return state.world.sums({name: value.item() for name, value in metrics.items()})


def take_step(config: TrialConfig, state: TrainingState, metrics: dict[str, float], *, update: int = 0) -> None:
    """Take an optimiser step with the accumulated gradient, and add its norm to the metrics.

    `update` counts the optimiser steps of this step, from 0. A gradient that overflows in float16 is dropped, which
    `optim/skipped` counts, and has no norm.

    Raises TrialError: the loss or its gradient is not finite; the weights stay as they were.
    """
    scale, weights = state.loss_scale, state.weights
    if scale.is_used:
        metrics |= {"optim/loss_scale": scale.value, "optim/skipped": 0.0}
        for master in weights.master.values():
            assert master.grad is not None, "`accumulate` completes the gradients"
            master.grad /= scale.value
    metrics["loss/grad_norm"] = _clip(config, state, weights)
    if math.isfinite(metrics["loss/total"]) and not math.isfinite(metrics["loss/grad_norm"]) and scale.can_fall:
        del metrics["loss/grad_norm"]
        metrics["optim/skipped"] = 1.0
        scale.update(is_finite=False)
        state.optimizer.zero_grad()
        return
    _check_finite(state, metrics, "loss/total", "loss/grad_norm")
    if config.optim.schedule.has_length:
        metrics["optim/lr"] = rate = learning_rate(config, step=state.step, update=update)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
    state.optimizer.step()
    scale.update(is_finite=True)
    state.optimizer.zero_grad()  # frees memory for the next rollout
    state.weights.publish()


def take_critic_step(config: TrialConfig, state: TrainingState, critic: Critic, metrics: dict[str, float]) -> None:
    """Take the critic's optimiser step, at its own constant learning rate, and add its gradient's norm to the metrics.

    Raises TrialError: its loss or its gradient is not finite.
    """
    metrics["critic/grad_norm"] = _clip(config, state, critic.weights)
    _check_finite(state, metrics, "critic/loss", "critic/grad_norm")
    critic.optimizer.step()
    critic.optimizer.zero_grad()
    critic.weights.publish()


def _clip(config: TrialConfig, state: TrainingState, weights: Weights) -> float:
    """Clip a gradient; return its norm before that."""
    norm = state.world.accelerator.clip_grad_norm_(weights.master.values(), config.optim.grad_clip)
    return weights.whole(norm).item()


def _check_finite(state: TrainingState, metrics: dict[str, float], *names: str) -> None:
    """Raise TrialError if a metric is not finite."""
    for name in names:
        if not math.isfinite(metrics[name]):
            raise TrialError(
                f"{name} is {metrics[name]} at step {state.step + 1}; the weights of step {state.step} are kept"
            )
