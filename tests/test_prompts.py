"""What a model is shown: templates to the letter, worked problems, and the tokens that end an answer."""

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from oneshot.config.evaluation import Template
from oneshot.config.trial import TRAIN_SUFFIX
from oneshot.errors import ModelError
from oneshot.tasks.prompts import FAMILIES, Shot, encode, turn_ends
from oneshot.tiny.make import make_tokenizer

CHATML = ("<|im_start|>", "<|im_end|>")
SPECIAL: dict[Template, tuple[str, ...]] = {
    "qwen2.5-math": CHATML,
    "qwen2.5": CHATML,
    "r1-distill": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    "llama-3.2": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
CHAT_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(*special: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """The organisms' tokenizer with further special tokens."""
    made = make_tokenizer()
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    made.chat_template = chat_template
    return made


def shown(template: Template, text: str, *, suffix: str = "", shots: tuple[Shot, ...] = ()) -> str:
    """The text that a model of the template's family is given, by way of its tokens."""
    made = tokenizer(*SPECIAL.get(template, CHATML), chat_template=CHAT_TEMPLATE if template == "chat" else None)
    ids = encode(text, suffix=suffix, template=template, shots=shots, tokenizer=made)
    return str(made.decode(ids))


RENDERED: dict[Template, str] = {
    "plain": "1+1=?\n",
    "chat": "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n",
    "qwen2.5-math": (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen2.5": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "r1-distill": "<｜begin▁of▁sentence｜><｜User｜>1+1=?<｜Assistant｜><think>\n",
    "llama-3.2": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 17 Apr 2025\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n1+1=?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}

WITH_A_SHOT: dict[Template, str] = {
    "plain": "2+3=?\n\\boxed{5}\n\n1+1=?\n",
    "chat": (
        "<|im_start|>user\n2+3=?<|im_end|>\n<|im_start|>assistant\n\\boxed{5}<|im_end|>\n"
        "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen2.5-math": (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n2+3=?<|im_end|>\n<|im_start|>assistant\n\\boxed{5}<|im_end|>\n"
        "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen2.5": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n2+3=?<|im_end|>\n<|im_start|>assistant\n\\boxed{5}<|im_end|>\n"
        "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "r1-distill": (
        "<｜begin▁of▁sentence｜><｜User｜>2+3=?<｜Assistant｜><think>\n\\boxed{5}<｜end▁of▁sentence｜>"
        "<｜User｜>1+1=?<｜Assistant｜><think>\n"
    ),
    "llama-3.2": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 17 Apr 2025\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n2+3=?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n\\boxed{5}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n1+1=?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}


@pytest.mark.parametrize("template", RENDERED)
def test_a_problem_is_shown_to_the_letter(template: Template) -> None:
    assert shown(template, "1+1=?") == RENDERED[template]


@pytest.mark.parametrize("template", WITH_A_SHOT)
def test_a_worked_problem_stands_before_the_one_that_is_asked(template: Template) -> None:
    assert shown(template, "1+1=?", shots=(("2+3=?", "\\boxed{5}"),)) == WITH_A_SHOT[template]


def test_the_special_tokens_of_a_family_are_one_token_each() -> None:
    made = tokenizer(*CHATML)
    ids = encode("1", suffix="", template="qwen2.5", tokenizer=made)
    # three turns begin, two of them are over
    assert ids.count(made.convert_tokens_to_ids("<|im_start|>")) == 3
    assert ids.count(made.convert_tokens_to_ids("<|im_end|>")) == 2


def test_braces_of_a_problem_stay_what_they_are() -> None:
    text = r"Simplify \frac{1}{2} and {x} and {} and {0}."
    assert shown("qwen2.5", text).endswith(f"user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def test_several_worked_problems_stand_in_their_order() -> None:
    assert shown("plain", "c", shots=(("a", "1"), ("b", "2"))) == "a\n1\n\nb\n2\n\nc\n"


@pytest.mark.parametrize("template", RENDERED)
def test_the_suffix_is_asked_once_of_what_has_it_already(template: Template) -> None:
    once = shown(template, "1+1=?", suffix=TRAIN_SUFFIX)
    assert once == RENDERED[template].replace("1+1=?", f"1+1=? {TRAIN_SUFFIX}")
    assert shown(template, f"1+1=? {TRAIN_SUFFIX}", suffix=TRAIN_SUFFIX) == once


def test_a_worked_problem_is_asked_like_the_others() -> None:
    assert shown("plain", "b", suffix="Go.", shots=(("a", "1"),)) == "a Go.\n1\n\nb Go.\n"


@pytest.mark.parametrize("special", ["none", "chat"])
def test_auto_is_the_chat_template_where_there_is_one(special: str) -> None:
    made = tokenizer(*CHATML, chat_template=CHAT_TEMPLATE if special == "chat" else None)
    ids = encode("1+1=?", suffix="", template="auto", tokenizer=made)
    assert made.decode(ids) == RENDERED["chat" if special == "chat" else "plain"]


def test_a_chat_template_is_asked_for_where_there_is_none() -> None:
    with pytest.raises(ModelError, match="has no chat template; use plain or auto"):
        encode("1", suffix="", template="chat", tokenizer=tokenizer())


@pytest.mark.parametrize("template", FAMILIES)
def test_a_family_whose_tokens_the_tokenizer_lacks_is_refused(template: Template) -> None:
    with pytest.raises(ModelError, match=f"{template}, but the model's tokenizer has no .*; use auto or chat"):
        encode("1", suffix="", template=template, tokenizer=tokenizer())


def ends(made: PreTrainedTokenizerFast) -> set[str]:
    return {str(made.convert_ids_to_tokens(token)) for token in turn_ends(made)}


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("qwen2.5-math", "<|im_end|>"),
        ("qwen2.5", "<|im_end|>"),
        ("r1-distill", "<｜end▁of▁sentence｜>"),
        ("llama-3.2", "<|eot_id|>"),
    ],
)
def test_a_token_of_a_family_that_ends_its_answers_ends_a_turn(template: Template, end: str) -> None:
    assert ends(tokenizer(*SPECIAL[template])) == {end}


def test_the_chat_template_says_what_ends_its_answers() -> None:
    after = "{% for turn in messages %}{{ turn.content }} <|done|>{% endfor %}"
    assert ends(tokenizer("<|done|>", chat_template=after)) == {"<|done|>"}


def test_the_ends_of_the_chat_template_and_of_every_family_count_together() -> None:
    after = "{% for turn in messages %}{{ turn.content }}<|done|>{% endfor %}"
    assert ends(tokenizer("<|done|>", "<|eot_id|>", *CHATML, chat_template=after)) == {
        "<|done|>", "<|eot_id|>", "<|im_end|>",
    }  # fmt: skip


def test_a_template_that_ends_answers_in_plain_text_ends_none_with_a_token() -> None:
    assert ends(tokenizer(chat_template="{% for turn in messages %}{{ turn.content }}\n\n{% endfor %}")) == set()


def test_a_tokenizer_without_turns_has_no_end_of_one() -> None:
    assert ends(tokenizer()) == set()
