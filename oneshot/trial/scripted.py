"""A script instead of training -> steps that report numbers, with faults at given steps.

It tests everything around a trial (queue, store, leases, retries, search, MLflow) without a model, in tests, in bench/
and on a new cluster. Each step's number depends on all earlier ones, so that a lost or repeated step shows.
"""

import json
import math
import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from oneshot.config.paths import all_paths, setting_of
from oneshot.config.trial import ScriptFaultConfig, TrialConfig
from oneshot.errors import DataError, TrialError, UserError
from oneshot.training.metrics import StepMetrics

MODULUS = 1_000_003


class ScriptedTrainer:
    """A trainer that runs a script."""

    def __init__(self, config: TrialConfig, *, seed: int, attempt: int) -> None:
        assert config.script is not None, "a trial without script has another trainer"
        self._config, self._script = config, config.script
        for path, best in config.script.bowl.items():
            if best <= 0 or path not in all_paths() or not isinstance(setting_of(config, path), int | float):
                raise UserError(f"script.bowl: {path}: {best:g}: name a numeric setting, with an optimum above 0")
        self._seed, self._attempt = seed, attempt
        self._kept: list[bytearray] = []
        self._chain = seed
        self.step = 0

    def set_baseline(self, baseline: Mapping[str, float]) -> None:
        """Do nothing: a script has no suites."""

    def load(self, checkpoint: Path) -> None:
        """Load a checkpoint."""
        state = json.loads((checkpoint / "state.json").read_text())
        self.step, self._chain = state["step"], state["chain"]

    def save(self, folder: Path, *, with_optimizer: bool) -> None:
        """Write a checkpoint into an empty folder."""
        (folder / "state.json").write_text(json.dumps({"step": self.step, "chain": self._chain}))

    def evaluate(self, kept: Mapping[int, Path], *, done: Collection[tuple[str, int]]) -> Iterator[StepMetrics]:
        """Run no evaluation: a script has no suites."""
        return iter(())

    def train(self) -> Iterator[StepMetrics]:
        """Run the remaining steps."""
        while self.step < self._config.train.num_steps:
            start_s = time.perf_counter()
            time.sleep(self._script.step_s)
            metrics: dict[str, float] = {}
            for fault in self._script.faults:
                if fault.at == self.step + 1 and (fault.attempts is None or self._attempt <= fault.attempts):
                    metrics |= self._fail(fault)
            self.step += 1
            self._chain = (self._chain * 31 + self.step) % MODULUS
            metrics = {"script/chain": float(self._chain), **metrics}
            metrics |= {f"script/m{number}": float(self.step) for number in range(1, self._script.metrics)}
            if self._script.bowl:
                metrics["script/bowl"] = self._bowl()
            metrics["perf/step_s"] = time.perf_counter() - start_s
            yield StepMetrics(step=self.step, metrics=metrics, evaluations=(), sampled=(), visits={})

    def _bowl(self) -> float:
        """Return 1 minus the squared log distance from the optimum, approached step by step, plus the seed's noise."""
        distance = sum(
            math.log10(max(float(setting_of(self._config, path)), 1e-12) / best) ** 2
            for path, best in self._script.bowl.items()
        )
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(self._seed))).standard_normal()
        return (1.0 - distance) * (1.0 - 0.5**self.step) + self._script.noise * float(draw)

    def _fail(self, fault: ScriptFaultConfig) -> dict[str, float]:
        match fault.do:
            case "crash":
                raise RuntimeError("the script says: crash")
            case "exit" if fault.code < 0:
                os.kill(os.getpid(), signal.Signals(-fault.code))
                signal.pause()
            case "exit":
                os._exit(fault.code)
            case "hang":
                while True:
                    time.sleep(3600)
            case "oom":
                raise MemoryError("the script says: out of memory")
            case "nan":
                raise TrialError("the script says: the loss is not finite")
            case "config":
                raise UserError("the script says: wrong settings")
            case "data":
                raise DataError("the script says: wrong data")
            case "leak":
                self._kept.append(bytearray(os.urandom(1024) * (fault.mib * 1024)))
        return {"script/kept_mib": sum(map(len, self._kept)) / 2**20}
