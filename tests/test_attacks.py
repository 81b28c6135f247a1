"""How somebody could make a verdict say what they want, one test each: it is refused, or the verdict names it."""

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from builders import sweep_run
from synthetic import make_store, put_on_record

from oneshot.config.file import load
from oneshot.errors import UserError
from oneshot.plan.edits import check_edits
from oneshot.plan.frozen import FILE, Planned, freeze
from oneshot.plan.loader import begun_sweep
from oneshot.plan.plan import make_plan
from oneshot.plan.trial import Trial
from oneshot.report.bundle import read_bundle, write_bundle
from oneshot.report.page import summary
from oneshot.report.runs import gather
from oneshot.report.verdicts import JudgedClaim, verdicts
from oneshot.store.folder import now_ms
from oneshot.store.store import Store
from oneshot.tasks.arithmetic import held_out

TEXT = """\
version: 1
name: attacked
question: Does it hold?
trial:
  model.path: tiny:qwen2
  examples: ["arithmetic:47+38"]
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}
  train.num_steps: 8
  eval: {every_steps: 4, suites: {arithmetic: {num_problems: 6, temperature: 1.0}}}
axes:
  arm: {outcome: {}, format: {set: {reward.kind: format}}}
seeds: [0, 1, 2]
claims:
  - {name: lifts, metric: eval/arithmetic/pass_at_1, a: {arm: outcome}, b: {at: start}, expect: {greater_by: 0}}
"""
HOUR_MS = 3_600_000


def clear(trial: Trial, step: int, problem: int) -> float:
    """The outcome arm goes from 0.2 to 0.9."""
    return 0.2 + 0.7 * step / trial.config.train.num_steps if trial.cell.get("arm") == "outcome" else 0.2


def edited(old: str, new: str, text: str = TEXT) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def honest(folder: Path, text: str = TEXT, **more: Any) -> Store:
    """A sweep that was frozen and then ran."""
    put_on_record(folder, text)
    return make_store(folder, text, **{"accuracy": clear, **more})[2]


def judged(folder: Path, name: str = "attacked") -> list[JudgedClaim]:
    return verdicts(gather(begun_sweep(Store(str(folder / "runs")), name)))


def notes(folder: Path, name: str = "attacked") -> tuple[str, ...]:
    return judged(folder, name)[0].notes


def refusal(folder: Path, text: str) -> str:
    """What `plan` says of a file."""
    (folder / "s.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        make_plan(load(folder / "s.yaml"))
    return str(caught.value)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def key_of(store: Store, label: str) -> str:
    plan = begun_sweep(store, "attacked").plan
    return next(trial.key for trial in plan.trials if trial.label == label and trial.key is not None)


def test_an_honest_sweep_has_a_verdict_without_reservations(tmp_path: Path) -> None:
    honest(tmp_path)
    (found,) = judged(tmp_path)
    assert (found.verdict, found.notes) == ("supported", ())
    assert summary([found]) == "Verdict: 1 of 1 supported."


# the file


EDITS = {
    "another bound": ("greater_by: 0", "greater_by: -0.5", "claims was changed"),
    "a seed dropped": ("[0, 1, 2]", "[0, 1]", "format seed 2 and 1 more would be removed"),
    "looks": ("seeds: [0, 1, 2]", "seeds: [0, 1, 2]\nlooks: [3]", "looks was changed"),
    "what failed counts as": ("seeds:", "failed: leave_out\nseeds:", "failed was changed"),
    "other sampling": ("temperature: 1.0}}", "temperature: 0.5}}", "some of its evaluations would be removed"),
}


@pytest.mark.parametrize("name", EDITS)
def test_run_refuses_an_edit_of_what_is_judged(tmp_path: Path, name: str) -> None:
    store = honest(tmp_path)
    old, new, says = EDITS[name]
    (tmp_path / "sweep.yaml").write_text(edited(old, new))
    sweep = load(tmp_path / "sweep.yaml")
    with pytest.raises(UserError) as caught:
        check_edits(sweep_run(sweep, make_plan(sweep), store))
    assert says in str(caught.value)


def test_run_refuses_another_stop_rule_and_other_groups_but_not_more_of_them(tmp_path: Path) -> None:
    suites = "suites: {arithmetic: {num_problems: 6, temperature: 1.0}, more: {source: arithmetic, num_problems: 4}}"
    text = edited("suites: {arithmetic: {num_problems: 6, temperature: 1.0}}", suites)
    text = edited(
        "seeds: [0, 1, 2]", "seeds: {planned: 3}\nlooks: [3]\ngroups: {g: {suites: [arithmetic, more]}}", text
    )
    store = honest(tmp_path, text)

    def said(old: str, new: str) -> str:
        (tmp_path / "sweep.yaml").write_text(edited(old, new, text))
        sweep = load(tmp_path / "sweep.yaml")
        try:
            check_edits(sweep_run(sweep, make_plan(sweep), store))
        except UserError as error:
            return str(error)
        return ""

    assert "seeds.stop was changed" in said("planned: 3", "planned: 3, stop: decided")
    assert "groups.g was changed" in said("suites: [arithmetic, more]", "suites: [arithmetic, more], weight: problem")
    assert said("groups: {", "groups: {h: {suites: [more, arithmetic]}, ") == ""


def test_run_refuses_held_out_data_that_were_changed(tmp_path: Path) -> None:
    rows = [{"problem": f"What is {n} plus one?", "answer": str(n + 1)} for n in range(20)]
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    text = edited("arithmetic: {num_problems: 6", f"mine: {{source: {data}").replace("eval/arithmetic", "eval/mine")
    store = honest(tmp_path, text)
    rows[3]["answer"] = "5"
    data.write_text("\n".join(map(json.dumps, rows)))
    sweep = load(tmp_path / "sweep.yaml")
    with pytest.raises(UserError) as caught:
        check_edits(sweep_run(sweep, make_plan(sweep), store))
    says = (
        f"eval.suites.mine: the problems, answers or sampling of {data} are not the frozen ones; a sweep that has begun"
    )
    assert says in str(caught.value)


def test_claims_that_are_added_later_are_counted_apart(tmp_path: Path) -> None:
    honest(tmp_path)
    more = TEXT.splitlines()[-1].replace("name: lifts", "name: seen").replace("b: {at: start}", "b: {arm: format}")
    (tmp_path / "runs/sweeps/attacked/sweep.yaml").write_text(f"{TEXT}{more}\n")
    found = judged(tmp_path)
    assert [claim.is_amended for claim in found] == [False, True]
    assert summary(found) == "Verdict: 1 of 1 supported; 1 amended, apart."
    assert summary(found[1:]) == "No frozen claims, so no verdict; 1 amended, apart."


# the record


def test_a_record_that_is_deleted_and_frozen_again_is_found_by_the_trainings(tmp_path: Path) -> None:
    store = honest(tmp_path, facts=lambda trial: {"started_ms": now_ms() - HOUR_MS // 2})
    before = json.loads((tmp_path / "runs/sweeps/attacked/claims.json").read_text())["digest"]
    (tmp_path / "runs/sweeps/attacked/claims.json").unlink()
    sweep = load(tmp_path / "sweep.yaml")
    freeze(store.sweep("attacked"), Planned.of(sweep.config, make_plan(sweep)))
    assert notes(tmp_path) == (
        f"the record of claims was replaced: 6 trainings began under digest {before[:16]}",
        "3 of 3 trainings had begun before the claim was frozen",
    )


RECORD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "the bound": lambda fields: fields["claims"][0]["expect"].update(greater_by=-0.5),
    "the time": lambda fields: fields.update(frozen_ms=1),
    "the seeds": lambda fields: fields.update(seeds=[0, 1, 2, 3]),
    "the cells": lambda fields: fields["num_steps"].pop("arm=format"),
    "the suites": lambda fields: fields["suites"].update(arithmetic=["0"]),
}


@pytest.mark.parametrize("name", RECORD)
def test_a_record_that_is_edited_no_longer_has_its_digest(tmp_path: Path, name: str) -> None:
    honest(tmp_path)
    edit(tmp_path / "runs/sweeps/attacked" / FILE, RECORD[name])
    assert "the frozen claims do not match their digest: somebody edited them" in notes(tmp_path)


@pytest.mark.parametrize("name", RECORD)
def test_a_record_that_is_edited_with_its_digest_is_not_the_one_that_trainings_began_under(
    tmp_path: Path, name: str
) -> None:
    honest(tmp_path)

    def forge(fields: dict[str, Any]) -> None:
        RECORD[name](fields)
        content = {key: value for key, value in fields.items() if key != "digest"}
        fields["digest"] = sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    edit(tmp_path / "runs/sweeps/attacked" / FILE, forge)
    found = notes(tmp_path)
    assert "the frozen claims do not match their digest: somebody edited them" not in found
    assert any(note.startswith("the record of claims was replaced: 6 trainings began under digest ") for note in found)


# what was known, added or removed


def test_a_machine_whose_clock_is_behind_makes_no_training_older_than_its_record(tmp_path: Path) -> None:
    honest(tmp_path, facts=lambda trial: {"started_ms": now_ms() - 2 * HOUR_MS})
    assert notes(tmp_path) == ()


@pytest.mark.parametrize("steps", [8, 9])
def test_a_claim_about_trainings_that_another_sweep_began_is_named(tmp_path: Path, steps: int) -> None:
    make_store(tmp_path, TEXT, accuracy=clear, facts=lambda trial: {"started_ms": now_ms() - 2 * HOUR_MS})
    text = edited("train.num_steps: 8", f"train.num_steps: {steps}").replace("name: attacked", "name: fresh")
    put_on_record(tmp_path, text)
    make_store(tmp_path, text, accuracy=clear)  # adds to what is there
    assert notes(tmp_path, "fresh") == ("3 of 3 trainings had begun before the claim was frozen",)


def test_seeds_cells_and_suites_that_are_added_are_named(tmp_path: Path) -> None:
    claim = TEXT.splitlines()[-1].replace("a: {arm: outcome}", "a: {arm: {not: [format]}}")
    text = TEXT.replace(TEXT.splitlines()[-1], claim)
    put_on_record(tmp_path, text)
    record = (tmp_path / "runs/sweeps/attacked" / FILE).read_bytes()
    text = edited("[0, 1, 2]", "[0, 1, 2, 3]", text)
    text = edited("arm: {outcome: {}", "arm: {outcome: {}, longer: {set: {optim.lr: 1.0e-3}}", text)
    text = edited("arithmetic: {", "other: {source: arithmetic, num_problems: 3}, arithmetic: {", text)
    more = claim.replace("eval/arithmetic", "eval/other").replace("name: lifts", "name: other")
    make_store(tmp_path, f"{text}{more}\n", accuracy=clear)
    assert (tmp_path / "runs/sweeps/attacked" / FILE).read_bytes() == record
    frozen, added = judged(tmp_path)
    assert frozen.notes == (
        "seeds added after the claims were frozen: 3",
        "cells added after the claims were frozen: arm=longer",
    )
    assert "suites added after the claims were frozen: other" in added.notes


def test_seeds_and_cells_that_are_dropped_from_the_stored_file_are_named(tmp_path: Path) -> None:
    honest(tmp_path, edited("[0, 1, 2]", "[0, 1, 2, 3]"))
    path = tmp_path / "runs/sweeps/attacked/sweep.yaml"
    path.write_text(edited(", format: {set: {reward.kind: format}}", ""))
    assert notes(tmp_path) == (
        "frozen seeds that are no longer judged: 3",
        "frozen cells that are no longer judged: arm=format",
    )


def test_rules_that_were_changed_in_the_stored_file_are_named(tmp_path: Path) -> None:
    honest(tmp_path)
    path = tmp_path / "runs/sweeps/attacked/sweep.yaml"
    path.write_text(edited("seeds:", "failed: leave_out\nlooks: [3]\nseeds:"))
    assert notes(tmp_path) == ("rules changed after the claims were frozen: looks, failed",)


def test_a_seed_that_is_deleted_is_named(tmp_path: Path) -> None:
    store = honest(tmp_path)
    shutil.rmtree(tmp_path / "runs/trials" / key_of(store, "outcome seed 1"))
    assert notes(tmp_path) == ("left out: seed 1: outcome seed 1 is missing",)


# results


def test_evaluations_that_are_copied_to_other_seeds_are_named(tmp_path: Path) -> None:
    store = honest(tmp_path)
    trials = tmp_path / "runs/trials"
    first = trials / key_of(store, "outcome seed 0")
    for seed in (1, 2):
        for part in ("rollouts", "evaluations"):
            shutil.copytree(first / part, trials / key_of(store, f"outcome seed {seed}") / part, dirs_exist_ok=True)
    (said,) = notes(tmp_path)
    assert said == "identical grades although arithmetic is sampled: arm=outcome, seeds 0 and 1, and 5 more pairs"


def test_greedy_seeds_may_agree(tmp_path: Path) -> None:
    text = edited(", temperature: 1.0}}", "}}")
    honest(tmp_path, text, accuracy=lambda trial, step, problem: float(step > 0))
    assert notes(tmp_path) == ()


def test_grades_that_do_not_fit_their_metric_are_named(tmp_path: Path) -> None:
    store = honest(tmp_path)

    def all_right(table: dict[str, Any]) -> None:
        place = table["columns"].index("strict")
        for row in table["data"]:
            row[place] = True

    folder = tmp_path / "runs/trials" / key_of(store, "outcome seed 0")
    (path,) = (folder / "rollouts").glob("eval-*-8.json.gz")
    table = json.loads(gzip.decompress(path.read_bytes()))
    all_right(table)
    path.write_bytes(gzip.compress(json.dumps(table).encode()))
    (said,) = notes(tmp_path)
    assert said.startswith(
        "stored grades contradict the recorded pass_at_1: outcome seed 0, arithmetic at step 8: 1.0000"
    )


def test_a_bundle_whose_grades_were_edited_is_refused(tmp_path: Path) -> None:
    honest(tmp_path)
    whole, changed = tmp_path / "whole.zip", tmp_path / "changed.zip"
    write_bundle(gather(begun_sweep(Store(str(tmp_path / "runs")), "attacked")), whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(changed, "w") as new:
        name = next(name for name in old.namelist() if name.startswith("grades/"))
        for each in old.namelist():
            new.writestr(each, old.read(each).replace(b"[0]", b"[1]") if each == name else old.read(each))
    assert [one.to_json() for one in verdicts(read_bundle(whole))] == [one.to_json() for one in judged(tmp_path)]
    with pytest.raises(UserError) as caught:
        read_bundle(changed)
    assert f"{name} does not fit manifest.json: the bundle was changed" in str(caught.value)


# choosing by what judges

TWO_VALS = "suites: {arithmetic-val: {num_problems: 5}, av2: {source: arithmetic-val, num_problems: 4}}"
AT_BEST = edited("suites: {arithmetic: {num_problems: 6, temperature: 1.0}}", TWO_VALS).replace(
    "eval/arithmetic/pass_at_1, a: {arm: outcome}", "eval/av2/pass_at_1, a: {arm: outcome, at: best}"
)


def copied_val(folder: Path) -> str:
    """The sweep with a file that has some of the problems of `arithmetic-val` and others."""
    rows = [{"problem": each.prompt, "answer": each.answer} for each in held_out(2, which="val")]
    rows += [{"problem": f"{n}+1000=?", "answer": str(n + 1000)} for n in range(20)]
    (folder / "copy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return edited("av2: {source: arithmetic-val, num_problems: 4}", f"av2: {{source: {folder}/copy.jsonl}}", AT_BEST)


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_suite_that_chooses_and_judges_under_two_names_is_refused(tmp_path: Path, is_copy: bool) -> None:
    said = refusal(tmp_path, copied_val(tmp_path) if is_copy else AT_BEST)
    assert (
        "claims.0.metric: eval/av2/pass_at_1 also chooses: `at: best`, which chooses a step by arithmetic-val" in said
    )
    assert "of the problems of av2; choose by `val` or `arithmetic-val`, or set allow_selection_on_test" in said


def test_if_the_file_allows_it_the_verdict_names_what_chose(tmp_path: Path) -> None:
    honest(tmp_path, f"{AT_BEST}allow_selection_on_test: true\n")
    assert [note.partition(", with")[0] for note in notes(tmp_path)][:2] == [
        "allow_selection_on_test: metrics and seeds that chose may also judge",
        "eval/av2/pass_at_1 also chose: `at: best`, which chooses a step by arithmetic-val",
    ]


@pytest.mark.parametrize("suite", ["arithmetic", "twin"])
def test_a_guard_on_what_is_judged_is_refused(tmp_path: Path, suite: str) -> None:
    text = edited("arithmetic: {", "twin: {source: arithmetic, num_problems: 6}, arithmetic: {")
    said = refusal(tmp_path, f"{text}guards: [{{metric: eval/{suite}/pass_at_1, below: 0.5}}]\n")
    assert f"guards.0.metric: eval/{suite}/pass_at_1 is judged by claims.0" in said
    assert "a guard fails trials, which changes who is judged; guard a metric of training" in said


def test_other_guards_are_accepted(tmp_path: Path) -> None:
    guards = "guards: [{metric: rollout/entropy, below: 0.01}, {metric: eval/arithmetic/pass_at_1, is: nan}]\n"
    (tmp_path / "s.yaml").write_text(f"{TEXT}{guards}")
    assert make_plan(load(tmp_path / "s.yaml")).grid


# unequal sides


def test_the_best_step_of_one_side_against_the_last_of_the_other_is_named(tmp_path: Path) -> None:
    text = edited("suites: {", "suites: {arithmetic-val: {num_problems: 5}, ")
    text = edited("a: {arm: outcome}, b: {at: start}", "a: {arm: outcome, at: best}, b: {arm: format, at: last}", text)
    honest(tmp_path, text)
    assert notes(tmp_path) == ("the sides are at different steps: a at best, b at last",)


def test_more_steps_on_one_side_are_named(tmp_path: Path) -> None:
    text = edited("format: {set: {reward.kind: format}}", "format: {set: {reward.kind: format, train.num_steps: 4}}")
    honest(tmp_path, edited("b: {at: start}", "b: {arm: format}", text))
    assert notes(tmp_path) == ("the sides have different numbers of steps: a 8, b 4",)


# leaks


def test_a_training_problem_in_a_suite_is_warned_of_and_named(tmp_path: Path) -> None:
    text = edited('["arithmetic:47+38"]', '["arithmetic:10+77"]').replace("num_problems: 6, ", "")
    honest(tmp_path, text)
    assert make_plan(load(tmp_path / "sweep.yaml")).warnings == ("leak: arithmetic:10+77 is in arithmetic",)
    assert notes(tmp_path) == ("leak: arithmetic:10+77 is in arithmetic",)


def test_a_suite_that_repeats_its_problems_is_named(tmp_path: Path) -> None:
    rows = [{"problem": f"What is {n} plus one?", "answer": str(n + 1)} for n in range(6)] * 10
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = edited("arithmetic: {num_problems: 6", f"mine: {{source: {tmp_path}/mine.jsonl")
    honest(tmp_path, text.replace("eval/arithmetic", "eval/mine"))
    path = f"{tmp_path}/mine.jsonl"
    assert f"leak: 54 problems repeat others of mine, such as {path}:6 ({path}:0)" in notes(tmp_path)


def test_a_bundle_gives_the_same_reservations(tmp_path: Path) -> None:
    text = edited('["arithmetic:47+38"]', '["arithmetic:10+77"]').replace("num_problems: 6, ", "")
    store = honest(tmp_path, text)
    edit(tmp_path / "runs/sweeps/attacked" / FILE, lambda fields: fields.update(frozen_ms=1))
    shutil.rmtree(tmp_path / "runs/trials" / key_of(store, "outcome seed 1"))
    gathered = gather(begun_sweep(store, "attacked"))
    write_bundle(gathered, tmp_path / "b.zip")
    own, other = (verdicts(each)[0].notes for each in (gathered, read_bundle(tmp_path / "b.zip")))
    assert len(own) == 3
    assert own == other
