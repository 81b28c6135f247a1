"""The parts of `bench/gpu.py`: each yields checks with what was expected, what was measured, and a verdict.

Shapes as in the package: B rows, L positions of the cache, V vocabulary.
"""

import gc
import hashlib
import importlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from words import write_tokenizer

QWEN = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2}  # fmt: skip
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
DEADLINES_S = {
    "model": 60, "kernels": 60, "against-cpu": 60, "graphs": 60, "memory": 60, "decode": 100, "rollout": 100,
    "update": 120, "resume": 60, "learning": 90, "errors": 30, "tests": 90, "trl": 180, "vllm": 300,
}  # fmt: skip
TINY = {
    "model": {"path": "tiny:qwen2"},
    "prompt": {"template": "plain", "train_suffix": ""},
    "examples": ["arithmetic:47+38"],
    "rollout": {"num_groups": 4, "group_size": 4, "temperature": 1.0, "max_tokens": 56},
    "loss": {"kl_coef": 0.001, "entropy_coef": 0.001},
    "optim": {"lr": 1e-4, "weight_decay": 0.0},
    "train": {"num_steps": 6},
    "eval": {"suites": {}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Where the parts run, and how large they are."""

    is_cpu: bool
    folder: Path  # the model of the speed parts

    @property
    def device(self) -> str:
        """Return torch's name of the device."""
        return "cpu" if self.is_cpu else "cuda"

    @property
    def shape(self) -> dict[str, int]:
        """Return the sizes of the speed parts' model: Qwen2.5-1.5B's, or tiny ones."""
        return SMALL if self.is_cpu else QWEN

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens."""
        return 2_000 if self.is_cpu else 151_936


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the table; `is_ok` is None for a figure without a bar."""

    name: str
    expected: str
    measured: str
    is_ok: bool | None = None


def make_model(sizes: Sizes) -> None:
    """Write a Qwen2 with random weights, and a tokenizer of words `w0 w1 ...`."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=sizes.vocabulary, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=1, pad_token_id=2, dtype="bfloat16", **sizes.shape,
    )  # fmt: skip
    with torch.device(sizes.device):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(sizes.folder)
    write_tokenizer(sizes.folder, vocabulary=sizes.vocabulary)


def model(sizes: Sizes) -> Iterator[Check]:
    """Make the model of the speed parts, and say what the machine is."""
    import torch

    make_model(sizes)
    packages = []
    for package in ("torch", "transformers", "accelerate", "triton"):
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            packages.append(f"no {package}")
    card = platform.processor() or "a CPU" if sizes.is_cpu else torch.cuda.get_device_name()
    yield Check(name="machine", expected="-", measured=f"{card}, Python {platform.python_version()}, {packages}")


# --- trials ---


def tiny(sizes: Sizes, *, device: str | None = None, **sections: Any) -> Any:
    """Return a tiny trial's config; sections given as keywords are merged into `TINY`."""
    from oneshot.config.trial import TrialConfig

    data = {name: {**TINY.get(name, {}), **section} for name, section in sections.items()}  # type: ignore[dict-item]
    data["model"] = {**TINY["model"], **data.get("model", {}), "device": device or sizes.device}  # type: ignore[dict-item]
    return TrialConfig.model_validate({**TINY, **data})


def large(sizes: Sizes, *, groups: int, max_tokens: int, **sections: Any) -> Any:
    """Return the config of a trial on the speed parts' model, in bfloat16 on a GPU."""
    from oneshot.config.trial import TrialConfig

    problem = sizes.folder / "problem.jsonl"
    words = " ".join(f"w{100 + 7 * number}" for number in range(20 if sizes.is_cpu else 150))
    problem.write_text(json.dumps({"problem": words, "answer": "1"}) + "\n")
    data: dict[str, Any] = {
        "model": {"path": str(sizes.folder), "mixed_precision": "bf16", "device": sizes.device},
        "prompt": {"template": "plain", "train_suffix": ""},
        "examples": [f"{problem}:0"],
        "rollout": {"num_groups": groups, "group_size": 8, "temperature": 1.0, "max_tokens": max_tokens},
        "loss": {"kl_coef": 0.001, "entropy_coef": 0.0},
        "eval": {"suites": {}},
    }
    return TrialConfig.model_validate({**data, **sections})


def state_of(config: Any, *, keeps_kv: bool = False) -> Any:
    """Return a trial's state at step 0."""
    from oneshot.tasks.grading import Grader
    from oneshot.training.state import new_state

    return new_state(config, seed=0, grader=Grader(), keeps_kv=keeps_kv)


def requests(state: Any, *, rows: int, max_tokens: int, uneven: bool = False) -> list[Any]:
    """Return the trial's first prompt with some rows; with `uneven` also a shorter one, so that one is padded."""
    from oneshot.rollout.engine import PromptRequest

    prompts = [state.prompts[0], *([state.prompts[0][:-2]] if uneven else [])]
    return [
        PromptRequest(prompt_ids=ids, row_keys=tuple((0, index, row) for row in range(rows)), max_tokens=max_tokens)
        for index, ids in enumerate(prompts)
    ]


def tokens_of(groups: list[list[Any]]) -> list[tuple[int, ...]]:
    """Return the tokens of all completions."""
    return [completion.token_ids for group in groups for completion in group]


def apart(left: list[list[Any]], right: list[list[Any]]) -> float:
    """Return the largest distance of two sides' log-probabilities of the same tokens."""
    pairs = (
        (a, b)
        for one, other in zip(left, right, strict=True)
        for mine, theirs in zip(one, other, strict=True)
        for a, b in zip(mine.logprobs, theirs.logprobs, strict=False)
    )
    return max(abs(a - b) for a, b in pairs)


def synchronised_s(sizes: Sizes, work: Callable[[], Any]) -> float:
    """Return the seconds that a call takes, its kernels included."""
    import torch

    if not sizes.is_cpu:
        torch.cuda.synchronize()
    start_s = time.perf_counter()
    work()
    if not sizes.is_cpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start_s


# --- correctness ---


def kernels(sizes: Sizes) -> Iterator[Check]:
    """Name the attention kernels, and time a mask of a new shape."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from torch.profiler import ProfilerActivity, profile

    from oneshot.policy.attention import reason_against
    from oneshot.rollout.engine import Sampling
    from oneshot.training.grpo import roll_out
    from oneshot.training.update import Old, add_gradient

    config = tiny(sizes, model={"mixed_precision": "bf16"})
    state = state_of(config)

    def padded() -> None:
        state.engine.generate(
            state.policy, requests(state, rows=4, uneven=True, max_tokens=4), Sampling(temperature=1.0)
        )

    def update() -> None:
        with state.weights.updating():
            add_gradient(config, state, roll_out(config, state), range(16), Old())

    activities = [ProfilerActivity.CPU] if sizes.is_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    for name, work in (("padded prefill and decode", padded), ("packed forward and backward", update)):
        work()
        with profile(activities=activities) as seen:
            work()
        words = ("attention", "flash", "fmha", "sdp", "cudnn")
        names = sorted({event.key for event in seen.key_averages() if any(word in event.key.lower() for word in words)})
        is_ok = None if sizes.is_cpu else not any("cudnn" in kernel.lower() for kernel in names)
        yield Check(name=name, expected="no cuDNN attention", measured=", ".join(n[:60] for n in names), is_ok=is_ok)
    shape = (sizes.shape["num_attention_heads"], sizes.shape["num_key_value_heads"], 128)
    reason = reason_against(torch.device(sizes.device), torch.bfloat16, shape)
    yield Check(
        name="a small pack, outputs and gradients", expected="one causal kernel agrees with SDPA",
        measured="agrees" if reason is None else reason[:120], is_ok=None if sizes.is_cpu else reason is None,
    )  # fmt: skip
    query = torch.randn(8, 4, 77, 64, device=sizes.device, dtype=torch.bfloat16)
    mask = torch.ones(77, 77, dtype=torch.bool, device=sizes.device).tril()
    first, second = (
        synchronised_s(sizes, lambda: scaled_dot_product_attention(query, query, query, attn_mask=mask))
        for _ in range(2)
    )
    yield Check(
        name="a mask of a new shape", expected="first call below 50 ms",
        measured=f"{first * 1e3:.1f} ms, then {second * 1e3:.1f} ms", is_ok=None if sizes.is_cpu else first < 0.05,
    )  # fmt: skip


def against_cpu(sizes: Sizes) -> Iterator[Check]:
    """Compare tokens, log-probabilities, loss and gradient with the CPU's."""
    import torch

    from oneshot.rollout.engine import Sampling
    from oneshot.training.grpo import roll_out
    from oneshot.training.update import Old, add_gradient

    for dtype, bar in (("float32", 1e-4), ("float64", 1e-9)):
        here, there = (state_of(tiny(sizes, device=device, model={"dtype": dtype})) for device in (sizes.device, "cpu"))
        greedy = Sampling(temperature=0.0)
        ours, theirs = (
            state.engine.generate(state.policy, requests(state, rows=2, uneven=True, max_tokens=40), greedy)
            for state in (here, there)
        )
        yield Check(
            name=f"{dtype}: greedy tokens", expected="equal",
            measured="equal" if tokens_of(ours) == tokens_of(theirs) else "different",
            is_ok=tokens_of(ours) == tokens_of(theirs),
        )  # fmt: skip
        distance = apart(ours, theirs)
        yield Check(
            name=f"{dtype}: log-probabilities", expected=f"within {bar:g}", measured=f"{distance:.2g}",
            is_ok=distance < bar,
        )  # fmt: skip
        config = tiny(sizes, device="cpu", model={"dtype": dtype})
        batch = roll_out(config, there)
        losses, gradients = [], []
        for state in (here, there):
            device = state.policy.device
            moved = replace(batch, rewards_G=batch.rewards_G.to(device), advantages_G=batch.advantages_G.to(device))
            with state.weights.updating():
                losses.append(add_gradient(config, state, moved, range(16), Old())[0]["loss/total"])
            gradients.append(torch.cat([p.grad.cpu().flatten() for p in state.weights.master.values()]))
        relative = ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()
        yield Check(
            name=f"{dtype}: loss and gradient", expected=f"within {bar:g}",
            measured=f"{abs(losses[0] - losses[1]):.2g}, {relative:.2g} of its norm",
            is_ok=max(abs(losses[0] - losses[1]), relative) < bar,
        )  # fmt: skip


def graphs(sizes: Sizes) -> Iterator[Check]:
    """Compare captured steps with plain ones and with transformers' `generate`, while rows and lengths change."""
    from oneshot.rollout import wave
    from oneshot.rollout.engine import Sampling
    from oneshot.rollout.hf import HfGenerate
    from oneshot.rollout.lockstep import Lockstep

    wave.LENGTH_STEP = 16  # so that rooms grow, and rows wait, within these short completions
    state = state_of(tiny(sizes, model={"dtype": "float64"}))
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature)
        asked = requests(state, rows=16, uneven=True, max_tokens=56)
        fixed, plain = (
            Lockstep(kv_gib=1.0, fixed_shapes=fixed_shapes).generate(state.policy, asked, sampling)
            for fixed_shapes in (True, False)
        )
        is_equal = tokens_of(fixed) == tokens_of(plain)
        distance = apart(fixed, plain)
        yield Check(
            name=f"graphs against plain steps, temperature {temperature:g}", expected="the same tokens, within 1e-9",
            measured=f"{'same' if is_equal else 'other'} tokens, {distance:.2g}", is_ok=is_equal and distance < 1e-9,
        )  # fmt: skip
        short = Lockstep(kv_gib=130 * state.policy.kv_bytes / 2**30, fixed_shapes=True, lasts=True)
        again = [short.generate(state.policy, asked, sampling) for _ in range(2)]
        distance = max(apart(plain, found) for found in again)
        yield Check(
            name=f"little memory and kept graphs, temperature {temperature:g}", expected="the same tokens, within 1e-9",
            measured=f"{short.use.num_waited} rows waited, {distance:.2g}",
            is_ok=all(tokens_of(found) == tokens_of(plain) for found in again) and distance < 1e-9,
        )  # fmt: skip
        if temperature == 0:
            is_equal = tokens_of(fixed) == tokens_of(HfGenerate().generate(state.policy, asked, sampling))
            yield Check(
                name="graphs against `generate`", expected="the same tokens",
                measured="same" if is_equal else "other", is_ok=is_equal,
            )  # fmt: skip


def memory(sizes: Sizes) -> Iterator[Check]:
    """Check that rollouts and trials give their memory back."""
    import torch

    from oneshot.config.resources import ResourceConfig
    from oneshot.rollout.engine import Sampling
    from oneshot.rollout.kv_memory import KvLayer
    from oneshot.rollout.lockstep import Lockstep
    from oneshot.tasks.grading import Grader
    from oneshot.training.trainer import LocalTrainer

    def held_mib() -> float:
        return 0.0 if sizes.is_cpu else torch.cuda.memory_allocated() / 2**20

    state = state_of(tiny(sizes))
    engine = Lockstep(kv_gib=0.001, fixed_shapes=True)
    sampling = Sampling(temperature=1.0)
    engine.generate(state.policy, requests(state, rows=64, max_tokens=56), sampling)
    before = held_mib()
    gc.collect()
    gc.disable()
    for _ in range(3):
        engine.generate(state.policy, requests(state, rows=64, max_tokens=56), sampling)
    num_alive = sum(isinstance(thing, KvLayer) for thing in gc.get_objects())
    after = held_mib()
    gc.enable()
    yield Check(
        name="three rollouts without garbage collection", expected="no caches, 1% more memory at most",
        measured=f"{num_alive} caches, {before:.1f} -> {after:.1f} MiB",
        is_ok=num_alive == 0 and after <= 1.01 * before,
    )  # fmt: skip
    del state
    gc.collect()
    resources = ResourceConfig() if sizes.is_cpu else ResourceConfig(gpus=1)
    left = []
    for _ in range(2):
        trainer = LocalTrainer(tiny(sizes, train={"num_steps": 1}), seed=0, resources=resources, grader=Grader())
        for _ in trainer.train():
            pass
        trainer.close()
        del trainer
        left.append(held_mib())
    yield Check(
        name="two trials in one process", expected="the second leaves no more than the first",
        measured=f"{left[0]:.1f}, {left[1]:.1f} MiB", is_ok=left[1] <= 1.01 * left[0] + 1,
    )  # fmt: skip


def resume(sizes: Sizes) -> Iterator[Check]:
    """Compare the bits of two trials, and of one that is resumed."""
    from oneshot.training.checkpoint import load_state, save_state
    from oneshot.training.grpo import train_step

    config = tiny(sizes, model={"mixed_precision": "bf16"})

    def digest(state: Any) -> str:
        sha = hashlib.sha256()
        for master in state.weights.master.values():
            sha.update(master.detach().cpu().numpy().tobytes())
        return sha.hexdigest()

    def steps(state: Any, number: int) -> list[str]:
        found = []
        for _ in range(number):
            train_step(config, state)
            found.append(digest(state))
        return found

    once, again = (steps(state_of(config), 6) for _ in range(2))
    state = state_of(config)
    resumed = steps(state, 3)
    kept = sizes.folder / "checkpoint"
    kept.mkdir()
    save_state(state, kept, with_optimizer=True)
    fresh = state_of(config)
    load_state(fresh, kept)
    resumed += steps(fresh, 3)
    for name, other in (("the same trial again", again), ("3 steps and 3 resumed", resumed)):
        differing = next((step for step, pair in enumerate(zip(once, other, strict=True), 1) if pair[0] != pair[1]), 0)
        yield Check(
            name=name, expected="the same bits" + ("" if sizes.is_cpu else " (a figure: sums on a GPU have no order)"),
            measured=f"differ from step {differing}" if differing else "the same bits",
            is_ok=differing == 0 if sizes.is_cpu else None,
        )  # fmt: skip


# --- speed ---


def decode(sizes: Sizes) -> Iterator[Check]:
    """Time one decode step by rows and by length."""
    state = state_of(large(sizes, groups=1, max_tokens=16))
    lengths, numbers = ((30, 60), (4, 8)) if sizes.is_cpu else ((650, 2500), (1, 32, 128, 280, 1024))
    for length in lengths:
        for rows in numbers:
            yield Check(name=f"{rows} rows at {length}", expected="-", measured=decode_step(sizes, state, rows, length))


def decode_step(sizes: Sizes, state: Any, rows: int, length: int) -> str:
    """Return the times of a decode step's parts as text."""
    import torch

    from oneshot.policy.output_head import Workspace, logits
    from oneshot.rollout.cuda_graphs import FixedStep, rounded_rows
    from oneshot.rollout.kv_memory import KvMemory
    from oneshot.rollout.rows import Row
    from oneshot.rollout.sampling import sample
    from oneshot.rollout.wave import Wave

    policy = state.policy
    head = policy.model.get_output_embeddings()
    weight_bytes, kv_bytes = sum(p.nbytes for p in policy.model.parameters()), rows * length * policy.kv_bytes
    if not sizes.is_cpu and kv_bytes > 0.8 * torch.cuda.mem_get_info()[0]:
        return "keys and values do not fit"
    with torch.no_grad():
        num_rows = rounded_rows(rows)
        row = Row(place=(0, 0), key=(), prompt_ids=(5,) * length, max_tokens=16)
        memory = KvMemory(policy, num_rows * (length + 16))
        wave = Wave(memory, FixedStep(num_rows, device=policy.device), [row] * rows)
        hidden = wave.prefill()
        space = Workspace.empty(head, num_rows=rows)
        scores, cdf = space.rows(rows)
        tokens = torch.full((rows,), 7, device=policy.device)
        uniforms = torch.full((rows,), 0.5, dtype=scores.dtype, device=policy.device)
        first_s, *steps_s = (synchronised_s(sizes, lambda: wave.step(tokens)) for _ in range(9))
        head_s = synchronised_s(sizes, lambda: logits(hidden, head, temperature=1.0, out=scores))
        draw_s = synchronised_s(sizes, lambda: sample(scores, uniforms, cdf_BV=cdf))
    step_s = statistics.median(steps_s)
    rate = (weight_bytes + kv_bytes) / step_s / 1e9
    return (
        f"step {step_s * 1e3:.2f} ms ({rate:.0f} GB/s), head {head_s * 1e3:.2f}, sampling {draw_s * 1e3:.2f}, "
        f"first step {first_s:.2f} s"
    )


def rollout(sizes: Sizes) -> Iterator[Check]:
    """Measure tokens a second, with lengths that are skewed as a model's are."""
    from oneshot.rollout.engine import Sampling

    max_tokens = 32 if sizes.is_cpu else 512
    for rows in (8, 16) if sizes.is_cpu else (280, 1024):
        state = state_of(large(sizes, groups=1, max_tokens=max_tokens), keeps_kv=True)
        # random weights sample almost uniformly: one token of these ends a completion after max_tokens / 2 or so
        state.policy.eos_ids = tuple(range(0, sizes.vocabulary, max_tokens // 2))
        sampling = Sampling(temperature=1.0)

        def run(state: Any = state, rows: int = rows, sampling: Any = sampling) -> int:
            groups = state.engine.generate(state.policy, requests(state, rows=rows, max_tokens=max_tokens), sampling)
            return sum(len(ids) for ids in tokens_of(groups))

        run()
        lengths: list[int] = []
        seconds = synchronised_s(sizes, lambda lengths=lengths, run=run: lengths.append(run()))  # type: ignore[misc]
        rate = lengths[0] / seconds
        use = state.engine.use
        is_ok = None if sizes.is_cpu or rows < 1024 else rate >= 20_000
        yield Check(
            name=f"{rows} rows of up to {max_tokens} tokens", expected="20,000 tokens/s first, 60,000 in the end",
            measured=f"{rate:,.0f} tokens/s, {lengths[0] / rows:.0f} tokens a row, {use.num_waves} waves", is_ok=is_ok,
        )  # fmt: skip


def update(sizes: Sizes) -> Iterator[Check]:
    """Measure steps of a bfloat16 trial: mismatch of sampler and trainer, the update's rate, memory by phase."""
    import torch

    from oneshot.config.resources import ResourceConfig
    from oneshot.models.placement import trial_memory
    from oneshot.training.grpo import roll_out, train_step

    groups, max_tokens = (2, 16) if sizes.is_cpu else (32, 512)
    config = large(sizes, groups=groups, max_tokens=max_tokens)
    state = state_of(config)
    state.policy.eos_ids = ()
    size = 1024 if sizes.is_cpu else 8192
    square = torch.randn(size, size, device=sizes.device, dtype=torch.bfloat16)
    best_s = min(synchronised_s(sizes, lambda: square @ square) for _ in range(4))
    card_flops_s = 2 * size**3 / best_s
    metrics = {}
    for number in range(2 if sizes.is_cpu else 3):
        metrics = train_step(config, state).metrics
        yield Check(
            name=f"step {number + 1}", expected="-",
            measured=f"rollout {metrics['perf/rollout_s']:.2f} s, update {metrics['perf/update_s']:.2f} s",
        )  # fmt: skip
    yield Check(
        name="sampler against trainer, k3", expected="below 1e-3",
        measured=f"{metrics['rollout/mismatch_kl']:.2g}, largest {metrics['rollout/mismatch_max']:.2g}",
        is_ok=metrics["rollout/mismatch_kl"] < 1e-3,
    )  # fmt: skip
    tokens = groups * 8 * max_tokens
    flops = 4 * state.floor.flops(body_tokens=tokens, head_tokens=tokens)  # forward, backward and reference
    share = flops / metrics["perf/update_s"] / card_flops_s
    yield Check(
        name="update", expected="40% of the card's own products",
        measured=f"{share:.0%} of {card_flops_s / 1e12:.0f} TFLOP/s", is_ok=None if sizes.is_cpu else share >= 0.4,
    )  # fmt: skip
    batch = roll_out(config, state)
    for max_pack in (100, 300) if sizes.is_cpu else (8_000, 24_000):
        yield Check(
            name=f"update in packs of {max_pack:,} tokens", expected="-",
            measured=update_in_packs(sizes, config, state, batch, max_pack=max_pack),
        )  # fmt: skip
    if sizes.is_cpu:
        return
    total_gib = torch.cuda.mem_get_info()[1] / 2**30
    estimate = trial_memory(config, ResourceConfig(gpus=1, gpu_gib=total_gib))
    assert estimate is not None, "the model's config.json has its sizes"
    for phase, expected_gib in (("rollout", estimate.rollout_gib), ("update", estimate.update_gib)):
        found_gib = metrics[f"system/gpu_peak_{phase}_gib"]
        yield Check(
            name=f"memory, {phase}", expected=f"{expected_gib:.1f} GiB within 10%",
            measured=f"{found_gib:.1f} GiB", is_ok=abs(found_gib / expected_gib - 1) <= 0.1,
        )  # fmt: skip


def trl(sizes: Sizes) -> Iterator[Check]:
    """Compare whole steps with TRL's, which decodes by transformers' `generate`."""
    from peers import trl_steps_s

    from oneshot.training.grpo import train_step

    groups, max_tokens, num_steps = (2, 16, 1) if sizes.is_cpu else (16, 256, 2)
    config = large(sizes, groups=groups, max_tokens=max_tokens)
    state = state_of(config, keeps_kv=True)
    state.policy.eos_ids = ()
    ours_s = [train_step(config, state).metrics["perf/step_s"] for _ in range(1 + num_steps)][1:]
    prompt = json.loads(Path(config.examples[0].rpartition(":")[0]).read_text())["problem"]
    del state
    gc.collect()
    theirs_s, _ = trl_steps_s(
        sizes.folder, prompt, rows=groups * 8, max_tokens=max_tokens, kl_coef=config.loss.kl_coef, lr=config.optim.lr,
        steps=num_steps, on_gpu=not sizes.is_cpu,
    )  # fmt: skip
    ours, theirs = statistics.median(ours_s), statistics.median(theirs_s)
    yield Check(
        name=f"a step of {groups * 8} x {max_tokens} tokens", expected="-",
        measured=f"{ours:.2f} s, TRL {theirs:.2f} s: {theirs / ours:.1f} times as fast",
    )  # fmt: skip


def vllm(sizes: Sizes) -> Iterator[Check]:
    """Run steps whose completions vLLM draws: agreement with the trainer, pushes, sleep, memory given back."""
    import torch

    from oneshot.training.free_memory import free_gib, release
    from oneshot.training.grpo import roll_out, train_step

    device = torch.device(sizes.device)
    groups, max_tokens = (2, 16) if sizes.is_cpu else (128, 1000)
    plain = large(sizes, groups=groups, max_tokens=max_tokens)
    settings = plain.rollout.vllm.model_copy(update={"max_num_seqs": groups * 8})
    rollout = plain.rollout.model_copy(update={"engine": "vllm", "vllm": settings})
    config = plain.model_copy(update={"rollout": rollout})
    before_gib = free_gib(device)
    state = state_of(config)
    state.policy.eos_ids = ()
    start_s = time.perf_counter()
    state.engine.wake(state.policy, state.weights)
    yield Check(name="start", expected="-", measured=f"{time.perf_counter() - start_s:.1f} s")
    for number in range(3):
        metrics = train_step(config, state).metrics
        yield Check(
            name=f"step {number + 1}, {groups * 8} x {max_tokens}", expected="k3 below 1e-2 in bfloat16",
            measured=f"rollout {metrics['perf/rollout_s']:.2f} s, update {metrics['perf/update_s']:.2f} s, "
            f"k3 {metrics['rollout/mismatch_kl']:.2g}", is_ok=metrics["rollout/mismatch_kl"] < 1e-2,
        )  # fmt: skip
    state.engine.wake(state.policy, state.weights)
    first = tokens_of([list(roll_out(config, state).completions)])
    awake_gib = free_gib(device)
    state.engine.rest()
    asleep_gib = free_gib(device)
    again = tokens_of([list(roll_out(config, state).completions)])
    yield Check(
        name="a rollout after sleep", expected="the same tokens, but for ties",
        measured=f"{sum(a == b for a, b in zip(first, again, strict=True))} of {len(first)} equal; asleep "
        f"{asleep_gib - awake_gib:.1f} GiB more are free",
    )  # fmt: skip
    state.engine.release()
    del state
    release(device)
    left_gib = before_gib - free_gib(device)
    yield Check(
        name="memory held after closing", expected="below 1.5 GiB", measured=f"{left_gib:.1f} GiB",
        is_ok=None if sizes.is_cpu else left_gib < 1.5,
    )  # fmt: skip


def errors(sizes: Sizes) -> Iterator[Check]:
    """Check that an error on the GPU is told from others, since it ends the worker, and that closing survives it."""
    import torch

    from oneshot.training.free_memory import release
    from oneshot.trial.environment import gpu_is_broken

    found = [gpu_is_broken()]
    if not sizes.is_cpu:
        table, index = torch.zeros(2, device="cuda"), torch.tensor([5], device="cuda")
        try:
            table[index].sum().item()
        except RuntimeError:
            release(torch.device("cuda"))
    found.append(gpu_is_broken())
    yield Check(
        name="an index out of range", expected="a broken GPU" if not sizes.is_cpu else "no GPU",
        measured=f"{found[0]}, then {found[1]}", is_ok=found == [False, not sizes.is_cpu],
    )  # fmt: skip


def update_in_packs(sizes: Sizes, config: Any, state: Any, batch: Any, *, max_pack: int) -> str:
    """Return the second update's time and peak memory as text."""
    import torch

    from oneshot.training.update import update as take_update

    train = config.train.model_copy(update={"microbatch_tokens": max_pack})
    config = config.model_copy(update={"train": train})
    take_update(config, state, batch)
    if not sizes.is_cpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = synchronised_s(sizes, lambda: take_update(config, state, batch))
    peak = "" if sizes.is_cpu else f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"{seconds:.2f} s{peak}"


# --- learning ---


def learning(sizes: Sizes) -> Iterator[Check]:
    """Train the quickstart's cell (tiny:qwen2, outcome, 47+38) in bfloat16."""
    from oneshot.training.loop import train

    num_steps = 2 if sizes.is_cpu else 32
    config = tiny(
        sizes,
        model={"mixed_precision": "bf16"},
        rollout={"num_groups": 8, "group_size": 8},
        train={"num_steps": num_steps},
        eval={
            "every_steps": num_steps,
            "suites": {"arithmetic": {"num_problems": 4 if sizes.is_cpu else 100, "temperature": 1.0}},
        },
    )
    *_, last = train(config, state_of(config))
    gain = last.metrics["eval/arithmetic/gain"]
    yield Check(
        name=f"held-out gain after {num_steps} steps", expected="at least 0.35, as on a CPU",
        measured=f"{gain:+.3f}", is_ok=None if sizes.is_cpu else gain >= 0.35,
    )  # fmt: skip


def tests(sizes: Sizes) -> Iterator[Check]:
    """Run the tests that need a GPU."""
    if sizes.is_cpu:
        importlib.import_module("pytest")
        yield Check(name="pytest -m gpu", expected="passes", measured="not run without a GPU")
        return
    project = Path(__file__).parent.parent
    # the first backward pass in a thread warns that it makes a CUDA context
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", "tests/test_gpu.py"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    yield Check(
        name="pytest -m gpu", expected="passes", measured=lines[-1] if lines else "", is_ok=done.returncode == 0
    )


PARTS: dict[str, Callable[[Sizes], Iterator[Check]]] = {
    "model": model,
    "kernels": kernels,
    "against-cpu": against_cpu,
    "graphs": graphs,
    "memory": memory,
    "update": update,
    "rollout": rollout,
    "decode": decode,
    "resume": resume,
    "learning": learning,
    "errors": errors,
    "tests": tests,
}
COMPARISONS: dict[str, Callable[[Sizes], Iterator[Check]]] = {"trl": trl, "vllm": vllm}
"""Parts that run when they are asked for, since they need another package."""
