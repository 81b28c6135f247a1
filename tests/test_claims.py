"""A claim of the sweep file: which cells it compares, what it may not say, and what is frozen of it as a sweep begins."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from builders import sweep_run
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_store, put_on_record
from test_search_file import complaint, edited, plan
from test_sweepfile import BASE
from verbs import oneshot

from oneshot.config.claims import ClaimConfig, GroupConfig
from oneshot.config.file import load
from oneshot.config.paths import SettingError
from oneshot.plan.claims import comparisons
from oneshot.plan.frozen import FILE, Planned, Rules, freeze, frozen, record, recorded_digest, thaw
from oneshot.report.runs import gather
from oneshot.report.verdicts import verdicts
from oneshot.store.folder import Folder
from oneshot.store.store import Store

AXES = {"model": ["small", "large"], "example": ["sum", "product"], "arm": ["outcome", "format"]}
CELLS = [dict(zip(AXES, names, strict=True)) for names in product(*AXES.values())]
RANKED = [{"example": name, "arm": arm} for name in ("ranked#1", "ranked#2", "sum") for arm in ("outcome", "format")]


def claim(a: dict[str, Any], b: dict[str, Any], **more: Any) -> ClaimConfig:
    return ClaimConfig.model_validate(
        {"name": "c", "metric": "eval/arithmetic/pass_at_1", "a": a, "b": b, "expect": {"greater_by": 0}, **more}
    )


def compared(
    a: dict[str, Any], b: dict[str, Any], *, cells: list[dict[str, str]] = CELLS, **more: Any
) -> list[list[str]]:
    """Each comparison as its pairs, `small/sum/outcome - small/sum/format`; cells that are averaged stand with a plus."""

    def text(side: Any) -> str:
        return " + ".join("/".join(cell.values()) for cell in side)

    found = comparisons([claim(a, b, **more)], cells)
    return [[f"{text(pair.a)} - {text(pair.b)}" for pair in one.pairs] for one in found]


def refusal(a: dict[str, Any], b: dict[str, Any], *, cells: list[dict[str, str]] = CELLS, **more: Any) -> str:
    with pytest.raises(SettingError) as caught:
        comparisons([claim(a, b, **more)], cells)
    return f"{'.'.join(map(str, caught.value.where))}: {caught.value.message}"


# which cells


def test_cells_are_matched_on_the_axes_that_neither_side_names() -> None:
    assert compared({"arm": "outcome"}, {"arm": "format"}) == [
        [
            "small/sum/outcome - small/sum/format",
            "small/product/outcome - small/product/format",
            "large/sum/outcome - large/sum/format",
            "large/product/outcome - large/product/format",
        ]
    ]


def test_an_axis_that_b_leaves_out_is_as_in_a() -> None:
    found = compared({"arm": "outcome", "example": "sum", "model": "small"}, {"arm": "format"})
    assert found == [["small/sum/outcome - small/sum/format"]]


def test_b_may_name_what_a_leaves_out() -> None:
    # every example against the one
    assert compared({"arm": "outcome", "model": "small"}, {"example": "sum"}) == [
        ["small/sum/outcome + small/product/outcome - small/sum/outcome"]
    ]


def test_a_list_of_cells_is_averaged() -> None:
    assert compared({"arm": "outcome", "example": "sum"}, {"arm": "format", "model": ["small", "large"]}) == [
        ["small/sum/outcome + large/sum/outcome - small/sum/format + large/sum/format"]
    ]


def test_what_only_a_names_is_matched_cell_by_cell() -> None:
    assert compared({"arm": "outcome", "example": ["sum", "product"]}, {"arm": "format", "model": "small"}) == [
        [
            "small/sum/outcome + large/sum/outcome - small/sum/format",
            "small/product/outcome + large/product/outcome - small/product/format",
        ]
    ]


def test_not_selects_the_others() -> None:
    assert compared({"arm": {"not": "format"}, "model": "large", "example": "sum"}, {"arm": "format"}) == [
        ["large/sum/outcome - large/sum/format"]
    ]


def test_for_each_makes_one_comparison_a_value() -> None:
    assert compared({"arm": "outcome"}, {"arm": "format"}, for_each=["model"]) == [
        ["small/sum/outcome - small/sum/format", "small/product/outcome - small/product/format"],
        ["large/sum/outcome - large/sum/format", "large/product/outcome - large/product/format"],
    ]
    found = comparisons([claim({"arm": "outcome"}, {"arm": "format"}, for_each=["model", "example"])], CELLS)
    assert [one.cells for one in found] == [
        {"model": model, "example": example} for model, example in product(AXES["model"], AXES["example"])
    ]


def test_for_each_may_be_of_an_axis_that_b_names() -> None:
    # each other arm against the same control
    arms = [{"arm": name} for name in ("outcome", "random", "format")]
    assert compared({"arm": {"not": "format"}}, {"arm": "format"}, cells=arms, for_each=["arm"]) == [
        ["outcome - format"],
        ["random - format"],
    ]


def test_for_all_makes_the_parts_of_one_verdict() -> None:
    found = comparisons([claim({"arm": "outcome"}, {"arm": "format"}, for_each=["model"], for_all=["example"])], CELLS)
    assert [(one.cells, one.part) for one in found] == [
        ({"model": model}, {"example": example}) for model, example in product(AXES["model"], AXES["example"])
    ]
    assert all(len(one.pairs) == 1 for one in found)


def test_a_ranking_means_all_of_its_cells() -> None:
    assert compared({"example": "ranked"}, {"example": "sum"}, cells=RANKED) == [
        ["ranked#1/outcome + ranked#2/outcome - sum/outcome", "ranked#1/format + ranked#2/format - sum/format"]
    ]
    assert compared({"example": "ranked#2", "arm": "outcome"}, {"example": "ranked#1"}, cells=RANKED) == [
        ["ranked#2/outcome - ranked#1/outcome"]
    ]


def test_the_same_cells_at_another_step() -> None:
    asked = claim({"arm": "outcome", "example": "sum", "at": "last"}, {"at": "start"})
    (found,) = comparisons([asked], CELLS)
    assert (found.at_a, found.at_b) == ("last", "start")
    assert [pair.a for pair in found.pairs] == [pair.b for pair in found.pairs]
    assert len(found.pairs) == 2  # one a model


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({}, {"arm": "format"}, ("last", "last")),
        ({"at": "best"}, {"arm": "format"}, ("best", "best")),
        ({"at": "best"}, {"arm": "format", "at": "saturation"}, ("best", "saturation")),
        ({}, {"at": "start"}, ("last", "start")),
    ],
)
def test_the_step_of_b_is_that_of_a_unless_it_names_one(
    a: dict[str, Any], b: dict[str, Any], expected: tuple[str, str]
) -> None:
    found = comparisons([claim({"arm": "outcome", **a}, b)], CELLS)
    assert {(one.at_a, one.at_b) for one in found} == {expected}


def test_a_grid_without_axes_is_compared_with_its_own_start() -> None:
    assert compared({}, {"at": "start"}, cells=[{}]) == [[" - "]]


@settings(max_examples=50)
@given(
    st.fixed_dictionaries(
        {}, optional={axis: st.sets(st.sampled_from(names), min_size=1).map(list) for axis, names in AXES.items()}
    ),
    st.sets(st.sampled_from(list(AXES))).map(sorted),
)
def test_against_its_own_start_every_selected_cell_stands_once_and_beside_itself(
    selection: dict[str, list[str]], for_each: list[str]
) -> None:
    found = comparisons([claim(selection, {"at": "start"}, for_each=for_each)], CELLS)
    used = [cell for one in found for pair in one.pairs for cell in pair.a]
    selected = [cell for cell in CELLS if all(cell[axis] in names for axis, names in selection.items())]
    assert sorted(used, key=str) == sorted(selected, key=str)
    assert all(pair.a == pair.b for one in found for pair in one.pairs)


# which not


LEFT_OUT = [cell for cell in CELLS if cell != {"model": "large", "example": "product", "arm": "format"}]
UNMATCHED = [
    ({"arm": "outcome"}, {"arm": "format"}, "claims.0.a: model=large example=product arm=outcome has no partner in `b`, which has no cell with model=large example=product"),
    ({"arm": "format"}, {"arm": "outcome"}, "claims.0.b: model=large example=product arm=outcome has no partner in `a`, which has no cell with model=large example=product"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b", "expected"), UNMATCHED)
def test_a_cell_without_a_partner_is_refused(a: dict[str, Any], b: dict[str, Any], expected: str) -> None:
    assert refusal(a, b, cells=LEFT_OUT).startswith(expected)


def test_a_cell_of_for_each_without_any_partner_is_refused() -> None:
    cells = [cell for cell in CELLS if cell["model"] == "small" or cell["arm"] == "outcome"]
    assert refusal({"arm": "outcome"}, {"arm": "format"}, cells=cells, for_each=["model"]) == (
        "claims.0.b: selects no cell of the grid to compare model=large example=sum arm=outcome with; change its cells"
    )


SELF = "claims.0.b: selects the same cells as `a`; name another cell, or another step with `at`"
REFUSED = {
    "itself": ({"arm": "outcome"}, {}, SELF),
    "itself, by name": ({"arm": "outcome"}, {"arm": "outcome"}, SELF),
    "itself, by other words": ({"arm": "outcome"}, {"arm": {"not": "format"}}, SELF),
    "itself at the same step": ({"at": "start"}, {"at": "start"}, SELF),
    "nothing": ({"arm": []}, {"arm": "format"}, "claims.0.a: selects no cell of the grid"),
    "nothing in b": ({"arm": "outcome"}, {"arm": []}, "claims.0.b: selects no cell of the grid to compare "),
    "an unknown axis": ({"arms": "outcome"}, {}, "claims.0.a.arms: unknown axis; did you mean 'arm'?"),
    "an unknown axis of b": ({}, {"att": "start"}, "claims.0.b.att: unknown axis; did you mean 'at'?"),
    "an unknown cell": ({"arm": "outcom"}, {}, "claims.0.a.arm: unknown cell 'outcom'; did you mean 'outcome'?"),
    "an unknown cell of a list": ({}, {"arm": ["format", "formt"]}, "claims.0.b.arm: unknown cell 'formt'; did you mean 'format'?"),
    "an unknown step": ({"at": "lst"}, {}, "claims.0.a.at: 'lst' is not a step; did you mean 'last'?"),
    "a step that is a number": ({"at": 100}, {}, "claims.0.a.at: 100 is not a step"),
    "another selector": ({"arm": {"except": "format"}}, {}, "claims.0.a.arm: a selector must be a cell, a list of cells, or {not: ...}"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_is_refused(name: str) -> None:
    a, b, expected = REFUSED[name]
    assert refusal(a, b).startswith(expected)


def test_a_cell_of_for_each_that_would_be_compared_with_itself_is_refused() -> None:
    # model=large at b is large's own
    assert refusal({"arm": "outcome"}, {"model": "large"}, for_each=["model"]) == (
        "claims.0.b: selects the same cells as `a` for model=large; name another cell, or another step with `at`"
    )
    assert compared({"arm": "outcome", "model": "small"}, {"model": "large"}, for_each=["model"])


def test_cells_that_the_grid_leaves_out_make_no_other_selection() -> None:
    # of small there is nothing but outcome, so that both arms of it are its outcome
    cells = [cell for cell in CELLS if cell["model"] == "large" or cell["arm"] == "outcome"]
    found = refusal({"model": "small"}, {"model": "small", "arm": "outcome"}, cells=cells)
    assert found == SELF


@pytest.mark.parametrize("field", ["for_each", "for_all"])
def test_an_unknown_axis_to_go_through_is_refused(field: str) -> None:
    found = refusal({"arm": "outcome"}, {"arm": "format"}, **{field: ["model", "exampl"]})
    assert found == f"claims.0.{field}.1: unknown axis; did you mean 'example'?"


def test_an_axis_is_gone_through_once() -> None:
    found = refusal({"arm": "outcome"}, {"arm": "format"}, for_each=["model"], for_all=["model"])
    assert found == "claims.0.for_all.0: model is also in for_each; keep only one of them"


def test_the_place_of_a_later_claim_is_its_own() -> None:
    asked = [claim({"arm": "outcome"}, {"arm": "format"}), claim({"arm": "outcome"}, {"arm": "fomat"})]
    with pytest.raises(SettingError) as caught:
        comparisons(asked, CELLS)
    assert caught.value.where == ("claims", 1, "b", "arm")


# at plan time, in the file

ACCURACY = "{name: c, metric: eval/arithmetic/pass_at_1, a: {arm: outcome}, b: {arm: format}, expect: {greater_by: 0}}"
CLAIMED = f"{BASE}claims:\n  - {ACCURACY}\n"
PUBLISHED = (
    BASE
    + """\
published:
  - by: Someone
    how: one seed
    columns: [arithmetic]
    rows:
      - {cell: {arm: outcome}, values: [0.5]}
"""
)
AT_PLAN = {
    "a cell without the suite": (CLAIMED, "outcome: {}", "outcome: {set: {eval.suites: {more: {source: arithmetic}}}}", None),
    "a cell that is asked otherwise": (CLAIMED, "{suites: {arithmetic: {num_problems: 4}}}", "{every_steps: 1}", "s.yaml:20: claims.0.metric: no trial has the metric eval/arithmetic/pass_at_1; it has no suites (eval.suites)"),
    "a suite that one side lacks": (CLAIMED.replace("eval/arithmetic/", "eval/more/"), "outcome: {}", "outcome: {set: {eval.suites: {more: {source: arithmetic}}}}", "s.yaml:20: claims.0.b: example=sum arm=format: it is not evaluated on more; add the suite to all cells of the claim"),
    "a suite that the other side lacks": (CLAIMED.replace("eval/arithmetic/", "eval/more/"), "{reward.kind: format}", "{reward.kind: format, eval.suites: {more: {source: arithmetic}}}", "s.yaml:20: claims.0.a: example=sum arm=outcome: it is not evaluated on more; add the suite to all cells of the claim"),
    "a gain without a start": (CLAIMED.replace("a: {arm", "of: gain, a: {arm"), "eval: {suites", "eval: {at_start: false, suites", "s.yaml:20: claims.0.a: example=sum arm=outcome: it is not evaluated at the start; set eval.at_start: true"),
    "the start without one": (CLAIMED.replace("b: {arm: format}", "b: {at: start}"), "eval: {suites", "eval: {at_start: false, suites", "s.yaml:20: claims.0.b: example=sum arm=outcome: it is not evaluated at the start; set eval.at_start: true"),
    "the last step without a start": (CLAIMED, "eval: {suites", "eval: {at_start: false, suites", None),
    "categories of what has none": (CLAIMED.replace("a: {arm", "categories: untrained, a: {arm"), '["arithmetic:47+38"]', '[{problem: "1+1=?", answer: "2"}]', "s.yaml:20: claims.0.a: example=sum arm=outcome: categories: untrained: the category of its examples is unknown; add labels: {category: ...}"),
    "categories of what is labelled": (CLAIMED.replace("a: {arm", "categories: untrained, a: {arm"), '{examples: ["arithmetic:47+38"]}', '{examples: [{problem: "1+1=?", answer: "2"}]}, labels: {category: addition}', None),
    "categories of a metric of training": (CLAIMED.replace("eval/arithmetic/pass_at_1, a", "reward/mean, categories: trained, a"), "seeds: [0, 1]", "seeds: [0, 1, 2]", "s.yaml:20: claims.0.a: example=sum arm=outcome: reward/mean has no categories"),
    "a cell of another line": (CLAIMED, "b: {arm: format}", "\n     b: {arm: formt}", "s.yaml:21: claims.0.b.arm: unknown cell 'formt'; did you mean 'format'?"),
    "two expectations": (CLAIMED, "{greater_by: 0}", "{greater_by: 0, within: 1}", "s.yaml:20: claims.0.expect: expect needs exactly one of greater_by, less_by, within and share_at_least"),
    "an expectation of another name": (CLAIMED, "{greater_by: 0}", "{greater: 0}", "s.yaml:20: claims.0.expect.greater: unknown key; did you mean 'greater_by'?"),
    "nothing is within nothing": (CLAIMED, "{greater_by: 0}", "{within: 0}", "s.yaml:20: claims.0.expect.within: must be greater than 0"),
    "no grid": (CLAIMED, "seeds: [0, 1]\n", "seeds: [0, 1]\ngrid: none\nsearch: {on: {example: sum, arm: outcome}, seeds: [9], num_trials: 1, objective: {metric: reward/mean}, space: {optim.lr: {low: 0.1, high: 0.2}}}\n", "s.yaml:21: claims: claims are about the grid, and there is no grid; remove them"),
    "published": (PUBLISHED, "by: Someone", "by: Someone else", None),
    "published of an unknown cell": (PUBLISHED, "cell: {arm: outcome}", "cell: {arm: outcom}", "s.yaml:24: published.0.rows.0.cell.arm: unknown cell 'outcom'; did you mean 'outcome'?"),
    "published of an unknown axis": (PUBLISHED, "cell: {arm: outcome}", "cell: {arms: outcome}", "s.yaml:24: published.0.rows.0.cell.arms: unknown axis; did you mean 'arm'?"),
    "published of an unknown suite": (PUBLISHED, "[arithmetic]", "[arithmetics]", "s.yaml:22: published.0.columns.0: no trial has the suite; did you mean 'arithmetic'?"),
    "published of too few": (PUBLISHED, "[0.5]", "[0.5, 0.6]", "s.yaml:20: published.0: row 0 has 2 values for 1 columns"),
    "published in percent": (PUBLISHED, "[0.5]", "[72.8]", "s.yaml:20: published.0: row 0: an accuracy must be from 0 to 1; write 72.8 percent as 0.728"),
    "published without saying how": (PUBLISHED, "    how: one seed\n", "", "s.yaml:20: published.0.how: missing; add it"),
    "published at no step": (PUBLISHED, "values: [0.5]", "at: best, values: [0.5]", "s.yaml:24: published.0.rows.0.at: 'best' is not one of 'start' or 'last'"),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_PLAN)
def test_a_claim_that_could_not_be_judged_is_refused_before_the_run(name: str) -> None:
    text, old, new, expected = AT_PLAN[name]
    if expected is None:
        assert plan(edited(old, new, text)).grid
    else:
        assert complaint(edited(old, new, text)).startswith(expected)


@pytest.mark.parametrize(
    "metric",
    ["eval/arithmetic/pass_at_1", "eval/arithmetic/addition/pass_at_1", "eval/arithmetic/boxed", "reward/mean"],
)
def test_what_is_measured_may_be_claimed(metric: str) -> None:
    assert plan(edited("eval/arithmetic/pass_at_1", metric, CLAIMED)).grid


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("eval/arithmetic/pass_at_1", "eval/arithmetic/pas_at_1", "did you mean 'eval/arithmetic/pass_at_1'?"),
        ("eval/arithmetic/pass_at_1", "eval/arithmetic/gain", "use metric: eval/arithmetic/pass_at_1 with of: gain"),
        ("eval/arithmetic/pass_at_1", "eval/arithmetic/truncated, categories: untrained", "has no value by problem"),
        ("eval/arithmetic/pass_at_1", "eval/arithmetic/pass_at_8", "has 1 completions a problem, so no pass_at_8"),
        ("eval/arithmetic/pass_at_1", "eval/arithmetic/Addition/pass_at_1", "did you mean 'addition'?"),
        ("eval/arithmetic/pass_at_1", "eval/arithmetic/accuracy", "the metrics of eval/arithmetic/ are pass_at_1, "),
        ("eval/arithmetic/pass_at_1", "pass_at_1", "choose one of eval/arithmetic/pass_at_1"),
        ("eval/arithmetic/pass_at_1", "reward/maen", "did you mean 'reward/mean'?"),
    ],
)
def test_what_could_not_be_judged_after_all_is_refused_before(old: str, new: str, says: str) -> None:
    assert says in complaint(edited(old, new, CLAIMED))


def test_every_side_of_a_claim_is_looked_at_in_all_its_cells() -> None:
    # the suite is missing from the second example's format alone
    text = edited("eval/arithmetic/pass_at_1", "eval/more/pass_at_1", CLAIMED)
    text = edited("outcome: {}", "outcome: {set: {eval.suites: {more: {source: arithmetic}}}}", text)
    grid = "grid: [{arm: outcome}, {arm: format, example: sum, set: {eval.suites: {more: {source: arithmetic}}}}, {arm: format, example: product}]"
    assert complaint(text + grid).startswith("s.yaml:20: claims.0.b: example=product arm=format: it is not evaluated")


# frozen

ASKED = (claim({"arm": "outcome"}, {"arm": "format"}), claim({"at": "last"}, {"at": "start"}, of="gain"))
PLANNED = Planned(
    claims=ASKED,
    seeds=(0, 1, 2),
    num_steps={"arm=outcome": 12, "arm=format": 12},
    suites={"arithmetic": ("d",)},
    rules=Rules(looks=(3,), groups={"both": GroupConfig(suites=["one", "two"])}),
)


def digest_of(*claims: ClaimConfig) -> str:
    return str(record(Planned(claims=claims), None)["digest"])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Store(str(tmp_path / "runs")).sweep("s")


def test_what_was_frozen_first_stays(folder: Folder) -> None:
    first = freeze(folder, PLANNED)
    assert (first.claims, first.seeds, first.num_steps) == (ASKED, (0, 1, 2), PLANNED.num_steps)
    assert (first.suites, first.rules, first.cells) == (PLANNED.suites, PLANNED.rules, ("arm=format", "arm=outcome"))
    assert first.is_intact
    assert first.frozen_ms is not None and first.frozen_at is not None and first.frozen_at.endswith(" UTC")
    assert freeze(folder, Planned(claims=ASKED[:1])) == first
    assert frozen(folder, Planned()) == first
    assert recorded_digest(folder) == first.digest


def test_a_sweep_without_claims_freezes_that_it_has_none(folder: Folder) -> None:
    freeze(folder, Planned())
    assert freeze(folder, PLANNED).claims == ()


def test_a_sweep_that_began_without_a_record_has_the_claims_of_its_file_and_no_time(folder: Folder) -> None:
    found = frozen(folder, PLANNED)
    assert (found.claims, found.frozen_ms, found.frozen_at, found.is_intact) == (ASKED, None, None, True)
    assert folder.read(FILE) is None
    assert recorded_digest(folder) == ""


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a bound": lambda fields: fields["claims"][0]["expect"].update(greater_by=-1.0),
    "the time": lambda fields: fields.update(frozen_ms=fields["frozen_ms"] - 3_600_000),
    "a seed": lambda fields: fields["seeds"].append(3),
    "steps": lambda fields: fields["num_steps"].update({"arm=outcome": 13}),
    "a cell": lambda fields: fields["num_steps"].pop("arm=format"),
    "a suite": lambda fields: fields["suites"].update(arithmetic=["e"]),
    "looks": lambda fields: fields["rules"].update(looks=[]),
    "what counts as failed": lambda fields: fields["rules"].update(failed="leave_out"),
    "a group": lambda fields: fields["rules"]["groups"].clear(),
    "selection": lambda fields: fields["rules"].update(allow_selection_on_test=True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_record_that_was_changed_by_hand_is_told(folder: Folder, name: str) -> None:
    before = freeze(folder, PLANNED)
    fields = folder.read_json(FILE)
    assert fields is not None
    CHANGES[name](fields)
    folder.write_json(FILE, fields)
    after = frozen(folder, PLANNED)
    assert (after.digest, before.is_intact, after.is_intact) == (before.digest, True, False)


def test_a_record_is_read_as_it_was_written(folder: Folder) -> None:
    found = freeze(folder, PLANNED)
    assert thaw(json.loads(json.dumps(found.written))) == found


def test_a_record_of_the_format_before_has_the_digest_of_its_claims() -> None:
    claims = [one.model_dump(mode="json") for one in ASKED]
    text = json.dumps(claims, sort_keys=True, separators=(",", ":"))
    old = {"claims": claims, "digest": sha256(text.encode()).hexdigest(), "frozen_ms": 5, "seeds": [0], "num_steps": {}}
    found = thaw(old)
    assert (found.claims, found.is_intact, found.seeds, found.suites) == (ASKED, True, (0,), {})
    assert found.rules == Rules()
    assert thaw({**old, "seeds": [0, 1]}).is_intact  # which this format did not cover
    assert not thaw({**old, "claims": claims[:1]}).is_intact


def test_a_claim_that_a_later_version_reads_with_more_fields_is_kept_as_written(folder: Folder) -> None:
    freeze(folder, PLANNED)
    fields = folder.read_json(FILE)
    assert fields is not None
    written = [{key: value for key, value in one.items() if key != "for_all"} for one in fields["claims"]]
    old = thaw({**fields, "claims": written})
    assert old.claims == ASKED
    assert not old.is_intact  # for its digest is that of other words
    assert old.written["claims"] == written


WRITTEN = {
    "name": "c",
    "metric": "eval/arithmetic/pass_at_1",
    "of": "gain",
    "a": {"arm": "outcome", "example": ["sum", "product"], "at": "last"},
    "b": {"arm": "format"},
    "expect": {"greater_by": 1},
}


def shuffled(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.permutations(list(fields.items())).map(dict)


@given(shuffled(WRITTEN), shuffled(WRITTEN["a"]), st.sampled_from([1, 1.0]))
def test_a_digest_heeds_neither_the_order_of_keys_nor_how_a_number_is_written(
    fields: dict[str, Any], a: dict[str, Any], number: float
) -> None:
    one = ClaimConfig.model_validate({**fields, "a": a, "expect": {"greater_by": number}})
    assert digest_of(one) == digest_of(ClaimConfig.model_validate(WRITTEN))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "d"},
        {"of": "value"},
        {"b": {"arm": "outcome"}},
        {"b": {"arm": "format", "at": "last"}},
        {"expect": {"greater_by": 1.5}},
        {"expect": {"within": 1}},
        {"for_each": ["model"]},
    ],
)
def test_another_claim_has_another_digest(change: dict[str, Any]) -> None:
    own, other = (ClaimConfig.model_validate(fields) for fields in (WRITTEN, {**WRITTEN, **change}))
    assert digest_of(own) != digest_of(other)
    assert digest_of(own, other) != digest_of(other, own)


# edited after the start

BOUND = "expect: {greater_by: 0}"


def test_run_refuses_a_claim_whose_bound_was_moved(tmp_path: Path) -> None:
    _, _, store = make_store(tmp_path, CLAIMED)
    put_on_record(tmp_path, CLAIMED)
    before = store.sweep("base").read(FILE)
    (tmp_path / "sweep.yaml").write_text(edited(BOUND, "expect: {greater_by: -0.5}", CLAIMED))
    said = oneshot("run", "sweep.yaml", cwd=tmp_path)
    assert said.code == 2
    assert said.err.startswith(
        "oneshot: sweep.yaml:1: the file: claims was changed; a sweep that has begun accepts only additions"
    )
    assert store.sweep("base").read(FILE) == before
    assert store.sweep("base").read("sweep.yaml") == CLAIMED


def test_a_claim_that_was_changed_is_judged_beside_the_frozen_one_and_marked(tmp_path: Path) -> None:
    _, planned, store = make_store(tmp_path, CLAIMED)
    put_on_record(tmp_path, CLAIMED)
    (tmp_path / "sweep.yaml").write_text(edited(BOUND, "expect: {greater_by: -0.5}", CLAIMED))
    judged = verdicts(gather(sweep_run(load(tmp_path / "sweep.yaml"), planned, store)))
    assert [(one.expect, one.is_amended) for one in judged] == [("a - b > 0", False), ("a - b > -0.5", True)]
    assert "amended: added after the sweep began" not in judged[0].notes
    assert judged[1].notes[0] == "amended: added after the sweep began"


def test_a_claim_that_was_taken_out_of_the_file_is_judged_all_the_same(tmp_path: Path) -> None:
    _, planned, store = make_store(tmp_path, CLAIMED)
    put_on_record(tmp_path, CLAIMED)
    (tmp_path / "sweep.yaml").write_text(BASE)
    judged = verdicts(gather(sweep_run(load(tmp_path / "sweep.yaml"), planned, store)))
    assert [(one.name, one.is_amended) for one in judged] == [("c", False)]


def test_other_words_for_the_same_claim_amend_nothing(tmp_path: Path) -> None:
    sweep, planned, store = make_store(tmp_path, CLAIMED)
    put_on_record(tmp_path, CLAIMED)
    found = gather(sweep_run(replace(sweep, config=sweep.config.model_copy()), planned, store))
    assert found.amended == ()
    (tmp_path / "sweep.yaml").write_text(edited(BOUND, "of: value, expect: {greater_by: 0.0}", CLAIMED))
    assert gather(sweep_run(load(tmp_path / "sweep.yaml"), planned, store)).amended == ()
