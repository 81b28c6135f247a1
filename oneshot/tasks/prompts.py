"""Problem -> the token ids that the model continues; template -> the token that ends an answer.

A template is the name of a rule, or a text with `{problem}` that is encoded as it is.

The families' templates (facts/templates.json) are those of the released evaluation (One-Shot-RLVR,
Qwen2.5-Eval/evaluation/utils.py), Llama's with its date. A tokenizer's own template may change with its revision, and
Qwen2.5's has a different system turn.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot.config.evaluation import PROBLEM, Template, is_text
from oneshot.config.trial import PromptConfig, ThinkingStyle
from oneshot.errors import ModelError, first_line

Shot = tuple[str, str]  # A worked problem: prompt and answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A chat template: the texts before the turns, around a user's turn, and after an answer."""

    start: str
    user: str
    end: str  # the text after an answer; its first token ends a completion

    def render(self, shots: Sequence[Shot], prompt: str) -> str:
        """Return the worked turns, and the turn that waits for an answer."""
        turns = [self.user.format(problem) + answer + self.end for problem, answer in shots]
        return self.start + "".join(turns) + self.user.format(prompt)


_TEXTS = json.loads((Path(__file__).parent / "facts" / "templates.json").read_text(encoding="utf-8"))
FAMILIES = {name: Family(**texts) for name, texts in _TEXTS.items()}


def plain(text: str) -> str:
    """Return the prompt of a model without chat template: the text and a newline."""
    return f"{text}\n"


def with_suffix(text: str, suffix: str) -> str:
    """Return `text` ending in `suffix` once: the released training prompts already have it."""
    if not suffix or text.rstrip().endswith(suffix):
        return text
    return f"{text} {suffix}"


def encode(text: str, *, suffix: str, template: Template, shots: Sequence[Shot] = (), tokenizer: Any) -> list[int]:
    """Return the token ids of a prompt after its worked problems, all with the same suffix and template.

    Raises ModelError: the template is `chat` and the tokenizer has none that can be used, or the tokenizer lacks the
    family's tokens.
    """
    prompt = with_suffix(text, suffix)
    worked = [(with_suffix(problem, suffix), answer) for problem, answer in shots]
    kind = _resolved(template, tokenizer)
    if kind == "plain" or is_text(kind):
        ids: list[int] = tokenizer.encode(
            "".join(f"{_filled(kind, p)}{a}\n\n" for p, a in worked) + _filled(kind, prompt)
        )
        return ids
    rendered = _render(kind, worked, prompt, tokenizer)
    encoded: list[int] = tokenizer.encode(rendered, add_special_tokens=False)
    return encoded


def _filled(kind: Template, problem: str) -> str:
    """Return the prompt of a text that is a template, in which other braces mean nothing; or the plain prompt."""
    return kind.replace(PROBLEM, problem) if is_text(kind) else plain(problem)


def encode_for_training(text: str, config: PromptConfig, *, shots: Sequence[Shot], tokenizer: Any) -> list[int]:
    """Return the token ids of a training prompt. Raises ModelError as `encode` does."""
    return encode(text, suffix=config.train_suffix, template=config.template, shots=shots, tokenizer=tokenizer)


def _render(kind: Template, worked: Sequence[Shot], prompt: str, tokenizer: Any) -> str:
    if kind != "chat":
        return FAMILIES[kind].render(worked, prompt)
    turns = [turn for p, a in worked for turn in ({"role": "user", "content": p}, {"role": "assistant", "content": a})]
    rendered = _apply(tokenizer, [*turns, {"role": "user", "content": prompt}], add_generation_prompt=True)
    if prompt.strip() not in rendered:
        raise ModelError(
            "prompt.template: chat: the tokenizer's chat template leaves out the prompt (does it expect parts, "
            "not text?); use plain or a family's template"
        )
    return rendered


def _apply(tokenizer: Any, turns: list[dict[str, str]], **options: bool) -> str:
    """Render turns by the tokenizer's own template. Raises ModelError: it cannot."""
    try:
        rendered: str = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # the template is a program of the model's author, which may raise anything
        raise ModelError(
            f"prompt.template: chat: the tokenizer's chat template fails ({first_line(error)}); use plain or a "
            "family's template"
        ) from error
    return rendered


def end_id(*, template: Template, tokenizer: Any) -> int:
    """Return the token that ends an answer after a prompt of this template: what a solution ends with in training.

    Raises ModelError: the tokenizer has no such token.
    """
    kind = _resolved(template, tokenizer)
    if kind != "plain" and not is_text(kind):
        after = FAMILIES[kind].end if kind != "chat" else _after_answer(tokenizer)
        ids = tokenizer.encode(after.lstrip(), add_special_tokens=False)[:1]
        if ids and ids[0] in _special_ids(tokenizer):
            return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise ModelError("model.path: the tokenizer has no EOS token, with which solutions end; set its eos_token")
    return int(tokenizer.eos_token_id)


def with_thinking(thinking: str, solution: str, *, style: ThinkingStyle, template: Template, is_open: bool) -> str:
    """Return the text that thinks first. `is_open`: the prompt has opened the thinking already, as R1's does.

    `turns` is the form of s1 (arXiv 2501.19393), in which special tokens begin the thinking and the answer.
    """
    if not thinking:
        return solution
    if style == "turns" or (style == "auto" and template == "qwen2.5"):
        return f"<|im_start|>think\n{thinking.strip()}\n<|im_start|>answer\n{solution.strip()}"
    opening = "" if is_open else "<think>\n"
    return f"{opening}{thinking.strip()}\n</think>\n\n{solution.strip()}"


def turn_ends(tokenizer: Any) -> set[int]:
    """Return the special tokens that end an answer in the tokenizer's chat template or in a family's.

    They do not depend on the template in use: a base model that was trained on chats also ends plain text with them.
    """
    after = [family.end for family in FAMILIES.values()]
    if tokenizer.chat_template:
        after.append(_after_answer(tokenizer))
    special = _special_ids(tokenizer)
    firsts = (tokenizer.encode(text.lstrip(), add_special_tokens=False)[:1] for text in after)
    return {int(ids[0]) for ids in firsts if ids and ids[0] in special}


def _after_answer(tokenizer: Any) -> str:
    """Return the text after an answer in the tokenizer's own chat template."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ANSWER"}]
    return _apply(tokenizer, turns).rpartition("ANSWER")[2]


def _special_ids(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}


def _resolved(template: Template, tokenizer: Any) -> Template:
    if is_text(template):
        return template
    if template in FAMILIES:
        name = FAMILIES[template].end.strip()
        if len(tokenizer.encode(name, add_special_tokens=False)) != 1:
            raise ModelError(f"prompt.template: {template}, but the model's tokenizer has no {name}; use auto or chat")
        return template
    if template == "plain" or (template == "auto" and not tokenizer.chat_template):
        return "plain"
    assert template in ("auto", "chat"), "templates.with_texts replaces other names"
    if not tokenizer.chat_template:
        raise ModelError("prompt.template: chat, but the model's tokenizer has no chat template; use plain or auto")
    return "chat"
