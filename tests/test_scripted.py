"""Scripted trials, and what becomes of faults: classes of failure, guards, smaller portions, room before the start."""

import errno
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneshot.config.resources import ResourceConfig
from oneshot.config.sweep import FaultsConfig, GuardConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, GuardError, ModelError, TrialError, UserError
from oneshot.plan.cost import Cost
from oneshot.plan.keys import identify_trial, trial_keys
from oneshot.plan.trainings import Training, trainings
from oneshot.plan.trial import Trial
from oneshot.store.records import Result
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.grading import Grader
from oneshot.training.free_memory import NoRoomError, wait_for_room
from oneshot.training.trainer import LocalTrainer
from oneshot.trial.guards import Guards, failure_kind
from oneshot.trial.recorder import record
from oneshot.trial.scripted import ScriptedTrainer
from oneshot.trial.state import is_retried, standing

Metrics = dict[str, float]
MakeConfig = Callable[..., TrialConfig]
SCRIPTED = TrialConfig.model_validate({"script": {}})


def scripted(
    *, num_steps: int = 4, every_steps: int = 1, settings: dict[str, Any] | None = None, **script: Any
) -> TrialConfig:
    sections = {"train": {"num_steps": num_steps}, "checkpoint": {"every_steps": every_steps}, **(settings or {})}
    return TrialConfig.model_validate({"script": script, **sections})


def begun(config: TrialConfig, *, seed: int = 0, attempt: int = 1) -> ScriptedTrainer:
    return ScriptedTrainer(config, seed=seed, attempt=attempt)


def exact(metrics: Metrics) -> Metrics:
    """All but times."""
    return {name: value for name, value in metrics.items() if not name.startswith("perf/")}


def steps_of(work: ScriptedTrainer) -> list[tuple[int, Metrics]]:
    return [(step.step, exact(step.metrics)) for step in work.train()]


def training(config: TrialConfig, *, seed: int = 0, guards: tuple[GuardConfig, ...] = ()) -> Training:
    (key,) = identify_trial(config).keys(config, [seed])
    trial = Trial(
        cell={},
        seed=seed,
        key=key,
        waits_for=None,
        config=config,
        resources=ResourceConfig(),
        labels={},
        cost=Cost(train_tokens=0, eval_tokens=0, step_s=None, gpu_hours=0.0, basis="stated"),
        guards=guards,
    )
    (made,) = trainings([trial])
    return made


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return Store(str(tmp_path)).trial("k")


def attempt(made: Training, folder: TrialFolder, grader: Grader) -> Result:
    """Runs one attempt to its end."""
    list(record(made, folder, grader=grader, origin="s"))
    result = folder.result()
    assert result is not None
    return result


# what it reports


def test_a_chain_is_made_of_all_steps_before() -> None:
    # from the seed 7: 7 x 31 + 1 = 218, 218 x 31 + 2 = 6760, 6760 x 31 + 3 = 209563,
    # 209563 x 31 + 4 = 6496457, less 6 x 1000003 is 496439
    found = [metrics["script/chain"] for _, metrics in steps_of(begun(scripted(), seed=7))]
    assert found == [218, 6760, 209563, 496439]


def test_it_reports_as_many_metrics_as_it_is_told() -> None:
    assert set(steps_of(begun(scripted(metrics=1)))[0][1]) == {"script/chain"}
    step, metrics = steps_of(begun(scripted(metrics=3)))[2]
    assert (step, metrics["script/m1"], metrics["script/m2"]) == (3, 3.0, 3.0)
    assert len(metrics) == 3


def test_a_bowl_is_highest_at_its_best_and_nearer_with_every_step() -> None:
    def bowl(lr: float) -> list[float]:
        config = scripted(bowl={"optim.lr": 1e-3}, settings={"optim": {"lr": lr}})
        return [metrics["script/bowl"] for _, metrics in steps_of(begun(config))]

    # at the best a half, three quarters, ... of 1; one power of ten away it is 0, two away -3
    assert bowl(1e-3) == [0.5, 0.75, 0.875, 0.9375]
    assert bowl(1e-2) == pytest.approx([0, 0, 0, 0])
    assert bowl(1e-5) == pytest.approx([-1.5, -2.25, -2.625, -2.8125])


def test_a_bowl_of_two_settings_adds_their_distances() -> None:
    config = scripted(
        bowl={"optim.lr": 1e-3, "loss.kl_coef": 1e-2}, settings={"optim": {"lr": 1e-4}, "loss": {"kl_coef": 1.0}}
    )
    # 1 - 1 - 2 x 2, half of it at step 1
    assert steps_of(begun(config))[0][1]["script/bowl"] == pytest.approx(-2.0)


def test_noise_is_the_seeds_own() -> None:
    config = scripted(bowl={"optim.lr": 1e-6}, noise=0.1)
    first, again, other = (steps_of(begun(config, seed=seed))[-1][1]["script/bowl"] for seed in (1, 1, 2))
    assert first == again != other
    draws = [steps_of(begun(config, seed=seed))[-1][1]["script/bowl"] - 0.9375 for seed in range(200)]
    # 200 draws of standard deviation 0.1: their own is within 0.1 +- 0.02 but for one sweep in ten thousand
    assert math.sqrt(sum(draw**2 for draw in draws) / 200) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("bowl", [{"optim.lrr": 1.0}, {"reward.kind": 1.0}, {"optim.lr": 0.0}, {"examples": 1.0}])
def test_a_bowl_of_no_number_is_the_users_mistake(bowl: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"script\.bowl: .*: name a numeric setting, with an optimum above 0"):
        begun(scripted(bowl=bowl))


# resumed


@given(st.integers(0, 999), st.lists(st.integers(1, 9), max_size=4))
def test_a_trial_that_was_saved_and_loaded_is_as_one_that_was_not(seed: int, cuts: list[int]) -> None:
    config = scripted(num_steps=9, metrics=2)
    expected = steps_of(begun(config, seed=seed))
    found: list[tuple[int, Metrics]] = []
    work = begun(config, seed=seed)
    for number, cut in enumerate(sorted({*cuts, 9})):
        steps = work.train()
        while work.step < cut:
            step = next(steps)
            found.append((step.step, exact(step.metrics)))
        kept = work
        work = begun(config, seed=seed, attempt=number + 2)
        carry(kept, work)
    assert found == expected


def carry(kept: ScriptedTrainer, fresh: ScriptedTrainer) -> None:
    """From one to the other through a folder."""
    with tempfile.TemporaryDirectory() as local:
        kept.save(Path(local), with_optimizer=True)
        fresh.load(Path(local))


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("every_steps", [1, 2, 9])
def test_a_record_that_was_interrupted_is_as_one_that_was_not(
    grader: Grader, tmp_path: Path, cut: int, every_steps: int
) -> None:
    made = training(scripted(every_steps=every_steps), seed=5)
    whole, torn = (Store(str(tmp_path)).trial(name) for name in ("whole", "torn"))
    attempt(made, whole, grader)
    steps = record(made, torn, grader=grader, origin="s")
    for step in steps:
        if step.step == cut:
            steps.close()
    assert torn.result() is None
    attempt(made, torn, grader)
    assert standing(made, torn) == "finished"
    expected, found = ([(row.step, exact(row.metrics)) for row in one.rows()] for one in (whole, torn))
    assert found == expected
    # nothing was made twice
    lines = [line for name in torn.list("metrics") for line in (torn.read(f"metrics/{name}") or "").splitlines()]
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


# faults

RAISED = {
    "crash": (RuntimeError, "crash"),
    "oom": (MemoryError, "oom"),
    "nan": (TrialError, "nan"),
    "config": (UserError, "config"),
    "data": (DataError, "data"),
}


@pytest.mark.parametrize("name", RAISED)
def test_a_fault_comes_before_its_steps_report(name: str) -> None:
    kind, _ = RAISED[name]
    work = begun(scripted(faults=[{"at": 3, "do": name}]))
    steps = work.train()
    assert [next(steps).step, next(steps).step] == [1, 2]
    with pytest.raises(kind, match="the script says"):
        next(steps)
    assert work.step == 2


@pytest.mark.parametrize("name", RAISED)
def test_a_fault_is_recorded_by_its_class(grader: Grader, folder: TrialFolder, name: str) -> None:
    result = attempt(training(scripted(faults=[{"at": 3, "do": name}])), folder, grader)
    _, kind = RAISED[name]
    assert (result.outcome, result.kind, result.steps_done, result.failures) == ("failed", kind, 2, {kind: 1})
    assert is_retried(result, FaultsConfig()) == (kind in ("crash", "oom"))


def test_a_fault_of_the_first_attempts_is_over_after_them(grader: Grader, folder: TrialFolder) -> None:
    made = training(scripted(faults=[{"at": 3, "do": "crash", "attempts": 2}]))
    outcomes = [attempt(made, folder, grader).outcome for _ in range(3)]
    assert outcomes == ["failed", "failed", "finished"]
    assert standing(made, folder) == "finished"


def test_a_worker_that_is_lost_before_it_wrote_the_weights_is_replaced(grader: Grader, folder: TrialFolder) -> None:
    few, many = training(scripted()), training(scripted(num_steps=8))
    first = attempt(few, folder, grader)
    attempt(many, folder, grader)
    # as if the second worker had died after its last step: its result is not on record, and the driver writes one
    folder.write_result(first)
    folder.end_attempt(2, "failed", kind="node", reason="node: it was lost")
    assert (standing(few, folder), standing(many, folder)) == ("finished", "missing")
    assert attempt(many, folder, grader).checkpoint == "weights"
    assert standing(many, folder) == "finished"
    lines = [line for name in folder.list("metrics") for line in (folder.read(f"metrics/{name}") or "").splitlines()]
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9)), "no step was made again"


def test_a_leak_keeps_more_and_more() -> None:
    work = begun(scripted(faults=[{"at": 1, "do": "leak", "mib": 1}, {"at": 3, "do": "leak", "mib": 2}]))
    found = [metrics.get("script/kept_mib") for _, metrics in steps_of(work)]
    assert found == [1.0, None, 3.0, None]


@pytest.mark.parametrize("code", [3, -9])
def test_an_exit_ends_the_process(code: int) -> None:
    script = {"faults": [{"at": 1, "do": "exit", "code": code}]}
    program = (
        "from oneshot.config.trial import TrialConfig\nfrom oneshot.trial.scripted import ScriptedTrainer\n"
        f"config = TrialConfig.model_validate({{'script': {script!r}}})\n"
        "list(ScriptedTrainer(config, seed=0, attempt=1).train())\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == code


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


FAILURES: list[tuple[Exception, str]] = [
    (MemoryError(), "oom"),
    (NoRoomError(), "oom"),
    (OutOfMemoryError(), "oom"),
    (torch.OutOfMemoryError(), "oom"),
    (DataError(), "data"),
    (ModelError(), "config"),
    (UserError(), "config"),
    (GuardError(), "guard"),
    (TrialError(), "nan"),
    (OSError(errno.ENOSPC, ""), "storage"),
    (OSError(errno.EROFS, ""), "storage"),
    (OSError(errno.EDQUOT, ""), "storage"),
    (OSError(errno.EIO, ""), "crash"),
    (ConnectionError(), "crash"),
    (RuntimeError(), "crash"),
    (KeyError(), "crash"),
]


@pytest.mark.parametrize(("error", "kind"), FAILURES, ids=lambda one: repr(one))
def test_each_failure_has_its_class(error: Exception, kind: str) -> None:
    assert failure_kind(error) == kind


def failed(kind: Any, **failures: int) -> Result:
    return Result(
        outcome="failed",
        attempt=1,
        steps_done=0,
        evaluations=frozenset(),
        reason="",
        traceback="",
        log_path="",
        checkpoint="none",
        started_ms=0,
        ended_ms=0,
        kind=kind,
        failures=failures,
    )


def test_each_class_has_its_own_retries() -> None:
    faults = FaultsConfig(retries=2, node_retries=1, oom_retries=0)
    assert is_retried(failed("crash", crash=2), faults)
    assert not is_retried(failed("crash", crash=3), faults)
    # a hang counts with crashes, a lost node does not
    assert not is_retried(failed("stall", crash=2, stall=1), faults)
    assert is_retried(failed("crash", crash=1, node=9), faults)
    assert is_retried(failed("node", node=1, crash=9), faults)
    assert not is_retried(failed("node", node=2), faults)
    assert not is_retried(failed("oom", oom=1), faults)
    for kind in ("nan", "guard", "config", "data", "storage", ""):
        assert not is_retried(failed(kind), faults)


# guards


def guard(**bound: Any) -> GuardConfig:
    return GuardConfig.model_validate({"metric": "script/m1", **bound})


@pytest.mark.parametrize(
    ("bound", "step", "reason"),
    [
        ({"above": 2}, 3, "GuardError: script/m1 is 3, above 2"),
        ({"below": 2}, 1, "GuardError: script/m1 is 1, below 2"),
        ({"above": 2, "for_steps": 3}, 5, "GuardError: script/m1 is 5, above 2 for 3 steps"),
        ({"metric": "script/chain", "above": 1e5}, 4, "GuardError: script/chain is 955331, above 100000"),
    ],
)
def test_a_guard_that_is_broken_fails_the_trial_with_the_reason(
    grader: Grader, folder: TrialFolder, bound: dict[str, Any], step: int, reason: str
) -> None:
    # m1 is the step; the chain from the seed 1 is 32, 994, 30817, 955331
    made = training(scripted(num_steps=6, metrics=2), seed=1, guards=(guard(**bound),))
    result = attempt(made, folder, grader)
    assert (result.outcome, result.kind, result.steps_done) == ("failed", "guard", step)
    assert result.reason == reason
    assert not is_retried(result, FaultsConfig())
    # the step that broke it is kept
    assert [row.step for row in folder.rows()] == list(range(1, step + 1))


def test_a_guard_that_holds_or_finds_no_metric_fails_nothing(grader: Grader, folder: TrialFolder) -> None:
    held = (guard(above=4), guard(metric="loss/total", above=0), guard(**{"is": "nan"}))
    assert attempt(training(scripted(metrics=2), guards=held), folder, grader).outcome == "finished"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_what_is_not_finite(value: float) -> None:
    with pytest.raises(GuardError, match="not a finite number"):
        Guards((guard(**{"is": "nan"}),), SCRIPTED).check({"script/m1": value})


@given(st.lists(st.sampled_from([None, 0.0, 1.0]), max_size=12), st.integers(1, 4))
def test_a_guard_breaks_after_so_many_steps_one_after_another(values: list[float | None], for_steps: int) -> None:
    # a step without the metric neither counts nor ends the row
    known = [value for value in values if value is not None]
    is_broken = any(set(known[at : at + for_steps]) == {1.0} for at in range(len(known) - for_steps + 1))
    guards = Guards((guard(above=0.5, for_steps=for_steps),), SCRIPTED)
    try:
        for value in values:
            guards.check({} if value is None else {"script/m1": value})
    except GuardError:
        assert is_broken
    else:
        assert not is_broken


def test_a_sampler_far_from_the_trainer_fails_the_trial_unless_the_sweep_says_otherwise() -> None:
    wide, narrow = (
        TrialConfig.model_validate({"script": {}, "model": {"path": "script", "mixed_precision": precision}})
        for precision in ("no", "bf16")
    )
    with pytest.raises(GuardError, match=r"rollout/mismatch_kl is 0\.001, above 0\.0001"):
        Guards((), wide).check({"rollout/mismatch_kl": 0.001})
    Guards((), narrow).check({"rollout/mismatch_kl": 0.001})
    with pytest.raises(GuardError, match=r"rollout/mismatch_kl is 0\.2, above 0\.1"):
        Guards((), narrow).check({"rollout/mismatch_kl": 0.2})
    Guards((guard(metric="rollout/mismatch_kl", above=0.5),), wide).check({"rollout/mismatch_kl": 0.2})


# out of memory


def test_each_attempt_after_one_that_ran_out_of_memory_computes_in_half(grader: Grader, folder: TrialFolder) -> None:
    made = training(scripted(faults=[{"at": 2, "do": "oom", "attempts": 2}]))
    portions = []
    for number in count(1):
        outcome = attempt(made, folder, grader).outcome
        log = folder.read(folder.log_name(number)) or ""
        portions.append(log.partition("in portions of ")[2].partition(":")[0])
        if outcome == "finished":
            break
    assert portions == ["", "1/2", "1/4"]


def test_a_crash_halves_nothing(grader: Grader, folder: TrialFolder) -> None:
    made = training(scripted(faults=[{"at": 2, "do": "crash", "attempts": 1}]))
    attempt(made, folder, grader)
    attempt(made, folder, grader)
    assert "portions" not in (folder.read(folder.log_name(2)) or "")


@pytest.fixture
def works(tiny_config: MakeConfig, grader: Grader) -> Callable[[int], LocalTrainer]:
    config = tiny_config(train={"num_steps": 1, "microbatch_tokens": 400}, rollout={"kv_gib": 1.0})

    def make(halvings: int) -> LocalTrainer:
        return LocalTrainer(config, seed=0, resources=ResourceConfig(), grader=grader, halvings=halvings)

    return make


def kv_gib(work: LocalTrainer, folder: Path) -> float:
    folder.mkdir()
    work.save(folder, with_optimizer=False)
    return float(json.loads((folder / "state.json").read_text())["kv_gib"])


def test_halvings_halve_the_micro_batch_and_the_cache_and_nothing_else(
    works: Callable[[int], LocalTrainer], tmp_path: Path
) -> None:
    configs = {halvings: works(halvings)._config for halvings in (0, 1, 3, 20)}
    assert {n: one.train.microbatch_tokens for n, one in configs.items()} == {0: 400, 1: 200, 3: 50, 20: 1}
    for one in configs.values():
        same = one.train.model_copy(update={"microbatch_tokens": 400})
        assert one.model_copy(update={"train": same}) == configs[0]
        assert trial_keys(one, [0], {}) == trial_keys(configs[0], [0], {})
    assert [kv_gib(works(halvings), tmp_path / str(halvings)) for halvings in (0, 1, 3)] == [1.0, 0.5, 0.125]


def test_a_cache_that_did_not_fit_does_not_come_back_with_a_checkpoint(
    works: Callable[[int], LocalTrainer], tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    works(0).save(tmp_path / "kept", with_optimizer=True)
    smaller = works(2)
    smaller.load(tmp_path / "kept")
    assert kv_gib(smaller, tmp_path / "after") == 0.25


def test_a_step_in_smaller_portions_is_the_same_step(works: Callable[[int], LocalTrainer]) -> None:
    whole, halved = ([step.metrics for step in works(halvings).train()][-1] for halvings in (0, 3))
    for name in whole:
        if name.startswith(("reward/", "loss/", "rollout/")):
            assert halved[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name


# room


def probe(*free: float) -> Callable[[], float]:
    """What is free at each look; the last one for good."""
    looks = iter(free)
    last = [free[-1]]

    def look() -> float:
        last[0] = next(looks, last[0])
        return last[0]

    return look


def never() -> str:
    raise AssertionError("nobody is to be asked for")


def test_a_trial_begins_where_there_is_room() -> None:
    wait_for_room(2.0, probe(2.0), holders=never, wait_s=0.0, look_s=0.0)


def test_a_trial_waits_for_memory_that_is_given_back() -> None:
    looks = count(1)

    def free() -> float:
        return 1.0 if next(looks) < 4 else 2.0

    wait_for_room(2.0, free, holders=never, wait_s=60.0, look_s=0.0)
    assert next(looks) == 5


def test_where_there_is_no_room_it_says_who_has_it() -> None:
    with pytest.raises(NoRoomError) as caught:
        wait_for_room(2.0, probe(1.5), holders=lambda: "pid 7 6.0 GiB", wait_s=0.01, look_s=0.001)
    assert str(caught.value) == (
        "needs about 2.0 GiB, but only 1.5 GiB are free after 0 s (pid 7 6.0 GiB); give trials a larger share of the "
        "GPU, or run fewer at a time"
    )
    assert failure_kind(caught.value) == "oom"
