"""`python spread.py CASES OUT STORE RANK SIZE`: one of the processes in which test_processes.py has gradients computed.

CASES is a JSON file: case -> sections of a trial, its strategy, and what to do (`accumulate` one gradient, or `update`
the weights). The first process writes OUT/<case>.safetensors, of gradients or weights by name, and what else it saw.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.distributed import FileStore
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from oneshot.config.trial import TrialConfig
from oneshot.rollout.engine import Completion
from oneshot.tasks.grading import Grader
from oneshot.training import sft
from oneshot.training.advantage import group_advantages
from oneshot.training.mismatch import Mismatch
from oneshot.training.state import TrainingState, new_state
from oneshot.training.update import Batch, Old, add_gradient, update

GROUP_SIZE = 4
REWARDS = [1.0, 0.0, 0.0, 1.0] + [1.0] * 4 + [0.0] * 4 + [0.0, 0.0, 1.0, 0.0]


def config_of(case: Mapping[str, Any]) -> TrialConfig:
    """A trial on two examples, whose groups take turns."""
    data: dict[str, Any] = {
        "model": {"path": "tiny:qwen2", "dtype": "float64"},
        "prompt": {"template": "plain", "train_suffix": ""},
        "examples": ["arithmetic:47+38", "arithmetic:12*7"],
        "rollout": {"num_groups": 4, "group_size": GROUP_SIZE, "temperature": 0.6, "max_tokens": 56},
        "loss": {"kl_coef": 0.1, "entropy_coef": 0.01},
        "optim": {"lr": 1e-3},
    }
    for section, settings in case["sections"].items():
        data[section] = {**data.get(section, {}), **settings} if isinstance(settings, dict) else settings
    return TrialConfig.model_validate(data)


def judged(state: TrainingState, rewards: Sequence[float]) -> Batch:
    """A step's batch of made-up completions of very different length."""
    rewards_G = torch.tensor(rewards, dtype=torch.float64, device=state.policy.device)
    ids = [tuple(range(5 + g, 9 + 3 * g)) for g in range(len(rewards))]
    completions = tuple(Completion(token_ids=c, logprobs=(0.0,) * len(c), truncated=False) for c in ids)
    advantages_G = group_advantages(
        rewards_G,
        group_size=GROUP_SIZE,
        config=TrialConfig.model_fields["advantage"].get_default(call_default_factory=True),
    )
    return Batch(
        example_G=tuple(g // GROUP_SIZE % 2 for g in range(len(rewards))),
        completions=completions,
        texts=("",) * len(rewards),
        correct_G=tuple(reward == 1 for reward in rewards),
        rewards_G=rewards_G,
        advantages_G=advantages_G,
        mismatch=Mismatch(completions, torch.device("cpu")),
    )


@contextmanager
def norms_as_wide_as_their_input() -> Iterator[None]:
    """Transformers computes norms in float32, where a last digit of float64 can turn into one of float32."""

    def forward(self: Any, hidden: Tensor) -> Tensor:
        scale: Tensor = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (hidden * scale)

    kinds = (LlamaRMSNorm, Qwen2RMSNorm)
    before = [kind.forward for kind in kinds]
    for kind in kinds:
        kind.forward = forward
    try:
        yield
    finally:
        for kind, theirs in zip(kinds, before, strict=True):
            kind.forward = theirs


@norms_as_wide_as_their_input()
def compute(
    case: Mapping[str, Any], *, strategy: Any, grader: Grader
) -> tuple[dict[str, Tensor], dict[str, float], TrainingState]:
    """Gradients or weights by name, whole, and metrics."""
    config = config_of(case)
    state = new_state(config, seed=3, grader=grader, strategy=strategy)
    weights = state.weights
    if "before" in case:
        update(config, state, judged(state, case["before"]))
    is_sft = config.train.method == "sft"
    batch = None if is_sft else judged(state, case.get("rewards", REWARDS))
    if config.model.adapter is not None:  # at first one matrix of each pair is zero, and so the other's gradient
        with torch.no_grad(), weights.updating():
            for name, master in weights.master.items():
                filled = torch.full(weights.whole(master.detach()).shape, 0.01 if "lora_B" in name else 0.02)
                master.copy_(weights.part(filled.to(master.dtype), master))
            weights.publish()
    if batch is None:
        metrics, num_trained = sft.add_gradient(config, state, range(len(state.solutions))), len(state.solutions)
    elif case["do"] == "update":
        metrics = update(config, state, batch)
        masters = {name: weights.whole(p.detach()) for name, p in weights.master.items()}
        if state.critic is not None:
            masters |= {f"critic.{name}": p.detach() for name, p in state.critic.weights.master.items()}
        return masters, metrics, state
    else:
        metrics, num_trained = add_gradient(config, state, batch, range(len(REWARDS)), Old())
    found = {}
    for name, p in weights.master.items():
        assert p.grad is not None
        found[name] = weights.whole(p.grad)
    return found, {**metrics, "num_trained": float(num_trained)}, state


def main() -> None:
    cases, out, store, rank, size = (
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        sys.argv[3],
        int(sys.argv[4]),
        int(sys.argv[5]),
    )
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", store=FileStore(store, size), rank=rank, world_size=size)
    with Grader() as grader:
        for name, case in json.loads(cases.read_text()).items():
            found, metrics, state = compute(case, strategy=case["strategy"], grader=grader)
            decodes = dict(state.policy.model.named_parameters())
            # what decodes after an update is what is optimised, rounded
            is_published = all(
                torch.equal(decodes[key], value.to(decodes[key].dtype))
                for key, value in found.items()
                if not key.startswith("critic.")
            ) or case["do"] != "update"  # fmt: skip
            held = sha256(b"".join(p.detach().float().numpy().tobytes() for p in decodes.values())).hexdigest()
            is_alike = len(set(state.world.gather([held]))) == 1
            if rank == 0:
                save_file({key: value.contiguous() for key, value in found.items()}, out / f"{name}.safetensors")
                (out / f"{name}.json").write_text(
                    json.dumps({"metrics": metrics, "is_published": is_published, "is_alike": is_alike})
                )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
