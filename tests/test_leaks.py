"""Problems that are trained on and judged, or repeated in what is judged: exactly, nearly, with and without data."""

import json
from collections.abc import Sequence
from pathlib import Path

from oneshot.config.claims import GroupConfig
from oneshot.config.file import read
from oneshot.plan.leaks import by_suite, find_leaks
from oneshot.plan.plan import make_plan
from oneshot.tasks.duplicates import Index, near_duplicates, shingles

LONG = "How many positive whole numbers below one thousand are divisible by both seven and eleven?"
OTHER = "What is the sum of the first hundred odd numbers that are no prime, if one counts as odd?"


def plan_warnings(
    examples: str, suites: str, more: str = "", *, prompt: str = "{template: plain}", num_steps: int = 2
) -> list[str]:
    text = f"""\
version: 1
name: s
question: Is it held out?
trial:
  model.path: tiny:qwen2
  examples: {examples}
  prompt: {prompt}
  rollout: {{num_groups: 4, group_size: 4, max_tokens: 56}}
  train.num_steps: {num_steps}
  eval: {{suites: {suites}}}
seeds: [0]
{more}"""
    return [warning for warning in make_plan(read(text, name="s.yaml")).warnings if warning.startswith("leak: ")]


def write(path: Path, problems: Sequence[str]) -> str:
    path.write_text("\n".join(json.dumps({"problem": problem, "answer": "1"}) for problem in problems))
    return str(path)


# texts


def test_a_short_text_resembles_only_its_equal() -> None:
    assert near_duplicates(["10+77=?", "107+7=?"], ["107+7=?"]) == [1]
    assert shingles("10+77=?") == {"10+77=?"}


def test_a_text_of_more_than_half_of_another_is_near_and_of_a_quarter_similar() -> None:
    # 50 letters have 11 shingles. A text that begins with 45 of them shares 6, more than half; with 44: 5, fewer.
    # With 42 it shares 3, more than a quarter; with 41: 2, fewer.
    text = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwx"
    filler = "0123456789" * 10
    assert Index([text]).near(text[:45] + filler) == [0]
    assert Index([text]).near(text[:44] + filler) == []
    assert near_duplicates([text[:42] + filler, text[:41] + filler], [text]) == [0]


def test_an_index_finds_all_that_are_near_in_order() -> None:
    index = Index([OTHER, LONG, "Hint. " + LONG.upper(), "1+1=?"])
    assert index.near(LONG) == [1, 2]
    assert index.near("1+1=?") == [3]
    assert index.near("Nothing of this kind was ever asked anywhere, by anybody.") == []


# training problems in suites


def test_a_training_problem_in_a_generated_suite_is_named() -> None:
    assert plan_warnings('["arithmetic:10+77"]', "{arithmetic: {}}") == ["leak: arithmetic:10+77 is in arithmetic"]
    assert plan_warnings('["arithmetic:47+38"]', "{arithmetic: {}}") == []


def test_sets_that_are_not_here_are_compared_by_their_shipped_digests(no_data: Path) -> None:
    assert plan_warnings('["math500:3"]', "{math500: {}}") == ["leak: math500:3 is in math500"]
    assert plan_warnings('["math500:3"]', "{mine: {source: math500}}") == ["leak: math500:3 is in mine"]
    assert plan_warnings('["math500:3"]', "{math500: {num_problems: 3}}") == []  # rows 0 to 2
    assert plan_warnings('["math500:3", "math500:4"]', "{math500: {}}") == [
        "leak: 2 training problems are in math500, such as math500:3"
    ]


def test_a_training_problem_in_other_words_is_named(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [OTHER, f"{LONG} Explain."])
    test = write(tmp_path / "test.jsonl", ["1+1=?", LONG.upper()])
    assert plan_warnings(f'["{train}:0", "{train}:1"]', f"{{mine: {{source: {test}}}}}") == [
        f"leak: {train}:1 (nearly {test}:1) is in mine"
    ]


def test_a_problem_that_a_prompt_shows_is_named() -> None:
    shots = '[{row: "arithmetic:10+77", completion: "87"}]'
    assert plan_warnings('["arithmetic:47+38"]', "{arithmetic: {}}", prompt=f"{{template: plain, shots: {shots}}}") == [
        "leak: shot arithmetic:10+77 (arithmetic:10+77) is in arithmetic"
    ]


def test_what_is_not_trained_leaks_nothing() -> None:
    assert plan_warnings('["arithmetic:10+77"]', "{arithmetic: {}}", num_steps=0) == []


# within and between suites


def test_near_repeats_within_a_file_are_named(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", [LONG, OTHER, f"{LONG} Explain.", "1+1=?", "11+1=?"])
    assert plan_warnings('["arithmetic:47+38"]', f"{{mine: {{source: {test}}}}}") == [
        f"leak: {test}:2 (nearly {test}:0) repeats another problem of mine"
    ]


def test_problems_of_two_suites_are_named_and_concern_a_group_of_both(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", [LONG, "1+1=?"]), write(tmp_path / "two.jsonl", ["1+1=?", OTHER])
    suites = f"{{one: {{source: {one}}}, two: {{source: {two}}}}}"
    says = f"{one}:1 ({two}:0) is in both one and two"
    assert plan_warnings('["arithmetic:47+38"]', suites) == [f"leak: {says}"]
    settings = "model.path: 'tiny:qwen2', examples: ['arithmetic:47+38'], rollout.max_tokens: 9"
    trial = f"{{{settings}, eval: {{suites: {suites}}}}}"
    text = f"version: 1\nname: s\nquestion: q\ntrial: {trial}\nseeds: [0]\n"
    configs = [trial.config for trial in make_plan(read(text, name="s")).grid]
    groups = {"both": GroupConfig(suites=["one", "two"])}
    assert by_suite(find_leaks(configs, (), groups), groups) == {"@both": (says,)}
    assert by_suite(find_leaks(configs, (), {}), {}) == {}


def test_one_source_under_two_names_is_meant_unless_a_group_counts_it_twice() -> None:
    suites = "{arithmetic: {}, sampled: {source: arithmetic, samples: 2, temperature: 1.0}}"
    assert plan_warnings('["arithmetic:47+38"]', suites) == []
    found = plan_warnings('["arithmetic:47+38"]', suites, "groups: {g: {suites: [arithmetic, sampled]}}\n")
    assert len(found) == 1 and "problems are in both arithmetic and sampled" in found[0]


def test_a_plan_shows_few_lines_of_many_leaks(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.jsonl", ["1+1=?", f"{number}+2=?"]) for number in range(5)]
    suites = ", ".join(f"s{number}: {{source: {path}}}" for number, path in enumerate(paths))
    found = plan_warnings('["arithmetic:47+38"]', f"{{{suites}}}")
    assert len(found) == 6  # of 10 pairs
    assert found[-1] == "leak: 5 more"
