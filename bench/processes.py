"""Compare a GRPO step of several processes with one process of as many threads: `python bench/processes.py`.

The same trial runs on the same cores: in one process with N threads, in N processes with whole copies (ddp), and in N
processes with shards (fsdp). They take turns, so that changes in the machine's speed affect all of them. Each line's
ratio is the single process' step time divided by theirs; the last line is `ratio: X` of ddp. On a machine with GPUs
every process has one GPU.
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

NUM_WARMUPS = 2
SMOLLM2 = Path(__file__).parent.parent / "models" / "SmolLM2-135M-Instruct"


def trial(model: str, *, num_groups: int, max_tokens: int, num_steps: int) -> Any:
    """Return the config of a GRPO trial on one sum."""
    from oneshot.config.trial import TrialConfig

    return TrialConfig.model_validate(
        {
            "model": {"path": model},
            "prompt": {"template": "plain", "train_suffix": ""},
            "examples": ["arithmetic:47+38"],
            "rollout": {"num_groups": num_groups, "group_size": 8, "temperature": 1.0, "max_tokens": max_tokens},
            "optim": {"lr": 1e-6},
            "train": {"num_steps": num_steps},
        }
    )


def start_trainers(config: Any, num_processes: int) -> dict[str, Any]:
    """Return a trainer for each way; the children of the others wait while one is measured."""
    from oneshot.config.resources import ResourceConfig
    from oneshot.tasks.grading import Grader
    from oneshot.training.launcher import Processes
    from oneshot.training.trainer import LocalTrainer

    def several(strategy: Literal["ddp", "fsdp"]) -> Processes:
        resources = ResourceConfig(cpus=num_processes, num_processes=num_processes, strategy=strategy)
        return Processes(config, seed=0, resources=resources, grader_timeout_s=5.0)

    alone = LocalTrainer(config, seed=0, resources=ResourceConfig(cpus=num_processes), grader=Grader())
    return {"one process": alone, "ddp": several("ddp"), "fsdp": several("fsdp")}


def measure(config: Any, num_processes: int) -> dict[str, list[dict[str, float]]]:
    """Return the metrics of each way's measured steps."""
    metrics: dict[str, list[dict[str, float]]] = {}
    trainers = start_trainers(config, num_processes)
    steps: dict[str, Iterator[Any]] = {name: trainer.train() for name, trainer in trainers.items()}
    for number in range(config.train.num_steps):
        for name, iterator in steps.items():
            step = next(iterator)
            if number >= NUM_WARMUPS:
                metrics.setdefault(name, []).append(step.metrics)
    for trainer in trainers.values():
        trainer.close()
    return metrics


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default=str(SMOLLM2) if SMOLLM2.is_dir() else "tiny:llama")
    parser.add_argument(
        "--groups", type=int, default=2, help="groups of 8 completions; all three ways are in memory together"
    )
    parser.add_argument("--max-tokens", type=int, default=56)
    parser.add_argument("--steps", type=int, default=3, help="measured steps after a warm-up of two steps")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}, {sys.platform}")
    print(f"{Path(args.model).name}: {args.groups * 8} completions of up to {args.max_tokens} tokens")
    config = trial(
        args.model, num_groups=args.groups, max_tokens=args.max_tokens, num_steps=NUM_WARMUPS + args.steps
    )  # fmt: skip
    metrics = measure(config, args.processes)
    single = metrics["one process"]
    ratios = {}
    for name, steps in metrics.items():
        # a step samples almost the same completions in each way, so that steps are compared pairwise
        ratios[name] = statistics.median(
            a["perf/step_s"] / b["perf/step_s"] for a, b in zip(single, steps, strict=True)
        )
        median = {key: statistics.median(step[key] for step in steps) for key in steps[0]}
        print(
            f"  {name:12} step {median['perf/step_s']:.3f} s (rollout {median['perf/rollout_s']:.3f}, update "
            f"{median['perf/update_s']:.3f}), memory {median['system/rss_gib']:.2f} GiB, reward "
            f"{median['reward/mean']:.3f}, ratio {ratios[name]:.2f}"
        )
    print(f"ratio: {ratios['ddp']:.2f}")


if __name__ == "__main__":
    main()
