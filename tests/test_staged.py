"""Staged training: a trial that begins from another trial's weights, whose key holds the other's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from verbs import oneshot

from oneshot.config.file import load
from oneshot.config.trial import TrialConfig
from oneshot.errors import SweepFileError, UserError
from oneshot.plan.loader import pin_all, pin_known
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.trainings import trainings
from oneshot.report.bundle import read_bundle, write_bundle
from oneshot.report.runs import gather
from oneshot.report.verdicts import verdicts
from oneshot.store.gc import find_waste
from oneshot.store.store import Store
from oneshot.tasks.grading import Grader
from oneshot.trial.recorder import record

FIRST = """\
version: 1
name: first
question: q
trial:
  model.path: tiny:qwen2
  prompt: {template: plain, train_suffix: ""}
  examples: [{row: "arithmetic:47+38", solution: {column: worked}}]
  train: {method: sft, num_steps: 3, batch_size: 1}
  optim.lr: 1e-3
  eval: {every_steps: 3, suites: {arithmetic: {num_problems: 20, temperature: 0.0, max_tokens: 40}}}
  checkpoint: {keep: weights}
axes:
  rate: {high: {}, low: {set: {optim.lr: 1e-5}}}
seeds: [0, 1]
"""
SECOND = """\
version: 1
name: second
question: q
trial:
  model: {path: "tiny:qwen2", init: {sweep: first, cell: {rate: high}}}
  prompt: {template: plain, train_suffix: ""}
  examples: ["arithmetic:47+38"]
  rollout: {num_groups: 2, group_size: 4, max_tokens: 24, temperature: 1.0}
  train: {num_steps: 0}
  eval: {every_steps: 1, suites: {arithmetic: {num_problems: 20, temperature: 0.0, max_tokens: 40}}}
seeds: [0, 1]
"""
TRAINED = SECOND.replace("num_steps: 0}", "num_steps: 3}")

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "s.yaml"
        path.write_text(text)
        return path

    return written


def run(path: Path, store: Store, grader: Grader) -> Plan:
    """As `oneshot run` does, without Ray."""
    plan = pin_all(load(path), store).plan
    for training in trainings(plan.trials):
        list(record(training, store.trial(training.key), grader=grader, origin="test"))
    store.sweep(plan.name).write_json("plan.json", plan.to_json())
    return plan


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the first stage, which the tests only read."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "first.yaml").write_text(FIRST)
    store = Store(str(folder / "runs"))
    with Grader() as grader:
        run(folder / "first.yaml", store, grader)
    return store


def accuracy(store: Store, plan: Plan, seed: int, step: int, **cell: str) -> float:
    (trial,) = (t for t in plan.trials if t.seed == seed and cell.items() <= t.cell.items())
    assert trial.key is not None
    (row,) = (row for row in store.trial(trial.key).rows() if row.step == step)
    return row.metrics["eval/arithmetic/pass_at_1"]


def test_it_begins_where_the_other_ended(first: Store, write: Write, grader: Grader) -> None:
    plan = run(write(SECOND), first, grader)
    before = Plan(name="first", num_cells=2, trials=make_plan(pin_known(load(write(FIRST)), first)).trials, warnings=())
    for seed in (0, 1):
        assert accuracy(first, plan, seed, 0) == accuracy(first, before, seed, 3, rate="high")
        assert accuracy(first, plan, seed, 0) != accuracy(first, before, seed, 0, rate="high")


def keys(text: str, store: Store, write: Write) -> list[str | None]:
    return [trial.key for trial in make_plan(pin_known(load(write(text)), store)).trials]


def test_its_key_holds_that_of_the_other(first: Store, write: Write) -> None:
    same = keys(TRAINED, first, write)
    assert None not in same
    assert same != keys(TRAINED.replace("rate: high", "rate: low"), first, write)
    fixed = keys(TRAINED.replace("{rate: high}}", "{rate: high}, seed: 0}"), first, write)
    assert fixed[0] == same[0]
    assert fixed[1] != same[1]
    assert same != keys(TRAINED.replace(", init: {sweep: first, cell: {rate: high}}", ""), first, write)
    other = TRAINED.replace("{rate: high}}", "{rate: high}, reference: model}")
    assert same != keys(other, first, write)
    without = "  loss.kl_coef: 0.0\nseeds:"
    assert keys(TRAINED.replace("seeds:", without), first, write) == keys(
        other.replace("seeds:", without), first, write
    )


def test_the_reference_is_the_start_or_the_model(first: Store, write: Write, grader: Grader) -> None:
    found = {}
    for reference in ("start", "model"):
        text = TRAINED.replace("{rate: high}}", f"{{rate: high}}, reference: {reference}}}")
        plan = run(write(text.replace("name: second", f"name: {reference}")), first, grader)
        rows = first.trial(plan.trials[0].key or "").rows()
        found[reference] = next(row.metrics["loss/kl"] for row in rows if row.step == 1)
    assert abs(found["start"]) < 1e-6
    assert found["model"] > 1e-3


def test_it_goes_on_bit_for_bit(first: Store, write: Write, grader: Grader) -> None:
    plan = pin_all(load(write(TRAINED.replace("name: second", "name: resumed"))), first).plan
    training = trainings(plan.trials)[0]
    whole, torn = first.trial(training.key), first.trial("torn")
    list(record(training, whole, grader=grader, origin="test"))
    steps = record(training, torn, grader=grader, origin="test")
    while next(steps).step < 2:
        pass
    steps.close()
    list(record(training, torn, grader=grader, origin="test"))
    assert torn.last_attempt() == 2
    shown = [
        [{k: v for k, v in row.metrics.items() if not k.startswith(("perf/", "system/"))} for row in folder.rows()]
        for folder in (whole, torn)
    ]
    assert shown[0] == shown[1]


def test_without_its_weights_the_trial_fails_and_says_so(tmp_path: Path, write: Write, grader: Grader) -> None:
    store = Store(str(tmp_path / "runs"))
    run(write(FIRST.replace("seeds: [0, 1]", "seeds: [0]")), store, grader)
    text = TRAINED.replace("seeds: [0, 1]", "seeds: [0]")
    plan = pin_all(load(write(text)), store).plan
    (training,) = trainings(plan.trials)
    assert training.config.model.init is not None
    key, _ = training.config.model.init.of(0)
    store.trial(key).remove_folder("checkpoint")
    list(record(training, store.trial(training.key), grader=grader, origin="test"))
    result = store.trial(training.key).result()
    assert result is not None
    assert "model.init: first: the weights of step 3 of trial " in result.reason
    assert "were removed" in result.reason
    # what was chosen is on record, whatever becomes of the other sweep
    assert [trial.key for trial in pin_all(load(write(text)), store).plan.trials] == [training.key]


def test_what_it_begins_from_is_kept_by_gc(first: Store, write: Write) -> None:
    plan = pin_all(load(write(TRAINED.replace("name: second", "name: collected"))), first).plan
    begun = {trial.config.model.init.of(trial.seed)[0] for trial in plan.trials if trial.config.model.init is not None}
    _, waste = find_waste(first, without="first")
    wasted = {Path(each.path).name for each in waste}
    assert len(begun) == 2
    assert begun.isdisjoint(wasted)
    assert len(wasted) > 1, "the other cell of the first stage is waste"


def test_its_config_survives_json(first: Store, write: Write) -> None:
    for trial in pin_all(load(write(TRAINED)), first).plan.trials:
        assert TrialConfig.model_validate(json.loads(json.dumps(trial.config.model_dump(mode="json")))) == trial.config


def test_its_bundle_is_judged(first: Store, write: Write, grader: Grader, tmp_path: Path) -> None:
    claim = "{name: lasts, metric: eval/arithmetic/pass_at_1, a: {at: last}, b: {at: start}, expect: {within: 0.9}}"
    text = SECOND.replace("name: second", "name: judged") + f"claims: [{claim}]\n"
    run(write(text), first, grader)
    pinned = pin_all(load(write(text)), first)
    write_bundle(gather(pinned), tmp_path / "judged.oneshot.zip")
    (verdict,) = verdicts(read_bundle(tmp_path / "judged.oneshot.zip"))
    assert verdict.effect == 0.0


def test_a_setting_may_name_the_start(first: Store, write: Write) -> None:
    text = TRAINED.replace(", init: {sweep: first, cell: {rate: high}}", "").replace("name: second", "name: set")
    plan = make_plan(pin_known(load(write(text), overrides=("model.init={sweep: first, cell: {rate: high}}",)), first))
    assert [trial.key for trial in plan.trials] == keys(TRAINED, first, write)


def test_one_trial_alone_begins_there_too(first: Store, write: Write) -> None:
    path = write(TRAINED.replace("seeds:", f"storage: {first.root}\nseeds:"))
    said = oneshot("trial", str(path), "--seed", "1", "--json", cwd=path.parent)
    assert said.code == 0, said.err
    start = json.loads(said.out.splitlines()[0])["metrics"]["eval/arithmetic/pass_at_1"]
    before = Plan(name="first", num_cells=2, trials=make_plan(pin_known(load(write(FIRST)), first)).trials, warnings=())
    assert start == accuracy(first, before, 1, 3, rate="high")


def test_its_own_right_answers_are_those_of_the_start(first: Store, write: Write, grader: Grader) -> None:
    text = TRAINED.replace('["arithmetic:47+38"]', '[{row: "arithmetic:47+38", solution: {from: policy, samples: 8}}]')
    text = text.replace("train: {num_steps: 3}", "train: {method: sft, num_steps: 1}").replace(
        "seeds: [0, 1]", "seeds: [0]"
    )
    found = {}
    for name, start in (("staged", True), ("plain", False)):
        own = text.replace("name: second", f"name: {name}").replace("max_tokens: 24", "max_tokens: 56")
        own = own if start else own.replace(", init: {sweep: first, cell: {rate: high}}", "")
        (trial,) = run(write(own.replace("samples: 8", "samples: 8, keep: any")), first, grader).trials
        found[name] = (first.trial(trial.key or "").read_json("sampled.json") or {})["texts"]
    assert found["staged"] != found["plain"]


def test_it_waits_for_the_other(tmp_path: Path, write: Write) -> None:
    store = Store(str(tmp_path / "runs"))
    plan = make_plan(pin_known(load(write(TRAINED)), store))
    assert {trial.waits_for for trial in plan.trials} == {"the weights of 'first': run that sweep first"}
    with pytest.raises(
        UserError, match="waits for the weights of 'first': run that sweep first, with the same storage"
    ):
        pin_all(load(write(TRAINED)), store)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("sweep: first", "sweep: second", "a sweep cannot begin from its own trials"),
        (
            "cell: {rate: high}",
            "cell: {}",
            "first: several cells match (rate=high, rate=low); name one in model.init.cell",
        ),
        (
            "cell: {rate: high}",
            "cell: {rate: mid}",
            "first: no cell matches {'rate': 'mid'}; name one in model.init.cell",
        ),
        ("seeds: [0, 1]", "seeds: [0, 7]", "first: has no seed 7; set model.init.seed"),
        ("sweep: first", "sweep: ../first", "model.init.sweep"),
        ("init: {", "adapter: {r: 4}, init: {", "model.init: cannot be combined with model.adapter"),
        (
            'path: "tiny:qwen2"',
            'path: "tiny:llama"',
            "first: trained tiny:qwen2, but model.path is tiny:llama; set both to the same model",
        ),
    ],
)
def test_a_wrong_start_is_refused(first: Store, write: Write, old: str, new: str, told: str) -> None:
    with pytest.raises((UserError, SweepFileError)) as refused:
        pin_all(load(write(TRAINED.replace(old, new))), first)
    assert told in str(refused.value)
    assert "s.yaml" in str(refused.value)


def test_a_start_without_weights_is_refused(tmp_path: Path, write: Write, grader: Grader) -> None:
    store = Store(str(tmp_path / "runs"))
    run(write(FIRST.replace("keep: weights", "keep: none")), store, grader)
    with pytest.raises(UserError, match=r"first: seed 0 has no weights; it must run with checkpoint\.keep"):
        pin_all(load(write(TRAINED)), store)
