"""One GRPO step of ours against TRL's, and our rollout against plain `generate`: `python bench/grpo_step.py`.

Both sides train the same weights on the same prompt, with as many completions of the same length, KL on; in float32 on
a CPU. Every measurement is a process of its own, one after the other, so that neither peak memory nor an allocator's
state leaks from one into the next. TRL runs at its best settings for the machine, which are printed.

`efficiency` is the time that the step's matrix products alone take, timed in the same process with the same weights
(`oneshot/training/roofline.py`), over the time that the step took. The last line is `ratio: X`: the smallest, over
cases a and b, of what was measured over its bar; 1 or more is wanted.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

SEED = 0
TEMPERATURE = 1.0
KL_COEF = 0.001
LR = 1e-6
PEER_WARMUPS = 1
"""Ours takes two: what its first update frees is kept for the second one, and only then is nothing asked for again."""
NUM_THREADS = os.cpu_count() or 1
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
           "num_key_value_heads": 3}  # fmt: skip
SMALL = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
QWEN = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, what a step of it samples, and the bars: how many times as fast as the other side ours has to be."""

    what: str
    shape: dict[str, int] | None
    """Of a Llama with random weights; None: the shipped tiny model."""
    vocabulary: int = 49_152
    rows: int = 64
    max_tokens: int = 64
    prompt_tokens: int = 64
    num_warmups: int = 2
    needs_gpu: bool = False
    bars: dict[str, float]


CASES = {
    "a": Case(
        what="Llama, 4 layers, 96 wide, vocabulary of 49,152",
        shape=SMALL,
        bars={"step": 8.0, "rollout": 2.0, "rollout, skewed lengths": 3.0},
    ),
    "b": Case(
        what="SmolLM2-135M's shape",
        shape=SMOLLM2,
        bars={"step": 2.5, "rollout": 2.0, "rollout, skewed lengths": 3.0, "efficiency": 0.6},
    ),
    "c": Case(what="the shipped tiny:qwen2", shape=None, max_tokens=56, prompt_tokens=8, bars={}),
    "d": Case(
        what="Qwen2.5-1.5B's shape, bfloat16 compute",
        shape=QWEN,
        vocabulary=151_936,
        rows=1024,
        max_tokens=1000,
        prompt_tokens=150,
        num_warmups=1,
        needs_gpu=True,
        bars={},
    ),
    "e": Case(
        what="the same, a small step",
        shape=QWEN,
        vocabulary=151_936,
        rows=128,
        max_tokens=512,
        prompt_tokens=150,
        num_warmups=1,
        needs_gpu=True,
        bars={},
    ),
}


def make_model(case: Case, folder: Path) -> None:
    """Random weights and a tokenizer of words `w0 w1 ...`, as a folder that both sides load."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if case.shape is None:
        from oneshot.models.source import local_folder

        source = local_folder("tiny:qwen2")
        assert source is not None
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=case.vocabulary, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=1, pad_token_id=2, **case.shape,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(case.vocabulary)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w2").save_pretrained(folder)


def prompt_text(case: Case) -> str:
    """A prompt of `case.prompt_tokens` tokens."""
    return "47+38=?\n" if case.shape is None else " ".join(f"w{100 + 7 * i}" for i in range(case.prompt_tokens))


def our_state(case: Case, folder: Path) -> tuple[Any, Any]:
    """Config and state of a trial on that prompt whose completions never end before `max_tokens`."""
    from oneshot.config.trial import TrialConfig
    from oneshot.policy.policy import use_cpus
    from oneshot.tasks.grading import Grader
    from oneshot.training.state import new_state

    use_cpus(NUM_THREADS)
    problem = folder / "problem.jsonl"
    problem.write_text(json.dumps({"problem": prompt_text(case), "answer": "1"}) + "\n")
    config = TrialConfig.model_validate(
        {
            "model": {"path": str(folder), "mixed_precision": "bf16" if case.needs_gpu else "no",
                      "device": "cuda" if case.needs_gpu else "cpu"},
            "prompt": {"template": "plain", "train_suffix": ""},
            "examples": [f"{problem}:0"],
            "rollout": {"num_groups": case.rows // 8, "temperature": TEMPERATURE, "max_tokens": case.max_tokens},
            "loss": {"kl_coef": KL_COEF, "entropy_coef": 0.0},
            "optim": {"lr": LR},
        }
    )  # fmt: skip
    state = new_state(config, seed=SEED, grader=Grader())
    state.policy.eos_ids = ()
    return config, state


WHOLE = ("reference",)
"""What is not taken apart: what runs within it has no time of its own."""


class Stopwatch:
    """Adds up the time within calls of some functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._whole: str | None = None

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Counts the block as `name`."""
        if self._whole is not None:
            yield
            return
        self._whole = name if name in WHOLE else None
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._whole = None
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start_s

    def wrap(self, owner: Any, function: str, name: str) -> None:
        """Counts each call of `owner.function` as `name`."""
        inner: Callable[..., Any] = getattr(owner, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                return inner(*args, **kwargs)

        setattr(owner, function, timed)


def measure_ours(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    """Our whole step, the time within each part of it, and its efficiency."""
    import torch

    from oneshot.policy import forward
    from oneshot.rollout import lockstep
    from oneshot.training import update
    from oneshot.training.grpo import train_step

    config, state = our_state(case, folder)
    watch = Stopwatch()
    if not case.needs_gpu:  # on a GPU a call returns before its work is done
        watch.wrap(lockstep._Wave, "_forward", "forward, decoding")
        watch.wrap(lockstep, "logits", "head, decoding")
        watch.wrap(lockstep, "sample", "sampling")
        watch.wrap(forward, "completion_logprobs", "reference")
        watch.wrap(forward, "hidden_states", "forward")
        watch.wrap(forward, "head_loss", "head and loss, forward and backward")
        watch.wrap(update, "token_loss", "loss alone")
        watch.wrap(state.world.accelerator, "backward", "backward")
        watch.wrap(state.world.accelerator, "clip_grad_norm_", "optimiser")
        watch.wrap(state.optimizer, "step", "optimiser")
        watch.wrap(state.optimizer, "zero_grad", "optimiser")
    steps_s, rollouts_s, updates_s, efficiencies, parts = [], [], [], [], []
    for step in range(case.num_warmups + steps):
        watch.seconds.clear()
        metrics = train_step(config, state).metrics
        if step >= case.num_warmups:
            steps_s.append(metrics["perf/step_s"])
            rollouts_s.append(metrics["perf/rollout_s"])
            updates_s.append(metrics["perf/update_s"])
            efficiencies.append(metrics["perf/efficiency"])
            parts.append(dict(watch.seconds))
    tokens = case.rows * case.max_tokens
    found = {
        "step_s": statistics.median(steps_s),
        "rollout_s": statistics.median(rollouts_s),
        "update_s": statistics.median(updates_s),
        "tokens_per_s": tokens / statistics.median(steps_s),
        "efficiency": statistics.median(efficiencies),
        "parts_s": {name: statistics.median(part[name] for part in parts) for name in parts[0]},
    }
    if case.needs_gpu:
        flops = 4 * state.floor.flops(body_tokens=tokens + case.prompt_tokens, head_tokens=tokens)
        found |= {
            "rollout_tokens_per_s": tokens / found["rollout_s"],
            "update_tflops_per_s": flops / found["update_s"] / 1e12,  # forward, backward and reference
            "gpu_peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "gpu_estimate_gib": estimated_gib(config),
        }
    return found


def estimated_gib(config: Any) -> float:
    """What the plan would say of the trial's memory on this GPU."""
    import torch

    from oneshot.config.sweep import ResourceConfig
    from oneshot.models.placement import trial_memory

    total_gib = torch.cuda.mem_get_info()[1] / 2**30
    found = trial_memory(config, ResourceConfig(gpus=1, gpu_gib=total_gib))
    assert found is not None, "the model's config.json says its sizes"
    return found.peak_gib


def measure_trl(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    """TRL's whole step, from one step's end to the next one's."""
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
        "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "max_steps": PEER_WARMUPS + steps,
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
    step_s = statistics.median([after - before for before, after in pairwise(ends)][PEER_WARMUPS:])
    return {"step_s": step_s, "tokens_per_s": case.rows * case.max_tokens / step_s, "settings": settings}


def measure_rollout(case: Case, folder: Path, steps: int, *, ours: bool, skewed: bool) -> dict[str, Any]:
    """Useful tokens a second; `skewed` lets each token end its completion with a probability of 4 / `max_tokens`."""
    import torch

    from oneshot.rollout.engine import PromptRequest, Sampling

    _, state = our_state(case, folder)
    policy = state.policy
    if skewed:
        # random weights draw nearly evenly from the vocabulary: one token in max_tokens / 4 now ends a completion
        policy.eos_ids = tuple(range(0, len(policy.model.get_output_embeddings().weight), case.max_tokens // 4))
    prompt_ids = state.prompts[0]

    def our_length(step: int) -> int:
        request = PromptRequest(prompt_ids=prompt_ids, row_keys=tuple((SEED, step, row) for row in range(case.rows)))
        sampling = Sampling(temperature=TEMPERATURE, max_tokens=case.max_tokens)
        (completions,) = state.engine.generate(policy, [request], sampling)
        return sum(len(completion.token_ids) for completion in completions)

    @torch.no_grad()
    def their_length(step: int) -> int:
        torch.manual_seed(step)
        ids = torch.tensor([prompt_ids], device=policy.device)
        ends = {"eos_token_id": list(policy.eos_ids)} if skewed else {"min_new_tokens": case.max_tokens}
        output = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0,
            num_return_sequences=case.rows, max_new_tokens=case.max_tokens, pad_token_id=policy.pad_id, **ends,
        )[:, ids.shape[1] :]  # fmt: skip
        has_ended = torch.isin(output, torch.tensor(policy.eos_ids or (-1,), device=policy.device)).cumsum(dim=1)
        return int((has_ended == 0).sum() + (has_ended.amax(dim=1) > 0).sum())

    rates, lengths = [], []
    num_warmups = case.num_warmups if ours else PEER_WARMUPS
    for step in range(num_warmups + steps):
        start_s = time.perf_counter()
        lengths.append((our_length if ours else their_length)(step))
        rates.append(lengths[-1] / (time.perf_counter() - start_s))
    return {
        "tokens_per_s": statistics.median(rates[num_warmups:]),
        "mean_length": statistics.fmean(lengths) / case.rows,
    }


MEASURES: dict[str, Callable[[Case, Path, int], dict[str, Any]]] = {
    "ours": measure_ours,
    "trl": measure_trl,
    "lockstep": lambda *a: measure_rollout(*a, ours=True, skewed=False),
    "generate": lambda *a: measure_rollout(*a, ours=False, skewed=False),
    "lockstep, skewed": lambda *a: measure_rollout(*a, ours=True, skewed=True),
    "generate, skewed": lambda *a: measure_rollout(*a, ours=False, skewed=True),
}


def in_its_own_process(measure: str, case: str, folder: Path, steps: int) -> dict[str, Any]:
    """Runs one measurement, which prints its result as a last line of JSON."""
    command = [sys.executable, __file__, "--worker", measure, "--cases", case, "--folder", folder, "--steps", steps]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{measure} of case {case} failed:\n{run.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def run_case(name: str, steps: int, *, with_trl: bool) -> list[float]:
    """Measures and prints one case; returns each measured figure over its bar."""
    case = CASES[name]
    print(
        f"\n({name}) {case.what}: {case.rows} completions of {case.max_tokens} tokens, a prompt of {case.prompt_tokens}"
    )
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(case, Path(folder))
        for measure in MEASURES:
            if measure == "trl" and (not with_trl or case.needs_gpu):
                continue
            found[measure] = in_its_own_process(measure, name, Path(folder), steps)
            figures = {k: v for k, v in found[measure].items() if k not in ("settings", "parts_s")}
            print(f"  {measure:18}", "  ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
    print_parts(found["ours"])
    if "trl" in found:
        print("  TRL's settings:", found["trl"]["settings"])
    ratios = {
        "rollout": found["lockstep"]["tokens_per_s"] / found["generate"]["tokens_per_s"],
        "rollout, skewed lengths": found["lockstep, skewed"]["tokens_per_s"]
        / found["generate, skewed"]["tokens_per_s"],
        "efficiency": found["ours"]["efficiency"],
    }
    if "trl" in found:
        ratios = {"step": found["trl"]["step_s"] / found["ours"]["step_s"], **ratios}
    for what, ratio in ratios.items():
        bar = case.bars.get(what)
        print(f"  {what}: {ratio:.2f}" + (f" (bar {bar:g})" if bar else ""))
    return [ratio / case.bars[what] for what, ratio in ratios.items() if what in case.bars]


def print_parts(ours: dict[str, Any]) -> None:
    """Where our step's time goes, and how much of it is neither forward, backward nor optimiser."""
    parts = ours["parts_s"]
    if not parts:
        return
    print("  our step's seconds:", ", ".join(f"{name} {seconds:.3f}" for name, seconds in parts.items()))
    inside = sum(seconds for name, seconds in parts.items() if name not in ("sampling", "loss alone"))
    outside = ours["step_s"] - inside + parts["loss alone"]
    print(f"  outside model forward, backward and optimiser: {outside / ours['step_s']:.1%}")


def peak_gib() -> float:
    """The most memory that this process has had, as the kernel counts it (`getrusage` would count its parent's too)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 2**20


def versions() -> str:
    """The machine and what runs on it."""
    found = []
    for package in ("torch", "transformers", "trl"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return f"{NUM_THREADS} threads, Python {platform.python_version()}, {', '.join(found)}"


def main() -> None:
    """Measures, or is one measurement's process."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="of a to e (d and e need a GPU); absent: d on a GPU, else a,b,c")
    parser.add_argument(
        "--steps", type=int, default=2, help="measured steps, after those that warm up; their median counts"
    )
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        found = MEASURES[args.worker](CASES[args.cases], args.folder, args.steps)
        found["peak_gib"] = peak_gib()
        print(json.dumps(found))
        return
    print(versions())
    over_bars: list[float] = []
    for name in (args.cases or ("d" if torch.cuda.is_available() else "a,b,c")).split(","):
        over_bars += run_case(name, args.steps, with_trl=not args.no_trl)
    if over_bars:
        print(f"\nratio: {min(over_bars):.2f}")


if __name__ == "__main__":
    main()
