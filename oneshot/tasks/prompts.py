"""Problem -> the token ids that the model continues."""

from typing import Any

from oneshot.config import PromptConfig
from oneshot.errors import ModelError


def plain(text: str) -> str:
    """The prompt of a model without chat template: the text and a newline."""
    return f"{text}\n"


def with_suffix(text: str, suffix: str) -> str:
    """`text` ending in `suffix`, once: the released training prompts carry theirs already."""
    if not suffix or text.rstrip().endswith(suffix):
        return text
    return f"{text} {suffix}"


def encode(text: str, *, suffix: str, config: PromptConfig, tokenizer: Any) -> list[int]:
    """What is asked -> token ids, by the tokenizer's own chat template or plain.

    Raises:
        ModelError: `template: chat`, and the tokenizer has none.
    """
    asked = with_suffix(text, suffix)
    has_template = bool(tokenizer.chat_template)
    if config.template == "chat" and not has_template:
        raise ModelError("prompt.template: chat, but the model's tokenizer has no chat template; use plain or auto")
    if config.template == "plain" or not has_template:
        ids: list[int] = tokenizer.encode(plain(asked))
        return ids
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True, tokenize=False
    )
    encoded: list[int] = tokenizer.encode(rendered, add_special_tokens=False)
    return encoded
