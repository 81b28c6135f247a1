"""Trials whose completions vLLM draws: checked at every step, resumed, alone and in several processes."""

import gc
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from engines import headed_model
from test_plan import trial

from oneshot.config.resources import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import GuardError, TrialError, UserError
from oneshot.models import engines
from oneshot.plan.plan import with_seed
from oneshot.plan.trainings import trainings
from oneshot.rollout import vllm
from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.tasks.grading import Grader
from oneshot.training.launcher import Processes
from oneshot.training.metrics import StepMetrics
from oneshot.training.trainer import LocalTrainer
from oneshot.trial.guards import Guards
from oneshot.trial.recorder import record

ALONE = ResourceConfig()
TWO = ResourceConfig(cpus=2, num_processes=2)
AGREES = 1e-7
"""k3 of a float32 sampler and its trainer; rounding gives about 1e-9."""

needs_vllm = pytest.mark.skipif(not engines.has_vllm(), reason="vLLM is not installed here")


@pytest.fixture(scope="module", params=["qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return headed_model(request.param, tmp_path_factory.mktemp(request.param))


def config_of(folder: Path, **sections: Any) -> TrialConfig:
    """A trial of a few short steps that move the weights far."""
    data: dict[str, Any] = {
        "model": {"path": str(folder), "device": "cpu"},
        "prompt": {"template": "plain", "train_suffix": ""},
        "examples": ["arithmetic:47+38"],
        # half of the completions have a reward, whatever they say
        "reward": {"kind": "random", "timeout_s": 60.0},
        "rollout": {"engine": "vllm", "num_groups": 4, "group_size": 4, "temperature": 0.8, "max_tokens": 24,
                    "kv_gib": 0.25, "vllm": {"max_num_seqs": 32}},
        "loss": {"kl_coef": 0.01, "entropy_coef": 0.001},
        "optim": {"lr": 1e-2, "weight_decay": 0.0},
        "train": {"num_steps": 3},
        "eval": {"every_steps": 2, "suites": {"arithmetic": {"num_problems": 2, "max_tokens": 24}}},
    }  # fmt: skip
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    return TrialConfig.model_validate(data)


@pytest.fixture
def begin(grader: Grader) -> Iterator[Callable[[TrialConfig], LocalTrainer]]:
    """Starts trials in this process, one after another, and closes the last one."""
    trainers: list[LocalTrainer] = []

    def start(config: TrialConfig) -> LocalTrainer:
        if trainers:
            trainers.pop().close()
        trainers.append(LocalTrainer(config, seed=0, resources=ALONE, grader=grader))
        return trainers[-1]

    yield start
    for trainer in trainers:
        trainer.close()


Begin = Callable[[TrialConfig], LocalTrainer]


def mismatches(steps: list[StepMetrics]) -> list[float]:
    return [step.metrics["rollout/mismatch_kl"] for step in steps if step.step]


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"adapter": {"kind": "lora", "r": 4, "alpha": 8.0}}, "loss": {"kl_coef": 0.1}},
        {"train": {"updates_per_rollout": 2}},
    ],
    ids=["all weights", "an adapter", "two updates a rollout"],
)
def test_sampler_and_trainer_agree_at_every_step(folder: Path, begin: Begin, sections: dict[str, Any]) -> None:
    steps = list(begin(config_of(folder, **sections)).train())
    assert [step.step for step in steps] == [0, 1, 2, 3]
    assert [step.step for step in steps if step.evaluations] == [0, 2, 3]
    assert max(mismatches(steps)) < AGREES
    assert all(step.metrics["loss/grad_norm"] > 0 for step in steps if step.step)


def _push_once(monkeypatch: pytest.MonkeyPatch) -> None:
    push = vllm.Vllm._push

    def pushing(engine: vllm.Vllm, *args: Any) -> None:
        if engine._version is None:
            push(engine, *args)

    monkeypatch.setattr(vllm.Vllm, "_push", pushing)


def _without_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(model: Any, values: Any) -> Any:
        for name, value in values:
            if ".lora_" not in name:
                yield name.replace(".base_layer.", "."), value

    monkeypatch.setattr(vllm, "merged", plain)


def _at_another_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = vllm._parameters

    def warmer(*arguments: Any) -> Any:
        request = parameters(*arguments)
        request.temperature *= 1.25
        return request

    monkeypatch.setattr(vllm, "_parameters", warmer)


def _without_a_layers_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a tensor out that a CPU packs, so that only log-probabilities can show it."""
    merged, count = vllm.merged, iter(range(1000))

    def holed(model: Any, values: Any) -> Any:
        is_first = next(count) == 0
        return ((n, v) for n, v in merged(model, values) if is_first or not n.endswith("layers.1.mlp.down_proj.weight"))

    monkeypatch.setattr(vllm, "merged", holed)


FAILURES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], dict[str, Any]]] = {
    "weights of an earlier step": (_push_once, {}),
    "an adapter that does not reach the sampler": (_without_adapter, {"model": {"adapter": {"kind": "lora"}}}),
    "another temperature": (_at_another_temperature, {}),
    "a tensor that is left out": (_without_a_layers_product, {}),
}


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize("failure", FAILURES)
def test_a_sampler_that_differs_from_the_trainer_ends_the_trial(
    folder: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    cause, sections = FAILURES[failure]
    cause(monkeypatch)
    config = config_of(folder, **sections)
    steps = list(begin(config).train())
    with pytest.raises(GuardError, match=r"rollout/mismatch_kl is .*, above 0\.0001"):
        Guards((), config).check(steps[2].metrics)  # the second step: the first has the weights of the start


@needs_vllm
@pytest.mark.vllm
def test_a_push_that_vllm_ignores_ends_the_trial_before_a_token_is_drawn(
    folder: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import LLM

    call, pushes = LLM.collective_rpc, []

    def ignoring(llm: LLM, method: Any, *args: Any, **kwargs: Any) -> Any:
        if method == "reload_weights":
            pushes.append(method)
            if len(pushes) > 1:
                return list(kwargs["kwargs"]["weights_iterator"])
        return call(llm, method, *args, **kwargs)

    monkeypatch.setattr(LLM, "collective_rpc", ignoring)
    steps = []
    with pytest.raises(TrialError, match=r"vLLM has not taken the trainer's weights: \d+ of \d+ tensors differ"):
        steps.extend(begin(config_of(folder)).train())
    assert len(pushes) == 2


@needs_vllm
@pytest.mark.vllm
def test_one_process_runs_trials_on_different_models_one_after_another(
    folder: Path, begin: Begin, tmp_path: Path
) -> None:
    other = headed_model("llama", tmp_path / "llama")
    alone = mismatches(list(begin(config_of(other)).train()))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    held: list[weakref.ref[Any]] = []
    sizes = []
    for path in (folder, other, folder, other):
        trainer = begin(config_of(path))
        steps = list(trainer.train())
        engine = trainer._state.engine
        assert isinstance(engine, vllm.Vllm)
        held.append(weakref.ref(engine._llm.llm_engine.model_executor.driver_worker.worker.get_model()))
        sizes.append(psutil.Process().memory_info().rss / 2**20)
        del engine, trainer
    assert mismatches(steps) == alone
    assert (torch.get_num_threads(), bool((torch.get_rng_state() == state).all())) == (threads, True)
    gc.collect()
    assert [reference() is None for reference in held] == [True, True, True, False]
    assert sizes[3] - sizes[1] < 100  # MiB; keys and values alone are 256


@needs_vllm
@pytest.mark.vllm
def test_a_killed_trial_ends_in_the_bits_of_one_left_alone(folder: Path, begin: Begin, tmp_path: Path) -> None:
    config = config_of(folder, train={"num_steps": 4}, checkpoint={"every_steps": 1}, rollout={"kv_gib": 0.1})
    store = Store(str(tmp_path))

    def run(*, dies_at: int | None) -> list[tuple[int, dict[str, float]]]:
        """The steps in the trial's store, after a process that kills itself when it has made a step."""
        arguments = (config.model_dump_json(exclude_unset=True), store.root, str(dies_at))
        done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
        assert done.returncode == (0 if dies_at is None else -signal.SIGKILL), done.stderr
        return [measured(row) for key in store.trainings() for row in store.trial(key).rows()]

    assert len(run(dies_at=3)) < 5
    assert run(dies_at=None) == [measured(step) for step in begin(config).train()]


def measured(row: Row | StepMetrics) -> tuple[int, dict[str, float]]:
    """What a step gave, but for its times and its process."""
    kept = {name: value for name, value in row.metrics.items() if not name.startswith(("perf/", "system/"))}
    return row.step, kept


def run_trial(config: str, root: str, *, dies_at: int | None) -> None:
    training = trainings([with_seed(trial(TrialConfig.model_validate_json(config)), 0)])[0]
    folder = Store(root).trial(training.key)
    with Grader(timeout_s=60.0) as grader:
        for step in record(training, folder, grader=grader, origin="test"):
            if step.step == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
    result = folder.result()
    assert result is not None and result.outcome == "finished", result


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("strategy", "sections"),
    [
        pytest.param("ddp", {}, marks=pytest.mark.soak),
        ("fsdp", {"model": {"adapter": {"kind": "lora", "r": 4}}}),
        ("ddp", {"rollout": {"tensor_parallel": 2}}),
    ],
    ids=["ddp", "fsdp, an adapter", "one engine of two processes"],
)
def test_two_processes_train_what_one_does(folder: Path, begin: Begin, strategy: str, sections: dict[str, Any]) -> None:
    parallel = sections.pop("rollout", {})
    expected = list(begin(config_of(folder, **sections)).train())
    begin(config_of(folder, train={"num_steps": 0}))  # closes the other engine
    plain = config_of(folder, **sections)
    settings = plain.rollout.vllm.model_copy(update=parallel)
    config = plain.model_copy(update={"rollout": plain.rollout.model_copy(update={"vllm": settings})})
    resources = TWO.model_copy(update={"strategy": strategy})
    processes = Processes(config, seed=0, resources=resources, grader_timeout_s=60.0)
    try:
        steps = list(processes.train())
    finally:
        processes.close()
    assert max(mismatches(steps)) < AGREES
    for step, other in zip(steps, expected, strict=True):
        assert [s.completion for s in step.sampled] == [s.completion for s in other.sampled]
        assert [e.records for e in step.evaluations] == [e.records for e in other.evaluations]
        losses = {name: value for name, value in other.metrics.items() if name.startswith("loss/")}
        assert {name: step.metrics[name] for name in losses} == pytest.approx(losses, rel=1e-3, abs=1e-5)


@needs_vllm
@pytest.mark.vllm
def test_a_model_that_is_only_evaluated_needs_no_training(folder: Path, begin: Begin) -> None:
    (step,) = begin(config_of(folder, train={"num_steps": 0})).train()
    (evaluation,) = step.evaluations
    greedy = begin(config_of(folder, train={"num_steps": 0}, rollout={"engine": "lockstep"}))
    (other,) = next(iter(greedy.train())).evaluations
    assert [record.completion for record in evaluation.records] == [record.completion for record in other.records]


@needs_vllm
@pytest.mark.vllm
def test_too_little_memory_is_one_line_and_the_next_trial_starts(folder: Path, begin: Begin) -> None:
    trainer = begin(config_of(folder, rollout={"kv_gib": 1e-6}))
    with pytest.raises(UserError, match=r"rollout\.engine: vllm: cannot start with .*; see rollout\.kv_gib") as error:
        list(trainer.train())
    assert len(str(error.value).splitlines()) == 1
    assert max(mismatches(list(begin(config_of(folder)).train()))) < AGREES


@needs_vllm
@pytest.mark.vllm
def test_an_engine_that_sleeps_during_updates_samples_the_same(
    folder: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU vLLM keeps its memory, but the order of calls, and what its scheduler makes of it, is that of a GPU."""
    expected = [measured(step) for step in begin(config_of(folder)).train()]
    monkeypatch.setattr(vllm.Vllm, "_sleeps", True)
    trainer = begin(config_of(folder))
    pushes: list[object] = []
    push = vllm.Vllm._push
    monkeypatch.setattr(vllm.Vllm, "_push", lambda *args: (pushes.append(args), push(*args)))
    assert [measured(step) for step in trainer.train()] == expected
    assert len(pushes) == 4  # before the start's evaluation, each of steps 2 and 3, and the last evaluation
    engine = trainer._state.engine
    assert isinstance(engine, vllm.Vllm)
    engine.rest()
    assert engine._is_asleep
    begin(config_of(folder))  # closes it asleep
    assert engine._llm is None


def test_a_tensor_in_another_form_is_not_compared() -> None:
    """As fp8 weights, which have the name and, if square, the shape of those that were sent."""

    class Model(torch.nn.Module):
        packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}  # noqa: RUF012 (as in vLLM)

        def __init__(self) -> None:
            super().__init__()
            self.attn = torch.nn.ModuleDict({
                "qkv_proj": torch.nn.Linear(4, 8, bias=False), "o_proj": torch.nn.Linear(4, 4, bias=False),
            })  # fmt: skip
            self.norm = torch.nn.Parameter(torch.ones(4))

    model = Model()
    fused = model.attn["qkv_proj"].weight.detach()
    tensors = {
        "attn.q_proj.weight": fused[:4], "attn.k_proj.weight": fused[4:6], "attn.v_proj.weight": fused[6:],
        "attn.o_proj.weight": torch.zeros(4, 4, dtype=torch.bfloat16), "norm": torch.ones(4),
    }  # fmt: skip

    def compare() -> tuple[list[str], int]:
        sent = {n: vllm._Sent(shape=tuple(v.shape), sample=vllm._sample(v)) for n, v in tensors.items()}
        return vllm._compare(SimpleNamespace(get_model=lambda: model), sent)

    assert compare() == ([], 4)
    tensors["attn.k_proj.weight"] = tensors["attn.k_proj.weight"] + 1
    assert compare() == (["attn.k_proj.weight"], 4)


if __name__ == "__main__":
    run_trial(sys.argv[1], sys.argv[2], dies_at=None if sys.argv[3] == "None" else int(sys.argv[3]))
