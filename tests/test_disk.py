"""The disk space that `plan` shows: by hand, measured in a store, and beside what a real trial leaves."""

import json
from pathlib import Path

import pytest
from builders import sweep_run
from synthetic import SMALL, make_store
from verbs import oneshot

from oneshot.config.file import load, read
from oneshot.models.shapes import model_shape
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.trainings import trainings
from oneshot.store.gc import kinds_of
from oneshot.store.store import Store
from oneshot.sweep.disk import Disk, find_disk
from oneshot.tasks.grading import Grader
from oneshot.trial.recorder import record


def disk_of(text: str, store: Store) -> tuple[Plan, Disk]:
    sweep = read(text, name="s.yaml")
    plan = make_plan(sweep)
    return plan, find_disk(sweep_run(sweep, plan, store), num_finished=0)


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("settings", "num_weights", "num_running"),
    [
        ("checkpoint.keep: none", 0, 6),
        ("checkpoint.keep: weights", 1, 6),
        ("checkpoint.keep: full", 3, 6),
        ("checkpoint.keep: {best: eval/arithmetic/pass_at_1}", 2, 7),
        ("checkpoint.keep: full\n  advantage: {baseline: critic}", 6, 12),  # tied weights: the critic is as large
    ],
)
def test_checkpoints_are_counted_in_weights(empty: Store, settings: str, num_weights: int, num_running: int) -> None:
    text = SMALL.replace("  train.num_steps", f"  {settings}\n  train.num_steps")
    plan, disk = disk_of(text, empty)
    shape = model_shape(plan.trials[0].config)
    assert shape is not None
    assert disk.trials[0].bytes_by_kind["checkpoints"] == 4 * num_weights * shape.num_params
    assert disk.trials[0].running_bytes == 4 * num_running * shape.num_params


def test_an_adapter_is_all_that_its_trial_keeps(empty: Store) -> None:
    adapter = "  model.adapter: {kind: lora, r: 2}\n"
    plan, disk = disk_of(SMALL.replace("  train.num_steps", f"{adapter}  train.num_steps"), empty)
    config = plan.trials[0].config
    shape = model_shape(config)
    assert shape is not None
    assert config.model.adapter is not None
    assert disk.trials[0].bytes_by_kind["checkpoints"] == 4 * shape.adapter_params(config.model.adapter)


def test_completions_are_counted_in_tokens(empty: Store) -> None:
    plan, disk = disk_of(SMALL, empty)
    # four evaluations, with 56 tokens at most for each problem; steps 1, 4, 8 and 12 have tables of 16 completions
    (count,) = {trial.cost.eval_tokens // (4 * 56) for trial in plan.trials}
    graded = 4 * 300 + 4 * count * (10 + 1.2 * 56)
    sampled = 4 * (300 + 16 * (10 + 1.2 * 56))
    assert disk.trials[0].bytes_by_kind["completions"] == round(graded + sampled)
    assert disk.basis == ("estimated",)


def test_trials_without_training_have_no_checkpoint(empty: Store) -> None:
    _, disk = disk_of(SMALL.replace("num_steps: 12", "num_steps: 0"), empty)
    assert disk.trials[0].bytes_by_kind["checkpoints"] == disk.running_bytes == 0


def test_a_model_of_unknown_size_is_said(empty: Store, tmp_path: Path) -> None:
    text = SMALL.replace("tiny:qwen2", "somebody/unknown").replace("tiny:llama", "somebody/other")
    (tmp_path / "s.yaml").write_text(text)
    said = oneshot("plan", "s.yaml", "--storage", empty.root, cwd=tmp_path).out
    assert "and checkpoints of a model of unknown size" in said
    facts = json.loads(oneshot("plan", "s.yaml", "--storage", empty.root, "--json", cwd=tmp_path).out)["disk"]
    assert facts["num_bytes"] is facts["bytes_by_kind"]["checkpoints"] is None
    assert facts["bytes_by_kind"]["completions"] > 0


def test_finished_trials_are_measured(tmp_path: Path) -> None:
    unfinished = [f"tiny-llama/format seed {seed}" for seed in (0, 1, 2)]
    sweep, plan, store = make_store(tmp_path, missing=(*unfinished, "tiny-qwen2/outcome seed 1"))
    disk = find_disk(sweep_run(sweep, plan, store), num_finished=8)
    for trial, of_trial in zip(plan.trials, disk.trials, strict=True):
        assert of_trial.is_measured == (trial.label not in unfinished)
    first = plan.trials[[trial.label for trial in plan.trials].index("tiny-qwen2/outcome seed 0")]
    at = [trial.label for trial in plan.trials].index("tiny-qwen2/outcome seed 1")
    assert first.key is not None
    assert disk.trials[at].bytes_by_kind == kinds_of(store, first.key)
    assert disk.basis == ("estimated", "measured")
    facts = json.loads(oneshot("plan", "sweep.yaml", "--json", cwd=tmp_path).out)
    assert facts["trials"][at]["bytes_by_kind"] == kinds_of(store, first.key)
    assert facts["disk"]["num_bytes"] == sum(sum(trial["bytes_by_kind"].values()) for trial in facts["trials"])
    assert "; estimated, measured)" in oneshot("plan", "sweep.yaml", cwd=tmp_path).out


def test_a_shared_training_counts_once(tmp_path: Path, empty: Store) -> None:
    text = SMALL.replace("  arm:\n", "  steps: {few: {set: {train.num_steps: 6}}, many: {}}\n  arm:\n")
    plan, disk = disk_of(text, empty)
    (both, alone) = (disk, disk_of(SMALL, empty)[1])
    assert len(plan.trials) == 2 * len(alone.trials)
    assert both.num_bytes == alone.num_bytes


@pytest.mark.parametrize("keep", ["weights", "full"])
def test_a_real_trial_takes_what_was_estimated(tmp_path: Path, empty: Store, grader: Grader, keep: str) -> None:
    changes = f"num_steps: 2\n  checkpoint.keep: {keep}"
    (tmp_path / "s.yaml").write_text(
        SMALL.replace("num_steps: 12", changes).replace("every_steps: 4", "every_steps: 1")
    )
    sweep = load(tmp_path / "s.yaml")
    plan = make_plan(sweep)
    estimated = find_disk(sweep_run(sweep, plan, empty), num_finished=0).trials[0].bytes_by_kind
    first = trainings(plan.trials[:1])[0]
    list(record(first, empty.trial(first.key), grader=grader, origin="test"))
    taken = kinds_of(empty, first.key)
    guess = {kind: size for kind, size in estimated.items() if size is not None}
    assert guess["checkpoints"] == pytest.approx(taken["checkpoints"], rel=0.02)
    # these models have a token for each character, and write fewer of them than they may
    assert taken["completions"] < guess["completions"] < 10 * taken["completions"]
    assert 0.5 < guess["metrics"] / taken["metrics"] < 2
