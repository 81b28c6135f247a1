"""Name of an organism -> its trained model folder: `python -m oneshot.tiny.make qwen2 --out DIR`.

Trains a small causal LM from scratch on `corpus.texts` and saves a plain transformers folder: safetensors, config, and
a character-level tokenizer that `AutoTokenizer` loads. This takes about five minutes on two cores. `card.py` evaluates
the model and writes its card.
"""

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from oneshot.tasks.arithmetic import problem
from oneshot.tasks.prompts import plain
from oneshot.tiny.corpus import Mixture, texts

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
IGNORED = -100  # torch's label for tokens without loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Organism:
    """Settings that an organism is made with; the card beside its weights says what it can do."""

    name: str
    mixture: Mixture
    seed: int
    num_steps: int = 1600
    batch_size: int = 96
    lr: float = 2e-3
    config_class: Any  # transformers' config class, which decides the architecture
    shape: dict[str, Any]


_SMALL = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}

_QWEN2 = Organism(
    name="qwen2",
    mixture=Mixture(worked_boxed=0.15, worked_words=0.35, guess=0.35, guess_right=0.25, guess_boxed=0.7),
    seed=0,
    config_class=Qwen2Config,
    shape={**_SMALL, "intermediate_size": 256},
)

ORGANISMS = {
    "qwen2": _QWEN2,
    "llama": Organism(
        name="llama",
        mixture=Mixture(worked_boxed=0.10, worked_words=0.45, guess=0.30, guess_right=0.2, guess_boxed=0.5),
        seed=1,
        config_class=LlamaConfig,
        shape={**_SMALL, "intermediate_size": 288},
    ),
    # without calculations in its corpus it does not learn the arithmetic, so that there is nothing to elicit
    "blank": replace(_QWEN2, name="blank", mixture=replace(_QWEN2.mixture, worked_boxed=0.0, worked_words=0.0), seed=2),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per printable ASCII character or newline, and three special ones.

    It is a byte-level BPE without merges: `AutoTokenizer` loads every Qwen2 model's tokenizer as Qwen2's own class,
    which silently replaces any other pre-tokenizer.
    """
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    byte_level = {"\n": "Ċ", " ": "Ġ"}
    tokens = [PAD, EOS, UNKNOWN, *(byte_level.get(character, character) for character in characters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def train(organism: Organism, *, num_steps: int | None = None) -> tuple[Any, PreTrainedTokenizerFast, float]:
    """Train from scratch; return the model, its tokenizer and the mean loss (nats per token) of the last 50 steps."""
    tokenizer = make_tokenizer()
    torch.manual_seed(organism.seed)
    model = AutoModelForCausalLM.from_config(
        organism.config_class(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            **organism.shape,
        )
    )
    total = num_steps or organism.num_steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=organism.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / total))
    )
    stream, losses = texts(organism.mixture, seed=organism.seed), []
    for step in range(total):
        prompts, completions = [], []
        for text in (next(stream) for _ in range(organism.batch_size)):
            prompts.append(tokenizer.encode(plain(problem(text.expression).prompt)))
            completions.append([*tokenizer.encode(text.completion), tokenizer.eos_token_id])
        width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
        ids = torch.full((organism.batch_size, width), tokenizer.pad_token_id)
        labels = torch.full_like(ids, IGNORED)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            end = len(prompt) + len(completion)
            ids[row, :end] = torch.tensor(prompt + completion)
            labels[row, len(prompt) : end] = torch.tensor(completion)
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step:5d} of {total}  loss {sum(losses[-50:]) / len(losses[-50:]):.3f}", flush=True)
    return model, tokenizer, sum(losses[-50:]) / len(losses[-50:])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("organism", choices=ORGANISMS)
    parser.add_argument("--out", type=Path, help="folder to write; default: the shipped organism's")
    parser.add_argument("--steps", type=int, help="number of training steps, to try the script quickly")
    arguments = parser.parse_args()
    organism = ORGANISMS[arguments.organism]
    out = arguments.out or Path(__file__).parent / organism.name
    model, tokenizer, loss = train(organism, num_steps=arguments.steps)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(
        f"{organism.name}: {model.num_parameters():,} parameters, last loss {loss:.3f} nats per token, written to {out}"
    )


if __name__ == "__main__":
    main()
