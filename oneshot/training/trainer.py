"""A trial's config -> its GRPO run, as whoever records it drives it."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch

from oneshot.config.sweep import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.models.placement import choose_strategy, trial_memory
from oneshot.policy.policy import use_cpus
from oneshot.tasks.grading import Grader
from oneshot.training.free_memory import free_gib, holders, most_gib, wait_for_room
from oneshot.training.grpo import evaluate_kept, train
from oneshot.training.metrics import StepMetrics
from oneshot.training.state import load_state, new_state, save_state


class GrpoTrainer:
    """One GRPO trial: its state, and what can be done with it.

    Each of `halvings` halves what is computed and decoded at a time, after attempts that ran out of memory; the
    effective batch stays.
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
    ) -> None:
        """Waits until there is room and loads everything; `rank` says which of the trial's processes this is."""
        strategy = choose_strategy(config, resources)
        if halvings:
            tokens = max(1, config.train.microbatch_tokens >> halvings)
            config = config.model_copy(update={"train": config.train.model_copy(update={"microbatch_tokens": tokens})})
        grader.forget_ungraded()
        use_cpus(resources.threads)
        self._config = config
        self._halvings = halvings
        device = torch.device("cuda" if config.model.device != "cpu" and torch.cuda.is_available() else "cpu")
        share = min(resources.gpus, 1.0) or 1.0
        need = trial_memory(config, resources, strategy=strategy)
        if need is not None and (device.type == "cuda" or rank == 0):
            # the host's memory is one: the first asks for all, before any of them takes some
            count, part = (1, share) if device.type == "cuda" else (resources.processes, 1.0)
            # an estimate that its device could never meet is a warning of the plan, and no reason to wait
            least = min(need.peak_gib * count, most_gib(device, share=part))
            wait_for_room(least, lambda: free_gib(device), whose=lambda: holders(device))
        self._state = new_state(
            config,
            seed=seed,
            grader=grader,
            strategy=strategy,
            cpu_offload=resources.cpu_offload,
            gpu_share=share,
        )
        self._state.kv_gib /= 2**halvings

    @property
    def step(self) -> int:
        """Steps that the state has behind it."""
        return self._state.step

    @staticmethod
    def can_continue(checkpoint: Path) -> bool:
        """Whether a checkpoint holds what training needs, and not weights alone."""
        return (checkpoint / "optimizer.safetensors").is_file()

    def set_baseline(self, baseline: Mapping[str, float]) -> None:
        """Takes accuracies at the start from the record, that of a suite by its name in this trial."""
        self._state.baseline = dict(baseline)

    def load(self, checkpoint: Path) -> None:
        """Goes to where a checkpoint was saved."""
        fitting = self._state.kv_gib
        load_state(self._state, checkpoint)
        if self._halvings:  # what did not fit then does not fit now
            self._state.kv_gib = min(fitting, self._state.kv_gib)

    def train(self) -> Iterator[StepMetrics]:
        """The steps that are left."""
        return train(self._config, self._state)

    def evaluate(self, checkpoint: Path | None, *, done: Collection[tuple[str, int]]) -> Iterator[StepMetrics]:
        """Evaluations at start and end that are not done yet, with kept weights."""
        return evaluate_kept(self._config, self._state, checkpoint, done=done)

    def save(self, folder: Path, *, with_optimizer: bool) -> None:
        """Writes a checkpoint into an empty folder."""
        save_state(self._state, folder, with_optimizer=with_optimizer)

    def close(self) -> None:
        """Nothing outlives it: torch's memory goes with the object."""
