"""A model and a pack -> the hidden state that each completion token is predicted from, and its log-probability.

Shapes: N tokens of the pack, M completion tokens, H hidden size, S positions of a padded row.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from oneshot.policy import attention
from oneshot.policy.output_head import LossOf, Workspace, head_loss, token_logprobs
from oneshot.policy.packing import Pack, pack

log = logging.getLogger(__name__)


def hidden_states(model: Any, batch: Pack) -> Tensor:
    """Last hidden states at the positions before the completion tokens, `[M, H]`, with gradient.

    Packed where the model can; else in rows that repeat the prompt, padded at the right.
    """
    if model.config._attn_implementation != attention.NAME:
        return _hidden_states_in_rows(model, batch)
    hidden_1NH = model.base_model(
        input_ids=batch.ids_N[None],
        position_ids=batch.positions_N[None],
        attention_mask=_NO_MASK.to(batch.ids_N.device),
        blocks=batch.blocks,
        use_cache=False,
    ).last_hidden_state
    hidden_MH: Tensor = hidden_1NH[0].index_select(0, batch.source_M)
    return hidden_MH


# transformers hands a mask of four dimensions on as it is, where none at all would have it look for packs by itself
_NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)


def _hidden_states_in_rows(model: Any, batch: Pack) -> Tensor:
    rows, num_prompt, start = [], [], 0
    for block in batch.blocks:
        prompt_ids, *completions = batch.ids_N[start : start + block.num_tokens].split(
            [block.num_prompt, *block.lengths]
        )
        rows += [torch.cat([prompt_ids, completion]) for completion in completions]
        num_prompt += [block.num_prompt] * len(completions)
        start += block.num_tokens
    ids_GS = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hidden_GSH = model.base_model(input_ids=ids_GS, use_cache=False).last_hidden_state
    return torch.cat(
        [hidden_SH[n - 1 : len(row)] for hidden_SH, row, n in zip(hidden_GSH, rows, num_prompt, strict=True)]
    )


@torch.no_grad()
def completion_logprobs(model: Any, batch: Pack, *, temperature: float, space: Workspace) -> Tensor:
    """Log-probability of each completion token at `temperature`, `[M]`, without gradient."""
    head = model.get_output_embeddings()
    return token_logprobs(hidden_states(model, batch), head, batch.targets_M, temperature=temperature, space=space)


class Scored(torch.nn.Module):
    """A model with its head and our loss behind one forward: shards are gathered as a module's forward begins."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._twice: list[GradientCheckpointingLayer] = []

    def compute_twice(self) -> None:
        """Has each layer computed again in the backward pass, in place of keeping what it computed."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._twice = [layer for layer in self.model.modules() if isinstance(layer, GradientCheckpointingLayer)]

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Layers that are computed twice are so in training mode only, where they have no cache, and so never decode.

        What is within them stays in evaluation mode: there is no dropout.
        """
        for layer in self._twice:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._twice:
                layer.training = False

    def forward(
        self,
        batch: Pack,
        *,
        temperature: float,
        space: Workspace,
        loss_of: LossOf | None = None,
        with_entropy: bool = False,
    ) -> Any:
        """Without `loss_of` the log-probability of each completion token, `[M]`; with it the loss and its metrics.

        The metrics are a mapping, since what stands in a tuple is what hooks look through for gradients.
        """
        if loss_of is None:
            return completion_logprobs(self.model, batch, temperature=temperature, space=space)
        with self._training():
            hidden_MH = hidden_states(self.model, batch)
        output = head_loss(
            hidden_MH,
            self.model.get_output_embeddings(),
            batch.targets_M,
            loss_of,
            temperature=temperature,
            with_entropy=with_entropy,
            space=space,
        )
        return output.loss, output.metrics


@torch.no_grad()
def use_packs(model: Any) -> bool:
    """Lets a model run packed, if that gives what plain rows give; says whether it does."""
    device = next(model.parameters()).device
    probe = pack([[0, 1, 2], [1]], [0, 0, 1], [[1, 0, 1], [0, 2], [2, 0]], range(3), device=device)
    plain_MH = _hidden_states_in_rows(model, probe)
    before = model.config._attn_implementation
    model.config._attn_implementation = attention.NAME
    tolerance = 1e-3 if plain_MH.dtype in (torch.float32, torch.float64) else 5e-2
    try:
        if torch.allclose(hidden_states(model, probe), plain_MH, atol=tolerance, rtol=tolerance):
            return True
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        # attention that packs do not know, or arguments and shapes that the model does not: it runs in rows
        log.info("a pack of %s fails: %s", type(model).__name__, error)
    model.config._attn_implementation = before
    return False
