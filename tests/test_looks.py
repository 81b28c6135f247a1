"""Seeds that run look by look, and a sweep that ends at the look that decides its claims. The judge is given."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripted import Lab, sweep_text
from test_agenda import search_text, sit_down
from verbs import oneshot

from oneshot.plan.sweep_run import SweepRun
from oneshot.report.runs import gather
from oneshot.sweep import agenda as agenda_module
from oneshot.sweep.status import sweep_status
from oneshot.trial.requests import Request, read_stops, send_request
from oneshot.trial.state import TrialState

CLAIM = "claims:\n  - {name: c, metric: script/chain, a: {arm: b}, b: {arm: a}, expect: {greater_by: 0}%s}\n"
ARMS = "  arm: {a: {}, b: {set: {train.num_steps: 3}}}\n"


def text_of(*, stop: str = ", stop: decided", claim: str = "", rest: str = "", script: str = "metrics: 1") -> str:
    """Two cells with seven seeds; looks after 3, 5 and 7 of them."""
    axes = ARMS.replace("b: {set: {train.num_steps: 3}}", "b: {set: {script.metrics: 2}}")
    looks = f"looks: [3, 5, 7]\n{CLAIM % claim}{rest}"
    return sweep_text(script=script, axes=axes, seeds=f"{{planned: 7{stop}}}", rest=looks)


class Judge:
    """Says at which look the claims are decided, once that look's trials have all ended; keeps what it was asked."""

    def __init__(self, decided_at: int | None = None) -> None:
        self.decided_at = decided_at
        self.asked: list[int] = []  # number of finished trials

    def __call__(self, run: SweepRun) -> int | None:
        num_finished = sum(one.state == "finished" for one in gather(run).runs)
        self.asked.append(num_finished)
        sizes = [2 * seeds for seeds in (3, 5, 7)]
        is_there = self.decided_at is not None and num_finished >= sizes[self.decided_at - 1]
        return self.decided_at if is_there else None


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agenda_module, "LOOK_S", 0.0)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(folder=tmp_path)


def seeds_of(labels: list[str]) -> list[int]:
    return [int(label.rsplit(" ", 1)[1]) for label in labels]


def test_without_stop_all_seeds_run_and_nobody_judges(lab: Lab) -> None:
    judge = Judge(1)
    desk = sit_down(lab, text_of(stop=""), decide=judge)
    assert desk.work() == "done"
    assert seeds_of(desk.labels()) == [seed for seed in range(7) for _ in range(2)]
    assert (judge.asked, desk.agenda.decided) == ([], "")


def test_the_seeds_after_the_look_that_decides_do_not_run(lab: Lab) -> None:
    judge = Judge(1)
    desk = sit_down(lab, text_of(), decide=judge)
    assert desk.work() == "done"
    assert seeds_of(desk.labels()) == [0, 0, 1, 1, 2, 2]
    assert judge.asked == [6]
    assert desk.agenda.is_idle()
    assert desk.agenda.decided == "stopped at look 1 of 3: all claims are decided; saved 8 trials"
    assert desk.agenda.decided in desk.said
    assert read_stops(lab.store.sweep("s")).seeds == {str(seed): "decided at look 1 of 3" for seed in (3, 4, 5, 6)}
    assert desk.agenda.load().trials["stopped"] == 8


def test_a_look_that_does_not_decide_begins_the_next(lab: Lab) -> None:
    judge = Judge(2)
    desk = sit_down(lab, text_of(), decide=judge)
    assert desk.work() == "done"
    assert seeds_of(desk.labels()) == [seed for seed in range(5) for _ in range(2)]
    assert judge.asked == [6, 10]
    assert desk.agenda.decided.startswith("stopped at look 2 of 3: ")


def test_after_the_last_look_there_is_nothing_to_stop(lab: Lab) -> None:
    judge = Judge(None)
    desk = sit_down(lab, text_of(), decide=judge)
    assert desk.work() == "done"
    assert len(desk.labels()) == 14
    assert judge.asked == [6, 10]
    assert desk.agenda.decided == ""


def test_a_later_look_waits_while_the_trials_of_an_earlier_one_run(lab: Lab) -> None:
    """Two of three places are free, and only the last trial of the first look runs."""
    judge = Judge(None)
    desk = sit_down(lab, text_of(), decide=judge, slots=1)
    desk.work(until_ended=5)
    turn: Any = desk.agenda.next()
    desk.agenda.begun(turn.training.key)
    assert turn.training.label.endswith("seed 2")
    assert desk.agenda.next() == "wait"
    assert desk.agenda.next() == "wait"
    assert judge.asked == []
    list(desk.steps(turn.training))
    desk.agenda.ended(turn.training.key)
    following: Any = desk.agenda.next()
    assert following.training.label.endswith("seed 3")
    assert judge.asked == [6]


def test_with_many_places_each_look_is_whole_before_the_next(lab: Lab) -> None:
    judge = Judge(2)
    desk = sit_down(lab, text_of(), decide=judge, slots=20)
    assert desk.work() == "done"
    assert judge.asked == [6, 10]
    assert len(desk.labels()) == 10


def test_failed_trials_end_a_look_too(lab: Lab) -> None:
    judge = Judge(None)
    text = text_of(script="faults: [{at: 1, do: nan}]", rest="faults: {same_failure_limit: 1000}\n")
    desk = sit_down(lab, text, decide=judge)
    assert desk.work() == "done"
    assert judge.asked == [0, 0]
    assert len(desk.labels()) == 14


def test_a_driver_that_was_killed_before_it_judged_judges_when_it_starts(lab: Lab) -> None:
    """And starts nothing: the cluster is not needed."""
    first = sit_down(lab, text_of(), decide=Judge(None))
    first.work(until_ended=6)
    judge = Judge(1)
    again = sit_down(lab, decide=judge)
    assert again.agenda.is_idle()
    assert judge.asked == [6]
    assert again.agenda.decided == "stopped at look 1 of 3: all claims are decided; saved 8 trials"
    third = sit_down(lab, decide=Judge(1))
    assert third.agenda.is_idle()
    assert third.agenda.decided == again.agenda.decided


def test_a_driver_that_was_killed_within_a_look_resumes_it(lab: Lab) -> None:
    sit_down(lab, text_of(), decide=Judge(1)).work(until_ended=3)
    judge = Judge(1)
    again = sit_down(lab, decide=judge)
    assert again.work() == "done"
    assert seeds_of(again.labels()) == [1, 2, 2]
    assert judge.asked == [6]


def test_a_judgement_that_no_longer_holds_lets_the_next_seeds_run(lab: Lab) -> None:
    sit_down(lab, text_of(), decide=Judge(1)).work()
    again = sit_down(lab, decide=Judge(None))
    assert read_stops(lab.store.sweep("s")).seeds == {}
    assert again.work() == "done"
    assert seeds_of(again.labels()) == [seed for seed in range(3, 7) for _ in range(2)]


def test_a_file_without_stop_runs_the_seeds_that_were_stopped(lab: Lab) -> None:
    sit_down(lab, text_of(), decide=Judge(1)).work()
    again = sit_down(lab, text_of(stop=""), decide=Judge(1))
    assert read_stops(lab.store.sweep("s")).seeds == {}
    assert again.work() == "done"
    assert len(again.labels()) == 8


def test_a_retry_does_not_run_seeds_that_the_claims_do_not_need(lab: Lab) -> None:
    desk = sit_down(lab, text_of(), decide=Judge(1))
    desk.work()
    send_request(lab.store.sweep("s"), Request(verb="retry", cell={}))
    assert desk.agenda.next() == "done"
    assert read_stops(lab.store.sweep("s")).seeds.keys() == {"3", "4", "5", "6"}


def test_evaluations_of_some_trainings_wait_for_no_look(lab: Lab) -> None:
    sit_down(lab, text_of(), decide=Judge(1)).work()
    stops = read_stops(lab.store.sweep("s"))
    judge = Judge(None)
    desk = sit_down(lab, decide=judge, only=set())
    assert desk.agenda.is_idle()
    assert judge.asked == []
    assert read_stops(lab.store.sweep("s")) == stops


LOOKS = "looks: [3, 5, 7]\n"
STOPPING = "{planned: 7, stop: decided}"


def test_with_a_search_its_trials_come_first_and_its_grid_looks(lab: Lab) -> None:
    judge = Judge(None)
    desk = sit_down(lab, search_text(num_trials=2, grid_seeds=STOPPING, rest=LOOKS), decide=judge)
    assert desk.work() == "done"
    assert [("point" in label, seed) for label, seed in zip(desk.labels(), seeds_of(desk.labels()), strict=True)] == [
        (True, 100),
        (True, 100),
        *((False, seed) for seed in range(7)),
    ]
    assert judge.asked == [3, 5]


def test_a_grid_that_can_never_run_keeps_nobody_waiting(lab: Lab) -> None:
    """No point is within the constraint, so the grid's trials get no key."""
    constraint = "  constraint: {metric: script/bowl, max: -9}\n"
    text = search_text(num_trials=2, grid_seeds=STOPPING, rest=LOOKS, search=constraint)
    desk = sit_down(lab, text, decide=Judge(None))
    assert desk.work() == "done"
    assert all(trial.key is None for trial in desk.plan.grid)


def test_hours_and_primary_claims_are_said(lab: Lab) -> None:
    """A scripted trial on a GPU, 6 steps of 3,000 s: 5 hours each, 40 hours for 8 trials."""
    text = text_of(claim=", primary: true", rest="resources: {gpus: 1}\n").replace(
        "axes:\n  arm: {a: {}, b: {set: {script.metrics: 2}}}",
        "axes:\n  arm: {a: {cost: {step_s: 3000}}, b: {set: {script.metrics: 2}, cost: {step_s: 3000}}}",
    )
    desk = sit_down(lab, text, decide=Judge(1))
    desk.work()
    assert (
        desk.agenda.decided
        == "stopped at look 1 of 3: all primary claims are decided; saved about 40 GPU-hours (8 trials)"
    )


def test_the_status_shows_the_reason(lab: Lab) -> None:
    desk = sit_down(lab, text_of(), decide=Judge(1))
    desk.work()
    status = sweep_status(lab.store, "s")
    assert (status.phase, status.counts["finished"], status.counts["stopped"]) == ("done", 6, 8)
    assert {trial.reason for trial in status.trials if trial.state is TrialState.STOPPED} == {"decided at look 1 of 3"}
    shown = oneshot("status", "s", "--storage", str(lab.folder / "runs"), cwd=lab.folder)
    assert shown.code == 0
    assert "6 finished, 8 stopped" in shown.out
    assert "decided at look 1 of 3" in shown.out
    listed = oneshot("status", "s", "--json", "--storage", str(lab.folder / "runs"), cwd=lab.folder)
    assert json.loads(listed.out)["stopped"] == 8
