"""The ledger of a shared cluster: what each sweep may hold, by priority, weight, limit and past use."""

from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot.sweep.cluster.ledger import HORIZON_S, LAPSE_S, Ledger, Member, grants


def member(driver: str, **fields: Any) -> Member:
    usual: dict[str, Any] = {
        "sweep": driver,
        "storage": "/runs",
        "user": "ada",
        "project": "",
        "priority": 0,
        "share": 1.0,
        "most": None,
        "preemptible": False,
        "unit": "GPU",
        "need": 1.0,
        "held": 0.0,
        "wanted": 100.0,
        "num_waiting": 100,
    }
    return Member(driver=driver, **{**usual, **fields})


def granted(*members: Member, gpus: float = 8.0, cpus: float = 0.0) -> list[float]:
    given_out = grants(members, {"GPU": gpus, "CPU": cpus})
    return [given_out[each.driver] for each in members]


def test_equal_sweeps_have_equal_parts_and_weights_divide() -> None:
    assert granted(member("a"), member("b")) == [4.0, 4.0]
    assert granted(member("a", share=3.0), member("b")) == [6.0, 2.0]
    assert granted(member("a"), member("b"), member("c", share=2.0)) == [2.0, 2.0, 4.0]


def test_what_one_does_not_want_the_others_have() -> None:
    assert granted(member("a", wanted=1.0), member("b")) == [1.0, 7.0]
    assert granted(member("a", most=2.0), member("b")) == [2.0, 6.0]


def test_a_higher_priority_has_all_that_it_wants_first() -> None:
    assert granted(member("a"), member("b", priority=1, wanted=6.0)) == [2.0, 6.0]
    assert granted(member("a"), member("b", priority=1)) == [0.0, 8.0]


def test_sweeps_on_cpus_do_not_compete_with_those_on_gpus() -> None:
    assert granted(member("a", unit="CPU"), member("b"), gpus=2.0, cpus=3.0) == [3.0, 2.0]


def test_trials_are_given_out_whole() -> None:
    # 8 GPUs: 3 each, and the 2 that are left hold no trial of 3
    assert granted(member("a", need=3.0), member("b", need=3.0)) == [3.0, 3.0]
    # the small trials of b have what a's cannot use
    assert granted(member("a", need=3.0), member("b")) == [3.0, 5.0]


def test_a_sweep_that_is_behind_has_more_until_it_has_caught_up() -> None:
    # 2 GPUs for the horizon is what a is behind
    assert granted(member("a"), member("b", debt_s=2 * HORIZON_S)) == [5.0, 3.0]
    assert granted(member("a"), member("b", debt_s=20 * HORIZON_S)) == [8.0, 0.0]


def test_a_held_gpu_does_not_change_hands_for_a_small_lead() -> None:
    odd = [member("a", held=2.0, debt_s=60.0), member("b", held=1.0)]
    assert granted(*odd, gpus=3.0) == [2.0, 1.0]  # a is ahead by a minute
    odd[0] = replace(odd[0], debt_s=HORIZON_S)
    assert granted(*odd, gpus=3.0) == [1.0, 2.0]


MEMBERS = st.lists(
    st.builds(
        lambda **fields: member("", **fields),
        priority=st.integers(-1, 1),
        share=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
        most=st.none() | st.floats(0.5, 10.0),
        need=st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]),
        held=st.integers(0, 8).map(float),
        wanted=st.floats(0.0, 40.0),
        debt_s=st.floats(0.0, 1e5),
    ),
    max_size=6,
)


@given(drawn=MEMBERS, gpus=st.floats(0.0, 20.0))
def test_nobody_has_too_much_and_nothing_that_fits_stays_free(drawn: list[Member], gpus: float) -> None:
    members = [replace(each, driver=f"d{number}") for number, each in enumerate(drawn)]
    given_out = granted(*members, gpus=gpus)
    left = gpus - sum(given_out)
    assert left >= -1e-6
    for each, amount in zip(members, given_out, strict=True):
        assert amount <= each.wants + 1e-6
        assert abs(amount / each.need - round(amount / each.need)) < 1e-6  # whole trials
        assert amount + each.need > each.wants - 1e-6 or each.need > left - 1e-6


class Cluster:
    """Drivers that start trials when they may and end them after their time, second by second, on a ledger."""

    def __init__(self, gpus: int) -> None:
        self.now_s = 0.0
        self.ledger = Ledger(clock_s=lambda: self.now_s)
        self.gpus, self.members = gpus, dict[str, Member]()
        self.ends: dict[str, list[float]] = {}
        self.used_s: dict[str, float] = {}

    def join(self, new: Member) -> None:
        self.members[new.driver] = new
        self.ends[new.driver], self.used_s[new.driver] = [], 0.0

    def run(self, seconds: int, *, trial_s: float) -> dict[str, float]:
        """The GPU-seconds that each has used from here on."""
        before = dict(self.used_s)
        for _ in range(seconds):
            self.now_s += 1.0
            for driver, each in self.members.items():
                self.used_s[driver] += len(self.ends[driver])
                self.ends[driver] = [end_s for end_s in self.ends[driver] if end_s > self.now_s]
                held = float(len(self.ends[driver]))
                answer = self.ledger.renew(asdict(replace(each, held=held)), {"GPU": self.gpus, "CPU": 0.0})
                free = self.gpus - sum(map(len, self.ends.values()))
                limit = answer["granted"] if answer["is_shared"] else each.wants
                for _ in range(int(max(0.0, min(free, min(limit, each.wants) - held)))):
                    self.ends[driver].append(self.now_s + trial_s)
        return {driver: used_s - before.get(driver, 0.0) for driver, used_s in self.used_s.items()}


def test_gpu_seconds_follow_the_weights_without_preemption() -> None:
    cluster = Cluster(gpus=7)
    cluster.join(member("a", share=2.0))
    cluster.join(member("b"))
    cluster.run(600, trial_s=37.0)
    used = cluster.run(7200, trial_s=37.0)
    assert sum(used.values()) >= 0.98 * 7 * 7200  # nobody's share is left unused
    assert used["a"] / used["b"] == pytest.approx(2.0, rel=0.05)


def test_who_joins_late_has_its_part_at_once_and_no_more() -> None:
    cluster = Cluster(gpus=8)
    cluster.join(member("a"))
    alone = cluster.run(3600, trial_s=30.0)
    assert alone["a"] >= 0.95 * 8 * 3600
    cluster.join(member("b"))
    cluster.run(60, trial_s=30.0)  # a's trials end
    used = cluster.run(1800, trial_s=30.0)
    assert used["b"] / used["a"] == pytest.approx(1.0, rel=0.05)


def test_who_had_all_that_it_wanted_saves_no_claim_on_the_future() -> None:
    cluster = Cluster(gpus=8)
    cluster.join(member("a"))
    cluster.join(member("b", wanted=1.0))
    cluster.run(7200, trial_s=30.0)
    cluster.members["b"] = replace(cluster.members["b"], wanted=100.0)
    cluster.run(60, trial_s=30.0)
    used = cluster.run(1200, trial_s=30.0)
    assert used["b"] / used["a"] == pytest.approx(1.0, rel=0.1)


def test_drivers_of_other_versions_are_understood() -> None:
    ledger = Ledger()
    answer = ledger.renew({**asdict(member("a")), "colour": "blue"}, {"GPU": 4.0, "CPU": 0.0})
    assert answer["granted"] == 4.0


def test_a_silent_driver_is_forgotten_and_the_last_to_leave_is_told() -> None:
    now_s = [0.0]
    ledger = Ledger(clock_s=lambda: now_s[0])
    size = {"GPU": 4.0, "CPU": 0.0}
    ledger.renew(asdict(member("a")), size)
    assert ledger.renew(asdict(member("b")), size) == {"granted": 2.0, "is_shared": True}
    now_s[0] = LAPSE_S + 1
    assert ledger.renew(asdict(member("b")), size) == {"granted": 4.0, "is_shared": False}
    assert [each["driver"] for each in ledger.members()] == ["b"]
    assert ledger.leave("b")


def test_members_are_shown_with_what_they_used() -> None:
    now_s = [0.0]
    ledger = Ledger(clock_s=lambda: now_s[0])
    for now in (0.0, 10.0, 20.0):
        now_s[0] = now
        ledger.renew(asdict(member("b", held=2.0)), {"GPU": 4.0, "CPU": 0.0})
        ledger.renew(asdict(member("a", priority=1, held=1.0)), {"GPU": 4.0, "CPU": 0.0})
    shown = ledger.members()
    assert [(each["sweep"], each["used_s"]) for each in shown] == [("a", 20.0), ("b", 40.0)]
    assert all(one["priority"] >= other["priority"] for one, other in pairwise(shown))
