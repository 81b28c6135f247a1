"""A sweep file that is edited after its sweep has begun: what only adds is taken up, all else is refused by name."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from builders import sweep_run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search_file import HUNT, edited
from test_sweepfile import BASE
from verbs import oneshot

from oneshot.config.file import read
from oneshot.errors import SweepFileError
from oneshot.plan.edits import Edits, check_edits, find_edits
from oneshot.plan.pinned import PinnedSweep, Winner
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.revisions import FILE as REVISIONS
from oneshot.plan.revisions import frozen_revisions
from oneshot.plan.studies import freeze_point, freeze_winner, frozen_search
from oneshot.store.store import Store

SCRIPTED = """\
version: 1
name: s
question: What is new?
trial:
  script: {step_s: 0}
  train.num_steps: 4
axes:
  size: {small: {set: {rollout.num_groups: 4}}, large: {set: {rollout.num_groups: 8}}}
seeds: [0, 1]
"""


def begin(store: Store, text: str, *overrides: str, has_steps: bool = True) -> None:
    """Leaves what a driver leaves that has begun the sweep."""
    sweep = read(text, name="s.yaml", overrides=overrides)
    folder = store.sweep(sweep.config.name)
    folder.write("sweep.yaml", text)
    folder.write_json("settings.json", {path: setting.value for path, setting in sweep.overrides.items()})
    if has_steps:
        keys = [trial.key for trial in make_plan(sweep).trials if trial.key is not None]
        for key in keys[-1:]:  # of a model whose commit is not known there is none
            store.trial(key).write("metrics/0001-00000001.jsonl", "")


def planned(store: Store, text: str, *overrides: str) -> tuple[PinnedSweep, Plan]:
    sweep = read(text, name="s.yaml", overrides=overrides)
    known = frozen_search(sweep, store.sweep(sweep.config.name))
    return known, make_plan(known)


def edits(store: Store, text: str, *overrides: str) -> Edits | None:
    return find_edits(sweep_run(*planned(store, text, *overrides), store))


def counts(found: Edits | None) -> tuple[int, int, int, int]:
    """New, unchanged or extended, changed, orphaned."""
    assert found is not None
    num_kept = len(found.unchanged) + sum(map(len, found.extended.values()))
    return len(found.new), num_kept, len(found.changed), len(found.orphaned)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "runs"))


# nothing new


def test_a_sweep_that_has_not_begun_has_no_edits(store: Store) -> None:
    assert edits(store, SCRIPTED) is None


def test_the_same_text_is_not_even_planned(store: Store, tmp_path: Path) -> None:
    # of a model that is gone no plan can be made
    begin(store, SCRIPTED)
    sweep, plan = planned(store, SCRIPTED)
    begin(store, SCRIPTED.replace("script: {step_s: 0}", "model.path: ./gone"), has_steps=False)
    gone = read(store.sweep("s").read("sweep.yaml") or "", name="s.yaml")
    assert find_edits(sweep_run(gone, plan, store)) is None
    assert find_edits(sweep_run(sweep, plan, store)) is None


def test_other_words_for_the_same_are_no_edit(store: Store) -> None:
    begin(store, SCRIPTED)
    text = SCRIPTED.replace("  train.num_steps: 4", "  # as many\n  train: {num_steps: 4}")
    assert counts(edits(store, text.replace("What is new?", "What was that?"))) == (0, 4, 0, 0)


def test_a_setting_on_the_command_line_is_an_edit_like_any_other(store: Store) -> None:
    begin(store, SCRIPTED, "loss.kl_coef=0.5")
    assert edits(store, SCRIPTED, "loss.kl_coef=0.5") is None
    found = edits(store, SCRIPTED)
    assert found is not None
    assert found.refused == ("small seed 0 and 3 more: loss.kl_coef: 0.5 -> 0.001",)
    # what the file says by now, the command line need not say
    text = edited("  train.num_steps: 4\n", "  train.num_steps: 4\n  loss.kl_coef: 0.5\n", SCRIPTED)
    assert counts(edits(store, text)) == (0, 4, 0, 0)


# what only adds

SUITES = "arithmetic: {num_problems: 4}"
ADDITIONS = {
    "a seed": ("seeds: [0, 1]", "seeds: [0, 2, 1]", (4, 8, 0, 0)),
    "a cell": ("    outcome: {}", "    outcome: {}\n    random: {set: {reward.kind: random}}", (4, 8, 0, 0)),
    "a suite": (SUITES, f"{SUITES}, more: {{source: arithmetic, num_problems: 2}}", (0, 8, 0, 0)),
    "an evaluation on the way": (SUITES, f"{SUITES[:-1]}, every_steps: 1}}", (0, 8, 0, 0)),
    "a longer run": ("train.num_steps: 2", "train.num_steps: 5", (0, 8, 0, 0)),
    "a block that says what was so": ("seeds:", "grid: [{}]\nseeds:", (0, 8, 0, 0)),
    "resources": ("seeds:", "resources: {cpus: 2, max_concurrent: 3}\nseeds:", (0, 8, 0, 0)),
    "a budget": ("seeds:", "budget: {gpu_hours: 3, until: 08:00}\nseeds:", (0, 8, 0, 0)),
    "keep": ("seeds:", "keep: {checkpoint_days: 1}\nseeds:", (0, 8, 0, 0)),
    "faults": ("seeds:", "faults: {retries: 0}\nseeds:", (0, 8, 0, 0)),
    "what is kept": ("train.num_steps: 2", "train.num_steps: 2\n  checkpoint.keep: full", (0, 8, 0, 0)),
    "how work is split": ("train.num_steps: 2", "train.num_steps: 2\n  train.microbatch_tokens: 9", (0, 8, 0, 0)),
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_what_only_adds_is_accepted(store: Store, name: str) -> None:
    old, new, expected = ADDITIONS[name]
    begin(store, BASE)
    text = edited(old, new, BASE)
    found = edits(store, text)
    assert counts(found) == expected
    assert found is not None and found.refused == ()
    check_edits(sweep_run(*planned(store, text), store))


def test_trials_that_get_more_are_extended_by_what_they_get(store: Store, tmp_path: Path) -> None:
    begin(store, BASE)
    found = edits(store, edited("train.num_steps: 2", "train.num_steps: 5", BASE))
    assert found is not None and found.unchanged == ()
    assert {addition: len(trials) for addition, trials in found.extended.items()} == {"3 more steps (2 -> 5)": 8}
    found = edits(store, edited(*ADDITIONS["a suite"][:2], BASE))
    assert found is not None and list(found.extended) == ["more evaluations"]
    begin(store, SCRIPTED)
    (tmp_path / "s.yaml").write_text(edited("num_steps: 4", "num_steps: 6", SCRIPTED))
    assert oneshot("plan", "s.yaml", cwd=tmp_path).out.splitlines()[-2:] == [
        "since the sweep began: 0 new, 4 extended, 0 unchanged, 0 changed, 0 orphaned trials",
        "  extended: 4 trials, by 2 more steps (4 -> 6)",
    ]


def test_a_cell_that_is_new_is_new_at_every_seed(store: Store) -> None:
    begin(store, SCRIPTED)
    found = edits(
        store, edited("axes:\n  size: {", "axes:\n  size: {huge: {set: {rollout.num_groups: 16}}, ", SCRIPTED)
    )
    assert found is not None
    assert [trial.label for trial in found.new] == ["huge seed 0", "huge seed 1"]
    assert {trial.cell["size"] for trial in found.unchanged} == {"small", "large"}


@settings(max_examples=25)
@given(st.sets(st.integers(0, 6), min_size=1), st.sets(st.integers(0, 6), min_size=1))
def test_seeds_are_accepted_as_long_as_none_is_taken_away(before: set[int], after: set[int]) -> None:
    with tempfile.TemporaryDirectory() as root:
        begin(Store(root), SCRIPTED.replace("[0, 1]", str(sorted(before))))
        found = edits(Store(root), SCRIPTED.replace("[0, 1]", str(sorted(after))))
    if before == after:
        assert found is None
    else:
        expected = (2 * len(after - before), 2 * len(after & before), 0, 2 * len(before - after))
        assert counts(found) == expected
        assert found is not None and bool(found.refused) == bool(before - after)


# what does not

REFUSED = {
    "a setting": ("  train.num_steps: 2", "  train.num_steps: 2\n  loss.kl_coef: 0.5", "sum/format seed 0 and 7 more: loss.kl_coef: 0.001 -> 0.5"),
    "a setting of a cell": ("reward.kind: format", "reward.kind: random", "sum/format seed 0 and 3 more: reward.kind: format -> random"),
    "an example": ("arithmetic:47+38", "arithmetic:47+39", "sum/format seed 0 and 3 more: examples: ['arithmetic:47+38'] -> ['arithmetic:47+39']"),
    "a model": ("tiny:qwen2", "tiny:llama", "sum/format seed 0 and 7 more: model.path: tiny:qwen2 -> tiny:llama"),
    "a cell taken away": ("    outcome: {}\n", "", "sum/outcome seed 0 and 3 more would be removed from the sweep"),
    "a cell of another name": ("    outcome: {}\n", "    right: {}\n", "sum/outcome seed 0 and 3 more would be removed from the sweep"),
    "a seed taken away": ("seeds: [0, 1]", "seeds: [0]", "sum/format seed 1 and 3 more would be removed from the sweep"),
    "a block that takes away": ("seeds:", "grid: [{arm: outcome}]\nseeds:", "sum/format seed 0 and 3 more would be removed from the sweep"),
    "fewer steps": ("train.num_steps: 2", "train.num_steps: 1", "sum/format seed 0 and 7 more: train.num_steps: 2 -> 1"),
    "a suite taken away": (f"{{{SUITES}}}", "{other: {source: arithmetic, num_problems: 2}}", "sum/format seed 0 and 7 more: some of its evaluations would be removed"),
    "a suite with another rule": ("num_problems: 4", "num_problems: 3", "sum/format seed 0 and 7 more: some of its evaluations would be removed"),
    "guards": ("seeds:", "guards: [{metric: loss/total, is: nan}]\nseeds:", "guards was changed"),
    "claims": ("seeds:", "claims: [{name: x, metric: reward/mean, a: {arm: outcome}, b: {arm: format}, expect: {within: 1}}]\nseeds:", "claims was changed"),
    "selection on test": ("seeds:", "allow_selection_on_test: true\nseeds:", "allow_selection_on_test was changed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_can_be_corrected_as_long_as_no_trial_has_a_step(store: Store, name: str) -> None:
    old, new, _ = REFUSED[name]
    begin(store, BASE, has_steps=False)
    found = edits(store, edited(old, new, BASE))
    assert found is not None
    # what was frozen before the first step stays: claims, guards, and selection on test
    assert [complaint.partition(" ")[0] for complaint in found.refused] == (
        [name.replace("selection on test", "allow_selection_on_test")] if "was changed" in REFUSED[name][2] else []
    )


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_addition_is_refused_by_name(store: Store, name: str) -> None:
    old, new, expected = REFUSED[name]
    begin(store, BASE)
    text = edited(old, new, BASE)
    found = edits(store, text)
    assert found is not None
    assert found.refused[0] == expected
    with pytest.raises(SweepFileError) as caught:
        check_edits(sweep_run(*planned(store, text), store))
    assert str(caught.value).startswith("s.yaml:")
    assert str(caught.value).endswith(
        "a sweep that has begun accepts only additions; undo the edit, or give the sweep a new name"
    )


def test_all_that_is_refused_is_listed_and_what_was_changed_is_not_unchanged(store: Store) -> None:
    begin(store, SCRIPTED)
    text = edited("seeds: [0, 1]", "seeds: [1, 2]", SCRIPTED).replace("num_groups: 8", "num_groups: 9")
    found = edits(store, text)
    assert counts(found) == (2, 1, 1, 2)
    assert found is not None
    assert found.refused == (
        "small seed 0 and 1 more would be removed from the sweep",
        "large seed 1: rollout.num_groups: 8 -> 9",
    )


def test_a_longer_run_may_move_its_last_evaluation_but_lose_none_on_the_way(store: Store) -> None:
    asked = edited("eval: {", "eval: {every_steps: 2, ", BASE.replace("train.num_steps: 2", "train.num_steps: 4"))
    begin(store, asked)
    longer = asked.replace("train.num_steps: 4", "train.num_steps: 5")
    assert counts(edits(store, longer)) == (0, 8, 0, 0)
    # after 2 and 4, then after 3 and 5
    found = edits(store, longer.replace("every_steps: 2", "every_steps: 3"))
    assert found is not None and len(found.changed) == 8


# a search


@pytest.fixture
def hunting(store: Store) -> Store:
    begin(store, HUNT)
    return store


def win(store: Store) -> None:
    """Ends both studies of the hunt."""
    for study in ("model=small", "model=large"):
        for number in range(3):
            freeze_point(store.sweep("hunt"), study, number, {"optim.lr": 1e-4 * (number + 1)})
        winner = Winner(point=1, params={"optim.lr": 2e-4}, value=0.5, num_points=3)
        freeze_winner(store.sweep("hunt"), study, winner)


def test_more_points_are_accepted_while_the_search_is_under_way(hunting: Store) -> None:
    found = edits(hunting, edited("num_trials: 3", "num_trials: 5"))
    assert counts(found) == (4, 14, 0, 0)
    assert found is not None and found.refused == ()


def test_more_points_are_accepted_once_the_search_is_won(hunting: Store) -> None:
    # its grid waits again, and may come to have other settings
    win(hunting)
    found = edits(hunting, edited("num_trials: 3", "num_trials: 5"))
    assert counts(found) == (4, 14, 0, 0)
    assert found is not None and found.refused == ()


SEARCH_REFUSED = {
    "fewer points": ("num_trials: 3", "num_trials: 2", "search.num_trials: 3 -> 2"),
    "another range": ("high: 1e-2", "high: 1e-3", "the search of model=small: optim.lr: from 1e-06 to 0.01 (log) -> from 1e-06 to 0.001 (log)"),
    "one more path": ("space: {", "space: {loss.kl_coef: {choice: [0.1, 0.2]}, ", "the search of model=small: loss.kl_coef: None -> one of 0.1, 0.2"),
    "a range of a cell": ("large: {set", "large: {search: {optim.lr: {low: 1e-4, high: 1e-3}}, set", "the search of model=large: optim.lr: from 1e-06 to 0.01 (log) -> from 0.0001 to 0.001"),
    "another objective": ("metric: script/bowl", "metric: script/bowl, mode: min", "search.objective: {'metric': 'script/bowl', 'mode': 'max', 'at': 'last'} -> {'metric': 'script/bowl', 'mode': 'min', 'at': 'last'}"),
    "another seed": ("  seeds: [100]", "  seeds: [101]", "search.seeds: [100] -> [101]"),
    "another sampler": ("num_trials: 3", "num_trials: 3\n  sampler: {kind: random}", "search.sampler: "),
    "no search": (HUNT[HUNT.index("search:") :], "", "search was changed"),
    "early stopping": ("seeds: [0, 1]", "early_stop: {kind: asha, grace_steps: 1}\nseeds: [0, 1]", "early_stop was changed"),
    "a setting of cells that wait": ("large: {set: {rollout.num_groups: 8}}", "large: {set: {rollout.num_groups: 9}}", "large/found point 0 seed 100 and 6 more: rollout.num_groups: 8 -> 9"),
}  # fmt: skip


@pytest.mark.parametrize("is_won", [False, True])
@pytest.mark.parametrize("name", SEARCH_REFUSED)
def test_another_search_is_refused_by_name(hunting: Store, name: str, is_won: bool) -> None:
    old, new, expected = SEARCH_REFUSED[name]
    if is_won:
        win(hunting)
    found = edits(hunting, edited(old, new))
    assert found is not None
    assert found.refused[0].startswith(expected)


def test_a_seed_of_the_grid_is_accepted_once_the_search_is_won(hunting: Store) -> None:
    win(hunting)
    found = edits(hunting, edited("seeds: [0, 1]", "seeds: [0, 1, 2]"))
    assert counts(found) == (4, 14, 0, 0)
    assert found is not None and None not in {trial.key for trial in found.new}


# what people see


def test_plan_shows_what_is_new_unchanged_and_orphaned(store: Store, tmp_path: Path) -> None:
    begin(store, SCRIPTED)
    (tmp_path / "s.yaml").write_text(edited("seeds: [0, 1]", "seeds: [0, 2]", SCRIPTED))
    said = oneshot("plan", "s.yaml", cwd=tmp_path)
    assert said.code == 0
    assert said.out.splitlines()[-4:] == [
        "since the sweep began: 2 new, 0 extended, 2 unchanged, 0 changed, 2 orphaned trials",
        "  orphaned: small seed 1",
        "  orphaned: large seed 1",
        "  `run` refuses: small seed 1 and 1 more would be removed from the sweep",
    ]
    facts: dict[str, Any] = json.loads(oneshot("plan", "s.yaml", "--json", cwd=tmp_path).out)
    assert facts["edits"] == {
        "new": 2,
        "unchanged": 2,
        "extended": {},
        "changed": 0,
        "orphaned": 2,
        "orphaned_trials": ["small seed 1", "large seed 1"],
        "refused": ["small seed 1 and 1 more would be removed from the sweep"],
    }


def test_plan_says_nothing_of_edits_where_there_are_none(store: Store, tmp_path: Path) -> None:
    begin(store, SCRIPTED)
    (tmp_path / "s.yaml").write_text(SCRIPTED)
    assert "edits" not in json.loads(oneshot("plan", "s.yaml", "--json", cwd=tmp_path).out)
    assert "since the sweep began" not in oneshot("plan", "s.yaml", cwd=tmp_path).out


def test_run_refuses_and_leaves_the_sweep_as_it_was(store: Store, tmp_path: Path) -> None:
    begin(store, SCRIPTED)
    (tmp_path / "s.yaml").write_text(edited("num_groups: 8", "num_groups: 9", SCRIPTED))
    said = oneshot("run", "s.yaml", cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(
        "oneshot: s.yaml:1: the file: large seed 0 and 1 more: rollout.num_groups: 8 -> 9; a sweep that has begun accepts only"
    )
    assert store.sweep("s").read("sweep.yaml") == SCRIPTED


def test_a_commit_that_was_resolved_when_the_sweep_began_is_no_edit(store: Store) -> None:
    text = edited("tiny:qwen2", "Qwen/Qwen2.5-Math-1.5B", BASE)
    begin(store, text)
    folder = store.sweep("base")
    folder.write_json(REVISIONS, [["Qwen/Qwen2.5-Math-1.5B", None, "b" * 40]])
    sweep = frozen_revisions(read(edited("seeds: [0, 1]", "seeds: [0, 1, 2]", text), name="s.yaml"), folder)
    assert counts(find_edits(sweep_run(sweep, make_plan(sweep), store))) == (4, 8, 0, 0)
