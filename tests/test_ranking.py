"""Cells that a ranking names: before its history is there, once it is, and ever after."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from builders import begin_attempt
from conftest import PROJECT

from oneshot.api.training import rank as rank_by_name
from oneshot.config.file import load, read
from oneshot.errors import UserError
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.ranking import FILE, first_entropies, frozen_rankings, known_rankings, pin_rankings, sweep_histories
from oneshot.plan.trial import Trial
from oneshot.store.folder import now_ms
from oneshot.store.records import Outcome, Row
from oneshot.store.store import Store

BASE = (PROJECT / "tests" / "cases" / "base.yaml").read_text()
EXAMPLES = ("arithmetic:10+10", "arithmetic:10+11", "arithmetic:10+12", "arithmetic:10+13", "arithmetic:10+14")
HISTORY = {
    # variances 1/4, 3/16, 1/8, 0 and 0
    "124": [0.0, 1.0],
    "267": [0.0, 0.0, 0.0, 1.0],
    "531": [0.0, 0.0, 0.5, 0.5, 1.0, 0.5, 0.0, 0.0],
    "931": [1.0, 1.0],
    "212": [0.0, 0.0],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "runs"))


def ranked(history: str, wanted: str = "top: 1, bottom: 1, random: 1", *, grid: str = "") -> PinnedSweep:
    """The base sweep with a ranking's cells in its axis of examples."""
    cell = f"ranked: {{from_rank: {{history: {history}, {wanted}}}}}"
    text = BASE.replace('product: {set: {examples: ["arithmetic:12*7"]}}', cell)
    return read(text.replace("seeds:", f"{grid}seeds:"), name="s.yaml")


def write_history(folder: Path, history: Mapping[str, Sequence[float]] = HISTORY) -> str:
    path = folder / "history.json"
    path.write_text(json.dumps(history))
    return str(path)


def examples(plan: Plan) -> dict[str, tuple[object, ...]]:
    return {trial.cell["example"]: tuple(trial.config.examples) for trial in plan.trials}


def finish(
    trial: Trial,
    store: Store,
    visits: Mapping[str, Sequence[float]],
    *,
    outcome: Outcome,
    entropies: Mapping[str, float] | None = None,
) -> None:
    """Records a training whose steps visited examples so, with entropies of answers at the first step."""
    assert trial.key is not None
    folder = store.trial(trial.key)
    attempt = begin_attempt(folder, {"started_ms": now_ms()})
    steps = max(len(values) for values in visits.values())
    folder.write_segment(
        attempt,
        [
            Row(
                step=step + 1,
                time_ms=now_ms(),
                metrics={},
                visits={example: values[step] for example, values in visits.items() if step < len(values)},
                answer_entropies={} if step or entropies is None else dict(entropies),
            )
            for step in range(steps)
        ],
    )
    folder.end_attempt(attempt, outcome)


def made_by(store: Store, *visits: Mapping[str, Sequence[float]], outcome: Outcome = "finished") -> Plan:
    """A sweep `history` of one cell, on record in the store, with one seed for each of `visits`."""
    seeds = list(range(len(visits)))
    text = BASE[: BASE.index("axes:")].replace("name: base", "name: history") + f"seeds: {seeds}\n"
    num_visits = len(next(iter(visits[0].values()))) + (outcome == "failed")
    text = text.replace("train.num_steps: 2", f"train.num_steps: {num_visits}")
    text = text.replace("trial:", f"trial:\n  examples: [{', '.join(EXAMPLES)}]")
    plan = make_plan(read(text.replace("num_groups: 4", "num_groups: 5"), name="history.yaml"))
    store.sweep("history").write_json("plan.json", plan.to_json())
    for trial, seen in zip(plan.trials, visits, strict=True):
        finish(trial, store, seen, outcome=outcome)
    return plan


# before the history is there


def test_before_its_history_a_ranking_has_cells_without_keys_that_say_what_they_wait_for(store: Store) -> None:
    sweep, made = known_rankings(ranked("history"), store)
    assert made == {}
    plan = make_plan(sweep)
    waiting = [trial for trial in plan.trials if trial.cell["example"] != "sum"]
    assert {trial.cell["example"] for trial in waiting} == {"ranked#1", "ranked#last1", "ranked#random1"}
    assert {trial.key for trial in waiting} == {None}
    assert {trial.waits_for for trial in waiting} == {"the history of 'history': run that sweep first"}
    assert None not in {trial.key for trial in plan.trials if trial.cell["example"] == "sum"}
    assert "run that sweep first" in {trial["key"]: trial for trial in plan.to_json()["trials"]}[None]["waits_for"]


def test_the_cells_of_a_ranking_are_as_many_as_it_asks_for(store: Store) -> None:
    plan = make_plan(ranked("history", "top: 3, random: 2"))
    # sum and five ranked ones, in two arms
    assert plan.num_cells == 12
    assert {*examples(plan)} == {"sum", "ranked#1", "ranked#2", "ranked#3", "ranked#random1", "ranked#random2"}


def test_without_its_history_a_ranking_cannot_be_pinned(store: Store) -> None:
    message = (
        rf"s.yaml:14: axes.example.ranked.from_rank.history: {store.root} has no finished history of 'history'; run"
    )
    with pytest.raises(UserError, match=message):
        pin_rankings(ranked("history"), store)


def test_the_mend_names_the_file_of_the_sweep_where_it_lies_beside(store: Store, tmp_path: Path) -> None:
    (tmp_path / "history.yaml").write_text("")
    (tmp_path / "s.yaml").write_text(ranked("history").source.text)
    with pytest.raises(UserError, match=rf"`oneshot run {tmp_path}/history.yaml` first"):
        pin_rankings(load(tmp_path / "s.yaml"), store)


def test_a_history_file_that_is_missing_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.json: cannot be read: No such file"):
        known_rankings(ranked(str(tmp_path / "gone.json")), store)


def test_a_sweep_that_is_not_finished_has_no_history_yet(store: Store) -> None:
    seen = {example: [0.0, 1.0] for example in EXAMPLES}
    plan = made_by(store, seen)
    assert len(sweep_histories(store, "history")) == 1
    # a second seed that has not run
    more = plan.to_json()
    more["trials"].append({**more["trials"][0], "seed": 1, "key": "0" * 16})
    store.sweep("history").write_json("plan.json", more)
    assert sweep_histories(store, "history") == []


def test_a_training_that_failed_is_no_history(store: Store) -> None:
    made_by(store, {example: [0.0, 1.0] for example in EXAMPLES}, outcome="failed")
    assert sweep_histories(store, "history") == []


# once it is there


def test_a_history_file_names_its_cells_examples(store: Store, tmp_path: Path) -> None:
    plan = make_plan(pin_rankings(ranked(write_history(tmp_path), "top: 2, bottom: 2, random: 1"), store))
    assert examples(plan) == {
        "sum": ("arithmetic:47+38",),
        "ranked#1": ("dsr_sub:124",),
        "ranked#2": ("dsr_sub:267",),
        # 212 and 931 tie at 0: by row 931 is the last
        "ranked#last1": ("dsr_sub:931",),
        "ranked#last2": ("dsr_sub:212",),
        "ranked#random1": ("dsr_sub:531",),
    }
    assert None not in {trial.key for trial in plan.trials}
    assert {trial.waits_for for trial in plan.trials} == {None}


def test_a_ranked_cell_is_the_trial_of_its_example(store: Store, tmp_path: Path) -> None:
    by_rank = make_plan(pin_rankings(ranked(write_history(tmp_path), "top: 1"), store))
    by_name = make_plan(read(BASE.replace("arithmetic:12*7", "dsr_sub:124"), name="s.yaml"))
    assert {trial.key for trial in by_rank.trials} == {trial.key for trial in by_name.trials}


def test_a_ranked_cell_is_labelled_with_its_example_and_score(store: Store, tmp_path: Path) -> None:
    plan = make_plan(pin_rankings(ranked(write_history(tmp_path), "top: 2"), store))
    labels = {trial.cell["example"]: trial.labels for trial in plan.trials}
    assert labels["ranked#1"] == {"example": "dsr_sub:124", "score": "0.25"}
    assert labels["ranked#2"] == {"example": "dsr_sub:267", "score": "0.1875"}


def test_the_rows_of_a_file_are_of_the_set_that_the_cell_names(store: Store, tmp_path: Path) -> None:
    path = write_history(tmp_path, {"3": [0.0, 1.0], "4": [0.0, 0.0]})
    assert examples(make_plan(pin_rankings(ranked(path, "set: math500, top: 1"), store)))["ranked#1"] == ("math500:3",)


def test_one_cell_may_train_on_all_that_a_ranking_names(store: Store, tmp_path: Path) -> None:
    together = "top: 2, together: true"
    assert {*examples(make_plan(ranked("history", together)))} == {"sum", "ranked"}
    plan = make_plan(pin_rankings(ranked(write_history(tmp_path), together), store))
    assert examples(plan)["ranked"] == ("dsr_sub:124", "dsr_sub:267")


def test_more_examples_than_a_ranking_has_are_refused_at_their_place(store: Store, tmp_path: Path) -> None:
    path = write_history(tmp_path)
    message = r"s.yaml:14: axes.example.ranked.from_rank: .*6 examples wanted, but the ranking has 5"
    with pytest.raises(UserError, match=message):
        known_rankings(ranked(path, "top: 6"), store)


def test_a_ranked_example_that_is_held_out_is_refused(store: Store, tmp_path: Path) -> None:
    sweep = ranked(write_history(tmp_path, {"18": [0.0, 1.0]}), "top: 1")
    text = sweep.source.text.replace("arithmetic: {num_problems: 4}", "val: {num_problems: 4}")
    with pytest.raises(UserError, match="train on the other 1,009 rows"):
        make_plan(pin_rankings(read(text, name="s.yaml"), store))


def test_a_sweeps_own_history_is_the_mean_over_its_seeds(store: Store) -> None:
    # variances of seed 0: 1/4, 0, 0, 3/16, 0; of seed 1: 0, 1/4, 0, 3/16, 0; means: 1/8, 1/8, 0, 3/16, 0
    still, moved, slow = [0.0] * 4, [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]
    made_by(
        store,
        dict(zip(EXAMPLES, (moved, still, still, slow, still), strict=True)),
        dict(zip(EXAMPLES, (still, moved, still, slow, still), strict=True)),
    )
    plan = make_plan(pin_rankings(ranked("history", "top: 3, bottom: 1"), store))
    found = examples(plan)
    assert [found[f"ranked#{end}"][0] for end in ("1", "2", "3", "last1")] == [EXAMPLES[i] for i in (3, 0, 1, 4)]


def test_the_history_of_a_sweep_is_by_example_in_the_order_of_steps(store: Store) -> None:
    made_by(store, {example: [0.0, 0.5, 1.0] for example in EXAMPLES})
    assert sweep_histories(store, "history") == [{example: [0.0, 0.5, 1.0] for example in EXAMPLES}]


def test_a_ranking_by_disagreement_reads_the_entropies_of_first_visits(store: Store) -> None:
    visits = {example: [0.0, 0.5] for example in EXAMPLES}
    plan = made_by(store, visits)
    entropies = dict(zip(EXAMPLES, (0.5, 0.0, 1.25, 0.5, 0.25), strict=True))
    finish(plan.trials[0], store, visits, outcome="finished", entropies=entropies)
    assert first_entropies(store, "history", by="answer_entropy") == [entropies]
    found = examples(make_plan(pin_rankings(ranked("history", "by: answer_entropy, top: 3, bottom: 1"), store)))
    # 1.25, then two of 0.5 in the order of the set; 0 is last
    assert [found[f"ranked#{end}"][0] for end in ("1", "2", "3", "last1")] == [EXAMPLES[i] for i in (2, 0, 3, 1)]
    assert list(rank_by_name("history", by="answer_entropy", storage=store.root)["score"]) == [1.25, 0.5, 0.5, 0.25, 0]


def test_a_history_of_an_older_version_or_of_a_file_has_no_disagreement(store: Store, tmp_path: Path) -> None:
    plan = made_by(store, {example: [0.0, 1.0] for example in EXAMPLES})
    folder = store.trial(plan.trials[0].key or "")
    (segment,) = folder.list("metrics")
    old = [json.loads(line) for line in (folder.read(f"metrics/{segment}") or "").splitlines()]
    for row in old:
        del row["answer_entropies"]
    folder.write(f"metrics/{segment}", "".join(json.dumps(row) + "\n" for row in old))
    assert sweep_histories(store, "history") == [{example: [0.0, 1.0] for example in EXAMPLES}]
    for history in ("history", write_history(tmp_path)):
        message = (
            r"s.yaml:14: axes.example.ranked.from_rank: .*no entropies of answers for 5 of 5 .*again, in a new sto"
        )
        with pytest.raises(UserError, match=message):
            pin_rankings(ranked(history, "by: answer_entropy, top: 1"), store)
        assert known_rankings(ranked(history, "by: pass_rate_variance, top: 1"), store)[1]
        with pytest.raises(UserError, match="no entropies of answers"):
            rank_by_name(history, by="answer_entropy", storage=store.root)


def test_a_history_ends_with_the_sweeps_own_steps(store: Store) -> None:
    """Another sweep has asked the same training for more of them."""
    plan = made_by(store, {example: [0.0, 0.5] for example in EXAMPLES})
    finish(plan.trials[0], store, {example: [0.0, 0.5, 1.0] for example in EXAMPLES}, outcome="finished")
    assert sweep_histories(store, "history") == [{example: [0.0, 0.5] for example in EXAMPLES}]


def test_a_sweep_of_several_cells_is_no_history(store: Store) -> None:
    store.sweep("history").write_json("plan.json", make_plan(read(BASE, name="s.yaml")).to_json())
    with pytest.raises(UserError, match="history: the sweep has several cells; a history needs one"):
        pin_rankings(ranked("history"), store)


# ever after


def test_what_a_ranking_named_stays_when_the_history_changes(store: Store, tmp_path: Path) -> None:
    path = write_history(tmp_path)
    before = make_plan(pin_rankings(ranked(path), store))
    write_history(tmp_path, {row: list(reversed(values)) for row, values in HISTORY.items()} | {"124": [0.5, 0.5]})
    assert make_plan(pin_rankings(ranked(path), store)) == before
    assert make_plan(known_rankings(ranked(path), store)[0]) == before
    # another sweep takes the file as it is now
    other = read(ranked(path).source.text.replace("name: base", "name: other"), name="s.yaml")
    assert examples(make_plan(pin_rankings(other, store))) != examples(before)


def test_what_a_ranking_named_stays_when_the_history_is_gone(store: Store, tmp_path: Path) -> None:
    path = write_history(tmp_path)
    before = make_plan(pin_rankings(ranked(path), store))
    Path(path).unlink()
    assert make_plan(pin_rankings(ranked(path), store)) == before


def test_to_look_at_a_ranking_does_not_freeze_it(store: Store, tmp_path: Path) -> None:
    path = write_history(tmp_path)
    sweep, made = known_rankings(ranked(path), store)
    assert {*made} == {"example/ranked"}
    assert store.sweep("base").read_json(FILE) is None
    assert frozen_rankings(ranked(path), store.sweep("base")).rankings == {}
    assert examples(make_plan(sweep))["ranked#1"] == ("dsr_sub:124",)


def test_what_is_frozen_has_scores_and_a_digest(store: Store, tmp_path: Path) -> None:
    pin_rankings(ranked(write_history(tmp_path), "top: 1"), store)
    frozen = (store.sweep("base").read_json(FILE) or {})["example/ranked"]
    assert frozen["chosen"] == {"1": {"example": "dsr_sub:124", "score": 0.25}}
    assert len(frozen["digest"]) == 64
    assert frozen["from_rank"]["top"] == 1


@pytest.mark.parametrize("other", ["top: 2", "top: 1, bottom: 1, random: 1, seed: 1", "top: 1, by: lim"])
def test_a_ranking_that_is_changed_after_it_was_frozen_is_refused(store: Store, tmp_path: Path, other: str) -> None:
    path = write_history(tmp_path)
    pin_rankings(ranked(path), store)
    with pytest.raises(UserError, match=r"s.yaml:14: .*the ranking was edited after the sweep began; undo the edit"):
        pin_rankings(ranked(path, other), store)


def test_a_ranking_that_is_added_later_is_frozen_beside_the_first(store: Store, tmp_path: Path) -> None:
    path = write_history(tmp_path)
    pin_rankings(ranked(path), store)
    second = f"ends: {{from_rank: {{history: {path}, bottom: 1}}}}\n    ranked:"
    text = ranked(path).source.text.replace("ranked:", second)
    plan = make_plan(pin_rankings(read(text, name="s.yaml"), store))
    assert examples(plan)["ends#last1"] == ("dsr_sub:931",)
    assert {*(store.sweep("base").read_json(FILE) or {})} == {"example/ranked", "example/ends"}


# selectors


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("ranked", {"ranked#1", "ranked#last1", "ranked#random1"}),
        ('"ranked#1"', {"ranked#1"}),
        ('[sum, "ranked#last1"]', {"sum", "ranked#last1"}),
        ("{not: ranked}", {"sum"}),
        ('{not: "ranked#1"}', {"sum", "ranked#last1", "ranked#random1"}),
    ],
)
@pytest.mark.parametrize("is_known", [False, True])
def test_a_selector_takes_all_cells_of_a_ranking_or_one_of_them(
    store: Store, tmp_path: Path, selector: str, expected: set[str], is_known: bool
) -> None:
    path = write_history(tmp_path) if is_known else "history"
    sweep, _ = known_rankings(ranked(path, grid=f"grid: [{{example: {selector}}}]\n"), store)
    assert {*examples(make_plan(sweep))} == expected


def test_a_selector_of_a_place_that_was_not_asked_for_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="unknown cell 'ranked#2'; did you mean 'ranked#1'"):
        make_plan(ranked("history", grid='grid: [{example: "ranked#2"}]\n'))


# what is no ranking


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("seed: 1", "selects no example; set top, bottom or random"),
        ("topp: 1", "unknown key; did you mean 'top'?"),
        ("top: 1, band: [0.2]", "at least 2 items"),
        ("top: 1, band: [0.2, 1.5]", "at most 1, not 1.5"),
    ],
)
def test_what_is_no_ranking_gets_one_clear_error(wanted: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        ranked("history", wanted)
    assert message in str(caught.value)
    assert "s.yaml:14: axes.example.ranked.from_rank" in str(caught.value)


def test_a_rule_that_is_nobodys_is_refused_before_there_is_a_history(store: Store) -> None:
    with pytest.raises(UserError) as caught:
        known_rankings(ranked("history", "top: 1, by: historic_variance"), store)
    hint = "'historic_variance' is no ranking rule; did you mean 'historical_variance'?"
    assert str(caught.value).startswith(
        f"s.yaml:14: axes.example.ranked.from_rank.by: {hint} Write one of your own as "
    )
