"""Nodes and what fits them: how many trials are ready, and which are refused."""

import gc
import weakref
from collections import deque
from pathlib import Path

import pytest
import ray
from hypothesis import assume, given
from hypothesis import strategies as st
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial

from oneshot.config.file import read
from oneshot.config.resources import ResourceConfig
from oneshot.errors import UserError
from oneshot.models.placement import GPU_GIB, share_of
from oneshot.plan.plan import Plan, make_plan
from oneshot.sweep.cluster import tuner
from oneshot.sweep.cluster.fit import Fit, NodeType, capacity, check_feasible, placements, read_node_types, reservation
from oneshot.sweep.cluster.nodes import leave
from oneshot.sweep.cluster.tuner import KEPT, _Driver

EIGHT = {"CPU": 64.0, "GPU": 8.0, "memory": 512 * 2.0**30, "accelerator_type:H100": 1.0}


def plan_of(resources: str) -> Plan:
    text = "version: 1\nname: s\nquestion: Does it fit?\ntrial: {script: {}, train.num_steps: 1}\nseeds: [0]\n"
    return make_plan(read(f"{text}resources: {{{resources}}}\n", name="s.yaml"))


@pytest.mark.parametrize(
    ("resources", "live_types", "ready"),
    [
        ("cpus: 2, gpus: 1", [(EIGHT, 1)], 8 + 2),  # eight GPUs, though there are CPUs for 32
        ("cpus: 2, gpus: 1", [(EIGHT, 4)], 32 + 8),  # three of them may come to be
        ("gpus: 0.25", [(EIGHT, 1)], 32 + 8),
        ("gpus: 3", [(EIGHT, 2)], 4 + 2),  # two a node, not five in all
        ("cpus: 1", [({"CPU": 2.0}, 1)], 2 + 2),
        ("gpus: 1", [({"CPU": 0.0}, 1)], 0 + 2),
        ("cpus: 1", [({"CPU": 64.0}, 1000)], 1000),
    ],
)
def test_what_fits_is_ready_and_a_few_more(
    resources: str, live_types: list[tuple[dict[str, float], int]], ready: int
) -> None:
    nodes = [NodeType(resources=each, count=count) for each, count in live_types]
    (trial,) = plan_of(resources).trials
    assert capacity(trial.resources, nodes) == ready


def test_a_node_that_an_autoscaler_may_add_counts_as_one_that_fits() -> None:
    head = NodeType(resources={"CPU": 0.0}, count=1)
    trials = plan_of("gpus: 4").trials
    check_feasible(trials, [head, NodeType(resources=EIGHT, count=2)])
    with pytest.raises(UserError, match="needs 1 CPU, 4 GPU on one node; the largest node has 0 CPU, 0 GPU"):
        check_feasible(trials, [head])


def test_what_an_autoscaler_may_add_is_said_by_a_variable() -> None:
    first, second = read_node_types("CPU=8,GPU=1,memory_gib=48,accelerator=L4,count=8; CPU=64")
    assert dict(first.resources) == {"CPU": 8.0, "GPU": 1.0, "memory": 48 * 2.0**30, "accelerator_type:L4": 1.0}
    assert (first.count, dict(second.resources)) == (8, {"CPU": 64.0, "memory": float("inf")})
    check_feasible(plan_of("gpus: 1, memory_gib: 40, accelerator: [L4]").trials, [first])
    with pytest.raises(UserError, match="or set ONESHOT_NODE_TYPES to what its autoscaler may add"):
        check_feasible(plan_of("gpus: 2").trials, [first])
    assert read_node_types("") == []


@pytest.mark.parametrize("text", ["CPUs=8", "CPU=many", "8", "CPU=8,count=x"])
def test_a_node_type_that_is_written_otherwise_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"ONESHOT_NODE_TYPES: .*: expected node types as CPU=8,GPU=1,count=8"):
        read_node_types(text)


def test_of_several_accelerators_the_first_that_is_there_is_asked_for() -> None:
    needed = ResourceConfig(gpus=1, accelerator=["A100-80G", "H100"])
    assert reservation(needed, [NodeType(resources=EIGHT, count=1)])["accelerator_type:H100"] == 0.001
    assert reservation(needed, [])["accelerator_type:A100-80G"] == 0.001


MIXED = {"T4": 4, "L4": 2, "A100-80G": 1}  # GPUs of a node


def mixed_nodes() -> list[NodeType]:
    return [
        NodeType(resources={"CPU": 64.0, "GPU": float(gpus), f"accelerator_type:{name}": 1.0}, count=1)
        for name, gpus in MIXED.items()
    ]


@pytest.mark.parametrize(
    ("gib", "number_by_type"),
    [
        # T4 has 14.5 GiB, L4 22, A100-80G 79: whole GPUs times how often the need fits one of them
        (12, {"A100-80G": 6, "L4": 2, "T4": 4}),
        (7, {"A100-80G": 11, "L4": 2 * 3, "T4": 4 * 2}),
        (20, {"A100-80G": 3, "L4": 2}),
        (60, {"A100-80G": 1}),
    ],
)
def test_a_share_by_memory_never_takes_more_than_a_gpu_has(gib: float, number_by_type: dict[str, int]) -> None:
    (trial,) = plan_of(f"gpu_gib: {gib}").trials
    nodes = mixed_nodes()
    found = {}
    for placed in placements(trial.resources, nodes):
        (name,) = placed.accelerator or ()
        most = capacity(placed, nodes)
        found[name] = next(n for n in range(200) if n + max(2, n // 4) == most)
        assert placed.gpus * GPU_GIB[name] >= gib  # at least what it needs
        assert (found[name] // MIXED[name]) * placed.gpus <= 1.0  # and all of them within one GPU
    assert found == number_by_type


@given(gib=st.floats(0.01, 191.0), whole=st.sampled_from(sorted(GPU_GIB.values())))
def test_a_share_holds_the_need_and_shares_that_fit_hold_theirs(gib: float, whole: float) -> None:
    assume(gib <= whole)
    share = share_of(gib, whole)
    assert share * whole >= gib * (1 - 1e-6)
    assert share - gib / whole <= 1e-4
    assert share <= 1


@pytest.mark.parametrize("gpus", ["gpus: 2", "gpu_gib: 12"])
def test_a_trial_keeps_its_own_strategy_where_others_need_as_much(gpus: str) -> None:
    fit = Fit(mixed_nodes())
    for strategy in ("auto", "fsdp", "ddp"):
        (trial,) = plan_of(f"{gpus}, strategy: {strategy}").trials
        assert {placed.strategy for placed in fit.placements(trial.resources)} == {strategy}


def test_a_share_that_no_gpu_of_the_cluster_holds_is_refused() -> None:
    trials = plan_of("gpu_gib: 90").trials
    with pytest.raises(UserError, match=r"needs 90 GiB of one GPU; the cluster has A100-80G \(79 GiB\), L4"):
        check_feasible(trials, mixed_nodes())
    check_feasible(trials, [NodeType(resources={"CPU": 8.0, "GPU": 8.0, "accelerator_type:H200": 1.0}, count=1)])
    unknown = [NodeType(resources={"CPU": 8.0, "GPU": 1.0, "accelerator_type:P100": 1.0}, count=1)]
    with pytest.raises(UserError, match=r"the cluster has P100; lower resources.gpu_gib, or set resources.gpus"):
        check_feasible(plan_of("gpu_gib: 2").trials, unknown)


def test_a_need_as_large_as_a_gpu_takes_all_of_one_that_has_it() -> None:
    (trial,) = plan_of("gpu_gib: 79").trials
    assert trial.resources.gpus == 1.0
    assert [placed.accelerator for placed in placements(trial.resources, mixed_nodes())] == [["A100-80G"]]
    (trial,) = plan_of("gpu_gib: 22, accelerator: [L4, A100-80G]").trials
    shares = {str(placed.accelerator): placed.gpus for placed in placements(trial.resources, mixed_nodes())}
    assert shares == {"['A100-80G']": 0.2785, "['L4']": 1.0}
    with pytest.raises(UserError, match=r"gpu_gib: 8 and gpus: 0\.5 both state a share of a GPU; remove one"):
        plan_of("gpus: 0.5, gpu_gib: 8")


def test_a_plan_counts_the_share_of_the_gpu_that_it_assumes() -> None:
    def share(resources: str) -> float:
        return plan_of(resources).trials[0].resources.gpus

    assert share("gpu_gib: 7.9") == 0.1  # of 79 GiB
    assert share("gpu_gib: 7, accelerator: [A100, T4]") == 0.4828  # 7 / 14.5
    assert share("gpu_gib: 100") == 0.7195  # of an H200, the smallest with 100
    with pytest.raises(UserError, match=r"gpu_gib: 200 GiB of one GPU, but the largest has 191; lower it, or set gpus"):
        plan_of("gpu_gib: 200")
    with pytest.raises(UserError, match=r"num_processes: 2, but gpu_gib without gpus is a share of one GPU; set gpus"):
        plan_of("gpu_gib: 8, num_processes: 2")


def test_nothing_is_freed_while_ray_shuts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    garbage = weakref.ref(Cycle())
    seen = []
    monkeypatch.setattr(ray, "shutdown", lambda: seen.append((garbage() is None, gc.isenabled())))
    leave()
    assert seen == [(True, False)]
    assert gc.isenabled()


def test_a_worker_that_died_before_its_trial_began_lost_its_node_if_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "error.pkl").write_bytes(ray.cloudpickle.dumps(RayActorError("cafe", "the connection was reset")))
    trial = Trial("trainable", stub=True)
    monkeypatch.setattr(Trial, "pickled_error_file", str(tmp_path / "error.pkl"))
    places = {"cafe": "gone"}
    monkeypatch.setattr(tuner, "node_of", places.__getitem__)
    monkeypatch.setattr(tuner, "is_there", {"gone": False, "there": True}.__getitem__)
    assert tuner._lost_its_node(trial, {})
    places["cafe"] = "there"
    assert not tuner._lost_its_node(trial, {})
    places["cafe"] = ""  # it never had a node
    assert not tuner._lost_its_node(trial, {})
    assert tuner._lost_its_node(trial, {"node": "gone"})  # it began there


def test_tune_forgets_trials_that_have_ended_but_the_last() -> None:
    driver = object.__new__(_Driver)  # without a sweep
    made = [
        Trial("trainable", stub=True, config={"training": "x" * 5000}, trial_id=str(n)) for n in range(2 * KEPT + 5)
    ]
    for trial in made:
        trial.set_status(Trial.TERMINATED)
    running = Trial("trainable", stub=True, config={"training": "y"}, trial_id="running")
    driver._ended = deque(made)
    of_tune = [*made, running]
    driver._forget(of_tune)
    assert of_tune == [*made[-KEPT:], running]  # Tune's own list
    assert all(trial.config == {} for trial in made[:-KEPT])
    assert all(trial.config for trial in of_tune)
