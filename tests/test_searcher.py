"""What a driver hands to Tune on a cluster that it shares: within its limit, without Ray."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher
from scripted import Lab, sweep_text

from oneshot.config.file import load
from oneshot.errors import SweepFileError
from oneshot.plan.loader import pin_all
from oneshot.plan.plan import make_plan
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.cluster.fit import Fit, NodeType
from oneshot.sweep.cluster.searcher import AgendaSearcher
from oneshot.sweep.cluster.sharing import Sharing, Wish, member_of

MIXED = "  where: {gpu: {resources: {gpus: 1}}, cpu: {set: {optim.lr: 2e-6}}}\n"
BIG = NodeType(resources={"CPU": 64.0, "GPU": 8.0}, count=1)
L4 = NodeType(resources={"CPU": 64.0, "GPU": 4.0, "accelerator_type:L4": 1.0}, count=1)


class Told(Sharing):
    """A line to a ledger that a test speaks for."""

    limit = 0.0  # type: ignore[assignment]  # a property there
    wish: Wish
    over = 0.0

    def is_due(self) -> bool:
        return True

    def renew(self, wish: Wish, *, cost: float | None) -> None:
        self.wish = wish

    def excess(self, held: float) -> float:
        return max(0.0, held - self.limit)


class Table:
    """A driver's side: an agenda, its searcher and its line."""

    def __init__(self, folder: Path, text: str, nodes: list[NodeType]) -> None:
        lab = Lab(folder=folder)
        lab.write(text.replace("seeds:", f"storage: {folder}/runs\nseeds:", 1))
        run = pin_all(load(folder / "s.yaml"), lab.store)
        run.folder.write("sweep.yaml", run.sweep.source.text)
        nobody: Callable[[Any], None] = lambda event: None  # noqa: E731
        self.agenda = Agenda(run, listen=nobody, replanned=nobody)
        self.sharing = Told(member_of(run), say=nobody)
        fit = Fit(nodes)
        self.searcher = AgendaSearcher(
            self.agenda, storage=str(folder), fit=lambda: fit, most=None, sharing=self.sharing
        )
        self.num_asked = 0

    def hand_out(self) -> list[str]:
        """The trials that Tune gets until there are no more; each begins at once."""
        names = []
        while isinstance(self.searcher.suggest(name := f"t{self.num_asked}"), dict):
            self.num_asked += 1
            self.searcher.began(name)
            names.append(name)
        return names


def table(folder: Path, *, rest: str, axes: str = "", seeds: str = "[0, 1, 2]", node: NodeType = BIG) -> Table:
    return Table(folder, sweep_text(axes=axes, seeds=seeds, rest=rest), [node])


def test_no_more_is_handed_out_than_the_limit(tmp_path: Path) -> None:
    driver = table(tmp_path, rest="resources: {gpus: 1}\n")
    assert driver.hand_out() == []
    driver.sharing.limit = 2.0
    assert driver.hand_out() == ["t0", "t1"]
    assert driver.searcher.suggest("later") is None
    driver.searcher.share()
    assert driver.sharing.wish == Wish(need=1.0, held=2.0, wanted=3.0, num_waiting=1)


def test_a_sweep_with_nothing_left_ends_whatever_its_limit(tmp_path: Path) -> None:
    driver = table(tmp_path, rest="resources: {gpus: 1}\n", seeds="[0]")
    assert driver.searcher.suggest("t0") is None
    driver.agenda.halt("stopped by hand")
    assert driver.searcher.suggest("t0") == Searcher.FINISHED


def test_a_sweep_whose_last_trial_has_ended_ends_at_limit_zero(tmp_path: Path) -> None:
    driver = table(tmp_path, rest="resources: {gpus: 1}\n", seeds="[0]")
    driver.sharing.limit = 1.0
    assert driver.hand_out() == ["t0"]
    (training,) = driver.agenda._trainings.values()
    driver.agenda._live.pop(training.key)
    driver.agenda._closed[training.key] = training.trials
    driver.searcher.on_trial_complete("t0")
    driver.sharing.limit = 0.0
    assert driver.searcher.suggest("t1") == Searcher.FINISHED


def test_trials_without_a_gpu_hold_nothing_of_a_sweep_on_gpus(tmp_path: Path) -> None:
    driver = table(tmp_path, rest="", axes=MIXED, seeds="[0, 1]")
    names = driver.hand_out()
    assert len(names) == 2  # those on CPUs
    assert not any(driver.searcher.is_in_excess(name) for name in names)
    driver.searcher.share()
    assert driver.sharing.wish == Wish(need=1.0, held=0.0, wanted=2.0, num_waiting=2)


def test_the_last_trials_to_begin_leave_first_and_only_as_many_as_must(tmp_path: Path) -> None:
    driver = table(tmp_path, rest="resources: {gpus: 1}\n", seeds="[0, 1, 2, 3]")
    driver.sharing.limit = 4.0
    assert driver.hand_out() == ["t0", "t1", "t2", "t3"]
    driver.sharing.limit = 2.0
    assert [driver.searcher.is_in_excess(f"t{n}") for n in range(4)] == [False, False, True, True]
    driver.sharing.limit = 4.0
    assert not driver.searcher.is_in_excess("t3")


def test_a_large_trial_leaves_for_smaller_ones(tmp_path: Path) -> None:
    driver = table(tmp_path, rest="resources: {gpus: 4}\n", seeds="[0]")
    driver.sharing.limit = 4.0
    assert driver.hand_out() == ["t0"]
    for limit, leaves in ((3.5, False), (2.0, True)):
        driver.sharing.limit = limit
        assert driver.searcher.is_in_excess("t0") == leaves


def test_a_packed_trial_asks_for_its_share_where_it_is_largest_and_holds_what_it_gets(tmp_path: Path) -> None:
    # 12 of an L4's 22 GiB are 0.5455 of it; of the 79 GiB that the plan assumes, 0.152
    driver = table(tmp_path, rest="resources: {gpu_gib: 12}\n", node=L4)
    driver.searcher.share()
    assert driver.sharing.wish.need == 0.5455
    driver.sharing.limit = 2 * 0.5455
    assert len(driver.hand_out()) == 2
    driver.searcher.share()
    assert driver.sharing.wish.held == pytest.approx(2 * 0.5455)


def test_a_limit_below_one_trial_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(sweep_text(rest="resources: {gpus: 8}\nsharing: {max_gpus: 4}\n"))
    with pytest.raises(SweepFileError, match=r"s\.yaml:\d+: sharing\.max_gpus: 4, but a trial has resources\.gpus: 8"):
        make_plan(load(file))
