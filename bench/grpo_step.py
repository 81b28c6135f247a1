"""Compare one GRPO step with TRL's, and our rollout with plain `generate`: `python bench/grpo_step.py`.

Both sides train the same weights on the same prompt, with the same number of completions of the same length, with a KL
term, in float32 on a CPU. Each measurement runs in a process of its own, one after the other, so that neither peak
memory nor an allocator's state affects the next. TRL runs with its best settings for the machine, which are printed.

`efficiency` is the time that the step's matrix products alone take, measured in the same process with the same weights
(`oneshot/training/roofline.py`), divided by the step's time. The last line is `ratio: X`, the smallest quotient of a
measurement and its bar over cases a and b; it should be 1 or more.
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
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peers import NUM_WARMUPS, generated_tokens, trl_steps_s
from stopwatch import Stopwatch, peak_gib
from words import write_tokenizer

SEED = 0
TEMPERATURE = 1.0
KL_COEF = 0.001
LR = 1e-6
NUM_THREADS = os.cpu_count() or 1
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
           "num_key_value_heads": 3}  # fmt: skip
SMALL = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
QWEN = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, what a step samples, and the bars: how many times as fast as the other side ours must be."""

    title: str
    shape: dict[str, int] | None
    """Sizes of a Llama with random weights; None: the shipped tiny model."""
    vocabulary: int = 49_152
    rows: int = 64
    max_tokens: int = 64
    prompt_tokens: int = 64
    num_warmups: int = (
        2  # a peer needs one; only after our first update's memory is reused does a step allocate nothing
    )
    needs_gpu: bool = False
    bars: dict[str, float]


CASES = {
    "a": Case(
        title="Llama, 4 layers, 96 wide, vocabulary of 49,152",
        shape=SMALL,
        bars={"step": 8.0, "rollout": 2.0, "rollout, skewed lengths": 3.0},
    ),
    "b": Case(
        title="SmolLM2-135M's shape",
        shape=SMOLLM2,
        bars={"step": 2.5, "rollout": 2.0, "rollout, skewed lengths": 3.0, "efficiency": 0.6},
    ),
    "c": Case(title="the shipped tiny:qwen2", shape=None, max_tokens=56, prompt_tokens=8, bars={}),
    "d": Case(
        title="Qwen2.5-1.5B's shape, bfloat16 compute",
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
        title="the same, a small step",
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
    """Write a model folder for both sides, with random weights and a tokenizer of words `w0 w1 ...`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
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
    write_tokenizer(folder, vocabulary=case.vocabulary)


def prompt_text(case: Case) -> str:
    """Return a prompt of `case.prompt_tokens` tokens."""
    return "47+38=?\n" if case.shape is None else " ".join(f"w{100 + 7 * i}" for i in range(case.prompt_tokens))


def our_state(case: Case, folder: Path) -> tuple[Any, Any]:
    """Return config and state of a trial on that prompt whose completions never end before `max_tokens`."""
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


def measure_ours(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    """Measure our whole step, the time of its parts, and its efficiency."""

    from oneshot.policy import forward
    from oneshot.rollout import kv_memory, lockstep
    from oneshot.training import update
    from oneshot.training.grpo import train_step

    config, state = our_state(case, folder)
    watch = Stopwatch()
    if not case.needs_gpu:  # on a GPU calls return before their work is done
        watch.wrap(kv_memory.KvMemory, "forward", "forward, decoding")
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
    result = {
        "step_s": statistics.median(steps_s),
        "rollout_s": statistics.median(rollouts_s),
        "update_s": statistics.median(updates_s),
        "tokens_per_s": tokens / statistics.median(steps_s),
        "efficiency": statistics.median(efficiencies),
        "parts_s": {name: statistics.median(part[name] for part in parts) for name in parts[0]},
    }
    if case.needs_gpu:
        flops = 4 * state.floor.flops(body_tokens=tokens + case.prompt_tokens, head_tokens=tokens)
        result |= {
            "rollout_tokens_per_s": tokens / result["rollout_s"],
            "update_tflops_per_s": flops / result["update_s"] / 1e12,  # forward, backward and reference
            "gpu_peak_gib": max(metrics[f"system/gpu_peak_{phase}_gib"] for phase in ("rollout", "update")),
            "gpu_estimate_gib": estimated_gib(config),
        }
    return result


def estimated_gib(config: Any) -> float:
    """Return the plan's estimate of the trial's memory on this GPU."""
    import torch

    from oneshot.config.resources import ResourceConfig
    from oneshot.models.placement import trial_memory

    total_gib = torch.cuda.mem_get_info()[1] / 2**30
    memory = trial_memory(config, ResourceConfig(gpus=1, gpu_gib=total_gib))
    assert memory is not None, "the model's config.json has its sizes"
    return memory.peak_gib


def measure_trl(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    """Measure TRL's whole step."""
    steps_s, settings = trl_steps_s(
        folder, prompt_text(case), rows=case.rows, max_tokens=case.max_tokens, kl_coef=KL_COEF, lr=LR, steps=steps,
        on_gpu=False,
    )  # fmt: skip
    step_s = statistics.median(steps_s)
    return {"step_s": step_s, "tokens_per_s": case.rows * case.max_tokens / step_s, "settings": settings}


def measure_rollout(case: Case, folder: Path, steps: int, *, ours: bool, skewed: bool) -> dict[str, Any]:
    """Measure useful tokens per second; with `skewed` each token ends its completion with probability 4 /
    `max_tokens`."""
    from oneshot.rollout.engine import PromptRequest, Sampling

    _, state = our_state(case, folder)
    policy = state.policy
    if skewed:
        # random weights sample almost uniformly from the vocabulary: one token in max_tokens / 4 ends a completion
        policy.eos_ids = tuple(range(0, len(policy.model.get_output_embeddings().weight), case.max_tokens // 4))
    prompt_ids = state.prompts[0]

    def our_length(step: int) -> int:
        request = PromptRequest(
            prompt_ids=prompt_ids,
            row_keys=tuple((SEED, step, row) for row in range(case.rows)),
            max_tokens=case.max_tokens,
        )
        sampling = Sampling(temperature=TEMPERATURE)
        (completions,) = state.engine.generate(policy, [request], sampling)
        return sum(len(completion.token_ids) for completion in completions)

    def their_length(step: int) -> int:
        return generated_tokens(
            policy, prompt_ids, rows=case.rows, max_tokens=case.max_tokens, temperature=TEMPERATURE, seed=step
        )

    rates, lengths = [], []
    num_warmups = case.num_warmups if ours else NUM_WARMUPS
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
    """Run one measurement, whose last line of output is its result in JSON."""
    command = [sys.executable, __file__, "--worker", measure, "--cases", case, "--folder", folder, "--steps", steps]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if process.returncode != 0:
        sys.exit(f"{measure} of case {case} failed:\n{process.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def run_case(name: str, steps: int, *, with_trl: bool) -> list[float]:
    """Measure and print one case; return each ratio divided by its bar."""
    case = CASES[name]
    print(
        f"\n({name}) {case.title}: {case.rows} completions of {case.max_tokens} tokens, "
        f"a prompt of {case.prompt_tokens}"
    )
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(case, Path(folder))
        for measure in MEASURES:
            if measure == "trl" and (not with_trl or case.needs_gpu):
                continue
            results[measure] = in_its_own_process(measure, name, Path(folder), steps)
            figures = {k: v for k, v in results[measure].items() if k not in ("settings", "parts_s")}
            print(f"  {measure:18}", "  ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
    print_parts(results["ours"])
    if "trl" in results:
        print("  TRL's settings:", results["trl"]["settings"])
    ratios = {
        "rollout": results["lockstep"]["tokens_per_s"] / results["generate"]["tokens_per_s"],
        "rollout, skewed lengths": results["lockstep, skewed"]["tokens_per_s"]
        / results["generate, skewed"]["tokens_per_s"],
        "efficiency": results["ours"]["efficiency"],
    }
    if "trl" in results:
        ratios = {"step": results["trl"]["step_s"] / results["ours"]["step_s"], **ratios}
    for label, ratio in ratios.items():
        bar = case.bars.get(label)
        print(f"  {label}: {ratio:.2f}" + (f" (bar {bar:g})" if bar else ""))
    return [ratio / case.bars[label] for label, ratio in ratios.items() if label in case.bars]


def print_parts(ours: dict[str, Any]) -> None:
    """Print the times of our step's parts, and the share that is neither forward, backward nor optimiser."""
    parts = ours["parts_s"]
    if not parts:
        return
    print("  our step's seconds:", ", ".join(f"{name} {seconds:.3f}" for name, seconds in parts.items()))
    inside = sum(seconds for name, seconds in parts.items() if name not in ("sampling", "loss alone"))
    outside = ours["step_s"] - inside + parts["loss alone"]
    print(f"  outside model forward, backward and optimiser: {outside / ours['step_s']:.1%}")


def versions() -> str:
    """Return the number of threads and the versions of the packages."""
    packages = []
    for package in ("torch", "transformers", "trl"):
        with contextlib.suppress(PackageNotFoundError):
            packages.append(f"{package} {version(package)}")
    return f"{NUM_THREADS} threads, Python {platform.python_version()}, {', '.join(packages)}"


def main() -> None:
    """Run all measurements, or with `--worker` a single one."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="cases, a to e (d and e need a GPU); default: d on a GPU, else a,b,c")
    parser.add_argument("--steps", type=int, default=2, help="measured steps after the warm-up; their median counts")
    parser.add_argument("--no-trl", action="store_true", help="do not measure TRL")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        result = MEASURES[args.worker](CASES[args.cases], args.folder, args.steps)
        print(json.dumps({**result, "peak_gib": peak_gib()}))
        return
    print(versions())
    over_bars: list[float] = []
    for name in (args.cases or ("d" if torch.cuda.is_available() else "a,b,c")).split(","):
        over_bars += run_case(name, args.steps, with_trl=not args.no_trl)
    if over_bars:
        print(f"\nratio: {min(over_bars):.2f}")


if __name__ == "__main__":
    main()
