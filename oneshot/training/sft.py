"""Config and state -> one `StepMetrics` per step: supervised fine-tuning (SFT), readable top to bottom.

A step takes the next solutions of a shuffled order, and one optimiser step on `-log p` of their tokens, the end token
included. Prompts are not learned. Tokens weigh the same in the step (`loss.aggregation: token_mean`), or solutions do
(`sequence_mean`). Weights, precision, packs, optimiser and checkpoints are those of GRPO.

Shapes: G solutions of the step, M solution tokens of a micro-batch, n of a chunk of them.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from oneshot.config.loss import LossConfig
from oneshot.config.trial import TrialConfig
from oneshot.policy.output_head import LossOutput, Workspace
from oneshot.policy.packing import Pack
from oneshot.training.free_memory import pop_gpu_peak_gib
from oneshot.training.loss import BatchTotals, token_weights
from oneshot.training.metrics import StepMetrics
from oneshot.training.order import batch_of_step
from oneshot.training.state import TrainingState
from oneshot.training.step import accumulate, packs, take_step


def train_step(config: TrialConfig, state: TrainingState) -> StepMetrics:
    """Learn the next solutions."""
    state.engine.rest()
    start_s = time.perf_counter()
    num_all = len(state.solutions)
    chosen = batch_of_step(num_all, config.train.batch_size, seed=state.seed, step=state.step)
    num_tokens = sum(len(state.solutions[place]) for place in chosen)
    with state.weights.updating():
        metrics = add_gradient(config, state, chosen)
        take_step(config, state, metrics)
    state.step += 1
    step_s = time.perf_counter() - start_s
    metrics |= {
        "sft/epoch": state.step / -(-num_all // config.train.batch_size),
        "sft/num_solutions": float(num_all),
        "sft/num_tokens": float(num_tokens),
        "sft/cut": state.num_cut / num_all,
        "perf/step_s": step_s,
        "perf/tokens_per_s": num_tokens / step_s,
    }
    if torch.cuda.is_available():
        metrics["system/gpu_peak_update_gib"] = state.world.largest(pop_gpu_peak_gib())
    return StepMetrics(step=state.step, metrics=metrics, evaluations=(), sampled=(), visits={})


def add_gradient(config: TrialConfig, state: TrainingState, chosen: Sequence[int]) -> dict[str, float]:
    """Add the gradient of the chosen solutions' loss to the master weights; return the loss."""
    completions = [state.solutions[place] for place in chosen]
    prompt_of = [state.prompt_of[place] for place in chosen]
    lengths_G = torch.tensor([len(tokens) for tokens in completions], device=state.policy.device)
    weights_G = solution_weights(lengths_G, config.loss)
    num_tokens = int(lengths_G.sum())
    space = Workspace.for_chunks(state.policy.model.get_output_embeddings(), num_tokens=num_tokens)

    def loss(batch: Pack, counts: bool) -> LossOutput:
        members = torch.tensor(batch.members, device=weights_G.device)
        weights_M = batch.spread(weights_G[members]) * counts

        def loss_of(logprobs_n: Tensor, _entropy_n: Tensor | None, where: slice) -> LossOutput:
            total = -(logprobs_n * weights_M[where]).sum()
            return LossOutput(loss=total, metrics={"loss/total": total.detach()})

        total, metrics = state.weights.scored(
            batch, temperature=1.0, space=space, loss_of=loss_of, scale=state.loss_scale.value
        )
        return LossOutput(loss=total, metrics=metrics)

    packed = packs(config, state, prompt_of, completions, range(len(chosen)))
    return accumulate(state, packed, loss, names=("loss/total",))


def solution_weights(lengths_G: Tensor, config: LossConfig) -> Tensor:
    """Return the weight of one token of each solution in the step's mean: `[G] -> [G]`, in float64."""
    totals = BatchTotals(num_tokens=int(lengths_G.sum()), num_sequences=len(lengths_G), max_tokens=1)
    return token_weights(lengths_G.double(), config, totals)
