"""A tokenizer of words `w0 w1 ...`, for models with random weights."""

from pathlib import Path


def write_tokenizer(folder: Path, *, vocabulary: int) -> None:
    """Write it into a model's folder; `w1` ends a completion, `w2` pads, and `w3` stands for unknown words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w2").save_pretrained(folder)
