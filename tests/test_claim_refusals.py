"""A group, a look, a seed or a kind of claim that cannot be judged: one error with file, line, path and what to do."""

from typing import Any

import pytest
from test_search_file import complaint, edited, plan
from test_sweepfile import BASE

TEXT = (
    BASE.replace("{suites: {arithmetic: {num_problems: 4}}}", "{suites: {one: {source: arithmetic}, two: {source: arithmetic, num_problems: 4}}}")
    .replace("seeds: [0, 1]", "seeds: [0, 1, 2]")
    + """\
looks: [3]
groups:
  both: {suites: [one, two]}
claims:
  - name: c
    metric: eval/one/pass_at_1
    a: {arm: outcome}
    b: {arm: format}
    expect: {greater_by: 0}
"""
)  # fmt: skip
METRIC, EXPECT, B = "metric: eval/one/pass_at_1", "expect: {greater_by: 0}", "b: {arm: format}"
SEARCH = "search: {on: {example: sum, arm: outcome}, seeds: [9], num_trials: 1, objective: {metric: METRIC}, space: {optim.lr: {low: 0.1, high: 0.2}}}\n"
THREE = "format: {set: {reward.kind: format}}\n  lr: {low: {set: {optim.lr: 0.1}}, mid: {set: {optim.lr: 0.2}}, high: {set: {optim.lr: 0.3}}}"

# what is changed, and how the one error begins
BAD = {
    "a group of an unknown suite": ("[one, two]", "[one, tow]", "s.yaml:21: groups.both.suites.1: no trial has the suite; did you mean 'two'?"),
    "a group named like a suite": ("  both: {", "  one: {", "s.yaml:21: groups.one: is also the name of a suite; give the group another name"),
    "a group of one": ("[one, two]", "[one]", "s.yaml:21: groups.both.suites: needs at least 2 suites"),
    "a group that has a suite twice": ("[one, two]", "[one, one]", "s.yaml:21: groups.both: suites: a suite appears twice; keep one"),
    "a group in a group": ("[one, two]", '[one, "@both"]', "s.yaml:21: groups.both.suites.1: is a group; name the suites of that group"),
    "a group with another weight": ("[one, two]", "[one, two], weight: problems", "s.yaml:21: groups.both.weight: 'problems' is not one of 'suite' or 'problem'"),
    "a group with a bad name": ("  both: {", '  "@both": {', "s.yaml:21: groups.@both: '@both' is not a valid name"),
    "a metric of an unknown group": (METRIC, "metric: eval/@bth/pass_at_1", "s.yaml:24: claims.0.metric: no trial has the metric eval/@bth/pass_at_1; did you mean 'eval/@both/pass_at_1'?"),
    "a metric that no group has": (METRIC, "metric: eval/@both/pas_at_1", "s.yaml:24: claims.0.metric: no trial has the metric eval/@both/pas_at_1; did you mean 'eval/@both/pass_at_1'?"),
    "a guard on a group": (EXPECT, f"{EXPECT}\nguards: [{{metric: eval/@both/pass_at_1, below: 0.1}}]", "s.yaml:28: guards.0.metric: no trial has the metric eval/@both/pass_at_1; only claims are about a group of suites (@), so name one of its suites"),
    "an objective on a group": (EXPECT, f"{EXPECT}\n{SEARCH.replace('METRIC', 'eval/@both/pass_at_1')}", "s.yaml:28: search.objective.metric: example=sum arm=outcome has no metric eval/@both/pass_at_1; only claims are about a group of suites (@)"),
    "the best weights by a group": ("  train.num_steps: 2\n", "  train.num_steps: 2\n  checkpoint.keep: {best: eval/@both/pass_at_1}\n", "s.yaml:10: trial.checkpoint.keep: example=sum arm=outcome has no metric eval/@both/pass_at_1; only claims are about a group of suites (@)"),
    "published numbers of an unknown group": (EXPECT, f'{EXPECT}\npublished: [{{by: x, how: y, columns: ["@bth"], rows: [{{values: [0.5]}}]}}]', "s.yaml:28: published.0.columns.0: no trial has the suite; did you mean '@both'?"),
    "a share of a value": (EXPECT, "expect: {share_at_least: 0.9}", "s.yaml:23: claims.0.of: share_at_least is a share of a gain; set `of: gain`"),
    "a share of nothing": (EXPECT, "of: gain\n    expect: {share_at_least: 0}", "s.yaml:28: claims.0.expect.share_at_least: must be greater than 0, not 0"),
    "over two cells": (EXPECT, f"over: example\n    {EXPECT}", "s.yaml:27: claims.0.over: a mean over 2 cells has no interval; needs 3, or use for_each or for_all"),
    "over two cells beside another claim": (EXPECT, f"over: example\n    {EXPECT}\n  - {{name: d, {METRIC}, a: {{arm: outcome}}, {B}, {EXPECT}}}", "s.yaml:27: claims.0.over: a mean over 2 cells has no interval"),
    "over an unknown axis": (EXPECT, f"over: exampel\n    {EXPECT}", "s.yaml:27: claims.0.over: unknown axis; did you mean 'example'?"),
    "over and for_all": (EXPECT, f"over: example\n    for_all: [arm]\n    {EXPECT}", "s.yaml:27: claims.0.over: `over` gives one verdict on a mean, and for_all others; keep one of them"),
    "over and for_each of one axis": (EXPECT, f"over: example\n    for_each: [example]\n    {EXPECT}", "s.yaml:27: claims.0.over: `over` gives one verdict on a mean, and for_each others; keep one of them"),
    "over an axis with one control": (EXPECT, f"over: example\n    {EXPECT}", "s.yaml:27: claims.0.over: `b` names example, so that all its cells have one control and are no sample; compare them within example, or use for_each"),
    "a grader of what has one": (METRIC, "metric: eval/one/boxed\n    over_settings: {grader: [strict, lenient]}", "s.yaml:25: claims.0.over_settings.grader: eval/one/boxed is the same by every grader; judge pass_at_1, or remove `grader`"),
    "an unknown grader": (METRIC, f"{METRIC}\n    over_settings: {{grader: [strct]}}", "s.yaml:25: claims.0.over_settings.grader.0: 'strct' is not one of 'strict' or 'lenient'"),
    "other settings at the start": (METRIC, f"{METRIC}\n    over_settings: {{at: [start]}}", "s.yaml:25: claims.0.over_settings.at.0: 'start' is not one of 'last', 'best' or 'saturation'"),
    "another suite that no trial has": (B, "b: {suite: tow}", "s.yaml:26: claims.0.b.suite: no trial has it; did you mean 'eval/two/pass_at_1'?"),
    "the suite of a": ("a: {arm: outcome}", "a: {arm: outcome, suite: two}", "s.yaml:25: claims.0.a.suite: `a` has the suite of `metric`; name the other suite in `b`"),
    "the same suite": (B, "b: {suite: one}", "s.yaml:26: claims.0.b: selects the same cells as `a`; name another cell, or another step with `at`"),
    "a suite of a metric of training": (METRIC, "metric: reward/mean", "s.yaml:26: claims.0.b.suite: reward/mean is a metric of training, which has no suite"),
    "looks that do not end with all seeds": ("looks: [3]", "looks: [3, 4]", "s.yaml:19: looks: the last look is 4; it must be the number of seeds, 3"),
    "looks that fall": ("looks: [3]", "looks: [4, 3]", "s.yaml:19: looks.1: 3 is not above 4, the look before; sort the looks"),
    "a look twice": ("looks: [3]", "looks: [3, 3]", "s.yaml:19: looks.1: 3 is not above 3, the look before; sort the looks"),
    "a look at two seeds": ("looks: [3]", "looks: [2, 3]", "s.yaml:19: looks.0: must be at least 3, not 2"),
    "looks that are a number": ("looks: [3]", "looks: 3", "s.yaml:19: looks: must be a list, such as [3], not 3"),
    "a stop without looks": ("seeds: [0, 1, 2]\nlooks: [3]", "seeds: {planned: 10, stop: decided}", "s.yaml:18: seeds.stop: needs the numbers of seeds after which the claims are judged; add `looks`, such as looks: [3, 10]"),
    "another stop": ("seeds: [0, 1, 2]", "seeds: {planned: 3, stop: early}", "s.yaml:18: seeds.stop: 'early' is not one of 'decided'"),
    "no planned seed": ("seeds: [0, 1, 2]", "seeds: {planned: 0}", "s.yaml:18: seeds.planned: must be at least 1, not 0"),
    "another word for failed": ("looks: [3]", "looks: [3]\nfailed: zero", "s.yaml:20: failed: 'zero' is not one of 'start', 'worst' or 'leave_out'"),
    "primary that is no yes": (METRIC, f"{METRIC}\n    primary: first", "s.yaml:25: claims.0.primary: must be a boolean, not 'first'"),
}  # fmt: skip
MORE: dict[str, tuple[str, str]] = {
    "over an axis with one control": (B, "b: {example: sum}"),
    "a suite of a metric of training": (B, "b: {suite: two}"),
}
"""A second change."""


def test_a_group_in_a_file_without_groups_is_to_be_declared() -> None:
    text = edited("groups:\n  both: {suites: [one, two]}\n", "", TEXT)
    assert complaint(edited(METRIC, "metric: eval/@both/pass_at_1", text)).startswith(
        "s.yaml:22: claims.0.metric: no trial has the metric eval/@both/pass_at_1; declare the group under `groups`"
    )


@pytest.mark.parametrize("name", BAD)
def test_what_could_not_be_judged_gets_one_clear_error(name: str) -> None:
    old, new, expected = BAD[name]
    text = edited(old, new, TEXT)
    assert complaint(edited(*MORE[name], text) if name in MORE else text).startswith(expected)


GOOD = {
    "a group": (METRIC, "metric: eval/@both/pass_at_1"),
    "another measure of a group": (METRIC, "metric: eval/@both/boxed"),
    "a share": (EXPECT, "of: gain\n    expect: {share_at_least: 0.9}"),
    "a share above 1": (EXPECT, "of: gain\n    expect: {share_at_least: 2}"),
    "another suite": (B, "b: {suite: two}"),
    "a group beside a suite": (B, 'b: {suite: "@both"}'),
    "other settings": (METRIC, f"{METRIC}\n    over_settings: {{grader: [strict, lenient]}}"),
    "a primary claim": (METRIC, f"{METRIC}\n    primary: true"),
    "planned seeds": ("seeds: [0, 1, 2]", "seeds: {planned: 3, stop: decided}"),
    "several looks": ("seeds: [0, 1, 2]\nlooks: [3]", "seeds: {planned: 10}\nlooks: [3, 6, 10]"),
    "failed as the worst": ("looks: [3]", "failed: worst"),
    "published numbers of a group": (EXPECT, f'{EXPECT}\npublished: [{{by: x, how: y, columns: ["@both"], rows: [{{values: [0.5]}}]}}]'),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_judged_is_planned(name: str) -> None:
    assert plan(edited(*GOOD[name], TEXT)).grid


def test_over_three_cells_is_planned() -> None:
    three = edited("format: {set: {reward.kind: format}}", THREE, TEXT)
    assert plan(edited(EXPECT, f"over: lr\n    for_each: [example]\n    {EXPECT}", three)).grid


def test_a_file_with_several_claims_names_the_one_that_is_wrong() -> None:
    good: Any = f"  - {{name: d, {METRIC}, a: {{arm: outcome}}, {B}, {EXPECT}}}\n"
    bad = good.replace("pass_at_1", "pas_at_1")
    assert complaint(TEXT + good + bad).startswith("s.yaml:29: claims.2.metric: ")
