"""A model and a pack -> the hidden states that predict the completion tokens, their log-probabilities, the loss.

Shapes: N tokens of the pack, M completion tokens, H hidden size, S positions of a padded row.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from oneshot.policy import attention
from oneshot.policy.kernels import named
from oneshot.policy.output_head import LossOf, LossOutput, Workspace, head_loss, token_logprobs
from oneshot.policy.packing import Pack, pack

log = logging.getLogger(__name__)


def hidden_states(model: Any, batch: Pack) -> Tensor:
    """Return the last hidden states at the positions before the completion tokens, `[M, H]`, with gradient.

    A model that cannot run packed gets rows that repeat the prompt, padded on the right.
    """
    if model.config._attn_implementation != attention.NAME:
        return _hidden_states_in_rows(model, batch)
    hidden_1NH = model.base_model(
        input_ids=batch.ids_N[None],
        position_ids=batch.positions_N[None],
        attention_mask=_NO_MASK.to(batch.ids_N.device),
        batch=batch,
        use_cache=False,
    ).last_hidden_state
    hidden_MH: Tensor = hidden_1NH[0].index_select(0, batch.source_M)
    return hidden_MH


# transformers passes a mask of four dimensions on unchanged; without a mask it would look for packs itself
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
    """Return the log-probability of each completion token at `temperature`, `[M]`, without gradient."""
    head = model.get_output_embeddings()
    return token_logprobs(hidden_states(model, batch), head, batch.targets_M, temperature=temperature, space=space)


class Scored(torch.nn.Module):
    """A model, its head and the loss in one module, since FSDP gathers shards when a module's forward begins."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._checkpointed: list[GradientCheckpointingLayer] = []

    def checkpoint_activations(self) -> None:
        """Make each layer compute again in the backward pass instead of keeping its activations."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._checkpointed = [layer for layer in self.model.modules() if isinstance(layer, GradientCheckpointingLayer)]

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Put checkpointed layers into training mode, without which they would not be checkpointed.

        Such layers have no cache, so they must not decode. Their modules stay in evaluation mode: there is no dropout.
        """
        for layer in self._checkpointed:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._checkpointed:
                layer.training = False

    def forward(
        self,
        batch: Pack,
        *,
        temperature: float,
        space: Workspace,
        loss_of: LossOf | None = None,
        with_entropy: bool = False,
        scale: float = 1.0,
        read: Callable[[Tensor], LossOutput] | None = None,
    ) -> Any:
        """Return the log-probability of each completion token, `[M]`, or with `loss_of` the loss and its metrics.

        The loss's gradient is `scale` times too large. `read` makes a loss of the hidden states, `[M, H]`, which is
        added without that factor.

        The metrics are a mapping, because FSDP's hooks search tuples for tensors with gradients.
        """
        if loss_of is None:
            return completion_logprobs(self.model, batch, temperature=temperature, space=space)
        hidden_MH = self.hidden(batch)
        output = head_loss(
            hidden_MH,
            self.model.get_output_embeddings(),
            batch.targets_M,
            loss_of,
            temperature=temperature,
            with_entropy=with_entropy,
            space=space,
            scale=scale,
        )
        if read is None:
            return output.loss, output.metrics
        added = read(hidden_MH)
        return output.loss + added.loss, {**output.metrics, **added.metrics}

    def hidden(self, batch: Pack) -> Tensor:
        """Return the hidden states that predict the completion tokens, `[M, H]`, with gradient."""
        with self._training(), named("update", batch.ids_N.device):
            return hidden_states(self.model, batch)


@torch.no_grad()
def use_packs(model: Any) -> bool:
    """Let a model run packed if that gives the same result as plain rows; return whether it does."""
    device = next(model.parameters()).device
    probe = pack([[0, 1, 2], [1]], [0, 0, 1], [[1, 0, 1], [0, 2], [2, 0]], range(3), device=device)
    plain_MH = _hidden_states_in_rows(model, probe)
    previous = model.config._attn_implementation
    model.config._attn_implementation = attention.NAME
    tolerance = 1e-3 if plain_MH.dtype in (torch.float32, torch.float64) else 5e-2
    try:
        if torch.allclose(hidden_states(model, probe), plain_MH, atol=tolerance, rtol=tolerance):
            return True
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        # attention that packs do not support, or arguments and shapes that the model does not
        log.info("%s cannot run packed: %s", type(model).__name__, error)
    model.config._attn_implementation = previous
    return False
