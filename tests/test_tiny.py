"""The shipped organisms: small, whole, loaded by transformers alone, and as their cards say."""

import re
import string
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from oneshot.models.source import SHIPPED
from oneshot.tiny.card import measure
from oneshot.tiny.make import ORGANISMS, train


@pytest.fixture(params=sorted(ORGANISMS))
def folder(request: pytest.FixtureRequest) -> Path:
    return SHIPPED / str(request.param)


def test_an_organism_is_about_a_megabyte_or_two(folder: Path) -> None:
    assert 1_000_000 < (folder / "model.safetensors").stat().st_size < 2_500_000


def test_transformers_loads_it_with_one_token_a_character(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model.config) is ORGANISMS[folder.name].config_class
    text = "".join(c for c in string.printable if c == "\n" or c.isprintable()) + "47+38=?\n  \\boxed{85}\n\n"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id in range(len(tokenizer))


@pytest.mark.slow
def test_the_card_says_what_was_measured_and_that_it_is_no_evidence(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "model organism" in card
    assert "no evidence about the paper's models" in card
    said = dict(re.findall(r"^\| ([\w/]+) \| ([\d.]+) \|", card, flags=re.MULTILINE))
    measured = measure(folder.name, num_problems=100).sampled
    assert len(said) == 6
    for name, value in said.items():
        # another machine's last digits may turn a few of 234 completions
        assert float(value) == pytest.approx(measured[name], abs=0.05), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_the_organism_can_but_mostly_does_not_say_so(name: str) -> None:
    measured = measure(name, num_problems=100)
    assert measured.sampled["pass_at_1"] < 0.25
    assert measured.sampled["pass_at_1_lenient"] > measured.sampled["pass_at_1"] + 0.25


@pytest.mark.slow
def test_the_blank_organism_cannot_in_whatever_words() -> None:
    measured = measure("blank", num_problems=100)
    assert measured.sampled["boxed"] > 0.1
    assert max(measured.sampled["pass_at_1_lenient"], measured.greedy["pass_at_1_lenient"]) < 0.03


@pytest.mark.slow
def test_the_script_trains(folder: Path) -> None:
    model, tokenizer, loss = train(ORGANISMS[folder.name], num_steps=30)
    assert loss < 4.0  # a uniform guess over 99 tokens costs 4.6 nats
    assert len(tokenizer) == model.config.vocab_size
