"""A trial's config -> what its steps really take of the CPU allocator: in this process, or as one of several.

Memory that lasts is the sum over the storages of all tensors that live between two steps. What a rollout and an update
add to it is the highest running total of the allocator's own record (torch.profiler's `[memory]` events, which report
every allocation and release, also those within an operation).
"""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from conftest import PROJECT
from torch import distributed
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from oneshot.config.trial import TrialConfig
from oneshot.models.memory import Strategy
from oneshot.tasks.grading import Grader
from oneshot.training import sft
from oneshot.training.grpo import roll_out
from oneshot.training.state import new_state
from oneshot.training.update import update

TINY = PROJECT / "oneshot" / "tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """Bytes."""

    lasting: int
    rollout: int
    update: int
    prompt_tokens: int

    @property
    def peak(self) -> int:
        return max(self.rollout, self.update)


def small_model(folder: Path, kind: str, **sizes: Any) -> Path:
    """A fresh decoder of the Llama or Qwen2 kind, of these sizes, with a shipped tokenizer."""
    shipped = TINY / kind
    shutil.copytree(shipped, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
    facts = json.loads((shipped / "config.json").read_text())
    facts.pop("head_dim", None)
    facts.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps({**facts, **sizes}))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def weigh(config: TrialConfig, grader: Grader, *, strategy: Strategy = "single", cpu_offload: bool = False) -> Weighed:
    """The second step of a trial: by then there is all that lasts."""
    before = _live_bytes()
    state = new_state(config, seed=0, grader=grader, strategy=strategy, cpu_offload=cpu_offload)
    is_sft = config.train.method == "sft"
    with _recorded():  # what it allocates is then known to the allocator's record when it is released
        _ = sft.train_step(config, state) if is_sft else update(config, state, roll_out(config, state))
    lasting = _live_bytes() - before
    if is_sft:
        with _recorded() as record:
            sft.train_step(config, state)
        trained = lasting + _peak(record)
        return Weighed(lasting=lasting, rollout=lasting, update=trained, prompt_tokens=len(state.prompts[0]))
    recorded = []
    with _recorded() as record:
        batch = roll_out(config, state)
    recorded.append(_peak(record))
    with _recorded() as record:
        update(config, state, batch)
    recorded.append(_peak(record))
    rollout, trained = (lasting + added for added in recorded)
    return Weighed(lasting=lasting, rollout=rollout, update=trained, prompt_tokens=len(state.prompts[0]))


def _recorded() -> profile:
    return profile(activities=[ProfilerActivity.CPU], profile_memory=True)


def _live_bytes() -> int:
    gc.collect()
    found = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and one.device.type == "cpu":
            with suppress(NotImplementedError, RuntimeError):  # a tensor that wraps others has no storage of its own
                found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(found.values())


def _peak(record: profile) -> int:
    """Bytes above where the record begins."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    memory.sort(key=lambda event: event["ts"])
    first = memory[0]["args"]
    begun = int(first["Total Allocated"]) - int(first["Bytes"])
    return max(int(event["args"]["Total Allocated"]) for event in memory) - begun


def weigh_several(config: TrialConfig, strategy: Strategy, *, num_processes: int = 2) -> Sequence[Weighed]:
    """The same in each of several processes that share the trial."""
    with TemporaryDirectory() as folder:
        children = []
        for rank in range(num_processes):
            known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
            children.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        __file__,
                        config.model_dump_json(),
                        strategy,
                        folder,
                        str(rank),
                        str(num_processes),
                    ],
                    env={
                        **os.environ,
                        **{name: str(value) for name, value in known.items()},
                        "GLOO_SOCKET_IFNAME": "lo",
                        "PYTHONPATH": str(PROJECT),
                        "OMP_NUM_THREADS": "1",
                    },
                    stdout=subprocess.DEVNULL,
                )
            )
        assert [child.wait(timeout=300) for child in children] == [0] * num_processes
        return [Weighed(**json.loads((Path(folder) / f"{rank}.json").read_text())) for rank in range(num_processes)]


def _main() -> None:
    config, strategy, folder, rank, size = sys.argv[1:]
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(f"{folder}/store", int(size)), rank=int(rank), world_size=int(size)
    )
    with Grader() as grader:
        found = weigh(TrialConfig.model_validate_json(config), grader, strategy=strategy)  # type: ignore[arg-type]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(asdict(found)))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    _main()
