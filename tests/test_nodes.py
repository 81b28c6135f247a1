"""Nodes come, go and die under a sweep: its trials end elsewhere, from their checkpoints, and nothing is run twice.

One machine, several nodes by `ray.cluster_utils`, GPUs simulated; several hosts for real are in test_hosts.py.
"""

from collections.abc import Callable, Iterator

import pytest
from drivers import Driver, start, until
from nodes import Nodes, make_nodes
from scripted import Lab, nothing_lost, steps_of, sweep_text

pytest_plugins = ["labs"]
pytestmark = [pytest.mark.cluster, pytest.mark.ray]

SLOW = {"script": "step_s: 0.5", "trial": "  train.num_steps: 24\n", "rest": "resources: {gpus: 1}\n"}
"""Trials of twelve seconds, with a checkpoint after every second step."""


@pytest.fixture(scope="module")
def nodes(scratch: str) -> Iterator[Nodes]:
    made = make_nodes(scratch)
    yield made
    made.close()


@pytest.fixture
def drive(lab: Lab, nodes: Nodes) -> Iterator[Callable[[], Driver]]:
    started: list[Driver] = []

    def begin() -> Driver:
        started.append(start(["run", "s.yaml", "--address", nodes.address], folder=lab.folder, scratch=nodes.scratch))
        return started[-1]

    yield begin
    for driver in started:
        driver.process.kill()
        driver.process.join()


def where(lab: Lab) -> dict[str, list[str]]:
    """Label of a trial -> the node of each of its attempts."""
    return {
        label: [folder.attempt(number).get("node", "never began") for number in range(1, folder.last_attempt() + 1)]
        for label, folder in lab.trainings().items()
    }


def is_under_way(lab: Lab, num_trials: int) -> bool:
    """Whether so many trials have a checkpoint behind them."""
    if not lab.store.sweep("s").read("plan.json"):
        return False
    return sum(folder.read("checkpoint.json") is not None for folder in lab.trainings().values()) >= num_trials


def is_begun(lab: Lab, num_trials: int) -> bool:
    """Whether so many trials have a step on record."""
    if not lab.store.sweep("s").read("plan.json"):
        return False
    return sum(bool(folder.rows()) for folder in lab.trainings().values()) >= num_trials


def test_trials_spread_and_those_of_a_node_that_dies_end_elsewhere_without_using_up_their_retries(
    lab: Lab, nodes: Nodes, drive: Callable[[], Driver]
) -> None:
    first, second = nodes.add(), nodes.add()
    # no crash is forgiven: a lost node has a budget of its own
    lab.write(sweep_text(seeds="[0, 1, 2, 3]", **{**SLOW, "rest": SLOW["rest"] + "faults: {retries: 0}\n"}))
    driver = drive()
    until(lambda: is_under_way(lab, 4), "the trials do not begin")
    assert sorted(nodes_[0] for nodes_ in where(lab).values()) == sorted([first, first, second, second])
    nodes.kill(first)
    assert driver.wait() == 0, driver.stderr
    nothing_lost(lab)
    tried = where(lab)
    moved = {label: each for label, each in tried.items() if len(each) > 1}
    assert len(moved) == 2
    assert all(each == [first, second] for each in moved.values())
    assert "preflight: passed" in driver.stderr
    assert "node: the node was lost; retrying" in driver.stderr
    for label in moved:  # from its checkpoint, and not from the start
        again = steps_of(lab.trainings()[label])[2]
        assert again[0] > 1
    nodes.kill(second)


def test_a_node_that_comes_while_a_sweep_runs_is_used(lab: Lab, nodes: Nodes, drive: Callable[[], Driver]) -> None:
    first = nodes.add(num_cpus=1, num_gpus=1)
    lab.write(sweep_text(seeds="[0, 1, 2, 3, 4, 5]", **SLOW))
    driver = drive()
    until(lambda: is_under_way(lab, 1), "no trial begins")
    second = nodes.add()
    assert driver.wait() == 0, driver.stderr
    nothing_lost(lab)
    used = {node for each in where(lab).values() for node in each}
    assert used == {first, second}
    nodes.kill(first)
    nodes.kill(second)


def test_a_node_that_comes_is_used_even_if_trials_end_faster_than_its_worker_starts(
    lab: Lab, nodes: Nodes, drive: Callable[[], Driver]
) -> None:
    first = nodes.add(num_cpus=1, num_gpus=1)
    seeds = str(list(range(60)))
    lab.write(sweep_text(script="step_s: 0.3", trial="  train.num_steps: 1\n", seeds=seeds, rest=SLOW["rest"]))
    driver = drive()
    until(lambda: is_begun(lab, 3), "no trial begins")
    second = nodes.add(num_cpus=1, num_gpus=1)
    assert driver.wait() == 0, driver.stderr
    nothing_lost(lab)
    used = [node for each in where(lab).values() for node in each]
    assert used.count(second) > 5
    nodes.kill(first)
    nodes.kill(second)


def test_a_node_that_is_taken_back_with_a_notice_loses_no_step(
    lab: Lab, nodes: Nodes, drive: Callable[[], Driver]
) -> None:
    first, second = nodes.add(), nodes.add()
    # its first steps come on record after ten seconds, and 35 seconds are left then to be moved in
    text = sweep_text(seeds="[0, 1]", **{**SLOW, "trial": "  train.num_steps: 90\n"})
    text = text.replace("checkpoint.every_steps: 2", "checkpoint.every_steps: 100")
    lab.write(text.replace("resources: {gpus: 1}", "resources: {gpus: 2}\nfaults: {retries: 0, node_retries: 0}"))
    driver = drive()
    until(lambda: is_begun(lab, 2), "the trials do not begin")
    assert nodes.drain(first)
    until(lambda: any(len(each) > 1 for each in where(lab).values()), "the trial does not move")
    nodes.kill(first)
    assert driver.wait() == 0, driver.stderr
    nothing_lost(lab)
    (moved,) = (label for label, each in where(lab).items() if len(each) > 1)
    assert where(lab)[moved] == [first, second]
    steps = steps_of(lab.trainings()[moved])
    assert sorted([*steps[1], *steps[2]]) == list(range(1, 91)), "no step was made twice"
    assert "its node is being drained; it resumes from its checkpoint" in driver.stderr
    nodes.kill(second)


def test_a_node_that_dies_while_it_is_checked_does_not_fail_the_preflight(
    lab: Lab, nodes: Nodes, drive: Callable[[], Driver]
) -> None:
    died, stays = nodes.add(), nodes.add()
    lab.write(sweep_text(seeds="[0]", rest="resources: {gpus: 1}\n"))
    driver = drive()
    until(lambda: list(lab.folder.glob("**/.scratch-*/driver")), "the preflight does not begin")
    nodes.kill(died)  # Ray believes for three more seconds that it is alive
    assert driver.wait() == 0, driver.stderr
    nothing_lost(lab)
    assert list(where(lab).values()) == [[stays]]
    nodes.kill(stays)


def test_a_sweep_that_no_node_can_hold_is_refused_before_anything_starts(
    lab: Lab, nodes: Nodes, drive: Callable[[], Driver]
) -> None:
    only = nodes.add()
    lab.write(sweep_text(rest="resources: {gpus: 4}\n"))
    driver = drive()
    assert driver.wait() == 2
    assert "trial seed 0 needs 1 CPU, 4 GPU on one node; the largest node has 2 CPU, 2 GPU" in driver.stderr
    nodes.kill(only)


def test_of_nodes_that_come_and_go_every_few_seconds_nothing_is_lost_or_done_twice(
    lab: Lab, nodes: Nodes, drive: Callable[[], Driver]
) -> None:
    live = [nodes.add(num_cpus=1, num_gpus=1) for _ in range(5)]
    rest = "resources: {gpus: 1, cpus: 0.1}\nfaults: {node_retries: 50, retries: 0}\n"
    seeds = str(list(range(40)))
    lab.write(sweep_text(script="step_s: 0.5", trial="  train.num_steps: 4\n", seeds=seeds, rest=rest))
    driver = drive()
    until(lambda: is_begun(lab, 5), "the trials do not begin")
    num_killed = 0
    while driver.process.is_alive():
        nodes.kill(live.pop(0))
        live.append(nodes.add(num_cpus=1, num_gpus=1))
        num_killed += 1
        driver.process.join(4)
    assert driver.wait() == 0, driver.stderr
    nothing_lost(lab)
    assert num_killed > 2
    tried = where(lab)
    assert any(len(each) > 1 for each in tried.values()), "no attempt was lost with its node"
    assert len({node for each in tried.values() for node in each}) > 5
