"""Where a sweep stands, from any shell; what stop, retry and gc do. Trials are scripted, and run right here."""

import json
import os
from collections import Counter
from collections.abc import Generator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from builders import begin_attempt
from hypothesis import given
from hypothesis import strategies as st
from test_edits import begin
from test_search_file import HUNT
from verbs import oneshot

from oneshot.cli.tables import status_table
from oneshot.config.file import read
from oneshot.errors import UserError
from oneshot.plan.pinned import Winner
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.studies import freeze_point, freeze_winner, frozen_search
from oneshot.plan.trainings import Training, trainings
from oneshot.plan.trial import Trial
from oneshot.store.folder import now_ms
from oneshot.store.gc import bytes_by_kind, find_waste, keys_of, remove_waste
from oneshot.store.lease import Holder, Lease, take
from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.sweep.status import SweepStatus, TrialStatus, sweep_status
from oneshot.tasks.grading import Grader
from oneshot.training.metrics import StepMetrics
from oneshot.trial.recorder import record
from oneshot.trial.requests import Request, Stops, axes_of, covers, pop_requests, read_stops, send_request, write_stops
from oneshot.trial.state import SHOWN_STATES, TrialState

KINDS = """\
version: 1
name: kinds
question: What becomes of them?
trial:
  train.num_steps: 4
  checkpoint.every_steps: 1
axes:
  kind:
    good: {set: {script: {step_s: 0}}}
    lost: {set: {script: {step_s: 0, faults: [{at: 3, do: nan}]}}}
    crashing: {set: {script: {step_s: 0, faults: [{at: 2, do: crash}]}}}
    wrong: {set: {script: {step_s: 0, faults: [{at: 1, do: data}]}}}
seeds: [0, 1]
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "runs"))


def start(store: Store, text: str = KINDS) -> Plan:
    """What a driver leaves that has begun a sweep and no trial of it."""
    begin(store, text, has_steps=False)
    sweep = read(text, name="s.yaml")
    folder = store.sweep(sweep.config.name)
    plan = make_plan(frozen_search(sweep, folder))
    folder.write_json("plan.json", plan.to_json())
    return plan


def training(plan: Plan, label: str) -> Training:
    (found,) = trainings([trial for trial in plan.trials if trial.label == label])
    return found


def steps(store: Store, made: Training, grader: Grader) -> Generator[StepMetrics]:
    return record(made, store.trial(made.key), grader=grader, origin="kinds")


def work_off(store: Store, plan: Plan, *labels: str, grader: Grader) -> None:
    """One attempt of each."""
    for label in labels:
        list(steps(store, training(plan, label), grader))


def one(found: SweepStatus, label: str) -> TrialStatus:
    (those,) = (trial for trial in found.trials if trial.label == label)
    return those


def states(found: SweepStatus) -> dict[str, str]:
    return {trial.label: trial.state for trial in found.trials}


def gone(lease: Lease) -> Holder:
    """A holder like that of a lease that was given back, whose process is no more."""
    return Holder(**{**asdict(lease.holder), "born": lease.holder.born - 1000})


# --- status ---


def test_a_sweep_that_has_begun_nothing_is_pending(store: Store) -> None:
    start(store)
    found = sweep_status(store, "kinds")
    assert found.counts == {"finished": 0, "failed": 0, "stopped": 0, "running": 0, "pending": 8}
    assert (found.phase, found.driver, found.last_error, found.num_trials) == ("grid", None, "", 8)
    first = one(found, "good seed 0")
    assert (first.step, first.num_steps, first.attempts, first.reason, first.where) == (0, 4, 0, "", "")


def test_every_state_is_counted(store: Store, grader: Grader) -> None:
    plan = start(store)
    work_off(store, plan, "good seed 0", "lost seed 0", "crashing seed 0", grader=grader)
    write_stops(store.sweep("kinds"), Stops(cells=({"kind": "wrong"},)))
    under_way = steps(store, training(plan, "good seed 1"), grader)
    next(under_way)
    found = sweep_status(store, "kinds")
    assert states(found) == {
        "good seed 0": "finished",
        "good seed 1": "running",
        "lost seed 0": "failed",
        "lost seed 1": "pending",
        "crashing seed 0": "pending",  # it is tried again
        "crashing seed 1": "pending",
        "wrong seed 0": "stopped",
        "wrong seed 1": "stopped",
    }
    assert found.counts == {"finished": 1, "failed": 1, "stopped": 2, "running": 1, "pending": 3}
    assert one(found, "wrong seed 0").reason == "stopped by hand"
    under_way.close()
    assert one(sweep_status(store, "kinds"), "good seed 1").state == "pending"


def test_a_failure_says_of_what_and_where_it_was(store: Store, grader: Grader) -> None:
    plan = start(store)
    work_off(store, plan, "lost seed 0", "crashing seed 0", grader=grader)
    found = sweep_status(store, "kinds")
    lost, crashing = one(found, "lost seed 0"), one(found, "crashing seed 0")
    assert (lost.state, lost.step, lost.attempts) == ("failed", 2, 1)
    assert lost.reason == found.last_error == "TrialError: the script says: the loss is not finite"
    assert (crashing.state, crashing.step, crashing.reason) == ("pending", 1, "RuntimeError: the script says: crash")


def test_what_is_tried_again_has_failed_once_its_retries_are_spent(store: Store, grader: Grader) -> None:
    plan = start(store)
    seen = []
    for _ in range(3):  # faults.retries is 2
        work_off(store, plan, "crashing seed 0", grader=grader)
        crashing = one(sweep_status(store, "kinds"), "crashing seed 0")
        seen.append((crashing.state, crashing.attempts))
    assert seen == [("pending", 1), ("pending", 2), ("failed", 3)]


def test_what_has_finished_is_finished_even_where_it_was_stopped(store: Store, grader: Grader) -> None:
    plan = start(store)
    work_off(store, plan, "good seed 0", grader=grader)
    write_stops(store.sweep("kinds"), Stops(cells=({"kind": "good"},)))
    found = states(sweep_status(store, "kinds"))
    assert (found["good seed 0"], found["good seed 1"]) == ("finished", "stopped")


def test_a_sweep_of_which_nothing_is_open_is_done(store: Store, grader: Grader) -> None:
    plan = start(store)
    work_off(store, plan, "good seed 0", "good seed 1", grader=grader)
    write_stops(store.sweep("kinds"), Stops(cells=({"kind": "lost"}, {"kind": "crashing"})))
    assert sweep_status(store, "kinds").phase == "grid"
    work_off(store, plan, "wrong seed 0", "wrong seed 1", grader=grader)
    assert sweep_status(store, "kinds").phase == "done"


def rows(*times_s: float) -> list[Row]:
    return [Row(step=step, time_ms=int(1000 * time_s), metrics={}) for step, time_s in enumerate(times_s, 1)]


def test_a_live_lease_shows_rate_and_time_left(store: Store) -> None:
    made = training(start(store, KINDS.replace("num_steps: 4", "num_steps: 11")), "good seed 0")
    folder = store.trial(made.key)
    lease = take(folder, sweep="kinds", metadata={})
    folder.write_segment(lease.attempt, rows(10, 12, 14, 16, 18))
    running = one(sweep_status(store, "kinds"), "good seed 0")
    # a step in 2 s; 6 steps are left
    assert (running.state, running.step, running.steps_per_s, running.eta_s) == ("running", 5, 0.5, 12.0)
    assert running.where == f"{lease.holder.host}:{os.getpid()} (sweep kinds, attempt 1)"
    lease.release()
    waiting = one(sweep_status(store, "kinds"), "good seed 0")
    assert (waiting.state, waiting.step, waiting.steps_per_s, waiting.eta_s) == ("pending", 5, None, None)


def test_one_slow_step_does_not_count(store: Store) -> None:
    made = training(start(store, KINDS.replace("num_steps: 4", "num_steps: 11")), "good seed 0")
    folder = store.trial(made.key)
    lease = take(folder, sweep="kinds", metadata={})
    # an evaluation of 100 s after step 3: the middle of 2, 2, 100, 2 and 2
    folder.write_segment(lease.attempt, rows(10, 12, 14, 114, 116, 118))
    running = one(sweep_status(store, "kinds"), "good seed 0")
    assert (running.steps_per_s, running.eta_s) == (0.5, 10.0)
    lease.release()


def test_before_its_second_step_a_trial_has_no_rate(store: Store) -> None:
    made = training(start(store), "good seed 0")
    folder = store.trial(made.key)
    lease = take(folder, sweep="kinds", metadata={})
    assert one(sweep_status(store, "kinds"), "good seed 0").state == "running"
    folder.write_segment(lease.attempt, rows(10))
    running = one(sweep_status(store, "kinds"), "good seed 0")
    assert (running.step, running.steps_per_s, running.eta_s) == (1, None, None)
    lease.release()


def write_lease(folder: TrialFolder, found: Holder) -> None:
    folder.write_json("lease", {**asdict(found), "released": False})


def test_who_is_gone_runs_nothing(store: Store) -> None:
    folder = store.trial(training(start(store), "good seed 0").key)
    lease = take(folder, sweep="kinds", metadata={})
    lease.release()
    write_lease(folder, gone(lease))
    assert one(sweep_status(store, "kinds"), "good seed 0").state == "pending"
    elsewhere = {**asdict(lease.holder), "host": "far", "host_id": "far"}
    write_lease(folder, Holder(**{**elsewhere, "time_ms": now_ms()}))
    assert one(sweep_status(store, "kinds"), "good seed 0").where.startswith("far:")
    # two lapses of 30 s without a beat
    write_lease(folder, Holder(**{**elsewhere, "time_ms": now_ms() - 61_000}))
    assert one(sweep_status(store, "kinds"), "good seed 0").state == "pending"


def test_the_driver_is_shown_while_it_lives(store: Store) -> None:
    start(store)
    lease = take(store.sweep("kinds"), sweep="kinds", metadata={})
    assert sweep_status(store, "kinds").driver == str(lease.holder)
    lease.release()
    assert sweep_status(store, "kinds").driver is None


def test_a_search_comes_before_its_grid(store: Store, grader: Grader) -> None:
    start(store, HUNT)
    folder = store.sweep("hunt")
    assert sweep_status(store, "hunt").phase == "search"
    for study in ("model=small", "model=large"):
        for number in range(3):
            freeze_point(folder, study, number, {"optim.lr": 1e-4 * (number + 1)})
        freeze_winner(folder, study, Winner(point=1, params={"optim.lr": 2e-4}, value=0.5, num_points=3))
    plan = start(store, HUNT)
    for made in trainings([trial for trial in plan.trials if trial.phase == "search"]):
        list(steps(store, made, grader))
    found = sweep_status(store, "hunt")
    assert (found.phase, found.counts["finished"], found.counts["pending"]) == ("grid", 6, 8)


def test_what_a_trial_waits_for_is_said(store: Store) -> None:
    start(store, HUNT)
    found = sweep_status(store, "hunt")
    waiting = [one for one in found.trials if one.phase == "grid" and one.cell == {"model": "small", "arm": "found"}]
    assert {(one.state, one.key, one.reason) for one in waiting} == {("pending", None, "the search of model=small")}


def test_status_as_json_has_its_counts_at_the_top(store: Store, grader: Grader, tmp_path: Path) -> None:
    plan = start(store)
    work_off(store, plan, "good seed 0", "lost seed 0", grader=grader)
    said = oneshot("status", "kinds", "--json", cwd=tmp_path)
    facts = json.loads(said.out)
    assert said.code == 0
    assert {state: facts[state] for state in SHOWN_STATES} == {
        "finished": 1, "failed": 1, "stopped": 0, "running": 0, "pending": 6,
    }  # fmt: skip
    assert (facts["name"], facts["phase"], facts["driver"], facts["num_trials"]) == ("kinds", "grid", None, 8)
    (lost,) = (trial for trial in facts["trials"] if trial["state"] == "failed")
    assert (lost["cell"], lost["seed"], lost["step"], lost["num_steps"]) == ({"kind": "lost"}, 0, 2, 4)


def test_status_as_text_counts_what_finished_and_shows_the_rest(store: Store, grader: Grader, tmp_path: Path) -> None:
    work_off(store, start(store), "good seed 0", "lost seed 0", grader=grader)
    (tmp_path / "s.yaml").write_text(KINDS)
    by_name, by_file = (oneshot("status", name, cwd=tmp_path).out for name in ("kinds", "s.yaml"))
    assert by_name == by_file
    lines = by_name.splitlines()
    assert lines[0] == "kinds: grid; 1 finished, 1 failed, 6 pending; driver: none"
    assert lines[-1] == "last error: TrialError: the script says: the loss is not finite"
    assert not [line for line in lines if line.startswith("good seed 0")]
    assert len([line for line in lines if " of 4 " in line]) == 7


def test_an_unknown_name_is_told_what_there_is(store: Store, tmp_path: Path) -> None:
    start(store)
    start(store, HUNT)
    for verb in ("status", "stop", "retry"):
        said = oneshot(verb, "kind", cwd=tmp_path)
        assert (said.code, said.out) == (2, "")
        assert (
            said.err
            == "oneshot: kind: runs has no sweep of this name; it has hunt, kinds; check the name or --storage\n"
        )
    (tmp_path / "elsewhere").mkdir()
    said = oneshot("status", "kinds", "--storage", "elsewhere", cwd=tmp_path)
    assert said.err == "oneshot: kinds: elsewhere has no sweep of this name; it has none; check the name or --storage\n"


def test_status_alone_lists_the_sweeps_of_a_store(store: Store, grader: Grader, tmp_path: Path) -> None:
    work_off(store, start(store), "good seed 0", grader=grader)
    start(store, HUNT)
    facts = json.loads(oneshot("status", "--json", cwd=tmp_path).out)
    assert {one["name"]: (one["phase"], one["finished"], one["pending"]) for one in facts} == {
        "hunt": ("search", 0, 14),
        "kinds": ("grid", 1, 7),
    }
    lines = oneshot("status", cwd=tmp_path).out.splitlines()
    assert [line.split()[0] for line in lines] == ["sweep", "hunt", "kinds"]


def test_a_sweep_that_cannot_be_read_hides_no_other(store: Store, tmp_path: Path) -> None:
    start(store)
    # a driver that died before it wrote what it runs, and a sweep whose model is on another machine
    take(store.sweep("unborn"), sweep="unborn", metadata={}).release()
    far = KINDS.replace("checkpoint.every_steps: 1", "model.path: ./far").replace(
        "script: {step_s: 0}", "loss.kl_coef: 0"
    )
    store.sweep("far").write("sweep.yaml", far)
    said = oneshot("status", "--json", cwd=tmp_path)
    assert said.code == 0
    assert [one["name"] for one in json.loads(said.out)] == ["kinds"]
    assert said.err.startswith("oneshot: far: ")
    assert len(said.err.splitlines()) == 1


# --- stop ---


def test_stop_leaves_a_request_for_the_driver(store: Store, tmp_path: Path) -> None:
    start(store)
    folder = store.sweep("kinds")
    lease = take(folder, sweep="kinds", metadata={})
    said = oneshot("stop", "kinds", "--now", cwd=tmp_path)
    assert said.code == 0
    assert said.out == f"kinds: sent to {lease.holder}; watch it with `oneshot status kinds`\n"
    said = oneshot("stop", "kinds", "--cell", "kind=good,seed=1", "--storage", str(tmp_path / "runs"), cwd=tmp_path)
    assert said.out.endswith(f"watch it with `oneshot status kinds --storage {tmp_path}/runs`\n")
    lease.release()
    assert pop_requests(folder) == [
        Request(verb="stop", now=True),
        Request(verb="stop", cell={"kind": "good", "seed": "1"}),
    ]
    assert pop_requests(folder) == []


def test_without_driver_only_cells_can_be_stopped(store: Store, tmp_path: Path) -> None:
    start(store)
    said = oneshot("stop", "kinds", cwd=tmp_path)
    assert (said.code, said.err) == (2, "oneshot: kinds: no driver is running, so there is nothing to stop\n")
    said = oneshot("stop", "kinds", "--cell", "kind=good", cwd=tmp_path)
    assert (said.code, said.out) == (0, "kinds: no driver is running; the next `oneshot run` leaves out kind=good\n")
    assert pop_requests(store.sweep("kinds")) == [Request(verb="stop", cell={"kind": "good"})]


@pytest.mark.parametrize("verb", ["stop", "retry"])
@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("kind", "--cell kind: expected axis=name"),
        ("kinds=good", "--cell kinds=good: expected axis=name; did you mean 'kind'?"),
        ("kind=god", "--cell kind=god: unknown cell; did you mean 'good'?"),
        ("seed=7", "--cell seed=7: unknown seed; choose one of 0, 1"),
        ("phase=search", "--cell phase=search: unknown phase; choose one of grid"),
    ],
)
def test_a_cell_that_is_not_there_is_refused(store: Store, tmp_path: Path, verb: str, cell: str, message: str) -> None:
    start(store)
    said = oneshot(verb, "kinds", "--cell", cell, cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"oneshot: {message}")
    assert pop_requests(store.sweep("kinds")) == []


def test_a_cell_of_which_no_trial_is_is_refused(store: Store, tmp_path: Path) -> None:
    # each of both is there, but not together
    search = HUNT[HUNT.index("search:") :].replace("per: [model]", "per: []").replace("arm: found", "kind: good")
    start(store, KINDS + search)
    said = oneshot("stop", "kinds", "--cell", "kind=lost,phase=search", cwd=tmp_path)
    assert said.code == 2
    assert said.err == "oneshot: --cell kind=lost,phase=search: no trial of kinds matches all of these\n"


def test_what_ends_a_search_trial_ends_no_trial_of_the_grid(store: Store) -> None:
    judged = start(store).trials[0]
    stops = Stops(early={str(judged.key): "worse at step 2"})
    assert stops.reason(replace(judged, phase="search")) == "worse at step 2"
    assert stops.reason(judged) is None


def test_stops_are_read_back(store: Store) -> None:
    folder = store.sweep("kinds")
    assert read_stops(folder) == Stops()
    stops = Stops(early={"k": "why"}, cells=({"kind": "good"}, {"seed": "1"}))
    write_stops(folder, stops)
    assert read_stops(folder) == stops


@cache
def kinds() -> tuple[Trial, ...]:
    return make_plan(read(KINDS, name="s.yaml")).trials


@given(st.sets(st.sampled_from(["kind", "seed", "phase"])), st.integers(0, 7), st.integers(0, 7))
def test_a_cell_covers_the_trials_that_agree_with_all_it_names(named: set[str], of: int, other: int) -> None:
    trials = kinds()
    axes = axes_of(trials[of])
    cell = {axis: axes[axis] for axis in named}
    assert covers(cell, trials[of])
    assert covers(cell, trials[other]) == all(axes_of(trials[other])[axis] == axes[axis] for axis in named)


def test_requests_are_heeded_in_order(store: Store) -> None:
    folder = store.sweep("kinds")
    asked = [Request(verb="stop", cell={"seed": str(seed)}) for seed in range(3)] + [Request(verb="retry")]
    for request in asked:
        send_request(folder, request)
        until_ms = now_ms() + 1  # requests of one millisecond have no order
        while now_ms() < until_ms:
            pass
    assert pop_requests(folder) == asked


# --- retry ---


@pytest.fixture
def failed(store: Store, grader: Grader) -> Store:
    """`kinds`, of which both `lost`, both `wrong` and no other trial have failed; `good seed 0` has finished."""
    plan = start(store)
    work_off(store, plan, "good seed 0", "lost seed 0", "lost seed 1", "wrong seed 0", "wrong seed 1", grader=grader)
    return store


NOTHING = "kinds: no failed training and no stopped trial matches"


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ([], {"lost seed 0", "lost seed 1", "wrong seed 0", "wrong seed 1"}),
        (["--cell", "kind=lost"], {"lost seed 0", "lost seed 1"}),
        (["--cell", "seed=1"], {"lost seed 1", "wrong seed 1"}),
        (["--cell", "kind=lost,seed=1"], {"lost seed 1"}),
        (["--cell", "kind=good"], set()),
        (["--reason", "not finite"], {"lost seed 0", "lost seed 1"}),
        (["--reason", "data"], {"wrong seed 0", "wrong seed 1"}),  # the class, and in the reason
        (["--reason", "oom"], set()),
        (["--reason", "nan", "--cell", "seed=0"], {"lost seed 0"}),
    ],
)
def test_retry_takes_back_what_it_names(failed: Store, tmp_path: Path, options: list[str], again: set[str]) -> None:
    said = oneshot("retry", "kinds", *options, cwd=tmp_path)
    number = "1 failed training" if len(again) == 1 else f"{len(again)} failed trainings"
    expected = f"{number} will run again with the next `oneshot run`" if again else NOTHING
    assert (said.code, said.out) == (0, f"{expected}\n")
    found = states(sweep_status(failed, "kinds"))
    assert found["good seed 0"] == "finished"
    every = {"lost seed 0", "lost seed 1", "wrong seed 0", "wrong seed 1"}
    assert {label for label in every if found[label] == "pending"} == again
    assert {label for label in every if found[label] == "failed"} == every - again
    (request,) = pop_requests(failed.sweep("kinds"))
    assert request.verb == "retry"


def test_retry_says_how_many_stopped_trials_resume(failed: Store, tmp_path: Path) -> None:
    write_stops(failed.sweep("kinds"), Stops(cells=({"kind": "good"}, {"seed": "1"})))
    # `good seed 0` has finished, so only `good seed 1` was stopped; it is stopped by its seed too
    assert oneshot("retry", "kinds", "--cell", "kind=good", cwd=tmp_path).out == f"{NOTHING}\n"
    said = oneshot("retry", "kinds", "--cell", "seed=1", cwd=tmp_path)
    assert said.out == (
        "2 failed trainings will run again and 4 stopped trials will resume with the next `oneshot run`\n"
    )
    oneshot("stop", "kinds", "--cell", "kind=crashing", cwd=tmp_path)  # a request that no driver has read yet
    said = oneshot("retry", "kinds", "--cell", "kind=crashing", cwd=tmp_path)
    assert said.out == "2 stopped trials will resume with the next `oneshot run`\n"


def test_what_is_retried_has_all_its_retries_again(store: Store, grader: Grader, tmp_path: Path) -> None:
    plan = start(store)
    for _ in range(3):
        work_off(store, plan, "crashing seed 0", grader=grader)
    assert one(sweep_status(store, "kinds"), "crashing seed 0").state == "failed"
    oneshot("retry", "kinds", "--reason", "crash", cwd=tmp_path)
    for state in ("pending", "pending", "failed"):
        work_off(store, plan, "crashing seed 0", grader=grader)
        assert one(sweep_status(store, "kinds"), "crashing seed 0").state == state


# --- gc ---


def test_disk_is_counted_by_sweep(store: Store, grader: Grader, tmp_path: Path) -> None:
    work_off(store, start(store), "good seed 0", grader=grader)
    # another sweep, that shares the training
    start(store, KINDS.replace("name: kinds", "name: again").replace("[0, 1]", "[0]"))
    found, waste = find_waste(store)
    size = sum(path.stat().st_size for path in (tmp_path / "runs" / "trials").rglob("*") if path.is_file())
    assert [(one.sweep, one.num_trainings, one.num_bytes) for one in found] == [("again", 1, size), ("kinds", 1, size)]
    files = (tmp_path / "runs" / "trials").glob("*/checkpoint/**/*")
    kept = sum(path.stat().st_size for path in files if path.is_file())
    assert {one.bytes_by_kind["checkpoints"] for one in found} == {kept}
    assert {sum(one.bytes_by_kind.values()) for one in found} == {size}
    assert kept > 0
    assert waste == []


def test_each_file_of_a_training_has_a_kind() -> None:
    sizes = {
        "checkpoint/ab/model.safetensors": 1,
        "best/cd/state.json": 2,
        "rollouts/step-000001.json": 4,
        "metrics/0001-00000000.jsonl": 8,
        "evaluations/ab-0.json": 16,
        "log/1.txt": 32,
        "checkpoint.json": 64,
        "trial.json": 128,
        "attempts/1.json": 256,
        "metrics": 512,
    }
    found = bytes_by_kind("/runs/trials/k", {f"/runs/trials/k/{name}": size for name, size in sizes.items()})
    assert found == {"checkpoints": 3, "completions": 4, "metrics": 24, "logs": 32, "other": 960}


def waste_of(store: Store) -> dict[str, str]:
    """Path below the store -> why it can go."""
    return {waste.path.removeprefix(f"{store.path}/"): waste.why for waste in find_waste(store)[1]}


def test_a_training_that_no_sweep_asks_for_can_go(failed: Store) -> None:
    before = make_plan(read(KINDS, name="s.yaml"))
    start(failed, KINDS.replace("[0, 1]", "[0]"))
    dropped = {training(before, label).key for label in ("lost seed 1", "wrong seed 1")}
    assert waste_of(failed) == {f"trials/{key}": "belongs to no sweep" for key in dropped}
    for waste in find_waste(failed)[1]:
        remove_waste(failed, waste)
    assert waste_of(failed) == {}
    assert Counter(states(sweep_status(failed, "kinds")).values()) == {"finished": 1, "failed": 2, "pending": 1}


def test_an_incomplete_copy_of_the_best_weights_can_go(store: Store, grader: Grader, tmp_path: Path) -> None:
    plan = start(store)
    work_off(store, plan, "good seed 0", grader=grader)
    folder = store.trial(training(plan, "good seed 0").key)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "state.json").write_text('{"step": 1}')
    folder.put_folder("best", weights)
    folder.write("best/torn/model.safetensors", "half")
    assert waste_of(store) == {f"trials/{Path(folder.path).name}/best/torn": "an incomplete checkpoint"}


def test_a_training_that_somebody_is_at_stays(store: Store, grader: Grader) -> None:
    plan = start(store)
    under_way = steps(store, training(plan, "good seed 1"), grader)
    next(under_way)
    start(store, KINDS.replace("[0, 1]", "[0]"))
    assert waste_of(store) == {}
    under_way.close()
    assert list(waste_of(store).values()) == ["belongs to no sweep"]


def test_a_checkpoint_that_was_cut_short_can_go_and_the_whole_one_stays(store: Store, grader: Grader) -> None:
    made = training(start(store), "good seed 0")
    list(steps(store, made, grader))
    folder = store.trial(made.key)
    (kept,) = folder.list("checkpoint")
    folder.write("checkpoint/cut/model", "123")
    (waste,) = find_waste(store)[1]
    assert (waste.path, waste.why, waste.num_bytes) == (f"{folder.path}/checkpoint/cut", "an incomplete checkpoint", 3)
    remove_waste(store, waste)
    assert folder.list("checkpoint") == [kept]


def test_a_checkpoint_that_is_being_made_stays(store: Store, grader: Grader) -> None:
    made = training(start(store), "good seed 0")
    under_way = steps(store, made, grader)
    next(under_way)
    store.trial(made.key).write("checkpoint/half/model", "123")
    assert waste_of(store) == {}
    under_way.close()


def test_a_write_that_was_cut_short_can_go_after_an_hour(store: Store, grader: Grader, tmp_path: Path) -> None:
    made = training(start(store), "good seed 0")
    list(steps(store, made, grader))
    torn = tmp_path / "runs" / "trials" / made.key / "metrics" / "0001-00000009.jsonl.abc.tmp"
    torn.write_text("{")
    assert waste_of(store) == {}
    os.utime(torn, (torn.stat().st_atime, torn.stat().st_mtime - 3601))
    assert waste_of(store) == {f"trials/{made.key}/metrics/{torn.name}": "an incomplete write"}


def test_gc_shows_and_removes_only_when_told_to(failed: Store, tmp_path: Path) -> None:
    start(failed, KINDS.replace("[0, 1]", "[0]"))
    facts: dict[str, Any] = json.loads(oneshot("gc", "--json", cwd=tmp_path).out)
    assert [(one["sweep"], one["num_trainings"]) for one in facts["sweeps"]] == [("kinds", 3)]
    assert list(facts["sweeps"][0]["bytes_by_kind"]) == ["checkpoints", "completions", "metrics", "logs", "other"]
    assert [one["why"] for one in facts["waste"]] == ["belongs to no sweep"] * 2
    said = oneshot("gc", cwd=tmp_path).out
    assert said.splitlines()[-1].endswith(" can be removed; use --remove to remove it")
    assert len(failed.trainings()) == 5
    assert oneshot("gc", "--remove", cwd=tmp_path).out.splitlines()[-1].endswith(" can be removed")
    assert len(failed.trainings()) == 3
    assert oneshot("gc", cwd=tmp_path).out.splitlines()[-1] == "0 B can be removed"


def test_a_whole_sweep_goes_with_what_it_alone_holds(failed: Store, tmp_path: Path) -> None:
    start(failed, KINDS.replace("name: kinds", "name: again").replace("[0, 1]", "[0]"))
    shared = keys_of(failed, "again") & {*failed.trainings()}
    assert len(shared) < len(failed.trainings())
    said = oneshot("gc", "--sweep", "kinds", cwd=tmp_path).out
    assert "runs/sweeps/kinds: the sweep's own records" in said
    assert len(failed.trainings()) == 5
    assert oneshot("gc", "--sweep", "kinds", "--remove", cwd=tmp_path).code == 0
    assert {*failed.trainings()} == shared
    assert failed.sweeps() == ["again"]
    gone = oneshot("gc", "--sweep", "kinds", "--remove", cwd=tmp_path)
    assert gone.code == 2
    assert "kinds: " in gone.err


def test_a_store_without_folders_has_the_same_waste(grader: Grader) -> None:
    store = Store("memory://gc/runs")
    made = training(start(store), "good seed 0")
    list(steps(store, made, grader))
    store.trial(made.key).write("checkpoint/cut/model", "123")
    assert list(waste_of(store).values()) == ["an incomplete checkpoint"]
    store.sweep("kinds").write_json("plan.json", {"trials": []})
    assert keys_of(store, "kinds") == set()
    assert list(waste_of(store).values()) == ["belongs to no sweep"]
    remove_waste(store, find_waste(store)[1][0])
    assert store.trainings() == []
    store.fs.rm("/gc", recursive=True)


def test_a_sweep_that_is_not_there_has_no_status(store: Store) -> None:
    with pytest.raises(UserError, match="it has none"):
        sweep_status(store, "kinds")


def test_a_sweep_whose_model_is_on_another_machine_still_shows_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "runs"))
    text = (
        "version: 1\nname: far\nquestion: far?\ntrial: {model.path: ./only-there, examples: ['arithmetic:47+38'], "
        "train.num_steps: 3}\nseeds: [0, 1]\n"
    )
    folder = store.sweep("far")
    folder.write("sweep.yaml", text)
    begun = {"key": "k0", "cell": {}, "seed": 0, "num_steps": 3}
    folder.write_json("plan.json", {"num_cells": 1, "trials": [begun, {**begun, "key": "k1", "seed": 1}]})
    config = {"model": {"path": "./only-there"}, "examples": ["arithmetic:47+38"], "train": {"num_steps": 3}}
    store.trial("k0").write_json("trial.json", {"config": config})
    attempt = begin_attempt(store.trial("k0"), {"sweep": "far", "started_ms": 0})
    store.trial("k0").write_segment(attempt, [Row(step=3, time_ms=1, metrics={})])
    store.trial("k0").end_attempt(attempt, "finished")
    found = sweep_status(store, "far")
    assert (found.counts["finished"], found.counts["pending"]) == (1, 1)


def test_a_table_of_trials_begins_with_those_that_somebody_looks_for() -> None:
    def shown(label: str, state: TrialState) -> TrialStatus:
        texts = {"label": label, "phase": "grid", "key": label, "reason": "", "where": ""}
        numbers = {"seed": 0, "step": 1, "num_steps": 2, "steps_per_s": None, "eta_s": None, "attempts": 1}
        return TrialStatus(cell={}, state=state, **texts, **numbers)  # type: ignore[arg-type]

    states = {"stopped": 1, "pending": 1, "finished": 1, "running": 1, "failed": 1}
    trials = [shown(state, TrialState(state)) for state in states]
    status = SweepStatus(name="s", phase="grid", driver=None, num_trials=5, counts=states, last_error="", trials=trials)
    assert list(status_table(status).table.columns[0].cells) == ["failed", "running", "pending", "stopped"]
