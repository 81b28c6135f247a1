"""What a trial trains on: four forms of naming it, wrong labels, and what is refused."""

import random
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from oneshot.config.examples import Example, RowExample, SetExamples, WrittenExample
from oneshot.config.file import read
from oneshot.config.trial import ShotConfig, TrialConfig
from oneshot.errors import DataError, SweepFileError, UserError
from oneshot.plan.keys import identify_trial
from oneshot.plan.plan import make_plan
from oneshot.tasks import arithmetic, sets
from oneshot.tasks.examples import (
    MAX_SHIFT,
    Identity,
    check_fit,
    check_labels,
    identify,
    identify_shots,
    load_examples,
    load_row,
    load_shots,
    mislabel,
)
from oneshot.tasks.grading import Grader
from oneshot.training.loop import train
from oneshot.training.state import new_state

MakeConfig = Callable[..., TrialConfig]
BASE = (PROJECT / "tests" / "cases" / "base.yaml").read_text()


def digests(*examples: Example) -> tuple[str, ...]:
    return identify(examples).digests


# the four forms


def test_a_row_is_named_by_set_and_row(real_data: Path) -> None:
    (problem,) = load_examples(["dsr_sub:124"])
    assert (problem.id, problem.answer) == ("dsr_sub:124", "12.8")
    assert problem.prompt.startswith("The pressure")
    assert load_row("dsr_sub:124") == problem


def test_a_set_by_its_name_alone_is_every_row_in_order(real_data: Path) -> None:
    assert identify(["dsr_sub"]).ids == tuple(f"dsr_sub:{row}" for row in range(1209))
    assert load_examples(["aime24"]) == load_examples([SetExamples(set="aime24")]) == sets.load("aime24")


def test_a_row_with_another_label_keeps_its_text_and_says_its_label(real_data: Path) -> None:
    own = load_row("dsr_sub:124")
    (other,) = load_examples([RowExample(row="dsr_sub:124", answer="4")])
    assert (other.id, other.prompt, other.answer) == ("dsr_sub:124=4", own.prompt, "4")
    assert other.digest != own.digest


def test_a_written_problem_is_its_own_and_needs_no_data(no_data: Path) -> None:
    one = WrittenExample(problem="What is 1+1?", answer="2")
    (problem,) = load_examples([one])
    assert (problem.prompt, problem.answer) == ("What is 1+1?", "2")
    digests, prompts = (problem.digest,), (problem.content[0],)
    assert identify([one]) == Identity(ids=(problem.id,), digests=digests, prompts=prompts, provisional=())
    assert re.fullmatch(r"written:[0-9a-f]{8}", problem.id)


def test_a_written_problem_is_another_by_its_text_or_its_label() -> None:
    written = [("p", "1"), ("p", "2"), ("q", "1"), ("p1", ""), ("p", "12")]
    known = identify([WrittenExample(problem=p, answer=a or "?") for p, a in written])
    assert len(set(known.ids)) == len(set(known.digests)) == 5


def test_several_forms_together_keep_their_order(no_data: Path) -> None:
    examples: list[Example] = [
        "dsr_sub:267",
        SetExamples(set="arithmetic", random=3),
        RowExample(row="dsr_sub:124", answer="4"),
    ]
    drawn = [problem.id for problem in arithmetic.draw(3, seed=0)]
    assert identify(examples).ids == ("dsr_sub:267", *drawn, "dsr_sub:124=4")


def test_a_whole_set_of_arithmetic_is_what_no_suite_asks(no_data: Path) -> None:
    asked = {p.prompt for which in ("held_out", "val") for p in arithmetic.held_out(None, which=which)}
    trained = {problem.prompt for problem in load_examples(["arithmetic"])}
    assert len(trained) > 5000
    assert not trained & asked


def test_a_path_is_a_set_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"problem": "p", "answer": "1"}\n{"problem": "q", "answer": "2"}\n')
    assert identify([str(path)]).ids == (f"{path}:0", f"{path}:1")
    assert [problem.answer for problem in load_examples([RowExample(row=f"{path}:1", answer="3")])] == ["3"]


# what an example is by content, with and without its data

KNOWN_WITHOUT_DATA: dict[str, Sequence[Example]] = {
    "a row": ["dsr_sub:124"],
    "another label": [RowExample(row="dsr_sub:124", answer="9292725")],
    "a whole set": ["dsr_sub"],
    "a part": ["dsr_sub-val"],
    "drawn": [SetExamples(set="dsr_sub", random=16, seed=3)],
    "drawn from a part": [SetExamples(set="dsr_sub-val", random=16, seed=3)],
    "a share of wrong labels": [SetExamples(set="dsr_sub", wrong=0.6)],
    "benchmarks": ["aime24", "math500:3"],
}


@pytest.mark.parametrize("name", KNOWN_WITHOUT_DATA)
def test_what_an_example_is_does_not_depend_on_having_it(
    monkeypatch: pytest.MonkeyPatch, shared: Path, tmp_path: Path, name: str
) -> None:
    examples = KNOWN_WITHOUT_DATA[name]
    monkeypatch.setenv("ONESHOT_DATA", str(tmp_path))
    without = identify(examples)
    monkeypatch.setenv("ONESHOT_DATA", str(shared / "data"))
    assert identify(examples) == without
    assert without.provisional == ()


@pytest.mark.parametrize("name", ["a row", "another label", "drawn", "drawn from a part", "benchmarks"])
def test_the_digest_of_an_example_is_that_of_what_is_trained_on(real_data: Path, name: str) -> None:
    examples = KNOWN_WITHOUT_DATA[name]
    loaded, known = load_examples(examples), identify(examples)
    assert tuple(problem.digest for problem in loaded) == known.digests
    assert tuple(problem.id for problem in loaded) == known.ids


def test_an_example_named_by_set_or_by_path_is_the_same_content(real_data: Path) -> None:
    assert digests("dsr_sub:124") == digests(f"{real_data / 'dsr_sub.parquet'}:124")


def test_the_rows_own_label_given_as_another_is_the_same_content(no_data: Path) -> None:
    assert digests(RowExample(row="dsr_sub:124", answer="12.8")) == digests("dsr_sub:124")
    assert digests(RowExample(row="dsr_sub:124", answer="12.80")) != digests("dsr_sub:124")


def test_of_a_set_without_shipped_digests_what_is_known_is_provisional(no_data: Path) -> None:
    known = identify(["math7500:3", "dsr_sub:124", "gsm8k:0"])
    assert known.provisional == ("gsm8k", "math7500")
    assert known.ids == ("math7500:3", "dsr_sub:124", "gsm8k:0")
    assert len(set(known.digests)) == 3


def test_a_provisional_digest_changes_when_the_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESHOT_DATA", str(tmp_path))
    before = identify(["gsm8k:0"])
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "p", "answer": "#### 1"}\n')
    after = identify(["gsm8k:0"])
    assert (before.provisional, after.provisional) == (("gsm8k",), ())
    assert before.digests != after.digests


# draws and wrong labels


def test_a_draw_repeats_itself_and_another_seed_draws_others(no_data: Path) -> None:
    def drawn(seed: int) -> tuple[str, ...]:
        return identify([SetExamples(set="dsr_sub", random=100, seed=seed)]).ids

    assert drawn(0) == drawn(0)
    assert set(drawn(0)) != set(drawn(1))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 1009), st.integers(0, 99))
def test_a_draw_is_without_replacement_and_of_the_set_alone(count: int, seed: int) -> None:
    rows = identify([SetExamples(set="dsr_sub-val", random=count, seed=seed)]).ids
    assert len(set(rows)) == count
    assert not set(rows) & {f"dsr_sub:{row}" for row in sets.val_rows()}


def test_more_rows_than_a_set_has_are_refused(no_data: Path) -> None:
    with pytest.raises(DataError, match="val: random: 201 rows, but the set has 200"):
        identify([SetExamples(set="val", random=201)])


def test_a_draw_from_a_url_waits_for_its_file(no_data: Path) -> None:
    with pytest.raises(DataError, match=r"number of rows is unknown; run `oneshot fetch memory://unknown.jsonl`"):
        identify([SetExamples(set="memory://unknown.jsonl", random=2)])


@pytest.mark.parametrize(("share", "num_wrong"), [(0.0, 0), (0.1, 121), (0.6, 725), (1.0, 1209)])
def test_a_share_of_a_whole_sets_labels_is_wrong(no_data: Path, share: float, num_wrong: int) -> None:
    # 0.1 x 1209 = 120.9 and 0.6 x 1209 = 725.4
    own, mixed = digests("dsr_sub"), digests(SetExamples(set="dsr_sub", wrong=share))
    assert sum(a != b for a, b in zip(own, mixed, strict=True)) == num_wrong


def test_labels_that_are_not_wrong_stay_and_so_does_every_text(real_data: Path) -> None:
    own = load_examples([SetExamples(set="dsr_sub", random=50)])
    mixed = load_examples([SetExamples(set="dsr_sub", random=50, wrong=0.6)])
    assert [(problem.id, problem.prompt) for problem in mixed] == [(problem.id, problem.prompt) for problem in own]
    assert sum(a.answer == b.answer for a, b in zip(own, mixed, strict=True)) == 20


@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 9))
def test_exactly_the_rounded_share_is_wrong(count: int, share: float, seed: int) -> None:
    own = load_examples([SetExamples(set="arithmetic", random=count, seed=seed)])
    mixed = load_examples([SetExamples(set="arithmetic", random=count, seed=seed, wrong=share)])
    assert sum(a.answer != b.answer for a, b in zip(own, mixed, strict=True)) == round(share * count)
    assert [problem.id for problem in mixed] == [problem.id for problem in own]


def test_wrong_labels_repeat_themselves_and_another_seed_makes_others(no_data: Path) -> None:
    def labels(seed: int) -> list[str]:
        return [problem.answer for problem in load_examples([SetExamples(set="arithmetic", wrong=1.0, seed=seed)])]

    assert labels(0) == labels(0)
    assert labels(0) != labels(1)


def test_a_wrong_label_is_another_content_by_its_share_and_seed(no_data: Path) -> None:
    variants = [digests(SetExamples(set="dsr_sub", wrong=w, seed=s)) for w, s in ((0, 0), (0.6, 0), (0.6, 1), (0.9, 0))]
    assert len(set(variants)) == 4
    unchanged = sum(a == b for a, b in zip(variants[0], variants[1], strict=True))
    assert unchanged == 1209 - 725


RANDOM = st.randoms(use_true_random=False)


@given(st.integers(-(10**6), 10**6), RANDOM)
def test_a_mislabelled_whole_number_is_another_at_most_10_away(number: int, rng: random.Random) -> None:
    assert 1 <= abs(int(mislabel(str(number), rng)) - number) <= MAX_SHIFT


@given(st.decimals(-1000, 1000, places=2), RANDOM)
def test_a_mislabelled_decimal_number_is_another_at_most_10_away(number: Decimal, rng: random.Random) -> None:
    moved = Decimal(mislabel(str(number), rng))
    assert 1 <= abs(moved - number) <= MAX_SHIFT
    assert (moved - number) % 1 == 0  # its decimals stay


@given(st.integers(0, 99), st.integers(1, 99), st.sampled_from(["", "-"]), st.sampled_from(["", "d"]), RANDOM)
def test_a_mislabelled_fraction_keeps_its_form(top: int, bottom: int, sign: str, d: str, rng: random.Random) -> None:
    moved = mislabel(rf"{sign}\{d}frac{{{top}}}{{{bottom}}}", rng)
    match = re.fullmatch(r"(-?)\\(d?)frac\{(\d+)\}\{(\d+)\}", moved)
    assert match is not None
    assert (match[1], match[2]) == (sign, d)
    new_top, new_bottom = int(match[3]), int(match[4])
    assert new_bottom > 0
    # numerator or denominator, never both
    assert sorted([new_top == top, new_bottom == bottom]) == [False, True]
    assert 1 <= abs(new_top - top) + abs(new_bottom - bottom) <= MAX_SHIFT


def test_both_parts_of_a_fraction_are_moved_at_times() -> None:
    moved = {mislabel(r"\frac{1}{2}", random.Random(seed)) for seed in range(100)}
    assert any(label.startswith(r"\frac{1}") for label in moved)
    assert any(label.endswith("{2}") for label in moved)


@pytest.mark.parametrize("answer", ["x", r"2\sqrt{3}", r"22\frac{1}{2}", "1 / 2004!", "1604_8", r"\text{(A)}", ""])
def test_any_other_answer_gets_a_number_of_three_digits(answer: str) -> None:
    assert {len(mislabel(answer, random.Random(seed))) for seed in range(50)} == {3}
    assert all(mislabel(answer, random.Random(seed)).isdecimal() for seed in range(50))


@given(st.one_of(st.text(max_size=30), st.integers().map(str)), RANDOM)
def test_a_mislabel_differs_from_any_answer(answer: str, rng: random.Random) -> None:
    assert mislabel(answer, rng) != answer


# labels that are meant to be wrong


def test_a_label_that_equals_the_rows_own_is_refused(real_data: Path, grader: Grader) -> None:
    # the row's own is 12.8 = 64/5
    with pytest.raises(
        DataError, match=r"dsr_sub:124: the label '64/5' is not wrong: the strict grader .* equal to '12.8'"
    ):
        check_labels([RowExample(row="dsr_sub:124", answer="64/5")], grader)


@pytest.mark.parametrize("label", ["12.7", "4", "9292725"])
def test_the_papers_wrong_labels_of_its_first_example_are_wrong(real_data: Path, grader: Grader, label: str) -> None:
    check_labels([RowExample(row="dsr_sub:124", answer=label)], grader)


def test_no_label_but_a_given_one_is_asked_about(no_data: Path, grader: Grader) -> None:
    # no file is opened for rows with labels of their own
    check_labels(["dsr_sub", "math7500:3", WrittenExample(problem="p", answer="1")], grader)


def test_generated_rows_are_checked_without_a_file(no_data: Path, grader: Grader) -> None:
    check_labels([RowExample(row="arithmetic:47+38", answer="84")], grader)
    for label in ("85", "85.0", r"\frac{170}{2}"):
        with pytest.raises(DataError, match=r"arithmetic:47\+38: the label .* is not wrong"):
            check_labels([RowExample(row="arithmetic:47+38", answer=label)], grader)


def test_every_label_made_wrong_is_wrong_for_both_graders(grader: Grader) -> None:
    check_labels([SetExamples(set="arithmetic", random=30, wrong=1.0)], grader)


# what is no example


@pytest.mark.parametrize("name", ["pi_1", "pi1"])
@pytest.mark.parametrize("form", ["text", "row", "set"])
def test_a_rank_of_the_paper_is_told_its_row(no_data: Path, name: str, form: str) -> None:
    example = {"text": name, "row": RowExample(row=name, answer="4"), "set": SetExamples(set=name)}[form]
    with pytest.raises(
        DataError, match=rf"the paper's {name} is dsr_sub:124: write the row, since ranks are not unique"
    ):
        identify([example])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("dsr_sub:1209", r"dsr_sub:1209: no row 1209; dsr_sub has rows 0 to 1208"),
        ("dsr_sub:first", r"row 'first' is not a number; dsr_sub has rows 0 to 1208"),
        ("dsr_sub:-1", r"row '-1' is not a number"),
        ("val:3", r"val:3: val is a subset of dsr_sub's rows; name the row as dsr_sub:3"),
        ("dsr_sub-val:3", r"name the row as dsr_sub:3"),
        ("dsr:3", r"no set 'dsr'; use one of arithmetic, dsr_sub"),
        ("arithmetic:47", r"write two whole numbers with \+, - or \*"),
        (RowExample(row="dsr_sub", answer="4"), r"dsr_sub: names no row; write set:row, such as dsr_sub:124"),
        (RowExample(row="hf://datasets/a/b@c/d.parquet", answer="4"), r"names no row; write set:row"),
    ],
)
def test_what_names_no_row_is_refused_with_its_mend(no_data: Path, example: Example, message: str) -> None:
    with pytest.raises(DataError, match=message):
        identify([example])


def test_a_whole_set_is_no_row(no_data: Path) -> None:
    with pytest.raises(DataError, match="dsr_sub: names no row; write set:row"):
        load_row("dsr_sub")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"row": "dsr_sub:124", "answer": 4}], 'an answer must be text, not 4; write answer: "4"'),
        ([{"problem": "p", "answer": 12.5}], 'an answer must be text, not 12.5; write answer: "12.5"'),
        ([{"row": "x", "answer": "4", "label": "4"}], "unknown key 'label'; choose one of row, answer"),
        ([{"set": "dsr_sub", "count": 3}], "unknown key 'count'; choose one of set, random, wrong, seed"),
        ([{"problem": "p", "answer": "1", "id": "a"}], "unknown key 'id'; choose one of problem, answer"),
        ([{"set": "dsr_sub", "wrong": 60}], "wrong: input should be less than or equal to 1"),
        ([{"set": "dsr_sub", "random": 0}], "random: input should be greater than or equal to 1"),
        ([{"row": "dsr_sub:124"}], "it has neither `answer` nor `solution`; add one, or write the row alone"),
        ([{"example": "dsr_sub:124"}], 'is not an example; write "set:row", "set", {row: set:row, answer: ...}'),
        ([124], '124 is not an example; write "set:row"'),
        ("dsr_sub:124", "examples must be a list, such as [dsr_sub:124], not 'dsr_sub:124'"),
        (["dsr_sub:124", "dsr_sub:124"], "an example appears twice"),
        ([{"set": "val"}, {"set": "val"}], "an example appears twice"),
        ([], "examples: there are none; name at least one to train on"),
    ],
)
def test_what_is_no_example_gets_one_clear_error(tiny_config: MakeConfig, examples: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        tiny_config(examples=examples)
    assert message in caught.value.errors()[0]["msg"]


def test_a_config_with_every_form_outlives_json(tiny_config: MakeConfig) -> None:
    forms = [
        "dsr_sub:124",
        "arithmetic",
        {"row": "dsr_sub:124", "answer": "4"},
        {"set": "dsr_sub", "random": 3, "wrong": 0.5, "seed": 1},
        {"problem": "p", "answer": "1"},
    ]
    config = tiny_config(examples=forms)
    assert [type(example) for example in config.examples] == [str, str, RowExample, SetExamples, WrittenExample]
    assert TrialConfig.model_validate(config.model_dump(mode="json")) == config


# worked problems


def test_a_shot_may_be_a_row_or_a_text(no_data: Path, tiny_config: MakeConfig) -> None:
    shots = [{"row": "arithmetic:2+3", "completion": r"\boxed{5}"}, {"problem": "1+1=?", "completion": "2"}]
    config = tiny_config(prompt={"shots": shots}).prompt
    assert load_shots(config) == (("2+3=?", r"\boxed{5}"), ("1+1=?", "2"))
    assert len(set(identify_shots(config).digests)) == 2


def test_a_shot_of_a_known_row_is_identified_without_data(no_data: Path, tiny_config: MakeConfig) -> None:
    def identified(**shot: str) -> tuple[str, ...]:
        return identify_shots(tiny_config(prompt={"shots": [shot]}).prompt).digests

    one = identified(row="dsr_sub:124", completion="c")
    assert one == identified(row="dsr_sub:124", completion="c")
    assert one != identified(row="dsr_sub:124", completion="d")
    assert one != identified(row="dsr_sub:267", completion="c")


@pytest.mark.parametrize("given_", [{}, {"problem": "p", "row": "arithmetic:1+1"}])
def test_a_shot_is_either_a_row_or_a_text(given_: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="exactly one of `problem`"):
        ShotConfig.model_validate({"completion": "c", **given_})


# examples and groups


@pytest.mark.parametrize("num_examples", [1, 2, 4, 128, 129, 1209])
def test_examples_that_share_a_steps_groups_fit(tiny_config: MakeConfig, num_examples: int) -> None:
    check_fit(tiny_config(rollout={"num_groups": 128}), num_examples)


@pytest.mark.parametrize("num_examples", [3, 127])
def test_fewer_examples_than_groups_that_do_not_divide_them_are_refused(
    tiny_config: MakeConfig, num_examples: int
) -> None:
    with pytest.raises(DataError, match=f"{num_examples} examples cannot share rollout.num_groups 128 evenly"):
        check_fit(tiny_config(rollout={"num_groups": 128}), num_examples)


def test_the_plan_refuses_examples_that_do_not_fit(tiny_config: MakeConfig) -> None:
    three = ["arithmetic:1+1", "arithmetic:1+2", "arithmetic:1+3"]
    with pytest.raises(DataError, match="3 examples cannot share"):
        identify_trial(tiny_config(examples=three))


def test_a_trial_visits_every_example_of_its_set_once_an_epoch(tiny_config: MakeConfig, grader: Grader) -> None:
    # 8 examples, 4 groups a step: two steps are an epoch
    config = tiny_config(
        examples=[{"set": "arithmetic", "random": 8}],
        rollout={"num_groups": 4, "group_size": 2, "max_tokens": 4},
        train={"num_steps": 2},
        eval={"suites": {}},
    )
    first, second = train(config, new_state(config, seed=0, grader=grader))
    assert len(first.visits) == len(second.visits) == 4
    assert {*first.visits, *second.visits} == set(identify(config.examples).ids)


def test_a_trial_trains_on_the_labels_that_it_was_given(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(examples=[{"row": "arithmetic:47+38", "answer": "84"}], train={"num_steps": 0})
    assert [problem.answer for problem in new_state(config, seed=0, grader=grader).examples] == ["84"]


def test_a_trial_refuses_a_given_label_that_is_right(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(examples=[{"row": "arithmetic:47+38", "answer": "85"}])
    with pytest.raises(DataError, match="the label '85' is not wrong"):
        new_state(config, seed=0, grader=grader)


# rows to choose by are not trained on


def with_val(examples: str) -> str:
    text = BASE.replace("arithmetic: {num_problems: 4}", "val: {num_problems: 4}")
    return text.replace('examples: ["arithmetic:47+38"]', f"examples: {examples}")


@pytest.mark.parametrize("examples", ["[dsr_sub]", "[dsr_sub:18]", "[{set: val}]", '[{row: dsr_sub:18, answer: "0"}]'])
def test_a_sweep_that_trains_on_what_it_chooses_by_is_refused(no_data: Path, examples: str) -> None:
    assert 18 in sets.val_rows()
    with pytest.raises(
        UserError, match=r"s.yaml:13: .*example=sum .* suite `val` holds out .*train on the other 1,009 rows"
    ):
        make_plan(read(with_val(examples), name="s.yaml"))


@pytest.mark.parametrize("examples", ["[dsr_sub-val]", "[dsr_sub:124]", "[{set: dsr_sub-val, random: 4, wrong: 0.5}]"])
def test_a_sweep_that_trains_on_the_other_rows_is_planned(no_data: Path, examples: str) -> None:
    made = make_plan(read(with_val(examples), name="s.yaml"))
    assert None not in {trial.key for trial in made.trials}


def test_a_plan_says_which_keys_are_provisional(no_data: Path) -> None:
    text = BASE.replace('examples: ["arithmetic:47+38"]', "examples: [math7500:3]")
    made = make_plan(read(text, name="s.yaml"))
    assert {trial.cell["example"]: trial.provisional for trial in made.trials} == {"sum": ("math7500",), "product": ()}
    assert any(
        "the keys will change, because math7500 is not fetched yet; run `oneshot fetch" in w for w in made.warnings
    )


def test_an_example_that_two_forms_name_is_refused(no_data: Path) -> None:
    with pytest.raises(DataError, match=r"examples: dsr_sub:[0-9]+ appears twice; list each example once"):
        identify(["val", "dsr_sub"])


def test_a_row_stands_beside_itself_with_another_label(no_data: Path) -> None:
    known = identify(["dsr_sub:124", RowExample(row="dsr_sub:124", answer="4")])
    assert known.ids == ("dsr_sub:124", "dsr_sub:124=4")
    assert len(set(known.digests)) == 2
    assert len(set(known.prompts)) == 1


def test_a_misspelt_key_is_told_before_the_key_that_it_leaves_out() -> None:
    with pytest.raises(ValidationError, match="unknown key 'anwser'; choose one of row, answer"):
        TrialConfig.model_validate(
            {"model": {"path": "tiny:qwen2"}, "examples": [{"row": "dsr_sub:124", "anwser": "4"}]}
        )


def test_the_port_of_an_address_is_no_row(no_data: Path) -> None:
    with pytest.raises(DataError, match="its number of rows is unknown; run `oneshot fetch https://host:8080/x"):
        identify(["https://host:8080/x.jsonl"])
    assert identify(["https://host:8080/x.jsonl:3"]).provisional == ("https://host:8080/x.jsonl",)


def test_a_row_of_val_is_known_under_a_path_too(real_data: Path) -> None:
    row = sets.val_rows()[0]
    text = f"""
version: 1
name: s
question: q
trial:
  model.path: tiny:qwen2
  rollout.max_tokens: 8
  examples: ["{real_data / "dsr_sub.parquet"}:{row}"]
  eval.suites: {{val: {{}}}}
seeds: [0]
"""
    with pytest.raises(SweepFileError, match="trains on 1 of the problems that the suite `val` holds out"):
        make_plan(read(text, name="s.yaml"))


def test_a_whole_set_is_read_once(real_data: Path) -> None:
    first, second = load_examples(["dsr_sub"]), load_examples(["dsr_sub"])
    assert all(one is other for one, other in zip(first, second, strict=True))


def test_the_val_of_generated_problems_is_guarded_too(no_data: Path) -> None:
    (problem, *_) = arithmetic.held_out(1, which="val")
    text = f"""
version: 1
name: s
question: q
trial:
  model.path: tiny:qwen2
  rollout.max_tokens: 8
  examples: ["{problem.id}"]
  eval.suites: {{arithmetic-val: {{}}}}
seeds: [0]
"""
    with pytest.raises(SweepFileError, match="trains on 1 of the problems that the suite `arithmetic-val` holds out"):
        make_plan(read(text, name="s.yaml"))


def test_a_shot_of_a_set_without_digests_is_provisional(no_data: Path, tiny_config: MakeConfig) -> None:
    config = tiny_config(prompt={"shots": [{"row": "math7500:3", "completion": "c"}]})
    assert identify_shots(config.prompt).provisional == ("math7500",)
    assert identify_trial(config).provisional == ("math7500",)


def test_a_shot_is_one_row(no_data: Path, tiny_config: MakeConfig) -> None:
    config = tiny_config(prompt={"shots": [{"row": "dsr_sub", "completion": "c"}]})
    with pytest.raises(DataError, match="dsr_sub: names no row"):
        identify_shots(config.prompt)
