"""Leases over every kind of store (stores.py), with real processes that are killed and stopped where it matters.

Run as a program, this file takes the lease of a trial and does as it is told (`Child`).
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import psutil
import pytest
from builders import begin_attempt

from oneshot.store import lease as leases
from oneshot.store.folder import Folder
from oneshot.store.lease import Holder, Lease, Leased, LeaseLost, Watch, holder, is_gone, known_dead, take
from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder

pytest_plugins = ["stores"]

PATIENCE_S = 30.0
"""For what takes a moment, on a machine that is busy with other things."""


@pytest.fixture
def lapse_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """What a watch waits for, shortened."""
    monkeypatch.setattr(leases, "LAPSE_S", 0.15)
    return 0.15


@pytest.fixture
def taken() -> Callable[..., Lease]:
    """`take`, whose lease beats once, and then when it is told to."""

    def take_one(folder: Folder, **changes: Any) -> Lease:
        made = take(folder, **{"sweep": "s", "metadata": {}, **changes})
        until(lambda: made.holder.beat)
        leases._heart.remove(made)
        with made._lock:  # the first beat is through
            return made

    return take_one


@pytest.fixture
def folder(store: Store) -> TrialFolder:
    return store.trial("0123456789abcdef")


def again(folder: TrialFolder) -> TrialFolder:
    """The same folder as another process would have it: with a fence of its own."""
    return TrialFolder(folder.fs, folder.path)


def claim(folder: TrialFolder, **changes: Any) -> Holder:
    """Has the lease say that somebody else holds it."""
    said = holder(folder)
    assert said is not None
    made = replace(said, **changes)
    again(folder).write_json("lease", {**asdict(made), "released": False})
    return made


def until(what: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


# --- one at a time ---


def test_the_first_taker_makes_the_first_attempt_and_says_who_it_is(
    folder: TrialFolder, taken: Callable[..., Lease]
) -> None:
    assert holder(folder) is None
    lease = taken(folder, sweep="quick", metadata={"gpu": "none"})
    found = holder(folder)
    assert found is not None
    assert (lease.attempt, found.attempt, found.sweep, found.pid) == (1, 1, "quick", psutil.Process().pid)
    facts = folder.attempt(1)
    assert (facts["gpu"], facts["sweep"], facts["pid"], facts["host"]) == ("none", "quick", found.pid, found.host)
    assert facts["started_ms"] <= found.time_ms


def test_a_living_holder_is_named_to_whoever_comes_next(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    first = taken(folder, sweep="quick")
    with pytest.raises(Leased, match=rf"^held by .+:{first.holder.pid} \(sweep quick, attempt 1\)$") as caught:
        take(again(folder), sweep="other", metadata={})
    assert caught.value.holder.is_process(first.holder)
    assert folder.list("attempts") == ["1.json"]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_of_eight_who_take_at_once_one_wins_and_the_others_know_whom_they_lost_to(
    folder: TrialFolder, taken: Callable[..., Lease]
) -> None:
    for attempt in (1, 2):
        start, won, lost = threading.Barrier(8), [], []

        def run(start: threading.Barrier, won: list[Lease], lost: list[Holder]) -> None:
            start.wait()
            try:
                won.append(taken(again(folder)))
            except Leased as error:
                lost.append(error.holder)

        threads = [threading.Thread(target=run, args=(start, won, lost)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [lease.attempt for lease in won] == [attempt]
        assert [found.attempt for found in lost] == [attempt] * 7
        won[0].release()


def test_a_released_lease_is_for_the_next_to_take(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    first = taken(folder)
    first.release()
    first.release()
    assert holder(folder) is None
    assert Watch().living(folder) is None
    assert Watch().lapsed(folder) is None
    assert taken(folder).attempt == 2


def test_a_folder_from_before_leases_is_free(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    begin_attempt(folder, {"started_ms": 1, "host": "h", "pid": 1})
    assert Watch().living(folder) is None
    assert taken(folder).attempt == 2


def test_time_spent_counts_a_holder_up_to_its_last_beat(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    first = taken(folder, metadata={"started_ms": 1000})
    claim(folder, time_ms=1500, born=-1e9)  # a beat half a second later, by a process that is dead
    assert folder.spent_ms() == 500
    second = taken(folder)
    assert (first.attempt, second.attempt) == (1, 2)
    second.release()
    said = folder.read_json("lease")
    assert said is not None
    assert folder.spent_ms() == 500 + said["time_ms"] - folder.attempt(2)["started_ms"]


# --- who is dead ---


def test_a_pid_that_another_process_got_since_is_no_holder(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    first = taken(folder)
    found = claim(folder, born=first.holder.born - 100.0)
    assert not is_gone(first.holder)
    assert is_gone(found)
    assert Watch().living(folder) is None
    assert Watch().lapsed(folder) == found
    assert taken(folder).attempt == 2


def test_a_pid_of_another_machine_says_nothing(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    taken(folder)
    found = claim(folder, host_id="elsewhere", pid=2**22 + 1)
    assert not is_gone(found)
    assert Watch().living(folder) == found
    with pytest.raises(Leased):
        take(again(folder), sweep="s", metadata={})


def test_a_holder_whose_beat_stops_is_dead_after_a_while(
    folder: TrialFolder, taken: Callable[..., Lease], lapse_s: float
) -> None:
    taken(folder)
    found = claim(folder, host_id="elsewhere", beat=7)
    watch = Watch()
    assert watch.living(folder) == found
    until(lambda: watch.living(folder) is None)
    assert watch.lapsed(folder) == found
    with pytest.raises(Leased):
        take(again(folder), sweep="s", metadata={})  # who has not watched does not know
    assert taken(again(folder), stale_holder=watch.lapsed(folder)).attempt == 2


def test_a_long_time_without_a_look_is_no_evidence(
    folder: TrialFolder, taken: Callable[..., Lease], lapse_s: float
) -> None:
    """The store may have been away from everybody, and the watch is back first."""
    taken(folder)
    found = claim(folder, host_id="elsewhere")
    watch = Watch()
    watch.living(folder)
    time.sleep(2 * lapse_s)
    assert watch.living(folder) == found


def test_a_new_beat_is_a_sign_of_life(folder: TrialFolder, taken: Callable[..., Lease], lapse_s: float) -> None:
    taken(folder)
    dead = claim(folder, host_id="elsewhere")
    watch = Watch()
    until(lambda: watch.lapsed(folder) == dead)
    alive = claim(folder, host_id="elsewhere", beat=dead.beat + 1)
    assert watch.living(folder) == alive
    with pytest.raises(Leased):
        take(again(folder), sweep="s", metadata={}, stale_holder=dead)
    assert folder.list("attempts") == ["1.json"]


def test_a_lease_beats_by_itself_and_so_do_others_of_its_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    folders = [store.trial("a"), store.sweep("b")]
    made = [take(one, sweep="s", metadata={}) for one in folders]

    def beats(one: Folder) -> int:
        found = holder(one)
        assert found is not None
        return found.beat

    until(lambda: all(beats(one) >= 3 for one in folders))
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("leases") == 1
    for lease in made:
        lease.release()
    ended = [folder.read("lease") for folder in folders]
    time.sleep(0.1)
    assert [folder.read("lease") for folder in folders] == ended


def test_a_store_that_is_cut_off_for_a_while_is_asked_again(
    folder: TrialFolder, taken: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease = taken(folder)

    def cut_off(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the store")

    with monkeypatch.context() as while_cut_off:
        while_cut_off.setattr(Folder, "write", cut_off)
        for _ in range(3):
            lease.beat()
    assert caplog.text.count("no route to the store") == 1
    lease.beat()
    found = holder(folder)
    assert found is not None
    assert found.beat == lease.holder.beat
    lease.check()


# --- between a taker's two files ---


def begin_only(folder: TrialFolder, taken: Callable[..., Lease], **changes: Any) -> None:
    """Leaves the second attempt's file without its lease, as a taker does that dies between the two."""
    taken(folder).release()
    made = replace(leases._myself(attempt=2, sweep="s"), **changes)
    assert leases._create_attempt(folder, made, {})


def test_a_taker_that_has_not_beaten_yet_is_alive(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    begin_only(folder, taken)
    with pytest.raises(Leased) as caught:
        take(again(folder), sweep="s", metadata={})
    assert (caught.value.holder.attempt, caught.value.holder.beat) == (2, 0)
    assert Watch().living(folder) == caught.value.holder


def test_a_taker_that_died_before_its_first_beat_is_dead_at_once_on_its_machine(
    folder: TrialFolder, taken: Callable[..., Lease]
) -> None:
    begin_only(folder, taken, born=-1e9)
    assert taken(folder).attempt == 3


def test_a_taker_that_died_before_its_first_beat_elsewhere_lapses(
    folder: TrialFolder, taken: Callable[..., Lease], lapse_s: float
) -> None:
    begin_only(folder, taken, host_id="elsewhere")
    watch = Watch()
    assert watch.living(folder) is not None
    until(lambda: watch.lapsed(folder))
    assert taken(folder, stale_holder=watch.lapsed(folder)).attempt == 3


def test_a_torn_lease_counts_as_not_written_yet(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    taken(folder)
    again(folder).write("lease", '{"attempt": 1, "bo')
    found = holder(folder)
    assert found is not None
    assert (found.attempt, found.beat) == (1, 0)


def test_a_taker_whose_own_creation_is_reported_to_it_as_somebody_elses_has_won(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch, taken: Callable[..., Lease]
) -> None:
    """The answer to a creation is lost, the store's client sends it again, and is told that the file is there."""

    def create_twice(self: Folder, name: str, text: str) -> bool:
        assert create(self, name, text)
        return create(self, name, text)

    create = Folder.create
    monkeypatch.setattr(Folder, "create", create_twice)
    assert taken(folder).attempt == 1


# --- who comes late ---


def test_a_holder_that_was_passed_over_writes_nothing_any_more(
    folder: TrialFolder, taken: Callable[..., Lease]
) -> None:
    folder.write("trial.json", "old")
    late = taken(folder)
    folder.write("trial.json", "mine")
    new = taken(again(folder), stale_holder=holder(folder))
    with pytest.raises(LeaseLost, match="attempt 1"):
        late.check()
    with pytest.raises(LeaseLost):
        folder.write("trial.json", "late")
    with pytest.raises(LeaseLost):
        folder.write_segment(1, [Row(step=0, time_ms=1, metrics={})])
    assert (folder.read("trial.json"), folder.list("metrics")) == ("mine", [])
    late.beat()
    late.release()
    found = holder(folder)
    assert found is not None
    assert found.is_process(new.holder)
    with pytest.raises(LeaseLost):  # to let go of what one has not does not open it
        folder.write("trial.json", "late")


def test_a_holder_that_is_known_to_be_dead_is_passed_over_though_it_goes_on_beating(
    folder: TrialFolder, taken: Callable[..., Lease]
) -> None:
    """A host that is cut off from its driver, and not from the store."""
    cut_off = taken(folder)
    seen = holder(folder)
    assert seen is not None
    cut_off.beat()
    with pytest.raises(Leased):
        take(again(folder), sweep="s", metadata={}, stale_holder=seen)
    new = taken(again(folder), stale_holder=known_dead(seen))
    assert new.attempt == 2
    with pytest.raises(LeaseLost):
        folder.write("trial.json", "late")
    with pytest.raises(Leased):  # of that process alone
        take(again(folder), sweep="s", metadata={}, stale_holder=known_dead(seen))


def test_a_turn_is_lost_once_the_next_attempt_is_made_even_before_its_lease(
    folder: TrialFolder, taken: Callable[..., Lease]
) -> None:
    lease = taken(folder)
    lease.check()
    assert leases._create_attempt(folder, leases._myself(attempt=2, sweep="s"), {})
    with pytest.raises(LeaseLost):
        lease.check()


def test_a_turn_is_lost_to_a_lease_even_where_the_next_attempt_is_not_seen_yet(
    folder: TrialFolder, taken: Callable[..., Lease]
) -> None:
    """NFS shows a folder's new files late."""
    lease = taken(folder)
    claim(folder, attempt=2, host_id="elsewhere")
    with pytest.raises(LeaseLost):
        lease.check()


def test_a_beat_that_was_written_late_does_no_harm(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    """Its writer had asked whether the lease was still its own, then slept."""
    late = taken(folder)
    mine = again(folder)
    new = taken(mine, stale_holder=holder(folder))
    late._write(late.holder, released=False)
    found = holder(folder)
    assert found is not None
    assert found.is_process(new.holder)
    mine.write("trial.json", "new")
    new.beat()
    assert holder(folder) == new.holder
    late._write(late.holder, released=True)
    assert Watch().living(folder) is not None


def test_a_lease_whose_folder_is_removed_is_lost(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    lease = taken(folder)
    again(folder).remove("")
    with pytest.raises(LeaseLost):
        lease.check()
    assert taken(again(folder)).attempt == 1  # a first attempt too, but another
    with pytest.raises(LeaseLost):
        folder.write("trial.json", "late")


def test_a_released_folder_is_open_again(folder: TrialFolder, taken: Callable[..., Lease]) -> None:
    taken(folder).release()
    taken(again(folder))
    folder.write("trial.json", "by someone without lease")


# --- processes ---


class Child:
    """A process that takes a trial's lease, and writes when told to."""

    def __init__(self, root: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.hear() == "taken"

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def write(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("write\n")
        self.process.stdin.flush()
        return self.hear()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def main(root: str) -> None:
    leases.BEAT_S = 0.05
    folder = Store(root).trial("k")
    take(folder, sweep="child", metadata={})
    say("taken")
    for _ in sys.stdin:
        try:
            folder.write("trial.json", "by the child")
            say("written")
        except LeaseLost:
            say("lost")


def say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


@pytest.fixture(params=["disk", "s3"])
def shared_root(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    return str(tmp_path) if request.param == "disk" else str(request.getfixturevalue("s3_bucket"))


def test_a_process_that_is_killed_is_followed_at_once(shared_root: str, taken: Callable[..., Lease]) -> None:
    folder = Store(shared_root).trial("k")
    child = Child(shared_root)
    try:
        watch = Watch()
        assert watch.living(folder) is not None
        with pytest.raises(Leased, match=r"sweep child, attempt 1"):
            take(folder, sweep="s", metadata={})
        child.signal(signal.SIGKILL)
        until(lambda: psutil.Process(child.process.pid).status() == psutil.STATUS_ZOMBIE)  # nobody has waited for it
        assert watch.living(folder) is None
        assert taken(folder).attempt == 2
    finally:
        child.end()


def test_a_process_that_was_stopped_and_goes_on_has_lost_its_turn(
    shared_root: str, taken: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LAPSE_S", 0.5)
    folder = Store(shared_root).trial("k")
    child = Child(shared_root)
    try:
        assert child.write() == "written"
        child.signal(signal.SIGSTOP)
        watch = Watch()
        assert watch.living(folder) is not None  # its process is there
        until(lambda: watch.lapsed(folder))
        ours = taken(folder, stale_holder=watch.lapsed(folder))
        folder.write("trial.json", "ours")
        child.signal(signal.SIGCONT)
        assert child.write() == "lost"
        ours.check()
        assert folder.read("trial.json") == "ours"
    finally:
        child.end()


if __name__ == "__main__":
    main(sys.argv[1])
