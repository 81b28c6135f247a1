"""A step's graded completions -> its optimiser steps.

Nothing unnecessary is computed: no log-probabilities of the old policy if it is the policy itself, none of the
reference with `kl_coef: 0`, and nothing for completions whose gradient is exactly zero.

Shapes: G completions of the step, group after group; M completion tokens of a micro-batch, n of a chunk of them.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean

import torch
from torch import Tensor

from oneshot.config.trial import TrialConfig
from oneshot.policy.output_head import LossOutput, Workspace
from oneshot.policy.packing import Pack
from oneshot.rollout.engine import Completion
from oneshot.training.critic import Critic, Estimates, estimates, value_loss
from oneshot.training.loss import BatchTotals, correction, sequence_old, token_loss, token_weights
from oneshot.training.mismatch import Mismatch
from oneshot.training.state import TrainingState
from oneshot.training.step import accumulate, packs, take_critic_step, take_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A step's completions with their rewards and advantages."""

    example_G: tuple[int, ...]
    completions: tuple[Completion, ...]
    texts: tuple[str, ...]
    correct_G: tuple[bool | None, ...]  # whether the boxed answer is right, in every arm; None: ungraded
    rewards_G: Tensor
    advantages_G: Tensor
    mismatch: Mismatch  # between sampler and trainer; the update fills it
    terms: Mapping[str, Sequence[float]] = field(default_factory=dict)  # rewards by term of a sum, before its weight
    num_errors: int = 0  # examples whose reward function failed
    spread_N: tuple[bool, ...] = ()  # whether a group's rewards differ, before a penalty for its length

    @property
    def token_ids(self) -> list[tuple[int, ...]]:
        """Return the tokens of each completion."""
        return [completion.token_ids for completion in self.completions]

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of all completions."""
        return sum(len(completion.token_ids) for completion in self.completions)


def join_groups(groups: Sequence[tuple[Batch, int]], *, size: int, like: Batch) -> Batch:
    """Return some groups of `size` completions, each named by its batch and its place there, as one batch.

    The batch has no rewards by term. `like` has the dtypes, since there may be no groups.
    """
    parts = [(batch, slice(place * size, (place + 1) * size)) for batch, place in groups]
    completions = tuple(chain.from_iterable(batch.completions[rows] for batch, rows in parts))
    return Batch(
        example_G=tuple(chain.from_iterable(batch.example_G[rows] for batch, rows in parts)),
        completions=completions,
        texts=tuple(chain.from_iterable(batch.texts[rows] for batch, rows in parts)),
        correct_G=tuple(chain.from_iterable(batch.correct_G[rows] for batch, rows in parts)),
        rewards_G=torch.cat([like.rewards_G[:0], *(batch.rewards_G[rows] for batch, rows in parts)]),
        advantages_G=torch.cat([like.advantages_G[:0], *(batch.advantages_G[rows] for batch, rows in parts)]),
        mismatch=Mismatch(completions, like.rewards_G.device),
    )


def update(config: TrialConfig, state: TrainingState, batch: Batch) -> dict[str, float]:
    """Take the step's optimiser steps, each on whole groups; return the mean of their `loss/...` metrics.

    An optimiser step that has no group is not taken; `optim/skipped` counts them.

    Raises TrialError: the loss or its gradient is not finite; the weights are those before that optimiser step.
    """
    num_updates, size = config.train.updates_per_rollout, config.rollout.group_size
    num_groups = len(batch.completions) // size
    metrics: dict[str, list[float]] = defaultdict(list)
    if config.rollout.resample:
        metrics["optim/skipped"] = [0.0]
    with state.weights.updating():
        old = Old(
            logprobs=_old_logprobs(config, state, batch) if num_updates > 1 else None,
            critic=None if state.critic is None else _estimates(config, state, state.critic, batch),
        )
        for number in range(num_updates):
            # as even as whole groups allow: resampling may leave any number of them
            start, end = (size * (place * num_groups // num_updates) for place in (number, number + 1))
            if start == end:
                metrics["optim/skipped"].append(1.0)
                continue
            for name, value in optimizer_step(config, state, batch, range(start, end), old, number).items():
                metrics[name].append(value)
    means = {name: fmean(values) for name, values in metrics.items()} | batch.mismatch.metrics(state.world)
    means |= {} if old.critic is None else old.critic.metrics()
    return means | ({"optim/skipped": sum(metrics["optim/skipped"])} if "optim/skipped" in metrics else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Old:
    """What is known of a step's completions before its first update."""

    logprobs: Mapping[int, Tensor] | None = None  # by completion, `[tokens]`; None: one update, whose policy sampled
    critic: Estimates | None = None


def optimizer_step(
    config: TrialConfig, state: TrainingState, batch: Batch, chosen: range, old: Old, number: int
) -> dict[str, float]:
    """Add up the gradient of the chosen completions, micro-batch by micro-batch, and take optimiser step `number`."""
    metrics, num_trained = add_gradient(config, state, batch, chosen, old)
    critic = state.critic
    if critic is not None and old.critic is not None:
        if critic.has_body:
            metrics |= _add_critic_gradient(config, state, critic, batch, chosen, old.critic)
        else:
            critic.weights.complete(state.world)
        take_critic_step(config, state, critic, metrics)
        if state.step < critic.config.warmup_steps:
            state.optimizer.zero_grad()
            return metrics | {"loss/frac_skipped": 1.0}
    take_step(config, state, metrics, update=number)
    return metrics | {"loss/frac_skipped": 1 - num_trained / len(chosen)}


def _weights(config: TrialConfig, batch: Batch, chosen: range) -> tuple[Tensor, int]:
    """Return the weight of one token of each completion in the chosen ones' mean, `[G]`, and their number of tokens."""
    # tokens that are left out do not count in a mean over tokens; their completions count in means over completions
    lengths_G = torch.tensor([0 if _is_masked(config, c) else len(c.token_ids) for c in batch.completions])
    totals = BatchTotals(
        num_tokens=int(lengths_G[list(chosen)].sum()), num_sequences=len(chosen), max_tokens=config.rollout.max_tokens
    )
    return token_weights(lengths_G.to(batch.advantages_G), config.loss, totals), totals.num_tokens


def add_gradient(
    config: TrialConfig, state: TrainingState, batch: Batch, chosen: range, old: Old
) -> tuple[dict[str, float], int]:
    """Add the chosen completions' gradient to the master weights; return the metrics, and how many had a gradient."""
    device = state.policy.device
    weights_G, num_tokens = _weights(config, batch, chosen)
    trained = [index for index in chosen if not _has_no_gradient(config, batch, index)]
    space = Workspace.for_chunks(state.policy.model.get_output_embeddings(), num_tokens=num_tokens)
    shared = None if state.critic is None or state.critic.has_body else state.critic

    def loss(micro_batch: Pack, counts: bool) -> LossOutput:
        members = torch.tensor(micro_batch.members, device=device)
        weights_M = micro_batch.spread(weights_G[members]) * counts
        known = old.critic
        return _loss(
            config,
            state,
            micro_batch,
            space,
            advantages_M=micro_batch.spread(batch.advantages_G[members])
            if known is None
            else micro_batch.joined(known.advantages),
            weights_M=weights_M,
            old_M=None if old.logprobs is None else micro_batch.joined(old.logprobs),
            sampler=batch.mismatch,
            # after an update, the policy is no longer the one that sampled
            compares=counts and old.logprobs is None,
            read=None
            if shared is None or known is None
            else lambda hidden_MH: _value_loss(
                shared, hidden_MH, known, micro_batch, weights_M, coef=shared.config.coef
            ),
        )

    # a step that skips every completion has these metrics, too
    names = ("loss/total", "loss/pg", "loss/clip_fraction", *(() if shared is None else ("critic/loss",)))
    packed = packs(config, state, batch.example_G, batch.token_ids, trained)
    return accumulate(state, packed, loss, names=names), len(trained)


def _loss(
    config: TrialConfig,
    state: TrainingState,
    batch: Pack,
    space: Workspace,
    *,
    advantages_M: Tensor,
    weights_M: Tensor,
    old_M: Tensor | None,
    sampler: Mismatch,
    compares: bool,
    read: Callable[[Tensor], LossOutput] | None = None,
) -> LossOutput:
    """Return one micro-batch's part of the loss; with `compares`, measure its distance to the sampler."""
    temperature = config.rollout.temperature
    corrects = config.rollout.correction == "token"
    sampled_M = sampler.sampled(batch, like=weights_M) if corrects or compares else None
    ref_M = None if state.reference is None else state.reference(batch, temperature=temperature, space=space)
    base_M = old_M  # of the ratio
    if old_M is not None and config.loss.ratio == "sequence":
        base_M = sequence_old(state.weights.scored(batch, temperature=temperature, space=space), old_M, batch.lengths)

    def loss_of(logprobs_n: Tensor, entropy_n: Tensor | None, where: slice) -> LossOutput:
        old_n = None if old_M is None else old_M[where]
        advantages_n = advantages_M[where]
        if sampled_M is not None and compares:
            sampler.add(sampled_M[where], logprobs_n)
        if sampled_M is not None and corrects:
            advantages_n = advantages_n * correction(logprobs_n if old_n is None else old_n, sampled_M[where])
        return token_loss(
            logprobs_n,
            None if base_M is None else base_M[where],
            None if ref_M is None else ref_M[where],
            advantages_n,
            weights_M[where],
            config.loss,
            entropy=entropy_n,
        )

    loss, metrics = state.weights.scored(
        batch,
        temperature=temperature,
        space=space,
        loss_of=loss_of,
        with_entropy=config.loss.entropy_coef != 0,
        read=read,
        scale=state.loss_scale.value,
    )
    return LossOutput(loss=loss, metrics=metrics)


def _value_loss(
    critic: Critic, hidden_MH: Tensor, known: Estimates, batch: Pack, weights_M: Tensor, *, coef: float = 1.0
) -> LossOutput:
    """Return one micro-batch's part of the critic's loss, times `coef`; its metric is without it."""
    places = torch.tensor(batch.members, device=weights_M.device)
    values_M = critic.values(hidden_MH)
    losses_M = value_loss(values_M, batch.joined(known.values), batch.joined(known.returns), clip=critic.config.clip)
    total = (losses_M * weights_M * batch.spread(known.graded_G[places])).sum()
    return LossOutput(loss=coef * total, metrics={"critic/loss": total.detach()})


def _add_critic_gradient(
    config: TrialConfig, state: TrainingState, critic: Critic, batch: Batch, chosen: range, known: Estimates
) -> dict[str, float]:
    """Add the gradient of the critic's own model for the chosen completions; return the loss."""
    weights_G, _ = _weights(config, batch, chosen)

    def loss(micro_batch: Pack, counts: bool) -> LossOutput:
        places = torch.tensor(micro_batch.members, device=weights_G.device)
        weights_M = micro_batch.spread(weights_G[places]) * counts
        return _value_loss(critic, critic.reader.hidden(micro_batch), known, micro_batch, weights_M)

    judged = [index for index in chosen if not _is_masked(config, batch.completions[index])]
    packed = packs(config, state, batch.example_G, batch.token_ids, judged)
    return accumulate(state, packed, loss, names=("critic/loss",), weights=critic.weights)


def _estimates(config: TrialConfig, state: TrainingState, critic: Critic, batch: Batch) -> Estimates:
    """Return the critic's view of all completions, before the step's first update."""
    own: dict[int, Tensor] = {}
    everything = range(len(batch.completions))
    for micro_batch, _ in packs(config, state, batch.example_G, batch.token_ids, everything):
        values_M = critic.estimate(micro_batch)
        own.update(zip(micro_batch.members, values_M.split(micro_batch.lengths), strict=True))
    return estimates(batch.rewards_G, _of_all(state, own), config=config)


def _has_no_gradient(config: TrialConfig, batch: Batch, index: int) -> bool:
    """Return whether a completion's gradient is exactly zero: masked, or no advantage, KL term and entropy bonus."""
    if _is_masked(config, batch.completions[index]):
        return True
    if config.critic is not None:
        return False
    return config.loss.kl_coef == 0 and config.loss.entropy_coef == 0 and batch.advantages_G[index].item() == 0


def _is_masked(config: TrialConfig, completion: Completion) -> bool:
    """Return whether the loss leaves a completion out, because it was cut."""
    return config.loss.mask_truncated and completion.truncated


def _old_logprobs(config: TrialConfig, state: TrainingState, batch: Batch) -> dict[int, Tensor]:
    """Return each completion's log-probabilities before the step's first update, by its index."""
    own: dict[int, Tensor] = {}
    everything = range(len(batch.completions))
    space = Workspace.for_chunks(state.policy.model.get_output_embeddings(), num_tokens=batch.num_tokens)
    for micro_batch, counts in packs(config, state, batch.example_G, batch.token_ids, everything):
        logprobs_M = state.weights.scored(micro_batch, temperature=config.rollout.temperature, space=space)
        if counts:
            batch.mismatch.add(batch.mismatch.sampled(micro_batch, like=logprobs_M), logprobs_M)
        own.update(zip(micro_batch.members, logprobs_M.split(micro_batch.lengths), strict=True))
    return _of_all(state, own)


def _of_all(state: TrainingState, own: dict[int, Tensor]) -> dict[int, Tensor]:
    """Return the values of all processes' completions, as another process may train on one, by their index."""
    if state.world.size == 1:
        return own
    pairs = state.world.gather((member, values.cpu().clone()) for member, values in own.items())
    return {member: values.to(state.policy.device) for member, values in pairs}
