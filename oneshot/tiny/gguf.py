"""A GGUF file -> a model folder that can be trained: `python -m oneshot.tiny.gguf FILE.gguf FOLDER`.

Some packages contain small language models as quantised GGUF files. transformers reads them into float32. Weights and
tokenizer are then saved like those of any other model, without the quantisation.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(file: Path, folder: Path) -> None:
    """Read a GGUF file and write a folder of safetensors, config and tokenizer."""
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # otherwise `save_pretrained` would describe the float32 weights as quantised
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a .gguf file")
    parser.add_argument("folder", type=Path, help="folder to write")
    arguments = parser.parse_args()
    convert(arguments.file, arguments.folder)


if __name__ == "__main__":
    main()
