"""GRPO's loss on padded rows, one a completion: what `token_loss` gives on packed tokens must equal it."""

from torch import Tensor

from oneshot.config.loss import LossConfig
from oneshot.policy.output_head import LossOutput
from oneshot.training.loss import BatchTotals, sequence_old, token_loss, token_weights


def grpo_loss(
    logprobs_GT: Tensor, old_logprobs_GT: Tensor | None, ref_logprobs_GT: Tensor | None, advantages_G: Tensor,
    mask_GT: Tensor, config: LossConfig, *, entropy_GT: Tensor | None = None, totals: BatchTotals | None = None,
) -> LossOutput:  # fmt: skip
    """The loss of some rows, which are the whole step without `totals`."""
    if totals is None:
        totals = BatchTotals(num_tokens=int(mask_GT.sum()), num_sequences=mask_GT.shape[0], max_tokens=mask_GT.shape[1])
    if config.ratio == "sequence" and old_logprobs_GT is not None:
        is_token, lengths = mask_GT.bool(), [int(length) for length in mask_GT.sum(dim=1)]
        old = sequence_old(logprobs_GT.detach()[is_token], old_logprobs_GT[is_token], lengths)
        old_logprobs_GT = old_logprobs_GT.masked_scatter(is_token, old)
    weights_G = token_weights(mask_GT.sum(dim=1).to(logprobs_GT.dtype), config, totals)
    return token_loss(
        logprobs_GT, old_logprobs_GT, ref_logprobs_GT, advantages_G[:, None].expand_as(logprobs_GT),
        mask_GT * weights_G[:, None], config, entropy=entropy_GT,
    )  # fmt: skip
