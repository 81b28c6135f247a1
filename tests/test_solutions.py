"""What SFT learns: forms of solutions, columns of published sets, thinking, digests and keys, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from test_plan import trial
from test_prompts import CHAT_TEMPLATE, CHATML, SPECIAL, tokenizer
from test_ranking import HISTORY, write_history
from test_sets import jsonl, put_in_memory
from test_train import tiny_folder
from verbs import oneshot

from oneshot.config.file import read
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, UserError
from oneshot.plan.cost import training_shape
from oneshot.plan.keys import identify_trial
from oneshot.plan.loader import pin_all, pin_known
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.trainings import data_digests, trainings
from oneshot.store.store import Store
from oneshot.sweep.run import check_lengths
from oneshot.tasks import sets
from oneshot.tasks.grading import Grader
from oneshot.tasks.prompts import end_id, with_thinking
from oneshot.tasks.solutions import identify_solutions, load_demonstrations
from oneshot.tiny.make import make_tokenizer
from oneshot.training.demonstrations import check_length, encode_demonstrations
from oneshot.training.loop import train
from oneshot.training.state import new_state

MakeConfig = Callable[..., TrialConfig]
SWEEP = """version: 1
name: learn
question: Is it learned?
trial:
  model.path: tiny:qwen2
  prompt: {template: plain, train_suffix: ""}
  train: {method: sft, num_steps: 2}
  examples: ["arithmetic:47+38"]
seeds: [0]
"""
SUM, TRAIN = '"arithmetic:47+38"', "{method: sft, num_steps: 2}"
WORKED = "Work: 47+30=77. 77+8=85. So \\boxed{85}"


def plan(*changes: tuple[str, str]) -> Plan:
    text = SWEEP
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return make_plan(read(text, name="s.yaml"))


@pytest.fixture
def sft_config(tiny_config: MakeConfig) -> MakeConfig:
    def make(*examples: Any, **sections: Any) -> TrialConfig:
        method = {"method": "sft", "num_steps": 1, **sections.pop("train", {})}
        return tiny_config(examples=list(examples), train=method, eval={"suites": {}}, **sections)

    return make


def learned(config: TrialConfig) -> list[tuple[str, str, str]]:
    """(id, thinking, solution) of each demonstration."""
    made = load_demonstrations(config.examples, {})
    return [(each.problem.id, each.thinking, each.solution) for each in made]


# forms


@pytest.mark.parametrize(
    ("example", "texts"),
    [
        ("arithmetic:47+38", [WORKED]),
        ({"row": "arithmetic:47+38", "solution": {"column": "boxed"}}, ["\\boxed{85}"]),
        ({"row": "arithmetic:47+38", "solution": "It is 85."}, ["It is 85."]),
        ({"row": "arithmetic:47+38", "solution": {"texts": ["a", "b"]}}, ["a", "b"]),
        ({"row": "arithmetic:47+38", "answer": "84", "solution": "It is 84."}, ["It is 84."]),
        ({"problem": "1+1=?", "answer": "2", "solution": "Two"}, ["Two"]),
        ({"set": "arithmetic", "random": 2, "seed": 1, "solution": {"texts": ["a"]}}, ["a", "a"]),
    ],
)
def test_an_examples_solution_is_a_text_or_several(sft_config: MakeConfig, example: Any, texts: list[str]) -> None:
    assert [solution for _, _, solution in learned(sft_config(example))] == texts


ROW = {"question": "What is 1+1?", "solution": "It is \\boxed{2}", "answer": "2"}
S1K = {"question": "q", "solution": "4", "thinking_trajectories": ["I think.", "Again."], "attempt": "Four."}
S1K11 = {"question": "q", "solution": "4", "deepseek_thinking_trajectory": "Hm.", "deepseek_attempt": "It is 4."}
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "It is \\boxed{4}"}]}
PUBLISHED = {
    "s1k": (S1K, ("I think.\nAgain.", "Four."), ""),
    "s1k11": (S1K11, ("Hm.", "It is 4."), ""),
    "limo": (ROW, ("", "It is \\boxed{2}"), "2"),
    "limo_v2": (ROW, ("", "It is \\boxed{2}"), "2"),
    "cft_p0": (CHAT, ("", "It is \\boxed{4}"), "4"),
    "math7500": ({"problem": "p", "solution": "So \\boxed{9}"}, ("", "So \\boxed{9}"), "9"),
}


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, *rows: dict[str, Any]) -> None:
    """Put rows in the place that a known set is fetched from."""
    if sets.KNOWN[name].file.endswith(".parquet"):
        pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows)), folder / "set.parquet")
        url = put_in_memory(f"{name}.parquet", (folder / "set.parquet").read_bytes())
    else:
        url = put_in_memory(f"{name}.jsonl", jsonl(*rows))
    monkeypatch.setitem(sets.KNOWN, name, replace(sets.KNOWN[name], url=url, num_rows=len(rows)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set_is_fetched_and_its_columns_are_learned(
    sft_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, no_data: Path, tmp_path: Path, name: str
) -> None:
    row, (thinking, solution), label = PUBLISHED[name]
    publish(monkeypatch, tmp_path, name, row, row)
    config = sft_config(f"{name}:1")
    before = identify_trial(config)
    assert before.provisional == (name,)
    assert oneshot("fetch", name, cwd=tmp_path).code == 0
    assert learned(config) == [(f"{name}:1", thinking, solution)]
    assert sets.load(name)[1].answer == label
    after = identify_trial(config)
    assert (after.provisional, after.contents == before.contents) == ((), False)


def test_a_column_of_a_file_may_be_named_with_its_thinking(sft_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({**ROW, "hint": "Count.", "long": ["a", "b"]}, {**ROW, "hint": "Add.", "long": ["c"]}))
    whole, one = {"set": str(path)}, {"row": f"{path}:1"}
    assert [text for _, _, text in learned(sft_config(whole))] == ["It is \\boxed{2}"] * 2
    assert [text for _, _, text in learned(sft_config({**whole, "solution": "hint"}))] == ["Count.", "Add."]
    pair = {"column": "hint", "thinking": "long"}
    assert learned(sft_config({**one, "solution": pair})) == [(f"{path}:1", "c", "Add.")]


def test_a_chat_of_a_file_is_learned_before_its_other_columns(sft_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_bytes(jsonl({**CHAT, "solution": "other"}))
    (found,) = load_demonstrations(sft_config(f"{tmp_path}/chat.jsonl").examples, {})
    assert (found.problem.prompt, found.problem.answer, found.solution) == ("q", "4", "It is \\boxed{4}")


# thinking


@pytest.mark.parametrize(
    ("style", "template", "is_open", "wanted"),
    [
        ("auto", "plain", False, "<think>\nT\n</think>\n\nS"),
        ("tags", "r1-distill", True, "T\n</think>\n\nS"),
        ("auto", "qwen2.5", False, "<|im_start|>think\nT\n<|im_start|>answer\nS"),
        ("turns", "plain", False, "<|im_start|>think\nT\n<|im_start|>answer\nS"),
        ("tags", "qwen2.5", False, "<think>\nT\n</think>\n\nS"),
    ],
)
def test_thinking_goes_before_the_solution(style: Any, template: Any, is_open: bool, wanted: str) -> None:
    assert with_thinking(" T\n", "S ", style=style, template=template, is_open=is_open) == wanted
    assert with_thinking("", "S", style=style, template=template, is_open=is_open) == "S"


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("plain", "1+1=?\n|<think>\nT\n</think>\n\nS<eos>"),
        ("chat", "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n|<think>\nT\n</think>\n\nS<|im_end|>"),
        (
            "r1-distill",
            "<｜begin▁of▁sentence｜><｜User｜>1+1=?<｜Assistant｜><think>\n|T\n</think>\n\nS<｜end▁of▁sentence｜>",
        ),
    ],
)
def test_the_text_of_prompt_and_solution_to_the_letter(
    sft_config: MakeConfig, tmp_path: Path, template: Any, wanted: str
) -> None:
    """An R1 prompt has opened the thinking, which its solution goes on with; each ends as its template's answers."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"question": "1+1=?", "answer": "2", "s": "S", "t": "T"}))
    example = {"set": str(path), "solution": {"column": "s", "thinking": "t"}}
    config = sft_config(example, prompt={"template": template})
    made = tokenizer(*SPECIAL.get(template, CHATML), chat_template=CHAT_TEMPLATE if template == "chat" else None)
    found = encode_demonstrations(
        config, load_demonstrations(config.examples, {}), shots=(), tokenizer=made, max_positions=256
    )
    texts = [made.decode(ids) for ids in (found.prompts[0], found.solutions[0])]
    assert "|".join(texts).replace(made.eos_token, "<eos>") == wanted
    assert found.solutions[0][-1] == end_id(template=template, tokenizer=made)


def test_solutions_of_one_prompt_share_it(sft_config: MakeConfig, grader: Grader) -> None:
    one = {"problem": "1+1=?", "answer": "2", "solution": {"texts": ["a", "bc"]}}
    state = new_state(sft_config(one, {**one, "answer": "3", "solution": "d"}, "arithmetic:2*2"), seed=0, grader=grader)
    assert (len(state.prompts), state.prompt_of) == (2, (0, 0, 0, 1))
    # a token a character, and the end
    assert [len(ids) for ids in state.solutions[:3]] == [2, 3, 2]


# digests and keys


def test_a_digest_changes_with_what_is_learned(sft_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({**ROW, "t": "T", "same": ROW["solution"]}, {**ROW, "answer": "3", "t": "U", "same": "-"}))

    def digest(example: Any) -> str:
        (found,) = identify_solutions(sft_config(example).examples, {}).digests
        return found

    row = {"row": f"{path}:0"}
    distinct: list[Any] = [
        f"{path}:0",
        f"{path}:1",  # another label
        {**row, "solution": "It is 2."},
        {**row, "solution": "It is two."},
        {**row, "answer": "4", "solution": "It is 2."},
        {**row, "solution": {"column": "solution", "thinking": "t"}},
        {**row, "solution": {"from": "policy"}},
        {**row, "solution": {"from": "policy", "samples": 4}},
        {**row, "solution": {"from": "policy", "seed": 1}},
        {**row, "solution": {"from": "policy", "keep": "any"}},
        {**row, "solution": {"from": "tiny:llama"}},
    ]
    assert len({digest(example) for example in distinct}) == len(distinct)
    # the name of a column is not what is learned
    assert digest({**row, "solution": {"column": "same"}}) == digest(distinct[0])
    assert digest({**row, "solution": {"texts": ["It is 2."]}}) == digest(distinct[2])


def test_before_a_set_is_fetched_its_columns_tell_trials_apart(sft_config: MakeConfig, no_data: Path) -> None:
    columns = [{"column": "attempt"}, {"column": "attempt", "thinking": "thinking_trajectories"}, {"column": "cot"}]
    found = [identify_solutions(sft_config({"row": "s1k:3", "solution": each}).examples, {}) for each in columns]
    assert {each.provisional for each in found} == {("s1k",)}
    assert len({each.digests for each in found}) == 3


def test_sampled_solutions_need_no_data_to_be_planned(sft_config: MakeConfig, no_data: Path) -> None:
    config = sft_config({"row": "dsr_sub:124", "solution": {"from": "policy"}})
    assert trial(config).key is not None
    assert identify_trial(config).provisional == ()


def test_recorded_digests_stay_when_the_file_changes(sft_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    config = sft_config({"row": f"{path}:0", "solution": {"column": "solution"}})
    path.write_bytes(jsonl(ROW))
    before, recorded = identify_trial(config).contents, data_digests([config])
    path.write_bytes(jsonl({**ROW, "solution": "Another \\boxed{2}."}))
    changed = identify_trial(config).contents
    sets.remember(recorded)
    try:
        assert identify_trial(config).contents == before != changed
    finally:
        sets.remember({})


DEPENDS: dict[str, dict[str, Any]] = {
    "batch": {"train": {"batch_size": 3}},
    "length": {"train": {"max_length": 99}},
    "cut": {"train": {"too_long": "cut"}},
    "thinking": {"prompt": {"thinking": "turns"}},
    "mean": {"loss": {"aggregation": "sequence_mean"}},
    "positions": {"model": {"max_positions": 200}},
    "optimiser": {"optim": {"beta2": 0.9}},
    "end": {"prompt": {"stop": "eos"}},
}
HAS_NO_EFFECT: dict[str, dict[str, Any]] = {
    "steps": {"train": {"num_steps": 9}},
    "rollout": {"rollout": {"temperature": 0.5, "num_groups": 2}},
    "reward": {"reward": {"kind": "format"}},
    "advantage": {"advantage": {"normalize_std": False}},
    "terms": {"loss": {"kl_coef": 0.5, "entropy_coef": 0.1}},
    "split of the work": {"train": {"microbatch_tokens": 10}},
}


@pytest.mark.parametrize("name", [*DEPENDS, *HAS_NO_EFFECT])
def test_a_key_of_sft_is_of_what_sft_uses(sft_config: MakeConfig, name: str) -> None:
    same = trial(sft_config("arithmetic:47+38", **HAS_NO_EFFECT.get(name, {}), **DEPENDS.get(name, {}))).key
    assert (same == trial(sft_config("arithmetic:47+38")).key) == (name in HAS_NO_EFFECT)


def test_how_solutions_are_sampled_is_in_the_key(sft_config: MakeConfig) -> None:
    example = {"row": "arithmetic:47+38", "solution": {"from": "policy"}}
    changes: list[dict[str, Any]] = [{}, {"rollout": {"temperature": 0.5}}, {"reward": {"grader": "released"}}]
    assert len({trial(sft_config(example, **change)).key for change in changes}) == 3


def test_a_key_of_grpo_does_not_depend_on_solutions(tiny_config: MakeConfig) -> None:
    example = {"row": "arithmetic:47+38", "solution": "It is 85."}
    assert trial(tiny_config(examples=[example])).key == trial(tiny_config()).key
    assert trial(tiny_config(examples=[example], train={"method": "sft"})).key != trial(tiny_config()).key


# epochs


@pytest.mark.parametrize(
    ("num_solutions", "batch_size", "num_epochs", "num_steps"),
    # 10 solutions in batches of 4 are 3 steps an epoch: 2 epochs are 6, 1.5 are 4.5 and so 5, 0.1 is one step
    [(10, 4, 2, 6), (10, 4, 1.5, 5), (10, 4, 0.1, 1), (1, 16, 3, 3), (16, 16, 2, 2), (17, 16, 2, 4)],
)
def test_epochs_become_steps(num_solutions: int, batch_size: int, num_epochs: float, num_steps: int) -> None:
    texts = json.dumps([str(number) for number in range(num_solutions)])
    made = plan(
        (TRAIN, f"{{method: sft, batch_size: {batch_size}, num_epochs: {num_epochs}}}"),
        (SUM, f"{{row: {SUM}, solution: {{texts: {texts}}}}}"),
    )
    (config,) = [trial.config for trial in made.trials]
    assert (config.train.num_steps, config.train.num_epochs) == (num_steps, None)
    # a config on record is read again
    assert TrialConfig.model_validate(config.model_dump()) == config


def test_epochs_over_ranked_examples_are_counted_once_they_are_known(tmp_path: Path) -> None:
    history = write_history(tmp_path)
    cell = f"axes:\n  e:\n    top: {{from_rank: {{history: FILE, top: {len(HISTORY)}, together: true}}}}\nseeds:"
    text = SWEEP.replace("seeds:", cell).replace(f"  examples: [{SUM}]\n", "")
    text = text.replace(TRAIN, "{method: sft, batch_size: 2, num_epochs: 2}")
    waiting = make_plan(pin_known(read(text.replace("FILE", "some-sweep"), name="s.yaml"), Store(str(tmp_path))))
    (unknown,) = waiting.trials
    # ceil(5 / 2) = 3 steps an epoch
    assert (unknown.key, unknown.config.train.num_steps) == (None, 6)
    assert unknown.waits_for == "the history of 'some-sweep': run that sweep first"
    with pytest.raises(UserError, match=r"dsr_sub:124: it has no solution, which train.method: sft learns"):
        make_plan(pin_known(read(text.replace("FILE", history), name="s.yaml"), Store(str(tmp_path))))


# what is refused

FORMS = "is not a solution; write a text, {texts: [...]}, {column: ..., thinking: ...} or {from: policy, samples: 16}"
NO_SOLUTION = "it has no solution, which train.method: sft learns"
BAD: dict[str, tuple[str, str, str]] = {
    "no column": (SUM, "ROWS", "s.yaml:8: trial.examples: ROWS:0: " + NO_SOLUTION + "; its columns are question, answer, hint; name a column by {set: ROWS, solution: COLUMN}, write {row: ROWS:0, solution: TEXT}, or sample it by solution: {from: policy}"),
    "another column": (SUM, "{set: ROWS, solution: text}", "s.yaml:8: trial.examples: ROWS:0: it has no column `text`; its columns are question, answer, hint"),
    "a column of numbers": (SUM, "{set: ROWS, solution: answer}", "s.yaml:8: trial.examples: ROWS:0: `answer` is 1, not a text to learn; choose another column, or remove the row"),
    "a written problem": (SUM, "{problem: p, answer: a}", "s.yaml:8: trial.examples: written:dc65de0e: " + NO_SOLUTION + "; write its text, or sample it by solution: {from: policy}"),
    "an empty solution": (SUM, f'{{row: {SUM}, solution: " "}}', "s.yaml:8: trial.examples: {'row': 'arithmetic:47+38', 'solution': ' '}: solution: it is empty; write the text to learn, or leave `solution` out"),
    "a blank text": (SUM, f'{{row: {SUM}, solution: {{texts: ["a", " "]}}}}', "texts: one of them is blank; write the text to learn, or remove it"),
    "a column of a written problem": (SUM, "{problem: p, answer: a, solution: {column: b}}", "a written problem has no columns; write the text as its `solution`"),
    "a constant that ends elsewhere": (TRAIN, TRAIN + "\n  optim.schedule: {warmup: 0.1, final: 0.5}", "final has no effect with kind: constant; remove it, or choose linear or cosine"),
    "an unknown form": (SUM, f"{{row: {SUM}, solution: {{text: a}}}}", "s.yaml:8: trial.examples: {'row': 'arithmetic:47+38', 'solution': {'text': 'a'}}: solution: {'text': 'a'} " + FORMS),
    "a list": (SUM, f"{{row: {SUM}, solution: [a]}}", "solution: ['a'] " + FORMS),
    "a misspelt key": (SUM, f"{{row: {SUM}, solution: {{from: policy, sample: 3}}}}", "unknown key 'sample'; choose one of from, keep, samples, seed"),
    "neither label nor solution": (SUM, f"{{row: {SUM}}}", "it has neither `answer` nor `solution`; add one, or write the row alone"),
    "another label": (SUM, f'{{row: {SUM}, answer: "84"}}', "s.yaml:8: trial.examples: arithmetic:47+38=84: a row with another label needs a `solution` of its own; write its text"),
    "wrong labels": (SUM, "{set: arithmetic, random: 3, wrong: 1}", ": a row with another label needs a `solution` of its own; write its text"),
    "a column of generated problems": (SUM, f"{{row: {SUM}, solution: {{column: x}}}}", "s.yaml:8: trial.examples: arithmetic:47+38: generated problems have no column 'x'; they have worked, steps, boxed"),
    "a branch of the hub": (SUM, f"{{row: {SUM}, solution: {{from: Qwen/Qwen2.5-1.5B@main}}}}", "s.yaml:8: trial.examples: solution.from: Qwen/Qwen2.5-1.5B@main: write owner/name@COMMIT, since a branch can move"),
    "a model that is not shipped": (SUM, f'{{row: {SUM}, solution: {{from: "tiny:gpt"}}}}', "s.yaml:8: trial.examples: solution.from: tiny:gpt: not shipped; use one of tiny:blank, tiny:llama, tiny:qwen2"),
    "epochs of grpo": (TRAIN, "{num_epochs: 2}", "s.yaml:4: trial: train.num_epochs: grpo has no epochs; set train.num_steps, or train.method: sft"),
    "epochs and steps": (TRAIN, "{method: sft, num_steps: 2, num_epochs: 1}", "s.yaml:4: trial: train.num_epochs: train.num_steps is set, too; keep one of them"),
    "a schedule without length": (TRAIN, "{method: sft}\n  optim.schedule.kind: cosine", "optim.schedule: cosine needs the length of the training; set train.num_steps or train.num_epochs"),
    "a warm-up without length": (TRAIN, "{method: sft}\n  optim.schedule.warmup: 0.1", "optim.schedule: constant needs the length of the training; set train.num_steps or train.num_epochs"),
    "dr. grpo": (TRAIN, TRAIN + "\n  loss.aggregation: constant", "loss.aggregation: constant is for grpo; use token_mean or sequence_mean with sft"),
    "a length beyond the positions": (TRAIN, "{method: sft, num_steps: 2, max_length: 300}", "s.yaml:7: trial.train.max_length: train.max_length: 300, but tiny:qwen2 has 256 positions; lower it, or set model.max_positions and model.rope_scaling: yarn"),
    "samples beyond the positions": (SUM, f"{{row: {SUM}, solution: {{from: policy}}}}", "rollout.max_tokens: 3072, but tiny:qwen2 has 256 positions for a prompt and its completion; lower rollout.max_tokens"),
    "yarn without length": ("model.path: tiny:qwen2", "model: {path: tiny:qwen2, rope_scaling: yarn}", "model.rope_scaling: yarn needs model.max_positions, the length to reach"),
    "positions beyond the model's": ("model.path: tiny:qwen2", "model: {path: tiny:qwen2, max_positions: 512}", "s.yaml:5: trial.model.max_positions: model.max_positions: 512, but tiny:qwen2 has 256; set model.rope_scaling: yarn to reach more"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_clear_error(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "rows.jsonl")
    Path(path).write_bytes(jsonl({"question": "q", "answer": 1, "hint": "h"}))
    old, new, message = (text.replace("ROWS", path) for text in BAD[name])
    with pytest.raises(UserError) as caught:
        plan((old, new))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_epochs_of_sampled_solutions_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        plan((TRAIN, "{method: sft, num_epochs: 2}"), (SUM, f"{{row: {SUM}, solution: {{from: policy}}}}"))
    assert str(caught.value) == (
        "s.yaml:7: trial.train.num_epochs: train.num_epochs: the number of solutions is unknown before they are "
        "sampled; set train.num_steps"
    )


def test_settings_of_the_other_method_are_warnings() -> None:
    sft = plan((TRAIN, f"{TRAIN}\n  reward.kind: format\n  rollout.num_groups: 2"))
    assert [warning for warning in sft.warnings if "has no effect" in warning] == [
        "reward has no effect with train.method sft", "rollout.num_groups has no effect with train.method sft",
    ]  # fmt: skip
    grpo = plan((TRAIN, "{num_steps: 2, batch_size: 3}\n  rollout.max_tokens: 9"))
    assert "train.batch_size has no effect with train.method grpo" in grpo.warnings


LONG = (
    {"problem": "1+1=?", "answer": "2", "solution": "x" * 60},
    {"problem": "2+2=?", "answer": "4", "solution": "y" * 30},
)


def test_solutions_that_are_too_long_are_counted_before_anything_runs(sft_config: MakeConfig, grader: Grader) -> None:
    """A prompt has 6 tokens with its newline; the longest has 6 + 60 + 1, the other 6 + 30 + 1."""
    message = (
        r"^examples: 2 of 3 solutions are longer than 36 tokens with their prompts; the longest, written:[0-9a-f]{8}, "
        r"has 67; raise train.max_length, or set train.too_long: cut$"
    )
    config = sft_config(*LONG, {"problem": "3+3=?", "answer": "6", "solution": "6"}, train={"max_length": 36})
    for refuse in (lambda: check_length(config), lambda: new_state(config, seed=0, grader=grader)):
        with pytest.raises(DataError, match=message):
            refuse()


def test_beyond_the_models_positions_the_hint_is_to_reach_more(sft_config: MakeConfig) -> None:
    config = sft_config({**LONG[0], "solution": "x" * 300})
    with pytest.raises(
        DataError, match=r"longer than 256 tokens.*has 307; reach more positions by model.max_positions"
    ):
        check_length(config)
    reached = {"max_positions": 512, "rope_scaling": "yarn"}
    check_length(sft_config({**LONG[0], "solution": "x" * 300}, model=reached))


def test_a_prompt_that_leaves_no_token_is_refused(sft_config: MakeConfig) -> None:
    with pytest.raises(
        DataError, match=r"a prompt of 6 tokens leaves none of 6 for a solution; raise train.max_length"
    ):
        check_length(sft_config(LONG[0], train={"max_length": 6, "too_long": "cut"}))


def test_a_cut_solution_ends_without_its_end_and_is_counted(sft_config: MakeConfig, grader: Grader) -> None:
    """Of 36 tokens 6 are the prompt's: both solutions lose their end token, and the longer one 30 letters more."""
    state = new_state(sft_config(*LONG, train={"max_length": 36, "too_long": "cut"}), seed=0, grader=grader)
    assert [state.policy.tokenizer.decode(ids) for ids in state.solutions] == ["x" * 30, "y" * 30]
    one = sft_config(*LONG, train={"max_length": 37, "too_long": "cut"})
    (step,) = train(one, new_state(one, seed=0, grader=grader))
    assert step.metrics["sft/cut"] == 0.5


def test_an_end_that_would_not_end_completions_is_refused(
    sft_config: MakeConfig, grader: Grader, tmp_path: Path
) -> None:
    """The organism with a chat template in which another token than the end token ends a turn."""
    path, made = tiny_folder(tmp_path), make_tokenizer()
    made.chat_template = f"{{% for turn in messages %}}{{{{ turn.content }}}}{made.pad_token}{{% endfor %}}"
    made.save_pretrained(path)
    config = sft_config("arithmetic:47+38", model={"path": path}, prompt={"template": "chat", "stop": "eos"})
    message = f"prompt.stop: eos: solutions end with {made.pad_token}, which would not end completions; use stop: turn"
    with pytest.raises(DataError) as caught:
        new_state(config, seed=0, grader=grader)
    assert str(caught.value) == message
    turned = config.model_copy(update={"prompt": config.prompt.model_copy(update={"stop": "turn"})})
    assert {ids[-1] for ids in new_state(turned, seed=0, grader=grader).solutions} == {made.pad_token_id}


def test_seeds_that_repeat_one_training_are_a_warning() -> None:
    texts = f"{{row: {SUM}, solution: {{texts: [a, b, c]}}}}"
    seeds = ("seeds: [0]", "seeds: [0, 1]")
    repeated = "seeds repeat one training, since each step learns all its solutions"
    assert any(warning.startswith(repeated) for warning in plan((SUM, texts), seeds).warnings)
    in_batches = plan((SUM, texts), seeds, (TRAIN, TRAIN.replace("}", ", batch_size: 2}")))
    sampled = plan(
        (SUM, f"{{row: {SUM}, solution: {{from: policy}}}}"), seeds, (TRAIN, f"{TRAIN}\n  rollout.max_tokens: 9")
    )
    for other in (in_batches, sampled, plan((SUM, texts))):
        assert not any(warning.startswith(repeated) for warning in other.warnings)


def test_a_solution_without_sft_is_a_warning() -> None:
    grpo = plan((SUM, f"{{row: {SUM}, solution: a}}"), (TRAIN, "{num_steps: 2}\n  rollout.max_tokens: 9"))
    assert "solution of an example has no effect with train.method grpo" in grpo.warnings


def test_a_solution_that_does_not_fit_is_refused_with_its_place(tmp_path: Path) -> None:
    sweep = read(SWEEP.replace(TRAIN, "{method: sft, num_steps: 2, max_length: 20}"), name="s.yaml")
    sweep_run = pin_all(sweep, Store(str(tmp_path)))
    with pytest.raises(UserError) as caught:
        check_lengths(sweep_run, trainings(sweep_run.plan.trials))
    assert str(caught.value).startswith(
        "s.yaml:7: trial.train.max_length: examples: 1 of 1 solutions are longer than 20 tokens with their prompts"
    )


def test_solutions_of_a_file_that_is_gone_are_known_by_their_record(sft_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(jsonl(CHAT))
    config = sft_config(f"{path}:0")
    known, recorded = trial(config).key, data_digests([config])
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        identify_solutions(config.examples, {})
    sets.remember(recorded)
    try:
        assert trial(config).key == known
    finally:
        sets.remember({})


def test_seconds_of_other_solutions_are_not_taken_for_a_trainings_own(sft_config: MakeConfig) -> None:
    shapes = {training_shape(sft_config({"set": "arithmetic", "random": n}), gpus=1) for n in (2, 3)}
    assert len(shapes) == 2
    assert training_shape(sft_config(SUM), gpus=1) not in shapes


def test_evaluation_alone_needs_no_solution(sft_config: MakeConfig) -> None:
    assert trial(sft_config("dsr_sub:124", train={"num_steps": 0})).key
