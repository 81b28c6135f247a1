"""One GRPO step of ours against TRL's, and our rollout against plain `generate`: `python bench/grpo_step.py`.

Both sides train the same weights on the same prompt, with the same number of completions of the same length, KL on, in
float32 on a CPU. Every measurement is a process of its own, one after the other, so that neither peak memory nor the
allocator's state leaks from one into the next. TRL runs at its best settings for this machine (they are printed).

The last line is `ratio: X`, the smallest of measured / wanted over the bars below.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 0
NUM_THREADS = os.cpu_count() or 1
TEMPERATURE = 1.0
KL_COEF = 0.001
LR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape: a model, and what a step of it samples."""

    what: str
    rows: int
    max_tokens: int
    prompt_tokens: int
    llama: dict[str, int] | None
    """Shape of a random Llama; None: a shipped or other model, see `make_model`."""
    step_bar: float | None = None
    """How many times faster than TRL our step has to be."""
    rollout_bar: float | None = None
    skewed_bar: float | None = None
    efficiency_bar: float | None = None
    needs_gpu: bool = False


VOCABULARY = 49_152
CASES = {
    "a": Case(
        what="Llama, 4 layers, 96 wide, 49,152 tokens",
        rows=64,
        max_tokens=64,
        prompt_tokens=64,
        llama={"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
               "num_key_value_heads": 2},
        step_bar=8.0, rollout_bar=2.0, skewed_bar=3.0,
    ),
    "b": Case(
        what="SmolLM2-135M's shape",
        rows=64,
        max_tokens=64,
        prompt_tokens=64,
        llama={"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
               "num_key_value_heads": 3},
        step_bar=2.5, rollout_bar=2.0, skewed_bar=3.0, efficiency_bar=0.6,
    ),
    "c": Case(what="the shipped tiny:qwen2", rows=64, max_tokens=56, prompt_tokens=9, llama=None),
}  # fmt: skip


def make_model(case: Case, folder: Path) -> None:
    """Random weights and a tokenizer of words `w0 w1 ...`, as a folder that both sides load."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if case.llama is None:
        from oneshot.models import local_folder

        source = local_folder("tiny:qwen2")
        assert source is not None
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        pad_token_id=2, **case.llama,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w2").save_pretrained(folder)


def prompt_text(case: Case) -> str:
    """A prompt of `case.prompt_tokens` tokens."""
    if case.llama is None:
        return "47+38=?\n"[: case.prompt_tokens]
    return " ".join(f"w{100 + 7 * i}" for i in range(case.prompt_tokens))


def our_state(case: Case, folder: Path) -> tuple[Any, Any]:
    """Config and state of a trial on that prompt whose completions never end before `max_tokens`."""
    from oneshot.config import TrialConfig
    from oneshot.grpo.policy import use_cpus
    from oneshot.grpo.state import new_state
    from oneshot.tasks.grading import Grader

    use_cpus(NUM_THREADS)
    problem = folder / "problem.jsonl"
    problem.write_text(json.dumps({"problem": prompt_text(case), "answer": "1"}) + "\n")
    config = TrialConfig.model_validate(
        {
            "model": {"path": str(folder)},
            "prompt": {"template": "plain", "train_suffix": ""},
            "examples": [f"{problem}:0"],
            "rollout": {
                "num_groups": case.rows // 8,
                "group_size": 8,
                "temperature": TEMPERATURE,
                "max_tokens": case.max_tokens,
            },
            "loss": {"kl_coef": KL_COEF, "entropy_coef": 0.0},
            "optim": {"lr": LR},
        }
    )
    state = new_state(config, seed=SEED, grader=Grader())
    state.policy.eos_ids = (-1,)
    return config, state


def measure_ours(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    from oneshot.grpo.train import train_step

    config, state = our_state(case, folder)
    found = [train_step(config, state).metrics for _ in range(steps + 1)][1:]
    names = ("step_s", "rollout_s", "update_s", "tokens_per_s", "efficiency")
    return {name: statistics.median(m[f"perf/{name}"] for m in found) for name in names}


def measure_trl(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    settings = {
        "per_device_train_batch_size": case.rows, "num_generations": 8, "max_completion_length": case.max_tokens,
        "temperature": TEMPERATURE, "beta": KL_COEF, "learning_rate": LR, "lr_scheduler_type": "constant",
        "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "max_steps": steps + 1,
        "generation_kwargs": {"min_new_tokens": case.max_tokens}, "report_to": "none", "save_strategy": "no",
        "logging_strategy": "no", "seed": SEED, "dataloader_pin_memory": False, "disable_tqdm": True,
    }  # fmt: skip
    trainer = GRPOTrainer(
        model=str(folder),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(output_dir=str(folder / "trl"), **settings),
        train_dataset=Dataset.from_dict({"prompt": [prompt_text(case)] * case.rows}),
        callbacks=[Clock()],
    )
    trainer.train()
    took = [after - before for before, after in zip(ends[1:-1], ends[2:], strict=True)]
    step_s = statistics.median(took)
    return {"step_s": step_s, "tokens_per_s": case.rows * case.max_tokens / step_s, "settings": settings}


def measure_rollout(case: Case, folder: Path, steps: int, *, engine: str, skewed: bool) -> dict[str, Any]:
    """Useful tokens a second; `skewed` lets each token end a completion with probability about 4 / `max_tokens`."""
    from oneshot.grpo.hf import HfGenerate
    from oneshot.grpo.rollout import Request, Sampling

    _, state = our_state(case, folder)
    if skewed:
        # random weights draw nearly evenly from the vocabulary: this share of it ends a completion
        vocabulary = state.policy.model.config.vocab_size
        state.policy.eos_ids = tuple(range(0, vocabulary, case.max_tokens // 4))
    chosen = state.engine if engine == "lockstep" else HfGenerate()
    sampling = Sampling(temperature=TEMPERATURE, max_tokens=case.max_tokens)
    rates, lengths = [], []
    for step in range(steps + 1):
        request = Request(prompt_ids=state.prompts[0], row_keys=tuple((SEED, step, r) for r in range(case.rows)))
        start_s = time.perf_counter()
        (completions,) = chosen.generate(state.policy, [request], sampling)
        lengths.append(sum(len(c.token_ids) for c in completions))
        rates.append(lengths[-1] / (time.perf_counter() - start_s))
    return {"tokens_per_s": statistics.median(rates[1:]), "mean_length": statistics.fmean(lengths) / case.rows}


MEASURES = {
    "ours": measure_ours,
    "trl": measure_trl,
    "rollout": lambda *a: measure_rollout(*a, engine="lockstep", skewed=False),
    "generate": lambda *a: measure_rollout(*a, engine="hf", skewed=False),
    "rollout-skewed": lambda *a: measure_rollout(*a, engine="lockstep", skewed=True),
    "generate-skewed": lambda *a: measure_rollout(*a, engine="hf", skewed=True),
}


def in_its_own_process(measure: str, case: str, folder: Path, steps: int) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--worker",
        measure,
        "--cases",
        case,
        "--folder",
        str(folder),
        "--steps",
        str(steps),
    ]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="a,b,c")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        found = MEASURES[args.worker](CASES[args.cases], args.folder, args.steps)
        found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(found))
        return
    for name in args.cases.split(","):
        case = CASES[name]
        print(name, case.what, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            make_model(case, Path(folder))
            for measure in MEASURES:
                if measure == "trl" and args.no_trl:
                    continue
                found = in_its_own_process(measure, name, Path(folder), args.steps)
                found.pop("settings", None)
                print("  ", measure, {k: round(v, 3) for k, v in found.items()}, flush=True)


if __name__ == "__main__":
    main()
