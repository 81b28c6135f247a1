"""Demonstrations and a tokenizer -> the token ids that SFT learns, each within the largest length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError
from oneshot.policy.loading import load_tokenizer
from oneshot.tasks import prompts
from oneshot.tasks.examples import load_shots
from oneshot.tasks.prompts import Shot
from oneshot.tasks.solutions import Demonstration, load_demonstrations


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The prompts of an SFT trial, each once, and its solutions."""

    prompts: tuple[tuple[int, ...], ...]
    prompt_of: tuple[int, ...]  # the prompt of each solution
    solutions: tuple[tuple[int, ...], ...]  # token ids, the end token included unless it is cut off
    num_cut: int


def encode_demonstrations(
    config: TrialConfig,
    demonstrations: Sequence[Demonstration],
    *,
    shots: Sequence[Shot],
    tokenizer: Any,
    max_positions: int,
) -> Encoded:
    """Return the token ids of prompts and solutions.

    Raises DataError: a prompt leaves no position, or with `too_long: refuse` a solution is longer than
    `train.max_length` or the model's positions; says how many are, and how long the longest is.
    """
    prompt = config.prompt
    limit = min(config.train.max_length or max_positions, max_positions)
    end = prompts.end_id(template=prompt.template, tokenizer=tokenizer)
    places: dict[tuple[int, ...], int] = {}
    prompt_of, solutions, lengths = [], [], []
    for demonstration in demonstrations:
        problem = demonstration.problem.prompt
        ids = prompts.encode_for_training(problem, prompt, shots=shots, tokenizer=tokenizer)
        if len(ids) >= limit:
            raise DataError(
                f"examples: {demonstration.problem.id}: a prompt of {len(ids)} tokens leaves none of {limit} for a "
                "solution; raise train.max_length, or use a shorter prompt or another model"
            )
        text = prompts.with_thinking(
            demonstration.thinking,
            demonstration.solution,
            style=prompt.thinking,
            template=prompt.template,
            is_open=tokenizer.decode(ids[-8:]).rstrip().endswith("<think>"),
        )
        tokens = (*tokenizer.encode(text, add_special_tokens=False), end)
        lengths.append(len(ids) + len(tokens))
        prompt_of.append(places.setdefault(tuple(ids), len(places)))
        solutions.append(tokens[: limit - len(ids)])
    num_cut = sum(length > limit for length in lengths)
    if num_cut and config.train.too_long == "refuse":
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        raise DataError(
            f"examples: {num_cut} of {len(lengths)} solutions are longer than {limit} tokens with their prompts; the "
            f"longest, {demonstrations[longest].problem.id}, has {lengths[longest]:,}; {_hint(config, limit)}, or set "
            "train.too_long: cut"
        )
    return Encoded(prompts=tuple(places), prompt_of=tuple(prompt_of), solutions=tuple(solutions), num_cut=num_cut)


def check_length(config: TrialConfig) -> None:
    """Encode what an SFT trial learns, as far as it is written, with its model's tokenizer and without its weights.

    Raises UserError: a solution does not fit; says what to do.
    """
    tokenizer, max_positions = load_tokenizer(config.model)
    encode_demonstrations(
        config,
        load_demonstrations(config.examples, None),
        shots=load_shots(config.prompt),
        tokenizer=tokenizer,
        max_positions=max_positions,
    )


def _hint(config: TrialConfig, limit: int) -> str:
    """Return what raises the largest length."""
    if config.train.max_length is not None and config.train.max_length <= limit:
        return "raise train.max_length"
    return "reach more positions by model.max_positions and model.rope_scaling: yarn"
