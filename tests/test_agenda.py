"""The driver's list without Ray: what is next, tried again or waited for, and a search that is interrupted."""

import json
import math
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from statistics import fmean
from typing import Any

import optuna
import pytest
from builders import begin_attempt
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from scripted import Lab, chain, files, steps_of, sweep_text

from oneshot.config.file import load, read
from oneshot.config.resources import BudgetConfig, ResourceConfig, deadline
from oneshot.errors import SweepFileError
from oneshot.plan.frozen import Planned, freeze
from oneshot.plan.loader import begun_sweep, pin_all
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan
from oneshot.plan.trainings import Training, trainings
from oneshot.store.lease import Holder, Leased, LeaseLost, known_dead, take
from oneshot.store.records import FailureKind, Result
from oneshot.sweep import agenda as agenda_module
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.budget import Budget
from oneshot.sweep.cluster.fit import Fit, NodeType
from oneshot.sweep.cluster.searcher import AgendaSearcher
from oneshot.sweep.cluster.trainable import TrialTrainable
from oneshot.sweep.events import Event
from oneshot.sweep.run import drive
from oneshot.sweep.search.journal import write_journals
from oneshot.training.metrics import StepMetrics
from oneshot.trial.recorder import record
from oneshot.trial.requests import Request, read_stops, send_request
from oneshot.trial.state import trial_state

ONE_CPU = Fit([NodeType(resources={"CPU": 1.0}, count=1)])


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and leases are looked at each time."""
    monkeypatch.setattr(agenda_module, "LOOK_S", 0.0)


@pytest.fixture
def lab(tmp_path: Any) -> Lab:
    return Lab(folder=tmp_path)


@dataclass
class Desk:
    """An agenda, and what a driver does with it: trainings step by step in turn, as many at a time as `slots`."""

    lab: Lab
    agenda: Agenda
    sweep: PinnedSweep
    events: list[Event]
    slots: int = 1
    num_ended: int = 0
    live: deque[tuple[Training, Generator[StepMetrics]]] = field(default_factory=deque)

    def work(self, *, until_ended: int | None = None) -> str:
        """Runs what is next until nothing is, or so many trainings have ended; what the agenda said last."""
        turn: Any = ""
        while until_ended is None or self.num_ended < until_ended:
            while len(self.live) < self.slots:
                turn = self.agenda.next()
                if isinstance(turn, str):
                    break
                self.agenda.begun(turn.training.key)
                self.live.append((turn.training, self.steps(turn.training, stale_holder=turn.stale_holder)))
            if not self.live:
                return str(turn)
            self._make_step(*self.live.popleft())
        return str(turn)

    def _make_step(self, training: Training, steps: Generator[StepMetrics]) -> None:
        step = next(steps, None)
        is_over = step is None or self.agenda.reported(training.key, step.step, step.metrics)
        if not is_over:
            self.live.append((training, steps))
            return
        self.num_ended += self.agenda.ended(training.key)
        steps.close()  # as with Tune, whose worker hears of it later

    def steps(
        self, training: Training, *, origin: str = "s", stale_holder: Holder | None = None
    ) -> Generator[StepMetrics]:
        nobody: Any = None  # a script is not graded
        return record(
            training, self.lab.store.trial(training.key), grader=nobody, origin=origin, stale_holder=stale_holder
        )

    def leave(self) -> None:
        """Interrupts what is live."""
        for _, steps in self.live:
            steps.close()

    @property
    def plan(self) -> Plan:
        return self.agenda.plan

    def labels(self, kind: str = "started") -> list[str]:
        return [event.label for event in self.events if event.kind == kind]

    @property
    def said(self) -> str:
        return "\n".join(event.text for event in self.events if event.kind == "message")

    def result(self, label: str) -> Result:
        found = self.lab.trainings()[label].result()
        assert found is not None
        return found

    def state(self, label: str) -> str:
        (trial,) = (one for one in self.plan.trials if one.label == label)
        stops = read_stops(self.lab.store.sweep("s"))
        return trial_state(trial, self.lab.store, stops, faults=self.sweep.config.faults)


def sit_down(lab: Lab, text: str = "", *, slots: int = 1, **options: Any) -> Desk:
    """A driver that starts: with a new sweep file, or with the one that is there."""
    if text:
        lab.write(text.replace("seeds:", f"storage: {lab.folder}/runs\nseeds:", 1))
    store, events = lab.store, list[Event]()
    run = pin_all(load(lab.folder / "s.yaml"), store)
    run.folder.write("sweep.yaml", run.sweep.source.text)
    agenda = Agenda(run, listen=events.append, replanned=lambda plan: None, **options)
    return Desk(lab=lab, agenda=agenda, sweep=run.sweep, events=events, slots=slots)


def training_of(desk: Desk, label: str) -> Training:
    (found,) = (one for one in trainings(desk.plan.trials) if one.label == label)
    return found


def test_a_driver_that_lost_its_sweep_writes_nothing_in_its_folder(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text(seeds="[0, 1]"))
    run = pin_all(load(lab.folder / "s.yaml"), lab.store)
    lease = drive(run, lambda event: None)
    agenda = Agenda(run, listen=desk.events.append, replanned=lambda plan: None)
    take(lab.store.sweep("s"), sweep="s", metadata={}, stale_holder=known_dead(lease.holder))
    send_request(lab.store.sweep("s"), Request(verb="stop", cell={"seed": "0"}))
    with pytest.raises(LeaseLost):
        agenda.look()
    assert read_stops(lab.store.sweep("s")).cells == ()


def test_a_worker_records_the_digest_of_the_frozen_record_with_its_attempt(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text(seeds="[0]"))
    frozen = freeze(lab.store.sweep("s"), Planned.of(desk.sweep.config, desk.plan))
    searcher = AgendaSearcher(desk.agenda, storage=f"{lab.folder}/runs", fit=lambda: ONE_CPU, most=None)
    config = searcher.suggest("trial")
    assert isinstance(config, dict)
    worker = object.__new__(TrialTrainable)  # without a node of Ray
    worker._node, worker._accelerator, worker._config = "node", "H100", config
    worker._grader = worker._steps = None
    assert worker.step()["key"] == config["key"]
    worker.cleanup()
    assert lab.store.trial(config["key"]).attempt(1)["claims"] == frozen.digest


# --- what is next ---

ARMS = "  arm: {outcome: {}, format: {set: {reward.kind: format}}}\n"


def test_seed_by_seed_and_controls_first(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text(axes=ARMS, seeds="[0, 1]"))
    assert desk.work() == "done"
    assert desk.labels() == ["format seed 0", "outcome seed 0", "format seed 1", "outcome seed 1"]
    assert desk.labels("ended") == desk.labels()
    assert [event.num_left for event in desk.events if event.kind == "ended"] == [3, 2, 1, 0]
    assert desk.agenda.is_idle()


def test_what_is_done_is_not_begun_again_and_what_was_interrupted_goes_on(lab: Lab) -> None:
    first = sit_down(lab, sweep_text(seeds="[0, 1]"))
    first.work(until_ended=1)
    turn: Any = first.agenda.next()
    steps = first.steps(turn.training, stale_holder=turn.stale_holder)
    assert [next(steps).step for _ in range(3)] == [1, 2, 3]
    steps.close()
    second = sit_down(lab)
    assert [training.label for training in second.agenda.outstanding()] == ["trial seed 1"]
    assert second.work() == "done"
    assert steps_of(lab.trainings()["trial seed 1"]) == {1: [1, 2, 3], 2: [4, 5, 6]}
    third = sit_down(lab)
    assert third.agenda.is_idle()
    assert third.work() == "done"
    assert third.labels() == []


# --- what is tried again ---


@pytest.mark.parametrize(
    ("fault", "faults", "attempts", "kind"),
    [
        ("crash", "retries: 2", 3, "crash"),
        ("crash", "retries: 0", 1, "crash"),
        ("oom", "oom_retries: 3, retries: 0", 4, "oom"),
        ("nan", "retries: 9", 1, "nan"),
        ("config", "retries: 9", 1, "config"),
        ("data", "retries: 9", 1, "data"),
    ],
)
def test_a_class_of_failure_has_its_own_budget(lab: Lab, fault: str, faults: str, attempts: int, kind: str) -> None:
    desk = sit_down(lab, sweep_text(script=f"faults: [{{at: 2, do: {fault}}}]", rest=f"faults: {{{faults}}}\n"))
    assert desk.work() == "done"
    result = desk.result("trial seed 0")
    assert (result.outcome, result.kind, result.attempt) == ("failed", kind, attempts)
    assert result.failures == {kind: attempts}
    assert desk.state("trial seed 0") == "failed"
    assert desk.said.count("retrying") == attempts - 1
    assert sit_down(lab).agenda.is_idle(), "a failed training is not run again"


@pytest.mark.parametrize(
    ("kinds", "faults", "is_open"),
    [
        (["node"] * 2, "node_retries: 2, retries: 0", True),
        (["node"] * 3, "node_retries: 2, retries: 0", False),
        (["stall", "crash"], "retries: 2", True),
        (["stall", "crash", "stall"], "retries: 2", False),  # they share a budget
        (["crash", "node", "oom"], "retries: 1, node_retries: 1, oom_retries: 1", True),
    ],
)
def test_lost_nodes_and_stalls_are_counted_apart_and_together(
    lab: Lab, kinds: list[FailureKind], faults: str, is_open: bool
) -> None:
    desk = sit_down(lab, sweep_text(rest=f"faults: {{{faults}, same_failure_limit: 9}}\n"))
    for kind in kinds:
        turn: Any = desk.agenda.next()
        folder = lab.store.trial(turn.training.key)
        lease = take(folder, sweep="s", metadata={}, stale_holder=turn.stale_holder)
        folder.end_attempt(lease.attempt, "failed", kind=kind, reason=f"{kind}: it was lost")
        lease.release()
        desk.agenda.ended(turn.training.key)
    assert [one.label for one in desk.agenda.outstanding()] == ["trial seed 0"] * is_open
    assert desk.state("trial seed 0") == ("missing" if is_open else "failed")


def test_what_is_tried_again_goes_on_from_its_checkpoint(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text(script="faults: [{at: 6, do: crash, attempts: 1}]"))
    desk.work()
    (folder,) = lab.trainings().values()
    assert steps_of(folder) == {1: [1, 2, 3, 4, 5], 2: [5, 6]}
    assert [row.metrics["script/chain"] for row in folder.rows()] == [chain(0, step) for step in range(1, 7)]


def test_whose_worker_is_dead_is_not_waited_for_though_its_process_goes_on_beating(lab: Lab) -> None:
    """A host that is cut off from the driver, and not from the store."""
    desk = sit_down(lab, sweep_text())
    turn: Any = desk.agenda.next()
    desk.agenda.begun(turn.training.key)
    folder = lab.store.trial(turn.training.key)
    cut_off = take(folder, sweep="s", metadata={})
    desk.agenda.is_dead(turn.training.key)
    desk.agenda.ended(turn.training.key)
    cut_off.beat()
    again: Any = desk.agenda.next()
    assert again.training.key == turn.training.key
    assert (
        take(lab.store.trial(again.training.key), sweep="s", metadata={}, stale_holder=again.stale_holder).attempt == 2
    )


def test_what_left_a_node_that_is_drained_goes_on_first(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text(seeds="[0, 1, 2]"))
    turn: Any = desk.agenda.next()
    desk.agenda.begun(turn.training.key)
    desk.agenda.moves(turn.training.key, "its node is being drained")
    desk.agenda.ended(turn.training.key)
    assert desk.agenda.outstanding()[0].key == turn.training.key
    assert "its node is being drained; it resumes from its checkpoint" in desk.said


def test_a_training_for_whose_like_there_is_no_room_is_passed_and_keeps_its_place(lab: Lab) -> None:
    axes = "  size: {large: {set: {script: {step_s: 0.1}}, resources: {gpus: 1}}, small: {set: {script: {}}}}\n"
    desk = sit_down(lab, sweep_text(axes=axes, seeds="[0, 1]"))
    turn: Any = desk.agenda.next(lambda training: training.resources.gpus > 0)
    assert turn.training.label == "small seed 0"
    assert desk.agenda.next(lambda training: True) == "wait"
    assert [one.label for one in desk.agenda.outstanding()] == ["large seed 0", "large seed 1", "small seed 1"]


def test_what_is_done_and_under_way_is_counted(lab: Lab) -> None:
    text = sweep_text(seeds="[0, 1, 2]", rest="resources: {gpus: 2}\nbudget: {gpu_hours: 9}\n")
    desk = sit_down(lab, text.replace("script: {step_s: 0.02}", "script: {}"))
    assert desk.agenda.load().trials == {"finished": 0, "failed": 0, "stopped": 0, "running": 0, "pending": 3}
    desk.work(until_ended=1)
    turn: Any = desk.agenda.next()
    desk.agenda.begun(turn.training.key)
    desk.agenda.reported(turn.training.key, 3, {"perf/tokens_per_s": 50.0})
    load = desk.agenda.load()
    assert load.trials == {"finished": 1, "failed": 0, "stopped": 0, "running": 1, "pending": 1}
    assert load.tokens_per_s == 50.0
    desk.agenda.ended(turn.training.key)
    assert desk.agenda.load().tokens_per_s == 0.0


# --- the first trainings die alike ---

CRASHES = "script: {faults: [{at: 1, do: crash}]}"


def test_the_sweep_halts_when_the_first_trainings_fail_alike(lab: Lab) -> None:
    faults = "faults: {retries: 1, same_failure_limit: 3}\n"
    desk = sit_down(lab, sweep_text(script="faults: [{at: 1, do: crash}]", seeds="[0, 1, 2, 3]", rest=faults))
    assert desk.work() == "done"
    assert "first 3 trainings failed for the same reason (RuntimeError: the script says: crash)" in desk.agenda.halted
    # each is tried again before the next begins; the third halts the sweep with its first failure
    assert desk.labels() == ["trial seed 0"] * 2 + ["trial seed 1"] * 2 + ["trial seed 2"]


def test_one_that_finishes_or_fails_otherwise_keeps_the_sweep_going(lab: Lab) -> None:
    cells = [("well", "{}"), *((f"crash{number}", f"{{set: {{{CRASHES}}}}}") for number in range(4))]
    axes = "  a:\n" + "".join(f"    {name}: {what}\n" for name, what in cells)
    desk = sit_down(lab, sweep_text(axes=axes.replace("{faults", "{step_s: 0, faults"), rest="faults: {retries: 0}\n"))
    desk.work()
    assert not desk.agenda.halted


def test_a_failure_of_another_kind_keeps_the_sweep_going(lab: Lab) -> None:
    kinds = ["crash", "nan", "data", "crash"]
    axes = "  a:\n" + "".join(
        f"    {kind}{number}: {{set: {{script: {{step_s: 0, faults: [{{at: {number + 1}, do: {kind}}}]}}}}}}\n"
        for number, kind in enumerate(kinds)
    )
    desk = sit_down(lab, sweep_text(axes=axes, rest="faults: {retries: 0}\n"))
    desk.work()
    assert not desk.agenda.halted
    assert len(desk.labels()) == 4


# --- requests ---


def test_a_stop_begins_nothing_more(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text(seeds="[0, 1]"))
    desk.work(until_ended=1)
    send_request(lab.store.sweep("s"), Request(verb="stop"))
    assert desk.work() == "done"
    assert (desk.agenda.halted, desk.agenda.kill) == ("stopped by hand", False)
    assert desk.labels() == ["trial seed 0"]
    assert lab.store.sweep("s").list("requests") == []
    assert sit_down(lab).work() == "done"
    assert desk.state("trial seed 1") == "finished"


def test_a_stop_now_asks_for_a_kill(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text())
    send_request(lab.store.sweep("s"), Request(verb="stop", now=True))
    assert desk.agenda.next() == "done"
    assert desk.agenda.kill


def test_a_stopped_cell_ends_at_its_next_step_stays_stopped_and_comes_back(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text(axes=ARMS, seeds="[0, 1]"))
    turn: Any = desk.agenda.next()
    assert turn.training.label == "format seed 0"
    assert not desk.agenda.reported(turn.training.key, 1, {})
    send_request(lab.store.sweep("s"), Request(verb="stop", cell={"arm": "format"}))
    desk.agenda.look()
    assert desk.agenda.reported(turn.training.key, 2, {}), "nobody wants more of it"
    assert desk.agenda.ended(turn.training.key)
    assert desk.work() == "done"
    assert desk.labels() == ["outcome seed 0", "outcome seed 1"]
    assert desk.state("format seed 0") == "stopped"
    again = sit_down(lab)
    assert again.agenda.is_idle()
    send_request(lab.store.sweep("s"), Request(verb="retry", cell={"arm": "format"}))
    assert again.work() == "done"
    assert again.labels() == ["format seed 0", "format seed 1"]


def test_a_cell_is_a_seed_or_a_phase_too(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text(axes=ARMS, seeds="[0, 1]"))
    send_request(lab.store.sweep("s"), Request(verb="stop", cell={"arm": "format", "seed": "1"}))
    desk.work()
    assert desk.labels() == ["format seed 0", "outcome seed 0", "outcome seed 1"]


# --- another sweep is at it ---


@pytest.fixture
def elsewhere(lab: Lab) -> Iterator[tuple[Desk, Generator[StepMetrics]]]:
    """A sweep of two seeds, and another one's first steps of the first of them."""
    desk = sit_down(lab, sweep_text(seeds="[0, 1]"))
    others = desk.steps(training_of(desk, "trial seed 0"), origin="other")
    assert [next(others).step for _ in range(3)] == [1, 2, 3]
    yield desk, others
    others.close()


def test_what_another_sweep_is_at_comes_last_and_is_attached_to(elsewhere: tuple[Desk, Generator[StepMetrics]]) -> None:
    desk, others = elsewhere
    assert desk.work() == "wait"
    assert desk.labels() == ["trial seed 1"]
    assert "trial seed 0  waiting: held by " in desk.said
    assert "(sweep other, attempt 1)" in desk.said
    assert not desk.agenda.is_idle()
    assert len(list(others)) == 3
    assert desk.work() == "done"
    assert desk.labels() == ["trial seed 1"]
    assert desk.labels("ended") == ["trial seed 1", "trial seed 0"]
    assert desk.result("trial seed 0").attempt == 1


def test_what_another_sweep_leaves_is_gone_on_with(elsewhere: tuple[Desk, Generator[StepMetrics]]) -> None:
    desk, others = elsewhere
    assert desk.work() == "wait"
    others.close()
    assert desk.work() == "done"
    assert desk.labels() == ["trial seed 1", "trial seed 0"]
    assert steps_of(desk.lab.trainings()["trial seed 0"]) == {1: [1, 2, 3], 2: [4, 5, 6]}


def test_who_is_faster_between_two_looks_is_waited_for(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text())
    turn: Any = desk.agenda.next()
    others = desk.steps(turn.training, origin="other")
    next(others)
    with pytest.raises(Leased):
        next(desk.steps(turn.training, stale_holder=turn.stale_holder))
    assert not desk.agenda.ended(turn.training.key, is_elsewhere=True)
    assert desk.agenda.next() == "wait"
    list(others)
    assert desk.agenda.next() == "done"
    assert desk.labels("ended") == ["trial seed 0"]


def test_a_halted_sweep_waits_for_nobody(elsewhere: tuple[Desk, Generator[StepMetrics]]) -> None:
    desk, _ = elsewhere
    desk.work()
    desk.agenda.halt("enough")
    assert desk.agenda.next() == "done"


# --- what hangs ---


def test_who_has_not_reported_for_too_long_is_stalled(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = sit_down(lab, sweep_text(rest="faults: {stall_s: 60}\n"))
    now_s = [1000.0]
    monkeypatch.setattr("oneshot.sweep.agenda.time.monotonic", lambda: now_s[0])
    turn: Any = desk.agenda.next()
    key = turn.training.key
    now_s[0] = 2000.0
    assert desk.agenda.stalled() == [], "no worker has it yet"
    desk.agenda.begun(key)
    now_s[0] = 2060.0
    assert desk.agenda.stalled() == []
    desk.agenda.reported(key, 1, {})
    now_s[0] = 2120.0
    assert desk.agenda.stalled() == []
    now_s[0] = 2121.0
    assert desk.agenda.stalled() == [key]


# --- the budget ---

NOON = datetime(2026, 3, 1, 12, 0)


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("12:30", datetime(2026, 3, 1, 12, 30)),
        ("08:00", datetime(2026, 3, 2, 8, 0)),
        ("12:00", datetime(2026, 3, 2, 12, 0)),  # it is noon: the next one is tomorrow's
        ("2026-12-01T08:00", datetime(2026, 12, 1, 8, 0)),
        ("2026-02-01T08:00", datetime(2026, 2, 1, 8, 0)),
    ],
)
def test_a_time_of_day_is_the_next_one(until: str, expected: datetime) -> None:
    assert deadline(until, NOON) == expected


def of_gpus(desk: Desk, gpus: float) -> Training:
    return replace(trainings(desk.plan.trials)[0], key=f"with-{gpus:g}", resources=ResourceConfig(gpus=gpus))


def test_gpu_hours_are_gpus_times_the_hours_that_they_are_held(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text())
    now_s = [0.0]
    budget = Budget(BudgetConfig(gpu_hours=3), lab.store, [], clock_s=lambda: now_s[0])
    half, two, none = (of_gpus(desk, gpus) for gpus in (0.5, 2, 0))
    now_s[0] = 3600.0  # an hour in which nothing ran, but for what the first call is told
    assert budget.spent([]) == ""
    now_s[0] = 7200.0
    assert budget.spent([half, two, none]) == ""
    assert budget.gpu_hours == pytest.approx(2.5)
    now_s[0] = 9000.0  # half an hour on one: 2.5 + 0.5
    assert budget.spent([half, half]) == "the budget of 3 GPU-hours is used up"


def test_gpu_hours_of_earlier_attempts_count(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text())
    training = of_gpus(desk, 0.5)
    folder = lab.store.trial(training.key)
    hour_ms = 3_600_000
    begin_attempt(folder, {"started_ms": 0})
    begin_attempt(folder, {"started_ms": 5 * hour_ms, "last_beat_ms": hour_ms})  # the first one's last sign of life
    folder.write_json("lease", {"attempt": 2, "time_ms": 8 * hour_ms})
    budget = Budget(BudgetConfig(gpu_hours=2), lab.store, [training])
    assert budget.gpu_hours == pytest.approx((1 + 3) * 0.5)
    assert budget.spent([]) == "the budget of 2 GPU-hours is used up"


def test_a_cost_is_hours_of_each_type_times_its_price(lab: Lab) -> None:
    desk = sit_down(lab, sweep_text())
    now_s = [0.0]
    prices = {"H100": 2.0, "L4": 0.5}
    one, two = of_gpus(desk, 1), of_gpus(desk, 2)
    hour_ms = 3_600_000
    folder = lab.store.trial(two.key)
    begin_attempt(folder, {"started_ms": 0, "gpus": 2, "accelerator": "L4"})
    begin_attempt(folder, {"started_ms": 5 * hour_ms, "last_beat_ms": 3 * hour_ms, "gpus": 0.25, "accelerator": "P100"})
    begin_attempt(lab.store.trial(one.key), {"started_ms": 0, "gpus": 1, "accelerator": "H100"})
    limits = BudgetConfig(cost=9, price_per_gpu_hour=prices)
    host = {"host": "h", "host_id": "x", "pid": 1, "born": 0.0, "sweep": "s", "time_ms": 0, "beat": 0}
    for each, number in ((one, 1), (two, 2)):
        lease = {**host, "attempt": number, "released": False}
        lab.store.trial(each.key).write_json("lease", lease)
    budget = Budget(limits, lab.store, [two], clock_s=lambda: now_s[0])
    # 3 h of two L4 at 0.5 each; the second attempt has no later sign of life
    assert budget.cost == pytest.approx(3.0)
    now_s[0] = 3600.0  # an hour of a quarter of a P100, which counts as the most expensive type, and of one H100
    assert budget.spent([one, two]) == ""
    assert budget.cost == pytest.approx(3.0 + 0.25 * 2.0 + 2.0)
    now_s[0] += 3 * 3600.0
    assert budget.spent([one]) == "the budget's cost of 9 is reached"
    assert limits.limits()["gpu_hours"] == 4.5  # if all of it were H100s


@pytest.mark.parametrize("text", ["cost: 5", "price_per_gpu_hour: {H100: 2}"])
def test_a_cost_and_prices_need_each_other(text: str) -> None:
    with pytest.raises(SweepFileError, match=r"s\.yaml:\d+: budget: .* has no effect without .*; set both"):
        read(sweep_text(rest=f"budget: {{{text}}}\n"), name="s.yaml")


def test_a_deadline_halts_the_sweep(lab: Lab) -> None:
    now = [NOON]
    budget = Budget(BudgetConfig(until="13:00"), lab.store, [], now=lambda: now[0])
    now[0] = datetime(2026, 3, 1, 12, 59)
    assert budget.spent([]) == ""
    now[0] = datetime(2026, 3, 1, 13, 0)
    assert budget.spent([]) == "the budget ends at 13:00"
    desk = sit_down(lab, sweep_text(rest='budget: {until: "2020-01-01T00:00"}\n'))
    assert desk.work() == "done"
    assert desk.agenda.halted == "the budget ends at 2020-01-01T00:00"
    assert desk.labels() == []


# --- a search ---

LRS = [1e-2, 1e-3, 1e-4, 1e-5]
MODELS = "  model: {a: {set: {rollout.temperature: 0.6}}, b: {set: {rollout.temperature: 0.7}}}\n"


def search_text(
    *,
    search: str = "",
    space: str = "{optim.lr: {low: 1.0e-6, high: 1.0e-2, log: true}}",
    num_trials: int = 6,
    seeds: str = "[100]",
    axes: str = "",
    rest: str = "",
    noise: float = 0.0,
    num_steps: int = 2,
    grid_seeds: str = "[0]",
) -> str:
    """A search of a bowl whose best point is lr 1e-4."""
    return sweep_text(
        script=f"bowl: {{optim.lr: 1.0e-4}}, noise: {noise}",
        trial=f"  train.num_steps: {num_steps}\n",
        axes=axes,
        seeds=grid_seeds,
        rest=f"search:\n  seeds: {seeds}\n  num_trials: {num_trials}\n  objective: {{metric: script/bowl}}\n"
        f"  space: {space}\n  sampler: {{kind: tpe, seed: 7, num_startup: 3}}\n{search}{rest}",
    )


def bowl(lr: float, step: int = 2) -> float:
    """Noise apart."""
    return (1 - math.log10(lr / 1e-4) ** 2) * (1 - 0.5**step)


def study_of(lab: Lab, name: str = "all") -> Any:
    return lab.store.sweep("s").read_json(f"search/{name}/study.json")


def points_of(lab: Lab) -> dict[str, str]:
    """Everything that a search leaves: points and winners, as text."""
    folder = lab.store.sweep("s")
    return {
        f"{study}/{name}": text
        for study in folder.list("search")
        for name, text in files(folder, f"search/{study}").items()
    }


def test_a_search_asks_its_points_and_its_winner_sets_the_grid(lab: Lab) -> None:
    desk = sit_down(lab, search_text())
    assert {trial.key for trial in desk.plan.grid} == {None}
    assert desk.work() == "done"
    found = study_of(lab)
    values = [bowl(point["params"]["optim.lr"]) for point in found["points"]]
    assert [point["value"] for point in found["points"]] == pytest.approx(values)
    assert found["winner"] == values.index(max(values))
    assert {point["state"] for point in found["points"]} == {"complete"}
    (grid,) = desk.plan.grid
    assert grid.config.optim.lr == found["points"][found["winner"]]["params"]["optim.lr"]
    assert desk.labels() == [*(f"trial point {number} seed 100" for number in range(6)), "trial seed 0"]
    assert desk.state("trial seed 0") == "finished"


def test_a_study_is_a_journal_that_optuna_opens(lab: Lab) -> None:
    assert sit_down(lab, search_text()).work() == "done"
    sweep_run = begun_sweep(lab.store, "s")
    (path,) = write_journals(sweep_run, lab.folder / "journals")
    assert write_journals(sweep_run, lab.folder / "journals") == [path], "an earlier file is replaced"
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.load_study(study_name=path.stem, storage=storage)
    found = study_of(lab)
    assert [trial.value for trial in study.trials] == pytest.approx([point["value"] for point in found["points"]])
    assert study.best_trial.number == found["winner"]
    assert study.best_trial.params["optim.lr"] == found["points"][found["winner"]]["params"]["optim.lr"]


def test_each_group_has_its_own_study_and_a_cells_own_setting_stays(lab: Lab) -> None:
    axes = f"{MODELS}  rate: {{free: {{}}, own: {{set: {{optim.lr: 5.0e-5}}}}}}\n"
    desk = sit_down(lab, search_text(axes=axes, search="  per: [model]\n  on: {rate: free}\n", num_trials=4))
    assert desk.work() == "done"
    winners = {}
    for model in ("a", "b"):
        found = study_of(lab, f"model={model}")
        winners[model] = found["points"][found["winner"]]["params"]["optim.lr"]
    assert winners["a"] != winners["b"], "each study draws its own points"
    rates = {(trial.cell["model"], trial.cell["rate"]): trial.config.optim.lr for trial in desk.plan.grid}
    assert rates == {("a", "free"): winners["a"], ("a", "own"): 5e-5, ("b", "free"): winners["b"], ("b", "own"): 5e-5}
    # point by point over both studies
    searched = [label for label in desk.labels() if "point" in label]
    assert searched[:2] == ["a/free point 0 seed 100", "b/free point 0 seed 100"]
    assert len(searched) == 8


def test_a_points_cells_and_seeds_are_averaged(lab: Lab) -> None:
    desk = sit_down(lab, search_text(axes=MODELS, seeds="[100, 101, 102]", num_trials=3, noise=0.5))
    desk.work()
    trials = [trial for trial in desk.plan.trials if trial.phase == "search"]
    for number, point in enumerate(study_of(lab)["points"]):
        keys = [trial.key for trial in trials if trial.point == number]
        lasts = [lab.store.trial(key).rows()[-1].metrics["script/bowl"] for key in keys if key is not None]
        assert len(lasts) == 2 * 3
        assert len(set(lasts)) == 3, "noise is the seed's"
        assert point["value"] == pytest.approx(fmean(lasts))


def test_warm_start_points_come_first(lab: Lab) -> None:
    desk = sit_down(lab, search_text(search="  warm_start: [{optim.lr: 1.0e-5}, {optim.lr: 1.0e-4}]\n", num_trials=3))
    desk.work()
    found = study_of(lab)
    assert [point["params"]["optim.lr"] for point in found["points"]][:2] == [1e-5, 1e-4]
    assert found["winner"] == 1


def begun_with(rates: list[float]) -> str:
    return "  warm_start: [" + ", ".join(f"{{optim.lr: {rate:.1e}}}" for rate in rates) + "]\n"


def test_a_point_that_breaks_the_constraint_cannot_win(lab: Lab) -> None:
    # after 2 steps: 1e-2 -2.25, 1e-3 0, 1e-4 0.75, 10^-4.5 0.5625
    limit = "  constraint: {metric: script/bowl, max: 0.6}\n"
    desk = sit_down(lab, search_text(search=begun_with([1e-2, 1e-4, 1e-3]) + limit, num_trials=3))
    desk.work()
    found = study_of(lab)
    assert [point["violation"] for point in found["points"]] == pytest.approx([-2.85, 0.15, -0.6])
    assert found["winner"] == 2
    assert desk.plan.grid[0].config.optim.lr == 1e-3


def test_a_point_that_fails_is_infeasible_and_no_breaker(lab: Lab) -> None:
    # after 1 step: 1e-2 -1.5, 1e-3 0, 1e-4 0.5
    text = search_text(search=begun_with([1e-2, 2e-3, 1e-6, 1e-4]), num_trials=4)
    desk = sit_down(lab, text + "guards: [{metric: script/bowl, below: -0.2}]\n")
    desk.work()
    assert not desk.agenda.halted
    found = study_of(lab)
    assert [point["state"] for point in found["points"]] == ["infeasible"] * 3 + ["complete"]
    assert [point["value"] for point in found["points"][:3]] == [None] * 3
    assert found["winner"] == 3
    assert desk.state("trial point 0 seed 100") == "failed"
    assert desk.state("trial seed 0") == "finished"


def test_where_no_point_can_win_the_grid_is_missing_and_it_is_said(lab: Lab) -> None:
    desk = sit_down(lab, search_text(num_trials=3, rest="guards: [{metric: script/bowl, below: 9.0}]\n"))
    assert desk.work() == "done"
    assert "all: none of 3 points finished within its constraint; its grid cannot run" in desk.said
    (grid,) = desk.plan.grid
    assert (grid.key, grid.waits_for) == (None, "the search of all, in which no point can win")
    assert desk.state("trial seed 0") == "missing"
    again = sit_down(lab)
    assert again.agenda.is_idle()
    assert again.plan.grid[0].waits_for == grid.waits_for


def test_a_search_without_a_grid_ends_with_its_winner(lab: Lab) -> None:
    desk = sit_down(lab, search_text(num_trials=3, rest="grid: none\n"))
    assert desk.work() == "done"
    assert len(desk.labels()) == 3
    assert study_of(lab)["winner"] is not None
    assert desk.plan.grid == ()


def test_a_longer_search_goes_on_where_it_was(lab: Lab) -> None:
    sit_down(lab, search_text(num_trials=3)).work()
    first = points_of(lab)
    desk = sit_down(lab, search_text(num_trials=5))
    assert desk.work() == "done"
    second = points_of(lab)
    assert [label for label in desk.labels() if "point" in label] == [f"trial point {n} seed 100" for n in (3, 4)]
    assert {name: second[name] for name in first if "point-" in name} == {
        name: text for name, text in first.items() if "point-" in name
    }
    assert len(study_of(lab)["points"]) == 5


# --- early stopping ---

# of two that have come to a rung, the best one goes on
ASHA = "early_stop: {kind: asha, grace_steps: 3, factor: 2}\n"


@pytest.mark.parametrize("seeds", ["[100]", "[100, 101]"])
def test_a_point_that_lags_behind_is_stopped_and_told_by_what_it_was_judged_by(lab: Lab, seeds: str) -> None:
    text = search_text(search=begun_with([1e-4, 1e-2]), num_trials=2, num_steps=6, seeds=seeds, rest=ASHA)
    desk = sit_down(lab, text, slots=len(json.loads(seeds)))
    assert desk.work() == "done"
    found = study_of(lab)
    assert [point["state"] for point in found["points"]] == ["complete", "pruned"]
    # what the worker has of it is not on record yet: its checkpoint is after step 2, its end comes later
    assert found["points"][1]["steps"] == {"3": pytest.approx(bowl(1e-2, step=3))}
    assert found["winner"] == 0
    assert desk.state("trial point 1 seed 100") == "stopped"
    stops = read_stops(lab.store.sweep("s")).early
    assert len(stops) == len(json.loads(seeds))
    assert all("is not among the best 1/2 of 2" in reason for reason in stops.values())


def test_who_was_stopped_early_stays_so_in_the_next_driver(lab: Lab) -> None:
    text = search_text(search=begun_with([1e-4, 1e-2, 1e-3]), num_trials=3, num_steps=6, rest=ASHA)
    first = sit_down(lab, text)
    first.work(until_ended=2)
    before = files(lab.store.sweep("s"), "rungs")
    second = sit_down(lab)
    assert second.work() == "done"
    assert files(lab.store.sweep("s"), "rungs").items() >= before.items()
    assert "trial point 1 seed 100" not in second.labels()
    assert second.state("trial point 1 seed 100") == "stopped"


def test_a_driver_judges_what_was_reported_when_it_was_gone(lab: Lab) -> None:
    text = search_text(search=begun_with([1e-4, 1e-2]), num_trials=2, num_steps=6, rest=ASHA)
    first = sit_down(lab, text)
    first.work(until_ended=1)
    turn: Any = first.agenda.next()
    steps = first.steps(turn.training)  # nobody listens
    assert [next(steps).step for _ in range(4)] == [1, 2, 3, 4]
    steps.close()
    second = sit_down(lab)
    assert read_stops(lab.store.sweep("s")).early == {
        turn.training.key: "rung 3: -2.625 is not among the best 1/2 of 2 (cutoff 0.875)"
    }
    second.work()
    assert "trial point 1 seed 100" not in second.labels()


# --- interruptions ---


@dataclass(frozen=True)
class Kind:
    """A search of two studies."""

    parallel: int = 1
    slots: int = 1
    rest: str = ""

    @property
    def text(self) -> str:
        search = f"  per: [model]\n  parallel: {self.parallel}\n"
        return search_text(search=search, axes=MODELS, num_trials=7, noise=0.3, num_steps=6, rest=self.rest)


KINDS = {
    "point by point": Kind(),
    "three points at a time on two workers": Kind(parallel=3, slots=2),
    "with early stopping": Kind(rest=ASHA),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What each kind of search leaves that nobody interrupts."""
    found = {}
    for name, kind in KINDS.items():
        lab = Lab(folder=tmp_path_factory.mktemp("whole"))
        assert sit_down(lab, kind.text, slots=kind.slots).work() == "done"
        found[name] = points_of(lab)
    assert '"pruned"' in found["with early stopping"]["model=a/study.json"]
    return found


@settings(max_examples=8, deadline=None)
@given(name=st.sampled_from(sorted(KINDS)), cuts=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_a_search_interrupted_anywhere_asks_the_same_points(
    whole: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory, name: str, cuts: list[int]
) -> None:
    """`cuts`: how many trainings each driver ends before it is gone."""
    lab, kind = Lab(folder=tmp_path_factory.mktemp("cut")), KINDS[name]
    desk = sit_down(lab, kind.text, slots=kind.slots)
    for num_ended in cuts:
        desk.work(until_ended=num_ended)
        desk.leave()
        desk = sit_down(lab, slots=kind.slots)
    assert desk.work() == "done"
    assert points_of(lab) == whole[name]
