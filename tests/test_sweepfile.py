"""Sweep files: what they mean, and the one clear error of each bad one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from oneshot.config.file import load, read
from oneshot.config.schema import sweep_reference, sweep_schema
from oneshot.config.sweep import SweepConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.revisions import FILE, frozen_revisions, pin_revisions
from oneshot.store.store import Store

BASE = (PROJECT / "tests" / "cases" / "base.yaml").read_text()


def plan(tmp_path: Path, text: str, *overrides: str) -> Plan:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return make_plan(load(path, overrides=overrides))


def edited(old: str, new: str) -> str:
    assert BASE.count(old) == 1, old
    return BASE.replace(old, new)


# what is changed, and what the one error says; the line is the line of the mistake
BAD = {
    "misspelt top key": ("seeds: [0, 1]", "seed: [0, 1]", ["s.yaml:18: seed: unknown key; did you mean 'seeds'?"]),
    "missing key": ("question: Is it read?\n", "", ["question: missing; add it"]),
    "wrong version": ("version: 1", "version: 2", ["s.yaml:2: version: 2 is not one of 1"]),
    "misspelt setting": (
        "train.num_steps: 2",
        "train.num_stepz: 2",
        ["s.yaml:9: trial.train.num_stepz: unknown key", "did you mean 'train.num_steps'?"],
    ),
    "misspelt section": ("rollout: {num", "rolout: {num", ["s.yaml:8: trial.rolout", "did you mean 'rollout'?"]),
    "setting of another section": (
        "train.num_steps: 2",
        "train.kl_coef: 2",
        ["s.yaml:9: trial.train.kl_coef: unknown key", "did you mean 'loss.kl_coef'?"],
    ),
    "wrong type": ("train.num_steps: 2", "train.num_steps: two", ["s.yaml:9: ", "train.num_steps: must be a whole number", "not 'two'"]),
    "out of range": ("temperature: 1.0", "temperature: -1.0", ["s.yaml:8: ", "rollout.temperature", "greater than 0", "-1.0"]),
    "text for a section": ("rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}", "rollout: fast", ["s.yaml:8: trial.rollout: rollout is a section"]),
    "double key": ("version: 1\n", "version: 1\nversion: 1\n", ["s.yaml:3: ", 'duplicate key "version"', "keep one"]),
    "set twice": ("train.num_steps: 2", "train.num_steps: 2\n  train: {num_steps: 3}", ["train.num_steps is set twice"]),
    "not YAML": ("seeds: [0, 1]", "seeds: [0, 1", ["s.yaml:19: not YAML: a list is not closed; add ]"]),
    "unknown key of a cell": ("outcome: {}", "outcome: {sets: {}}", ["s.yaml:16: axes.arm.outcome.sets: unknown key", "did you mean 'set'?"]),
    "cell sets an unknown field": (
        "set: {reward.kind: format}",
        "set: {reward.kinds: format}",
        ["s.yaml:17: axes.arm.format.set.reward.kinds: unknown key", "did you mean 'reward.kind'?"],
    ),
    "cell sets a value that is not allowed": ("reward.kind: format", "reward.kind: formt", ["s.yaml:17: ", "'formt' is not one of 'outcome', 'format', 'random', 'majority', 'certainty', 'python' or 'sum'", "arm=format"]),
    "unknown axis in the grid": ("seeds:", "grid: [{arms: outcome}]\nseeds:", ["s.yaml:18: grid.0.arms: unknown axis; did you mean 'arm'?"]),
    "unknown cell in the grid": ("seeds:", "grid: [{arm: outcom}]\nseeds:", ["s.yaml:18: grid.0.arm: unknown cell 'outcom'; did you mean 'outcome'?"]),
    "a selector that is none": ("seeds:", "grid: [{arm: {but: outcome}}]\nseeds:", ["a selector must be a cell, a list of cells, or {not: ...}"]),
    "a grid of nothing": ("seeds:", "grid: [{arm: {not: [outcome, format]}}]\nseeds:", ["grid: the grid selects no cell"]),
    "two axes set one path": ("outcome: {}", 'outcome: {set: {examples: ["arithmetic:1+1"]}}', ["axes 'example' and 'arm' both set examples in cell example=sum arm=outcome"]),
    "two blocks disagree": (
        "seeds:",
        "grid:\n  - {arm: outcome}\n  - {example: sum, set: {train.num_steps: 3}}\nseeds:",
        ["s.yaml:20: grid.1: cell example=sum arm=outcome is in an earlier block with other settings"],
    ),
    "no seeds": ("seeds: [0, 1]", "seeds: []", ["s.yaml:18: seeds: needs at least one seed"]),
    "a seed twice": ("seeds: [0, 1]", "seeds: [1, 1]", ["s.yaml:18: seeds.1: seed 1 appears twice; each seed is one replicate"]),
    "an example that is no row": ("arithmetic:47+38", "47+38", ["s.yaml:13: ", "no set '47+38'; "]),
    "an example that is no problem": ("arithmetic:47+38", "arithmetic:47", ["s.yaml:13: ", "write two whole numbers"]),
    "a file that is not there": ("arithmetic:47+38", "nowhere.parquet:3", ["s.yaml:13: ", "nowhere.parquet: no such file"]),
    "a model that is not shipped": ("tiny:qwen2", "tiny:qwen3", ["s.yaml:6: ", "use one of tiny:blank, tiny:llama, tiny:qwen2"]),
    "a model that is not there": ("tiny:qwen2", "./qwen2", ["s.yaml:6: ", "./qwen2: no such folder"]),
    "a suite that is not built in": ("arithmetic: {num_problems: 4}", "math501: {}", ["s.yaml:10: ", "eval.suites.math501: not built in; did you mean 'math500'?"]),
    "greedy samples": ("num_problems: 4", "samples: 4", ["4 greedy completions are all equal; set a temperature above 0"]),
    "groups that do not divide": ("train.num_steps: 2", "train.updates_per_rollout: 3", ["updates_per_rollout: 3 does not divide rollout.num_groups (4)"]),
    "resources that do not exist": ("outcome: {}", "outcome: {resources: {gpu: 1}}", ["s.yaml:16: axes.arm.outcome.resources.gpu: unknown key; did you mean 'gpus'?"]),
    "an empty axis": ("  arm:\n    outcome: {}\n    format: {set: {reward.kind: format}}", "  arm: {}", ["axes.arm: the axis has no cells"]),
    "one seed": ("seeds: [0, 1]", "seeds: 3", ["s.yaml:18: seeds: must be a list, such as [0, 1, 2], not 3"]),
    "a seed of 64 bits": ("seeds: [0, 1]", "seeds: [9223372036854775808]", ["s.yaml:18: seeds.0: must be at most 9,223,372,036,854,775,807"]),
    "steps without end": ("train.num_steps: 2", "train.num_steps: 99999999999999999999999", ["s.yaml:9: ", "train.num_steps: must be at most 1,000,000, not 99999999999999999999999"]),
    "a backspace": ("question: Is it read?", 'question: "Is \\boxed{} read?"', ["s.yaml:4: question: contains a backspace in place of \\boxed", "use single quotes"]),
    "a form feed in a label": ('examples: ["arithmetic:47+38"]', 'examples: [{problem: p, answer: "\\frac{1}{2}"}]', ["s.yaml:13: axes.example.sum.set.examples.0.answer: contains a form feed in place of \\frac", "use single quotes"]),
    "a tab in a suffix": ('train_suffix: ""', 'train_suffix: "a \\times b"', ["s.yaml:7: trial.prompt.train_suffix: contains a tab in place of \\times"]),
    "a backslash that is no escape": ("question: Is it read?", 'question: "\\d"', ["s.yaml:4: not YAML: a backslash in double quotes begins an escape; use single quotes"]),
    "a colon in text": ("question: Is it read?", "question: Q: does it?", ["s.yaml:4: not YAML: a colon and a space inside text; quote the text"]),
    "a tab as indentation": ("  train.num_steps: 2", "\ttrain.num_steps: 2", ["s.yaml:9: not YAML: a tab; indent with spaces"]),
    "a key of another depth": ("  train.num_steps: 2", "   train.num_steps: 2", ["s.yaml:9: not YAML: the indentation does not fit the lines above"]),
    "a key without a colon": ("  train.num_steps: 2", "  train.num_steps 2", ["s.yaml:9: not YAML: a line that is no `key: value`"]),
    "text that YAML reads otherwise": ("question: Is it read?", "question: @you", ["s.yaml:4: not YAML: text cannot begin with @; put it in quotes"]),
    "a day of no calendar": ("question: Is it read?", "question: 2026-02-30", ["s.yaml: not YAML: a key, a date or a number does not exist", "put text in quotes"]),
    "a value axis of no path": ("seeds:", "seeds_: 1\nseeds:", ["seeds_: unknown key"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_clear_error(tmp_path: Path, name: str) -> None:
    old, new, expected = BAD[name]
    with pytest.raises(UserError) as caught:
        plan(tmp_path, edited(old, new))
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("optim.lrr: [1e-5, 1e-4]", "axes.optim.lrr: unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("optim.lr: [1e-5, 1.0e-5]", "axes.optim.lr.1: 1e-05 appears twice"),
        ("optim.lr: [1e-5, fast]", "axes.optim.lr.1: optim.lr: must be a number, not 'fast'"),
        ("optim.lr: [null, 1e-5]", "axes.optim.lr.0: optim.lr: must be a number, not null"),
        ("examples: [[a], [b]]", "axes.examples: a list of values cannot hold ['a']; write named cells, such as"),
        ("optim.lr: [{a: 1}]", "axes.optim.lr: a list of values cannot hold {'a': 1}; write named cells, such as"),
        ("optim.lr: 3", "axes.optim.lr: an axis must be a list of values, such as [1, 2], or named cells or a table"),
        ("optim.lr:", "axes.optim.lr: an axis must be a list of values, such as [1, 2], or named cells or a table"),
        ("optim.lr: []", "axes.optim.lr: the axis has no cells; write a list of values or named cells"),
        ("optim.lr: {fast: 1}", "axes.optim.lr.fast: must be a mapping, not 1"),
        ("terms: {columns: [loss.pg_coeff], rows: {a: [1]}}", "axes.terms.columns.loss.pg_coeff: unknown key"),
        ("terms: {columns: [loss.pg_coef], rows: {a: [1, 2]}}", "axes.terms.rows.a: 2 values for 1 columns"),
        ("terms: {columns: [loss.pg_coef], row: {a: [1]}}", "axes.terms.row: unknown key; did you mean 'rows'?"),
    ],
)
def test_bad_value_and_table_axes_get_one_clear_error(tmp_path: Path, axis: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(tmp_path, edited("axes:\n", f"axes:\n  {axis}\n"))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 or "missing" in str(caught.value)


def test_the_product_of_the_axes_times_the_seeds(tmp_path: Path) -> None:
    made = plan(tmp_path, BASE)
    assert (made.num_cells, len(made.trials)) == (4, 8)
    assert len({trial.key for trial in made.trials}) == 8


def test_three_kinds_of_axis(tmp_path: Path) -> None:
    table = "terms: {columns: [loss.pg_coef, loss.entropy_coef], rows: {none: [0, 0], full: [1, 0.001]}}"
    made = plan(tmp_path, edited("axes:\n", f"axes:\n  optim.lr: [1e-5, 1e-4]\n  {table}\n"))
    assert made.num_cells == 16
    by_cell = {(t.cell["optim.lr"], t.cell["terms"]): t.config for t in made.trials}
    assert by_cell["1e-05", "none"].optim.lr == 1e-5
    assert by_cell["0.0001", "full"].loss.entropy_coef == 0.001
    assert by_cell["0.0001", "none"].loss.pg_coef == 0.0


def test_grid_blocks_are_a_union_with_selectors_and_settings(tmp_path: Path) -> None:
    grid = "grid:\n  - {arm: outcome}\n  - {arm: {not: outcome}, example: [sum], set: {train.num_steps: 5}}\n"
    made = plan(tmp_path, edited("seeds:", f"{grid}seeds:"))
    assert made.num_cells == 3
    steps = {(t.cell["example"], t.cell["arm"]): t.config.train.num_steps for t in made.trials}
    assert steps == {("sum", "outcome"): 2, ("product", "outcome"): 2, ("sum", "format"): 5}


def test_precedence_trial_cell_block_override(tmp_path: Path) -> None:
    text = edited("outcome: {}", "outcome: {set: {optim.lr: 2e-5}}").replace(
        "seeds:", "grid: [{}, {arm: format, example: product}]\nseeds:"
    )
    text = text.replace("train.num_steps: 2", "train.num_steps: 2\n  optim.lr: 1e-5")
    lrs = {t.cell["arm"]: t.config.optim.lr for t in plan(tmp_path, text).trials}
    assert lrs == {"outcome": 2e-5, "format": 1e-5}
    block = text.replace("[{}, {arm: format, example: product}]", "[{set: {optim.lr: 3e-5}}]")
    assert {t.config.optim.lr for t in plan(tmp_path, block).trials} == {3e-5}
    assert {t.config.optim.lr for t in plan(tmp_path, block, "optim.lr=4e-5").trials} == {4e-5}


def test_a_grid_block_settles_what_two_axes_both_set(tmp_path: Path) -> None:
    text = edited("outcome: {}", 'outcome: {set: {examples: ["arithmetic:1+1"]}}').replace(
        "seeds:", 'grid: [{set: {examples: ["arithmetic:2+2"]}}]\nseeds:'
    )
    assert {tuple(t.config.examples) for t in plan(tmp_path, text).trials} == {("arithmetic:2+2",)}


def test_numbers_and_words_are_read_as_yaml_1_2_says(tmp_path: Path) -> None:
    text = edited("train.num_steps: 2", "train.num_steps: 010\n  optim.lr: 1e-6")
    text = text.replace("format: {set", "no: {set").replace("outcome: {}", "on: {labels: {answer: yes}}")
    made = plan(tmp_path, text)
    assert {t.cell["arm"] for t in made.trials} == {"on", "no"}
    assert {t.config.train.num_steps for t in made.trials} == {10}
    assert {t.config.optim.lr for t in made.trials} == {1e-6}
    assert {t.labels["answer"] for t in made.trials if t.cell["arm"] == "on"} == {"yes"}


def test_controls_first_and_seed_by_seed(tmp_path: Path) -> None:
    order = [(t.seed, t.cell["arm"]) for t in plan(tmp_path, BASE).trials]
    one_seed = ["format", "format", "outcome", "outcome"]
    assert order == [(0, arm) for arm in one_seed] + [(1, arm) for arm in one_seed]


def test_a_setting_that_changes_no_trial_is_a_warning(tmp_path: Path) -> None:
    text = edited("seeds:", "grid: [{arm: outcome, set: {train.num_steps: 3}}]\nseeds:")
    text = text.replace("train.num_steps: 2", "train.num_steps: 2\n  loss.clip_low: 0.1")
    warnings = "\n".join(plan(tmp_path, text).warnings)
    assert "s.yaml:18: axes.arm.format: no block of the grid selects this cell" in warnings
    assert "s.yaml:9: trial.train.num_steps: train.num_steps is overridden in every trial" in warnings
    assert "loss.clip_low has no effect" in warnings
    assert not plan(tmp_path, BASE).warnings
    assert not plan(tmp_path, BASE, "train.num_steps=5").warnings  # what --set takes over was meant to be


def test_cells_that_differ_in_nothing_that_counts_are_a_warning(tmp_path: Path) -> None:
    warnings = plan(tmp_path, edited("axes:\n", "axes:\n  train.microbatch_tokens: [100, 200]\n")).warnings
    assert len(warnings) == 4
    assert "are the same trial: their differences have no effect" in warnings[0]


def test_a_label_that_is_empty_and_a_repeated_row_are_warnings(tmp_path: Path) -> None:
    rows = [{"problem": "p", "answer": ""}, {"problem": "q", "answer": "1"}, {"problem": "q", "answer": "2"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    suite = edited("arithmetic: {num_problems: 4}", f"mine: {{source: {path}}}")
    for text in (suite, edited('["arithmetic:47+38"]', f'["{path}:0", "{path}:1", "{path}:2", "arithmetic:1+1"]')):
        empty, repeated = plan(tmp_path, text).warnings
        assert empty == f"{path}:0: the label '' is empty: no answer is right for it"
        assert repeated == f"{path}:2: repeats the problem of {path}:1, with the label '1' there; keep one"


def test_an_unreachable_hub_is_one_line_with_its_mend(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(edited("tiny:qwen2", "Qwen/Qwen2.5-Math-1.5B"))
    done = subprocess.run(
        [sys.executable, "-m", "oneshot", "run", str(path), "--storage", str(tmp_path / "runs")],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot get the commit of main from the hub" in done.stderr
    assert "set model.revision to a commit hash" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_resolved_revision_stays_what_it_was_when_the_sweep_first_ran(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(edited("tiny:qwen2", "Qwen/Qwen2.5-Math-1.5B"))
    folder = Store(str(tmp_path / "runs")).sweep("base")
    folder.write_json(FILE, [["Qwen/Qwen2.5-Math-1.5B", None, "b" * 40]])
    frozen = frozen_revisions(load(path), folder)
    made = make_plan(frozen)
    assert None not in {trial.key for trial in made.trials}
    assert {trial.config.model.revision for trial in made.trials} == {"b" * 40}
    assert pin_revisions(frozen, made, folder) is frozen


def test_a_hub_model_without_commit_waits_for_it(tmp_path: Path) -> None:
    made = plan(tmp_path, edited("tiny:qwen2", "Qwen/Qwen2.5-Math-1.5B"))
    assert {t.key for t in made.trials} == {None}
    assert made.to_json()["trials"][0]["waits_for"].startswith("the commit of Qwen/Qwen2.5-Math-1.5B@main")
    pinned = edited("model.path: tiny:qwen2", f"model: {{path: Qwen/Qwen2.5-Math-1.5B, revision: {'a' * 40}}}")
    assert None not in {t.key for t in plan(tmp_path, pinned).trials}


def test_null_in_a_value_axis_is_the_default_of_its_path(tmp_path: Path) -> None:
    text = edited("axes:\n", "axes:\n  rollout.kv_gib: [null, 1.0]\n")
    text = text.replace("seeds:", "grid: [{rollout.kv_gib: null}, {rollout.kv_gib: 1.0, arm: format}]\nseeds:")
    kv = {(t.cell["rollout.kv_gib"], t.cell["arm"]): t.config.rollout.kv_gib for t in plan(tmp_path, text).trials}
    assert kv == {("null", "outcome"): None, ("null", "format"): None, ("1.0", "format"): 1.0}


def models_in(kind: Any) -> set[type[BaseModel]]:
    """The configuration classes in a type, with those in their fields."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {kind}.union(*(models_in(field.annotation) for field in kind.model_fields.values()))
    return set().union(*(models_in(inner) for inner in get_args(kind)))


def test_every_number_has_two_bounds() -> None:
    numbers = [
        (f"{model.__name__}.{name}", field.metadata)
        for model in models_in(SweepConfig) | models_in(TrialConfig)
        for name, field in model.model_fields.items()
        if {int, float} & {field.annotation, *get_args(field.annotation)}
    ]
    assert len(numbers) > 80
    for name, metadata in numbers:
        bounds = {side for side in ("ge", "gt", "le", "lt") for bound in metadata if hasattr(bound, side)}
        assert len(bounds) == 2, name


def test_the_trial_of_a_setting_needs_no_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set trial.optim.lr=.*unknown key 'trial'; leave out `trial.`"):
        plan(tmp_path, BASE, "trial.optim.lr=1")


@given(st.integers(0, len(BASE)), st.text("\t\n\"'{}[]:-&*!|>%@`?\\ \x07\u2028", max_size=3))
@settings(max_examples=100, deadline=None)
def test_whatever_is_typed_into_a_file_is_read_or_told_in_lines_of_the_file(place: int, typed: str) -> None:
    message = ""
    try:
        read(BASE[:place] + typed + BASE[place:], name="s.yaml")
    except UserError as error:
        message = str(error)
    assert all(line.startswith("s.yaml:") for line in message.splitlines())


def test_a_byte_order_mark_is_skipped_and_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(BASE, encoding="utf-8-sig")
    assert make_plan(load(path)).num_cells == 4
    path.write_bytes(BASE.encode().replace(b"Is it read?", b"Is it r\xe9ad?"))
    with pytest.raises(UserError, match=r"s\.yaml:4: not UTF-8 text; save the file as UTF-8"):
        load(path)


@pytest.mark.parametrize("override", ["loss.kl_coeff=1", "loss.kl_coef"])
def test_a_bad_override_is_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match="--set"):
        plan(tmp_path, BASE, override)


def test_a_cell_takes_its_examples_from_a_ranking_or_names_them(tmp_path: Path) -> None:
    assert "sum: {set" in BASE
    text = BASE.replace("sum: {set", "sum: {from_rank: {history: other, top: 1}, set")
    with pytest.raises(UserError, match="the cell sets both examples and from_rank"):
        plan(tmp_path, text)


def test_the_committed_schema_and_reference_are_the_generated_ones() -> None:
    assert (PROJECT / "docs" / "sweep-file.md").read_text() == sweep_reference() + "\n"
    assert json.loads((PROJECT / "docs" / "sweep.schema.json").read_text()) == sweep_schema()
