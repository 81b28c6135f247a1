"""Hidden states and the output head -> log-probabilities, entropy, and a loss of both with its gradients.

Only the logits of a chunk of tokens exist at a time, never those of a whole micro-batch. A loss that is a sum over
tokens can be differentiated within the chunk: its gradient overwrites the logits. Nothing is computed twice, and
nothing as wide as the vocabulary is kept for the backward pass.

Shapes: N tokens, n tokens of a chunk, H hidden size, V vocabulary. Sums over the vocabulary are in float32 or wider.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oneshot.models.memory import CHUNK_LOGITS, NUM_BLOCKS


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """The loss and its detached metrics; those of micro-batches add up to those of the step."""

    loss: Tensor
    metrics: dict[str, Tensor]


LossOf = Callable[[Tensor, Tensor | None, slice], LossOutput]
"""Log-probabilities and entropy of a slice of the tokens, `[n]` each -> the slice's part of the loss."""


@dataclass(slots=True)
class Workspace:
    """Two buffers for a chunk's logits, allocated once: on a CPU fresh memory costs more than the arithmetic."""

    logits_nV: Tensor
    probs_nV: Tensor

    @classmethod
    def empty(cls, head: Any, *, num_rows: int) -> "Workspace":
        """Return uninitialised buffers of `num_rows` rows."""
        weight = head.weight
        shape = (num_rows, len(weight))
        return cls(*(torch.empty(shape, dtype=wide(weight.dtype), device=weight.device) for _ in range(2)))

    @classmethod
    def for_chunks(cls, head: Any, *, num_tokens: int) -> "Workspace":
        """Return buffers for `num_tokens` tokens in chunks of at most `CHUNK_LOGITS`."""
        most = max(1, CHUNK_LOGITS[head.weight.device.type] // len(head.weight))
        return cls.empty(head, num_rows=min(num_tokens, most))

    @property
    def num_rows(self) -> int:
        """Return the number of tokens of the largest chunk."""
        return len(self.logits_nV)

    def rows(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of both buffers."""
        return self.logits_nV[:num_rows], self.probs_nV[:num_rows]


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over the vocabulary: float32 or wider."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def logits(hidden_nH: Tensor, head: Any, *, temperature: float, out: Tensor) -> Tensor:
    """Write `head(hidden) / temperature` into `out`, `[n, V]`.

    The temperature divides the hidden state, which is smaller than the logits by V / H.
    """
    scaled_nH = hidden_nH if temperature == 1.0 else hidden_nH / temperature
    _matmul(scaled_nH, head.weight.T, out=out)
    if head.bias is not None:
        out += head.bias / temperature
    return out


def _matmul(left: Tensor, right: Tensor, *, out: Tensor) -> None:
    """Write a product of narrow or wide matrices into `out`, summed in its wide dtype."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    elif left.is_cuda:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)


def log_normaliser(logits_nV: Tensor, probs_nV: Tensor) -> Tensor:
    """Return the log of each row's sum of exponentials, `[n]`; fill `probs_nV` with the softmax."""
    torch.softmax(logits_nV, dim=-1, out=probs_nV)
    # the mode's probability is at least 1 / V, so its logarithm is exact; an unlikely target's would underflow
    return logits_nV.amax(dim=-1) - probs_nV.amax(dim=-1).log()


def _logprobs(targets_n: Tensor, logits_nV: Tensor, probs_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targets' log-probabilities and the log of the normaliser, `[n]` each; fill `probs_nV`."""
    log_normaliser_n = log_normaliser(logits_nV, probs_nV)
    return logits_nV.gather(1, targets_n[:, None]).squeeze(1) - log_normaliser_n, log_normaliser_n


@torch.no_grad()
def token_logprobs(hidden_NH: Tensor, head: Any, targets_N: Tensor, *, temperature: float, space: Workspace) -> Tensor:
    """Return the natural log of the targets' probabilities at `temperature`, `[N]`, without gradient."""
    parts = []
    for hidden_nH, targets_n in zip(hidden_NH.split(space.num_rows), targets_N.split(space.num_rows), strict=True):
        logits_nV, probs_nV = space.rows(len(targets_n))
        logits(hidden_nH, head, temperature=temperature, out=logits_nV)
        parts.append(_logprobs(targets_n, logits_nV, probs_nV)[0])
    return torch.cat(parts)


def head_loss(
    hidden_NH: Tensor,
    head: Any,
    targets_N: Tensor,
    loss_of: LossOf,
    *,
    temperature: float,
    with_entropy: bool,
    space: Workspace,
    scale: float = 1.0,
) -> LossOutput:
    """Compute a loss over tokens as a function of the hidden states and the head's weights.

    `loss_of` is called once per chunk, with log-probabilities and entropy (nats; None without `with_entropy`) at
    `temperature`; its results are added up. The returned `loss` can be differentiated once. Its gradient is `scale`
    times too large, so that float16 can hold it.
    """
    chunks = _Chunks(hidden_NH.detach(), head, temperature=temperature, space=space, scale=scale)
    output = chunks.run(targets_N, loss_of, with_entropy=with_entropy)
    loss: Tensor = _Differentiated.apply(output.loss, chunks.gradients(), hidden_NH, head.weight, head.bias)  # type: ignore[no-untyped-call]
    return LossOutput(loss=loss, metrics=output.metrics)


class _Differentiated(torch.autograd.Function):
    """A loss whose gradients have been computed already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor | None) -> Tensor:  # noqa: ARG004 (autograd's)
        """Return the loss, and keep each input's gradient for the backward pass."""
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        """Return each gradient times that of the loss, and free them: they are as large as the head."""
        gradients, ctx.gradients = ctx.gradients, ()
        return (None, None, *(None if gradient is None else gradient.mul_(outer) for gradient in gradients))


class _Chunks:
    """A loss over the tokens, computed chunk by chunk, and the sum of its gradients."""

    def __init__(self, hidden_NH: Tensor, head: Any, *, temperature: float, space: Workspace, scale: float) -> None:
        self.hidden_NH, self.head, self.temperature, self.space = hidden_NH, head, temperature, space
        self.scale = scale
        dtype = wide(hidden_NH.dtype)
        self._hidden_grad_NH = torch.empty_like(hidden_NH)
        is_trained = head.weight.requires_grad  # with an adapter the head is frozen
        self._weight_sum_VH = torch.zeros_like(head.weight, dtype=dtype) if is_trained else None
        self._bias_sum_V = None if head.bias is None or not is_trained else torch.zeros_like(head.bias, dtype=dtype)

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Return those of hidden states, weight and bias, in their dtypes."""
        pairs = ((self._weight_sum_VH, self.head.weight), (self._bias_sum_V, self.head.bias))
        return (self._hidden_grad_NH, *(None if total is None else total.to(of.dtype) for total, of in pairs))

    def run(self, targets_N: Tensor, loss_of: LossOf, *, with_entropy: bool) -> LossOutput:
        """Return the whole loss and its metrics, both detached."""
        num_tokens = len(targets_N)
        parts = []
        for start in range(0, num_tokens, self.space.num_rows):
            where = slice(start, min(start + self.space.num_rows, num_tokens))
            parts.append(self._run_chunk(where, targets_N[where], loss_of, with_entropy=with_entropy))
        names = parts[0].metrics
        return LossOutput(
            loss=torch.stack([part.loss for part in parts]).sum(),
            metrics={name: torch.stack([part.metrics[name] for part in parts]).sum() for name in names},
        )

    def _run_chunk(self, where: slice, targets_n: Tensor, loss_of: LossOf, *, with_entropy: bool) -> LossOutput:
        with torch.no_grad():
            hidden_nH = self.hidden_NH[where]
            logits_nV, probs_nV = self.space.rows(len(targets_n))
            logits(hidden_nH, self.head, temperature=self.temperature, out=logits_nV)
            logprobs_n, log_normaliser_n = _logprobs(targets_n, logits_nV, probs_nV)
            entropy_n = log_normaliser_n - row_dot(probs_nV, logits_nV) if with_entropy else None
        inputs = [logprobs_n.requires_grad_()] + ([entropy_n.requires_grad_()] if entropy_n is not None else [])
        with torch.enable_grad():
            output = loss_of(logprobs_n, entropy_n, where)
        used_grads = torch.autograd.grad(output.loss * self.scale, inputs, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, used_grads, strict=True)]
        with torch.no_grad():
            grad_nV = _logits_gradient(targets_n, logits_nV, probs_nV, log_normaliser_n, entropy_n, *grads)
            self._add_gradients(where, grad_nV, hidden_nH)
        return LossOutput(loss=output.loss.detach(), metrics=output.metrics)

    def _add_gradients(self, where: slice, grad_nV: Tensor, hidden_nH: Tensor) -> None:
        """Differentiate `logits = (hidden / temperature) @ weight.T + bias / temperature`."""
        narrow_nV = grad_nV.to(hidden_nH.dtype)
        self._hidden_grad_NH[where] = narrow_nV @ self.head.weight / self.temperature
        if self._weight_sum_VH is None:
            return
        scaled_nH = hidden_nH / self.temperature
        if narrow_nV.dtype == self._weight_sum_VH.dtype:
            self._weight_sum_VH.addmm_(narrow_nV.T, scaled_nH)
        elif narrow_nV.is_cuda:
            # in place: a sum of its own would be a buffer as large as the head
            total_VH = self._weight_sum_VH
            torch.addmm(total_VH, narrow_nV.T, scaled_nH, out_dtype=total_VH.dtype, out=total_VH)
        else:
            self._weight_sum_VH.addmm_(grad_nV.T, scaled_nH.to(grad_nV.dtype))
        if self._bias_sum_V is not None:
            self._bias_sum_V += grad_nV.sum(dim=0) / self.temperature


def row_dot(left_nV: Tensor, right_nV: Tensor) -> Tensor:
    """Return the sum of the products over the vocabulary, `[n]`, a block of rows at a time."""
    # a product as large as the chunk would need a third buffer; 16 rows of it fit into a CPU's cache
    rows = 16 if left_nV.device.type == "cpu" else max(1, len(left_nV) // NUM_BLOCKS)
    pairs = zip(left_nV.split(rows), right_nV.split(rows), strict=True)
    return torch.cat([(left * right).sum(dim=-1) for left, right in pairs])


def _logits_gradient(
    targets_n: Tensor,
    logits_nV: Tensor,
    probs_nV: Tensor,
    log_normaliser_n: Tensor,
    entropy_n: Tensor | None,
    logprob_grad_n: Tensor,
    entropy_grad_n: Tensor | None = None,
) -> Tensor:
    """Return the gradient with respect to the logits, in one of the two buffers.

    With p = softmax(z), Z the normaliser and H the entropy: `d logprob_t / d z_j = [j = t] - p_j` and
    `d H / d z_j = -p_j (z_j - log Z + H)`.
    """
    if entropy_n is None or entropy_grad_n is None:
        grad_nV = probs_nV.mul_(-logprob_grad_n[:, None])
    else:
        constant_n = entropy_grad_n * (log_normaliser_n - entropy_n) - logprob_grad_n
        torch.addcmul(constant_n[:, None], logits_nV, -entropy_grad_n[:, None], out=logits_nV)
        grad_nV = logits_nV.mul_(probs_nV)
    return grad_nV.scatter_add_(1, targets_n[:, None], logprob_grad_n[:, None])
