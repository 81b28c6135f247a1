"""Prompts -> completions by transformers' plain `generate`: the oracle that lockstep is tested against."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch

from oneshot.policy.policy import Policy
from oneshot.policy.weights import Weights
from oneshot.rollout.engine import Completion, Ended, PromptRequest, Sampling, ignore
from oneshot.rollout.stops import Stops


@dataclass(frozen=True, slots=True, kw_only=True)
class HfGenerate:
    """An engine with one `generate` call per request; the request's keys seed torch's generator."""

    def wake(self, policy: Policy, weights: Weights) -> None:
        """Do nothing: it decodes with the policy's own weights."""

    def rest(self) -> None:
        """Do nothing: nothing lasts."""

    def release(self) -> None:
        """Do nothing: nothing lasts."""

    def generate(
        self, policy: Policy, requests: Sequence[PromptRequest], sampling: Sampling, ended: Ended = ignore
    ) -> list[list[Completion]]:
        """Return the completions of each request, in the order of its keys."""
        completions = []
        for index, request in enumerate(requests):
            completions.append(self._generate_one(policy, request, sampling))
            for row, completion in enumerate(completions[-1]):
                ended(index, row, completion)
        return completions

    @torch.no_grad()
    def _generate_one(self, policy: Policy, request: PromptRequest, sampling: Sampling) -> list[Completion]:
        ids = torch.tensor([list(request.prompt_ids)], device=policy.device)
        greedy = sampling.temperature == 0.0
        options = {} if greedy else {"temperature": sampling.temperature, "top_k": 0, "top_p": sampling.top_p}
        with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
            torch.manual_seed(int.from_bytes(sha256(repr(request.row_keys).encode()).digest()[:8], "big"))
            output = policy.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=not greedy,
                num_return_sequences=1 if greedy else len(request.row_keys),
                max_new_tokens=request.max_tokens,
                eos_token_id=list(policy.eos_ids),
                pad_token_id=policy.pad_id,
                repetition_penalty=1.0,
                return_dict_in_generate=True,
                output_logits=True,
                **options,
            )
        tokens_GT = output.sequences[:, ids.shape[1] :]
        logits_GTV = torch.stack(output.logits, dim=1) / (sampling.temperature or 1.0)
        logprobs_GTV = logits_GTV.log_softmax(dim=-1)
        numbers = [logprobs_GTV.gather(2, tokens_GT[:, :, None]).squeeze(2)]
        if sampling.with_distribution:
            entropies_GT = -(logprobs_GTV.exp() * logprobs_GTV).sum(dim=-1)
            uniform_kls_GT = -math.log(logprobs_GTV.shape[-1]) - logprobs_GTV.mean(dim=-1)
            numbers += [entropies_GT, uniform_kls_GT]
        stops = Stops(policy.tokenizer, sampling.stop) if sampling.stop else None
        rows = [
            _completion(tokens, of_row, policy.eos_ids, stops)
            for tokens, of_row in zip(tokens_GT.tolist(), torch.stack(numbers, dim=1).tolist(), strict=True)
        ]
        return rows * len(request.row_keys) if greedy else rows


def _completion(
    tokens: list[int], numbers: list[list[float]], eos_ids: tuple[int, ...], stops: Stops | None
) -> Completion:
    """Cut a padded row after its first EOS token, or before it after the token that completes a stop string."""
    ends = [position for position, token in enumerate(tokens) if token in eos_ids]
    length = ends[0] + 1 if ends else len(tokens)
    stop = None if stops is None else stops.end(tokens[:length])
    length = length if stop is None else stop
    logprobs, *of_distribution = (tuple(each[:length]) for each in numbers)
    entropies, uniform_kls = of_distribution or ((), ())
    return Completion(
        token_ids=tuple(tokens[:length]),
        logprobs=logprobs,
        truncated=not ends and stop is None,
        stopped=stop is not None,
        entropies=entropies,
        uniform_kls=uniform_kls,
    )
