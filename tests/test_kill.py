"""A trial that SIGKILL ends, at whatever moment, and that is run again ends in the same bits as one left alone.

Importing torch takes longer than such a trial. So this file, run as a program, imports everything once and then forks a
process for each trial that it is told to run (`Nursery`).
"""

import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file
from test_plan import trial

from oneshot.config.trial import TrialConfig
from oneshot.plan.plan import with_seed
from oneshot.plan.trainings import Training, trainings
from oneshot.store.folder import Folder
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.grading import Grader
from oneshot.training import checkpoint, trainer
from oneshot.trial import recorder
from oneshot.trial.state import standing

STEPS = 7
BEST_BY = "eval/arithmetic/boxed"
SCORES = {0: 0.1, 2: 0.3, 4: 0.5, 6: 0.2, 7: 0.5}
"""What an evaluation gives the metric that chooses the best weights: those of a tiny model may all be equal."""
PATIENCE_S = 120.0
"""For what takes seconds, on a machine that is busy with other things."""


@cache
def training(method: str = "grpo") -> Training:
    """Checkpoints after steps 3 and 6 and at the end; segments of steps 0, 1-3, 4-6, 7; evaluations at 0, 4, 7."""
    config: dict[str, Any] = {
        "model": {"path": "tiny:qwen2", "dtype": "float32", "device": "cpu"},
        "prompt": {"template": "plain", "train_suffix": ""},
        "examples": ["arithmetic:47+38"],
        "reward": {"timeout_s": 60.0},  # no verdict may depend on how busy the machine is
        "rollout": {"num_groups": 2, "group_size": 4, "temperature": 1.0, "max_tokens": 40},
        "loss": {"kl_coef": 0.01, "entropy_coef": 0.001},
        "optim": {"lr": 1e-3, "weight_decay": 0.01},
        "train": {"num_steps": STEPS},
        "eval": {"every_steps": 4, "suites": {"arithmetic": {"num_problems": 2, "temperature": 1.0, "max_tokens": 24}}},
        "checkpoint": {"every_steps": 3},
    }
    if method == "sft":  # on completions that the model samples first
        solution = {"from": "policy", "keep": "any", "samples": 10}
        config["examples"] = [{"row": "arithmetic:47+38", "solution": solution}]
        config["train"] |= {"method": "sft", "batch_size": 3}
        config["optim"]["schedule"] = {"kind": "cosine", "warmup": 0.2}
    if method == "best":  # kept after step 2, and then after step 4
        config["examples"] = ["arithmetic:47+39"]
        config["eval"]["every_steps"] = 2
        config["checkpoint"]["keep"] = {"best": BEST_BY}
    (made,) = trainings([with_seed(trial(TrialConfig.model_validate(config)), 0)])
    return made


def training_of(folder: TrialFolder) -> Training:
    """The training that a folder belongs to."""
    return next(made for made in (training(), training("sft"), training("best")) if made.key == Path(folder.path).name)


# --- the moments ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The `nth` call in an attempt of `owner.function` with an argument that ends in `about`."""

    name: str
    owner: Any
    function: str
    about: str = ""
    nth: int = 1
    when: Literal["before", "torn", "after"] = "before"
    """torn: the file that the call wrote is cut in half, as if it were not through."""
    goes_on: int
    """The step that the next attempt begins with, by the checkpoint that is on record after the kill."""


STORIES = {
    "before the first report": (
        Moment(name="nothing is loaded", owner=trainer, function="new_state", goes_on=0),
        Moment(name="completions without evaluation", owner=TrialFolder, function="write_evaluation", goes_on=0),
        Moment(name="evaluation without report", owner=TrialFolder, function="write_segment", goes_on=0),
    ),
    "around the first checkpoint": (
        Moment(
            name="local copy torn",
            owner=checkpoint,
            function="save_file",
            about="/optimizer.safetensors",
            when="torn",
            goes_on=0,
        ),
        Moment(name="checkpoint, no report since", owner=Folder, function="put_folder", when="after", goes_on=4),
        Moment(name="going on, nothing loaded yet", owner=trainer, function="load_state", goes_on=4),
        Moment(name="steps and evaluation not reported", owner=TrialFolder, function="write_segment", goes_on=4),
    ),
    "while the second checkpoint takes the place of the first": (
        Moment(
            name="upload torn",
            owner=LocalFileSystem,
            function="put_file",
            about="/model.safetensors",
            nth=2,
            when="torn",
            goes_on=4,
        ),
        Moment(
            name="uploaded, does not count yet", owner=Folder, function="_rename", about="/checkpoint.json", goes_on=4
        ),
        Moment(name="counts, first one still there", owner=Folder, function="remove", goes_on=7),
    ),
    "while the result is written": (
        Moment(
            name="weights of the end do not count yet",
            owner=Folder,
            function="_rename",
            about="/checkpoint.json",
            nth=3,
            goes_on=7,
        ),
        Moment(name="weights of the end, no result", owner=TrialFolder, function="write_result", goes_on=STEPS + 1),
        Moment(
            name="result does not count yet", owner=Folder, function="_rename", about="/result.json", goes_on=STEPS + 1
        ),
    ),
}

BEST_STORY = (
    Moment(
        name="upload torn",
        owner=LocalFileSystem,
        function="put_file",
        about="/model.safetensors",
        when="torn",
        goes_on=0,
    ),
    Moment(name="uploaded, does not count yet", owner=Folder, function="_rename", about="/best.json", nth=2, goes_on=4),
    Moment(name="counts, the earlier ones still there", owner=Folder, function="remove", goes_on=4),
    Moment(name="counts alone, no checkpoint since", owner=Folder, function="put_folder", when="after", goes_on=4),
)
STORIES_OF_ALL = {**STORIES, "best": BEST_STORY}


def stop_at(moment: Moment) -> None:
    """Has this process say `there` at a moment, and go no further."""
    function = getattr(moment.owner, moment.function)
    calls = count(1)

    def stopping(*args: Any, **kwargs: Any) -> Any:
        is_about = not moment.about or any(
            str(arg).endswith(moment.about) for arg in args if isinstance(arg, str | Path)
        )
        is_it = is_about and next(calls) == moment.nth
        if is_it and moment.when == "before":
            stop()
        result = function(*args, **kwargs)
        if is_it:
            if moment.when == "torn":
                os.truncate(args[-1], os.path.getsize(args[-1]) // 2)
            stop()
        return result

    setattr(moment.owner, moment.function, stopping)


def stop() -> None:
    say("there")
    sys.stdin.read()  # nothing comes: until we are killed, or the tests are gone
    os._exit(1)


# --- the processes ---


def main() -> None:
    """Lines `[storage, key, story, number of a moment]` on stdin -> for each: `begun PID`, `there`, `ended STATUS`."""
    training()
    training("sft")
    training("best")
    give_scores()
    while line := sys.stdin.readline():
        storage, key, story, number = json.loads(line)
        pid = os.fork()
        if pid == 0:
            say(f"begun {os.getpid()}")
            if story:
                stop_at(STORIES_OF_ALL[story][number])
            folder = Store(storage).trial(key)
            made = training_of(folder)
            with Grader(timeout_s=made.config.reward.timeout_s) as grader:
                list(recorder.record(made, folder, grader=grader, origin="test"))
            os._exit(0)
        say(f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")
    os._exit(0)


def give_scores() -> None:
    """Puts `SCORES` into the evaluations of a training that keeps its best weights."""
    take = recorder._Recorder.take

    def taking(self: Any, step: Any, trainer: Any) -> None:
        for evaluation in step.evaluations if self.training.config.checkpoint.best_metric is not None else ():
            step.metrics[BEST_BY] = evaluation.metrics[BEST_BY] = SCORES[evaluation.step]
        take(self, step, trainer)

    recorder._Recorder.take = taking  # type: ignore[method-assign]


def say(words: str) -> None:
    os.write(1, f"{words}\n".encode())


class Nursery:
    """Runs trials, one at a time, in processes that may be killed."""

    def __init__(self, home: Path) -> None:
        environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.words: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.words.put(line.strip())
        self.words.put("the nursery is gone")

    def hear(self, timeout_s: float = PATIENCE_S) -> str:
        return self.words.get(timeout=timeout_s)

    def begin(self, folder: TrialFolder, story: str = "", number: int = 0) -> psutil.Process:
        assert self.process.stdin is not None
        path = Path(folder.path)
        self.process.stdin.write(json.dumps([str(path.parent.parent), path.name, story, number]) + "\n")
        self.process.stdin.flush()
        begun, pid = self.hear().split()
        assert begun == "begun"
        return psutil.Process(int(pid))

    def run(self, folder: TrialFolder) -> None:
        """To the end."""
        self.begin(folder)
        assert self.hear() == "ended 0"

    def kill(self, process: psutil.Process) -> list[psutil.Process]:
        """Kills a trial's process, and no other; returns the graders that it leaves."""
        graders: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):  # at a random moment it may have just ended
            graders = process.children()
            process.send_signal(signal.SIGKILL)
        assert self.hear() in ("ended -9", "ended 0")
        return graders

    def kill_at(self, folder: TrialFolder, story: str, number: int) -> list[psutil.Process]:
        process = self.begin(folder, story, number)
        assert self.hear() == "there", "the trial does not come to that moment"
        return self.kill(process)

    def kill_after(self, folder: TrialFolder, delay_s: float) -> list[psutil.Process]:
        """A trial that is faster than that is left alone."""
        process = self.begin(folder)
        try:
            assert self.hear(delay_s) == "ended 0"
        except queue.Empty:
            return self.kill(process)
        return []

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=PATIENCE_S)


def end_by_themselves(processes: list[psutil.Process]) -> bool:
    def is_there(process: psutil.Process) -> bool:
        try:
            # what nobody has waited for yet has ended all the same
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline_s = time.monotonic() + PATIENCE_S
    while any(is_there(process) for process in processes):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


# --- what is compared ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything about an ended trial that no kill may change."""

    weights: str
    """sha256 of the kept model.safetensors."""
    metrics: dict[int, dict[str, float]]
    evaluations: dict[str, str]
    completions: dict[str, str]


def exact(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(("perf/", "system/"))}


def files(folder: TrialFolder, name: str) -> dict[str, str]:
    return {file: folder.read(f"{name}/{file}") or "" for file in folder.list(name)}


def record_of(folder: TrialFolder) -> Record:
    """Reads an ended trial; each step is on record once, and the result is that of the last attempt."""
    result = folder.current_result()
    assert result is not None
    assert result.outcome == "finished", result.traceback
    assert (result.steps_done, result.checkpoint) == (STEPS, "weights")
    assert standing(training_of(folder), folder) == "finished"
    assert result.evaluations == folder.evaluations()
    rows = folder.rows()
    assert [row.step for row in rows] == list(range(STEPS + 1))
    (kept,) = folder.list("checkpoint")
    assert folder.read_json("checkpoint.json") == {"folder": kept}
    assert folder.list(f"checkpoint/{kept}") == ["model.safetensors", "state.json"]
    tables = folder.list("rollouts")
    weights = Path(folder.path, "checkpoint", kept, "model.safetensors").read_bytes()
    return Record(
        weights=sha256(weights).hexdigest(),
        metrics={row.step: exact(row.metrics) for row in rows},
        evaluations=files(folder, "evaluations"),
        completions={name: sha256(folder.read_bytes(f"rollouts/{name}") or b"").hexdigest() for name in tables},
    )


def stored_steps(folder: TrialFolder) -> list[tuple[int, int, dict[str, float]]]:
    """(attempt, step, metrics) of every line of the stored metrics, those that a later attempt made again included."""
    return [
        (int(name.split("-")[0]), line["step"], exact(line["metrics"]))
        for name, text in files(folder, "metrics").items()
        for line in map(json.loads, text.splitlines())
    ]


def check_steps(whole: Record, folder: TrialFolder) -> None:
    """Every attempt made each of its steps once, and as they are without a kill."""
    stored = stored_steps(folder)
    assert len({(attempt, step) for attempt, step, _ in stored}) == len(stored)
    for attempt, step, metrics in stored:
        assert metrics == whole.metrics[step], f"step {step} of attempt {attempt}"


def goes_on(folder: TrialFolder) -> int:
    """The step after the checkpoint on record, which is read whole; 0 without one that can be used."""
    said = folder.read_json("checkpoint.json")
    if said is None:
        return 0
    kept = Path(folder.path, "checkpoint", said["folder"])
    for file in kept.glob("*.safetensors"):
        assert load_file(file)
    step: int = json.loads((kept / "state.json").read_text())["step"]
    # of weights alone, the last step's are all that is needed
    return step + 1 if step == STEPS or (kept / "optimizer.safetensors").is_file() else 0


# --- the tests ---


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("home"))
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return Store(str(tmp_path)).trial(training().key)


@pytest.fixture(scope="module")
def uninterrupted(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, float]:
    """The record of the trial left alone, and the seconds that it took."""
    folder = Store(str(tmp_path_factory.mktemp("whole"))).trial(training().key)
    nursery.begin(folder)
    start_s = time.monotonic()
    assert nursery.hear() == "ended 0"
    return record_of(folder), time.monotonic() - start_s


@pytest.fixture
def whole(uninterrupted: tuple[Record, float]) -> Record:
    return uninterrupted[0]


@pytest.mark.slow
def test_the_trial_that_is_compared_has_something_to_lose(whole: Record) -> None:
    """Every part of the loss and of the optimiser is at work, else equal bits would mean little."""
    later = [whole.metrics[step] for step in range(2, STEPS + 1)]
    assert all(metrics["loss/kl"] > 0 and metrics["loss/grad_norm"] > 0 for metrics in later)
    assert any(0 < metrics["reward/mean"] < 1 for metrics in later)
    assert all(metrics["reward/ungraded"] == 0 for metrics in later)
    assert sorted(int(name.removesuffix(".json").rsplit("-")[-1]) for name in whole.evaluations) == [0, 4, 7]


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES)
def test_a_trial_killed_at_bad_moments_ends_in_the_same_bits(
    nursery: Nursery, whole: Record, folder: TrialFolder, story: str
) -> None:
    graders = []
    for number, moment in enumerate(STORIES[story]):
        graders += nursery.kill_at(folder, story, number)
        assert folder.result() is None, moment.name
        assert standing(training(), folder) == "missing", moment.name
        assert goes_on(folder) == moment.goes_on, moment.name
        check_steps(whole, folder)
    nursery.run(folder)
    last_attempt = len(STORIES[story]) + 1
    made = (step for attempt, step, _ in stored_steps(folder) if attempt == last_attempt)
    first_step = min(made, default=STEPS + 1)
    assert first_step == STORIES[story][-1].goes_on
    check_steps(whole, folder)
    assert record_of(folder) == whole
    assert graders
    assert end_by_themselves(graders)


@pytest.mark.slow
def test_a_trial_killed_while_it_keeps_its_best_weights_keeps_the_same(nursery: Nursery, tmp_path: Path) -> None:
    whole_folder, folder = (Store(str(tmp_path / name)).trial(training("best").key) for name in ("whole", "cut"))
    nursery.run(whole_folder)
    whole = record_of(whole_folder)
    for number, moment in enumerate(BEST_STORY):
        nursery.kill_at(folder, "best", number)
        assert folder.result() is None, moment.name
        assert goes_on(folder) == moment.goes_on, moment.name
        check_steps(whole, folder)
    nursery.run(folder)
    assert record_of(folder) == whole
    assert best_of(folder) == best_of(whole_folder)


def best_of(folder: TrialFolder) -> str:
    """sha256 of the best weights, which are the only ones in their place."""
    (kept,) = folder.list("best")
    assert folder.read_json("best.json") == {"folder": kept}
    assert folder.list(f"best/{kept}") == ["model.safetensors", "state.json"]
    assert folder.kept_step("best") == 4
    return sha256(Path(folder.path, "best", kept, "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_sft_killed_at_random_ends_in_the_same_bits(nursery: Nursery, tmp_path: Path) -> None:
    """The delays fall into sampling, into the first steps and after the first checkpoint."""
    whole_folder, folder = (Store(str(tmp_path / name)).trial(training("sft").key) for name in ("whole", "cut"))
    start_s = time.monotonic()
    nursery.run(whole_folder)
    whole_s, whole = time.monotonic() - start_s, record_of(whole_folder)
    for share in (0.2, 0.5, 0.7):
        nursery.kill_after(folder, share * whole_s)
        check_steps(whole, folder)
    if folder.current_result() is None:
        nursery.run(folder)
    assert record_of(folder) == whole
    assert folder.read("sampled.json") == whole_folder.read("sampled.json") is not None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_trial_killed_twice_at_random_ends_in_the_same_bits(
    nursery: Nursery, uninterrupted: tuple[Record, float], folder: TrialFolder, seed: int
) -> None:
    whole, whole_s = uninterrupted
    draw = random.Random(seed)
    graders = []
    for _ in range(2):
        graders += nursery.kill_after(folder, draw.uniform(0.0, 0.9) * whole_s)
        check_steps(whole, folder)
    if folder.current_result() is None:
        nursery.run(folder)
    check_steps(whole, folder)
    assert record_of(folder) == whole
    assert end_by_themselves(graders)


def test_a_grader_that_loses_its_trial_over_a_question_without_end_ends_too() -> None:
    """What a killed parent leaves: a question, and pipes that are closed."""
    worker = [sys.executable, "-m", "oneshot.tasks.grading_worker", "0.5"]
    with subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write(json.dumps(["strict", r"\sum_{k=1}^{10^9} \frac{1}{k}", "85"]) + "\n")
        process.stdin.close()
        process.stdout.close()
        try:
            assert process.wait(timeout=PATIENCE_S) == -signal.SIGALRM
        finally:
            process.kill()


if __name__ == "__main__":
    main()
