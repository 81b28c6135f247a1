"""Requests -> completions under budget forcing: thinking of at most so many tokens, and then an answer.

Thinking that ends early is continued with `Wait`, as often as the suite asks for it. Thinking that has used its budget
is ended, and the answer is asked for. Unlike the released code, this keeps the answer's tokens in reserve.

All rows think in rounds, one call of the engine each, and then answer in one call. The random key of a row's later
calls ends in their number, so that its draws do not depend on other rows. Source: s1, arXiv 2501.19393, section 3.1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from oneshot.config.evaluation import ThinkingConfig
from oneshot.policy.policy import Policy
from oneshot.rollout.engine import Completion, Engine, PromptRequest, Sampling
from oneshot.rollout.stops import num_before


@dataclass(frozen=True, slots=True, kw_only=True)
class Forced:
    """One completion of thinking, the text that ends it, and an answer."""

    token_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    truncated: bool  # the answer has all tokens that it may have, and no end
    thinking_tokens: int  # between the prompt and the text that ends thinking
    waits: int
    forced_end: bool  # thinking used up its budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The suite's rule with its texts as token ids."""

    config: ThinkingConfig
    tokenizer: Any
    wait_ids: tuple[int, ...]
    close_ids: tuple[int, ...]  # they end thinking and ask for the answer
    num_end: int  # tokens of `end`, which the budget does not count

    @property
    def num_reserved(self) -> int:
        """Return the positions that thinking leaves free, for its end and the answer."""
        return len(self.close_ids) + self.config.answer_tokens


def rule_of(policy: Policy, config: ThinkingConfig) -> Rule:
    """Return a suite's rule for a policy's tokenizer."""
    texts = (config.wait, f"{config.end}\n{config.then}", config.end)
    wait_ids, close_ids, end_ids = (tuple(policy.tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    return Rule(config=config, tokenizer=policy.tokenizer, wait_ids=wait_ids, close_ids=close_ids, num_end=len(end_ids))


@dataclass(slots=True, kw_only=True)
class _Row:
    """A completion that thinks, or waits for its answer."""

    place: tuple[int, int]  # its request, and its key's index there
    key: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    budget: int
    tokens: tuple[int, ...] = ()
    thinking_tokens: int | None = None  # None while it thinks
    waits: int = 0
    forced_end: bool = False
    num_calls: int = 0

    def request(self, max_tokens: int) -> PromptRequest:
        """Return the request that continues it."""
        key = (*self.key, self.num_calls) if self.num_calls else self.key
        self.num_calls += 1
        return PromptRequest(prompt_ids=self.prompt_ids + self.tokens, row_keys=(key,), max_tokens=max_tokens)

    def think(self, completion: Completion, rule: Rule) -> None:
        """Add what was sampled, and then continue or end thinking."""
        sampled, is_end, left = completion.token_ids, completion.stopped, self.budget - len(self.tokens)
        kept = sampled
        if is_end:
            kept = sampled[: num_before(rule.tokenizer, sampled, rule.config.end)]
        elif not completion.truncated:  # an EOS token
            kept = sampled[:-1]
        self.tokens += kept[:left]
        if completion.truncated or len(kept) > left:
            self._close(rule, forced=True)
        elif self.waits == rule.config.min_waits and is_end:
            self.thinking_tokens = len(self.tokens)
            self.tokens += sampled[len(kept) :]
        elif self.waits == rule.config.min_waits:
            self._close(rule, forced=False)
        elif len(self.tokens) + len(rule.wait_ids) < self.budget:
            self.tokens += rule.wait_ids
            self.waits += 1
        else:  # no room is left for a token after `wait`
            self._close(rule, forced=True)

    def _close(self, rule: Rule, *, forced: bool) -> None:
        self.thinking_tokens, self.forced_end = len(self.tokens), forced
        self.tokens += rule.close_ids

    def forced(self, answer: Completion) -> Forced:
        """Return the whole completion."""
        assert self.thinking_tokens is not None, "it has ended its thinking"
        return Forced(
            token_ids=self.tokens + answer.token_ids,
            answer_ids=answer.token_ids,
            truncated=answer.truncated,
            thinking_tokens=self.thinking_tokens,
            waits=self.waits,
            forced_end=self.forced_end,
        )


def force(
    engine: Engine,
    policy: Policy,
    requests: Sequence[PromptRequest],
    sampling: Sampling,
    config: ThinkingConfig,
    ended: Callable[[int, int, Forced], None],
) -> None:
    """Call `ended` with each completion as soon as its answer has ended; a request's `max_tokens` is its budget.

    Raises NotFiniteError.
    """
    rule = rule_of(policy, config)
    rows = [
        _Row(place=(index, row), key=key, prompt_ids=request.prompt_ids, budget=request.max_tokens)
        for index, request in enumerate(requests)
        for row, key in enumerate(request.row_keys)
    ]
    until_end = replace(sampling, stop=(config.end,))
    while thinking := [row for row in rows if row.thinking_tokens is None]:
        # what has used its budget may still write its end
        asked = [row.request(row.budget - len(row.tokens) + rule.num_end) for row in thinking]
        for row, completion in zip(thinking, chain(*engine.generate(policy, asked, until_end)), strict=True):
            row.think(completion, rule)

    def answered(index: int, _: int, completion: Completion) -> None:
        ended(*rows[index].place, rows[index].forced(completion))

    engine.generate(policy, [row.request(config.answer_tokens) for row in rows], sampling, answered)
