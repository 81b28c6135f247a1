"""A trial's config and resources -> a trainer that runs the trial in this process."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch

from oneshot.config.resources import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.models.placement import choose_strategy, trial_memory
from oneshot.policy.policy import use_cpus
from oneshot.tasks.grading import Grader
from oneshot.tasks.solutions import Sampled, to_sample
from oneshot.training.checkpoint import load_state, save_state
from oneshot.training.free_memory import free_gib, memory_holders, most_gib, release, wait_for_room
from oneshot.training.loop import evaluate_kept, train
from oneshot.training.metrics import StepMetrics
from oneshot.training.sampled import sample_solutions
from oneshot.training.state import new_state, new_world


class LocalTrainer:
    """A trial in this process.

    After attempts that ran out of memory, each of `halvings` halves how much is computed and decoded at a time; the
    effective batch stays the same.
    """

    def __init__(
        self,
        config: TrialConfig,
        *,
        seed: int,
        resources: ResourceConfig,
        grader: Grader,
        halvings: int = 0,
        rank: int = 0,
        sampled: Sampled | None = None,
        start: Path | None = None,
    ) -> None:
        """Wait for free memory and load everything; `rank` is this process' number among the trial's.

        `sampled` has the solutions that an earlier attempt sampled; if it is None they are sampled first.
        `start` is a checkpoint with the weights to begin from, for `model.init`.
        """
        strategy = choose_strategy(config, resources)
        if halvings:
            tokens = max(1, config.train.microbatch_tokens >> halvings)
            config = config.model_copy(update={"train": config.train.model_copy(update={"microbatch_tokens": tokens})})
        grader.forget_ungraded()
        use_cpus(resources.threads)
        self._config = config
        self._halvings = halvings
        device = torch.device("cuda" if config.model.device != "cpu" and torch.cuda.is_available() else "cpu")
        release(device)  # what an earlier trial of this process has left
        share = min(resources.gpus, 1.0) or 1.0
        need = trial_memory(config, resources, strategy=strategy)
        keeps_kv = False
        if need is not None and (device.type == "cuda" or rank == 0):
            # on a CPU the first process waits for the memory of all, since they share the host's
            count, part = (1, share) if device.type == "cuda" else (resources.processes, 1.0)
            most = most_gib(device, share=part)
            can_keep = device.type == "cuda" and config.rollout.engine != "vllm" and not halvings
            keeps_kv = can_keep and need.kept_gib <= most
            # waiting cannot help if the estimate exceeds the whole device; the plan has warned of that
            least = min(max(need.peak_gib, need.kept_gib if keeps_kv else 0.0) * count, most)
            wait_for_room(least, lambda: free_gib(device), holders=lambda: memory_holders(device))
        self.sampled = sampled if sampled is not None else _sample(config, seed, device, grader, start)
        self._state = new_state(
            config,
            seed=seed,
            grader=grader,
            strategy=strategy,
            cpu_offload=resources.cpu_offload,
            gpu_share=share,
            keeps_kv=keeps_kv,
            sampled=self.sampled,
            start=start,
        )
        self._state.limit_kv(self._state.kv_gib / 2**halvings)

    @property
    def step(self) -> int:
        """Return the number of steps done."""
        return self._state.step

    def set_baseline(self, baseline: Mapping[str, float]) -> None:
        """Set the accuracies at the start, by suite name."""
        self._state.baseline = dict(baseline)

    def load(self, checkpoint: Path) -> None:
        """Load a checkpoint's weights, optimiser and step."""
        kv_gib = self._state.kv_gib
        load_state(self._state, checkpoint)
        if self._halvings:  # the checkpoint's `kv_gib` has run out of memory
            self._state.limit_kv(min(kv_gib, self._state.kv_gib))

    def train(self) -> Iterator[StepMetrics]:
        """Run the remaining steps."""
        return train(self._config, self._state)

    def evaluate(self, kept: Mapping[int, Path], *, done: Collection[tuple[str, int]]) -> Iterator[StepMetrics]:
        """Run the evaluations at the start and at steps with `kept` weights that are not in `done`."""
        return evaluate_kept(self._config, self._state, kept, done=done)

    def save(self, folder: Path, *, with_optimizer: bool) -> None:
        """Write a checkpoint into an empty folder."""
        save_state(self._state, folder, with_optimizer=with_optimizer)

    def close(self) -> None:
        """Free the trial's memory; the trainer cannot be used afterwards."""
        device = self._state.policy.device
        self._state.engine.release()
        del self._state
        release(device)


def _sample(config: TrialConfig, seed: int, device: torch.device, grader: Grader, start: Path | None) -> Sampled:
    """Sample the solutions that the examples ask for; the first of the trial's processes decides them for all."""
    if config.train.method != "sft" or not config.train.num_steps or not to_sample(config.examples):
        return {}
    world = new_world(config)
    solutions = None
    if world.is_first:
        solutions = sample_solutions(config, seed=seed, device=device, grader=grader, start=start)
    return world.broadcast(solutions)
