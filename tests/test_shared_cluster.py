"""Several sweeps on one Ray: GPU-seconds by weight, room for a higher priority, and trials packed by memory.

One machine, several nodes by `ray.cluster_utils`, GPUs simulated.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from drivers import Driver, start, until
from nodes import Nodes, make_nodes
from scripted import Lab, make_lab, nothing_lost, sweep_text

from oneshot.models.placement import GPU_GIB
from oneshot.store.trial_folder import TrialFolder

pytest_plugins = ["labs"]
pytestmark = [pytest.mark.cluster, pytest.mark.ray]

Begin = Callable[..., Driver]


@pytest.fixture
def nodes(scratch: str) -> Iterator[Nodes]:
    made = make_nodes(scratch)
    yield made
    made.close()


@pytest.fixture
def begin(nodes: Nodes) -> Iterator[Begin]:
    started: list[Driver] = []

    def begin_one(lab: Lab, *arguments: str) -> Driver:
        words = [*(arguments or ("run", "s.yaml")), "--address", nodes.address]
        started.append(start(words, folder=lab.folder, scratch=nodes.scratch))
        return started[-1]

    yield begin_one
    for driver in started:
        driver.process.kill()
        driver.process.join()


@pytest.fixture
def labs_of(tmp_path: Path, database: Path) -> Callable[..., list[Lab]]:
    return lambda *names: [make_lab(tmp_path / name, database) for name in names]


def intervals(folders: Sequence[TrialFolder]) -> list[tuple[float, float, dict[str, object]]]:
    """Begin and end in seconds of each attempt, and its record; a running one has no end yet."""
    found = []
    for folder in folders:
        for number, held in enumerate(folder.held(), 1):
            attempt = folder.attempt(number)
            start_s = attempt["started_ms"] / 1000
            found.append((start_s, start_s + held.ms / 1000, attempt))
    return found


def gpu_seconds(lab: Lab, begin_s: float, end_s: float) -> float:
    return sum(
        max(0.0, min(end, end_s) - max(begin, begin_s)) for begin, end, _ in intervals(list(lab.trainings().values()))
    )


def has_begun(lab: Lab, number: int = 1) -> bool:
    if not lab.store.sweep("s").read("plan.json"):
        return False
    return sum(bool(folder.last_attempt()) for folder in lab.trainings().values()) >= number


def test_two_sweeps_share_gpu_seconds_by_their_weights_and_status_shows_both(
    labs_of: Callable[..., list[Lab]], nodes: Nodes, begin: Begin
) -> None:
    nodes.add(num_cpus=4, num_gpus=3)
    two, one = labs_of("two", "one")
    for lab, share, user in ((two, 2, "ada"), (one, 1, "bo")):
        rest = f"resources: {{gpus: 1, cpus: 0.5}}\nsharing: {{share: {share}}}\nuser: {user}\n"
        rest += "project: transfer\nbudget: {cost: 1000, price_per_gpu_hour: {H100: 3600}}\n"
        seeds = str(list(range(14 * share)))
        lab.write(sweep_text(script="step_s: 0.5", trial="  train.num_steps: 4\n", seeds=seeds, rest=rest))
    drivers = [begin(two), begin(one)]
    until(lambda: has_begun(two) and has_begun(one), "both do not begin")
    status = begin(two, "status", "--json")
    assert status.wait() == 0, status.stderr
    shown = {row["user"]: row for row in json.loads(status.stdout)}
    assert {user: (row["share"], row["project"], row["unit"]) for user, row in shown.items()} == {
        "ada": (2.0, "transfer", "GPU"),
        "bo": (1.0, "transfer", "GPU"),
    }
    assert sum(row["granted"] for row in shown.values()) == 3.0
    assert shown["ada"]["cost"] is not None
    for driver in drivers:
        assert driver.wait() == 0, driver.stderr
    runs = nothing_lost(two)
    assert {run.data.tags["mlflow.user"] for run in runs.values()} == {"ada"}
    nothing_lost(one)
    # while both wanted GPUs: from the first trial of the later one to the last trial that began of the first to end
    begins = {lab.folder.name: sorted(b for b, _, _ in intervals(list(lab.trainings().values()))) for lab in (two, one)}
    begin_s, end_s = max(each[0] for each in begins.values()), min(each[-1] for each in begins.values())
    used = {name: gpu_seconds(lab, begin_s, end_s) for name, lab in (("two", two), ("one", one))}
    assert end_s - begin_s > 10, begins
    assert 1.5 < used["two"] / used["one"] < 2.6, used


def test_a_preemptible_sweep_makes_room_at_checkpoints_and_loses_no_step(
    labs_of: Callable[..., list[Lab]], nodes: Nodes, begin: Begin
) -> None:
    nodes.add(num_cpus=4, num_gpus=2)
    low, high = labs_of("low", "high")
    long = {"script": "step_s: 0.5", "trial": "  train.num_steps: 60\n", "seeds": "[0, 1]"}
    low.write(sweep_text(**long, rest="resources: {gpus: 1}\nsharing: {preemptible: true}\n"))
    high.write(sweep_text(seeds="[0, 1]", rest="resources: {gpus: 1}\nsharing: {priority: 5}\n"))
    first = begin(low)
    until(lambda: has_begun(low, 2), "the first sweep does not begin")
    second = begin(high)
    assert second.wait() == 0, second.stderr
    ended_s = max(end for _, end, _ in intervals(list(high.trainings().values())))
    assert first.wait() == 0, first.stderr
    assert first.stderr.count("it makes room for another sweep; it resumes from its checkpoint") == 2
    nothing_lost(low)  # each step once, each made of all before it
    nothing_lost(high)
    resumed = [(b, a) for b, _, a in intervals(list(low.trainings().values())) if b > ended_s - 1]
    assert len(resumed) == 2, "the trials that made room resume when the other sweep has ended"


def test_trials_are_packed_by_memory_on_gpus_of_different_sizes_without_overcommitting(
    labs_of: Callable[..., list[Lab]], nodes: Nodes, begin: Begin
) -> None:
    sizes = {nodes.add(num_cpus=8, num_gpus=1, accelerator=name): name for name in ("T4", "L4", "A100-80G")}
    (lab,) = labs_of("lab")
    rest = "resources: {gpu_gib: 7, cpus: 0.1}\n"
    lab.write(sweep_text(script="step_s: 0.5", seeds=str(list(range(40))), rest=rest))
    driver = begin(lab)
    assert driver.wait() == 0, driver.stderr
    nothing_lost(lab)
    found = intervals(list(lab.trainings().values()))
    most: dict[str, float] = defaultdict(float)
    for node, name in sizes.items():
        events = sorted(
            (time_s, change * 7.0)
            for begin_s, end_s, attempt in found
            if attempt["node"] == node
            for time_s, change in ((begin_s, 1), (end_s, -1))
        )
        held = 0.0
        for (_, amount), _ in pairwise([*events, (0.0, 0.0)]):
            held += amount
            most[name] = max(most[name], held)
    # 14.5, 22 and 79 GiB hold 2, 3 and 11 of 7 GiB
    assert all(most[name] <= GPU_GIB[name] for name in most), most
    assert most["T4"] == 14.0 and most["L4"] == 21.0 and most["A100-80G"] >= 35.0, most
    shares = {str(attempt["accelerator"]): attempt["gpus"] for _, _, attempt in found}
    assert shares == {"T4": 0.4828, "L4": 0.3182, "A100-80G": 0.0887}
