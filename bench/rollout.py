"""Compare the rollout engines with plain `generate`: `python bench/rollout.py`, in an environment that has vLLM.

All draw completions of one prompt from the same random weights, of equal length (no token ends one) or of skewed
length (each token ends its completion with a probability of 4 / the largest length). Each measurement has a process of
its own. Counted are the tokens of completions a second, in a call after the first one or two. On a CPU the model has
the shape of SmolLM2-135M; on a GPU that of Qwen2.5-1.5B, in bfloat16.

The last line is `ratio: X`: lockstep's rate by the best of the others', the median over the cases. On 2 cores the
cases of 64 x 64 in float32 take about ten minutes; the others take far longer.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from grpo_step import QWEN, SMOLLM2
from peers import generated_tokens
from words import write_tokenizer

PROMPT_TOKENS = 64
TEMPERATURE = 1.0
NUM_WARMUPS = {"lockstep": 2, "vllm": 1, "generate": 1}
"""Only after lockstep's first call is its memory reused."""
NUM_CALLS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is sampled."""

    rows: int
    max_tokens: int
    dtype: str
    skewed: bool

    def __str__(self) -> str:
        lengths = "skewed" if self.skewed else "equal"
        return f"{self.rows} x {self.max_tokens}, {lengths} lengths, {self.dtype}"


def cases(*, on_gpu: bool) -> list[Case]:
    """Return the cases of this machine."""
    sizes, dtypes = ([(1024, 1000)], ["bfloat16"]) if on_gpu else ([(64, 64), (256, 128)], ["float32", "bfloat16"])
    return [
        Case(rows=rows, max_tokens=max_tokens, dtype=dtype, skewed=skewed)
        for rows, max_tokens in sizes
        for dtype in dtypes
        for skewed in (False, True)
    ]


def make_model(folder: Path, *, on_gpu: bool) -> None:
    """Write a Llama with random weights and a tokenizer of words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    shape, vocabulary = (QWEN, 151_936) if on_gpu else (SMOLLM2, 49_152)
    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        pad_token_id=2, **shape,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, vocabulary=vocabulary)


def measure(engine: str, case: Case, folder: Path) -> dict[str, float]:
    """Return an engine's tokens a second, and the mean length of its completions."""
    import torch

    from oneshot.config.model import ModelConfig
    from oneshot.config.trial import VllmConfig
    from oneshot.policy.loading import load_policy
    from oneshot.policy.policy import use_cpus
    from oneshot.policy.weights import split_weights
    from oneshot.rollout.engine import PromptRequest, Sampling
    from oneshot.rollout.lockstep import Lockstep
    from oneshot.rollout.vllm import Vllm

    use_cpus(os.cpu_count() or 1)
    config = ModelConfig(path=str(folder), dtype=case.dtype)
    policy = load_policy(config)
    if torch.cuda.is_available():
        policy.model.to("cuda")
    weights = split_weights(policy.model, config)
    # random weights sample almost evenly from the vocabulary
    ends = range(0, len(policy.model.get_output_embeddings().weight), case.max_tokens // 4) if case.skewed else ()
    policy.eos_ids = tuple(ends)
    prompt = tuple(range(3, 3 + PROMPT_TOKENS))
    sampling = Sampling(temperature=TEMPERATURE)
    longest = PROMPT_TOKENS + case.max_tokens
    kv_gib = 1.1 * case.rows * longest * policy.kv_bytes / 2**30
    engines: dict[str, Callable[[], Any]] = {
        "lockstep": lambda: Lockstep(kv_gib=kv_gib, lasts=True),
        "vllm": lambda: Vllm(
            model=config, settings=VllmConfig(max_num_seqs=case.rows), max_positions=longest, kv_gib=kv_gib
        ),
    }
    made = engines[engine]() if engine in engines else None
    if made is not None:
        made.wake(policy, weights)

    def by_engine(call: int) -> int:
        request = PromptRequest(
            prompt_ids=prompt, row_keys=tuple((call, row) for row in range(case.rows)), max_tokens=case.max_tokens
        )
        (completions,) = made.generate(policy, [request], sampling)
        return sum(len(completion.token_ids) for completion in completions)

    def by_generate(call: int) -> int:
        return generated_tokens(
            policy, prompt, rows=case.rows, max_tokens=case.max_tokens, temperature=TEMPERATURE, seed=call
        )

    generate = by_generate if made is None else by_engine
    rates, lengths = [], []
    for call in range(NUM_WARMUPS[engine] + NUM_CALLS):
        start_s = time.perf_counter()
        lengths.append(generate(call))
        rates.append(lengths[-1] / (time.perf_counter() - start_s))
    return {
        "tokens_per_s": statistics.median(rates[NUM_WARMUPS[engine] :]),
        "mean_length": statistics.fmean(lengths) / case.rows,
    }


def in_its_own_process(engine: str, case: int, folder: Path) -> dict[str, float]:
    """Run one measurement, whose last line of output is its result in JSON."""
    command = [sys.executable, __file__, "--worker", engine, "--case", str(case), "--folder", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        sys.exit(f"{engine} failed:\n{process.stderr[-4000:]}")
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure all cases, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cases whose names contain this text, as `64 x 64`")
    parser.add_argument("--worker", choices=NUM_WARMUPS, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    from oneshot.models.engines import has_vllm, vllm_version

    on_gpu = torch.cuda.is_available()
    if options.worker:
        print(json.dumps(measure(options.worker, cases(on_gpu=on_gpu)[options.case], options.folder)))
        return
    engines = [name for name in NUM_WARMUPS if name != "vllm" or has_vllm()]
    versions = {name: version(name) for name in ("torch", "transformers")} | {"vllm": vllm_version()}
    device = torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} cores"
    print(f"{device}, Python {platform.python_version()}, {versions}; tokens of completions a second")
    ratios = []
    with tempfile.TemporaryDirectory() as path:
        make_model(Path(path), on_gpu=on_gpu)
        for number, case in enumerate(cases(on_gpu=on_gpu)):
            if options.only not in str(case):
                continue
            rates = {name: in_its_own_process(name, number, Path(path)) for name in engines}
            best = max(rates[name]["tokens_per_s"] for name in engines if name != "lockstep")
            ratios.append(rates["lockstep"]["tokens_per_s"] / best)
            parts = (f"{name} {rate['tokens_per_s']:,.0f}" for name, rate in rates.items())
            lengths = ", ".join(f"{rate['mean_length']:.0f}" for rate in rates.values())
            print(f"{case}: {', '.join(parts)}; mean length {lengths}; ratio {ratios[-1]:.2f}", flush=True)
    print(f"ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
