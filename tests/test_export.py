"""`oneshot export`: what it writes is the model that the trial had, by transformers alone; MLflow and a hub know it."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import mlflow
import pytest
import torch
from browser import Browser
from builders import located
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from synthetic import SMALL, make_store
from test_faults import Server
from test_tracking import Lab
from transformers import AutoModelForCausalLM, AutoTokenizer
from verbs import Said, oneshot

from oneshot.config.examples import RowExample, SampledSolutions
from oneshot.config.file import load
from oneshot.config.trial import TrialConfig
from oneshot.export import weights
from oneshot.export.card import _code
from oneshot.models.source import SHIPPED
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.trainings import trainings
from oneshot.plan.trial import Trial
from oneshot.policy.loading import load_policy
from oneshot.store.store import Store
from oneshot.sweep.tracking.tracker import Tracker
from oneshot.tasks.grading import Grader
from oneshot.trial.recorder import record

pytest_plugins = ["labs", "pages"]

MAX_TOKENS = 56
TEXT = f"""\
version: 1
name: made
question: Does one sum lift the rest?
trial:
  examples: ["arithmetic:47+38"]
  prompt: {{template: plain, train_suffix: ""}}
  rollout: {{num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: {MAX_TOKENS}}}
  optim.lr: 1e-3
  train.num_steps: 2
  eval: {{suites: {{arithmetic: {{num_problems: 4}}}}}}
axes:
  model:
    whole: {{set: {{model.path: "tiny:qwen2"}}}}
    half: {{set: {{model.path: "tiny:llama", model.mixed_precision: bf16}}}}
    lora: {{set: {{model.path: "tiny:qwen2", model.adapter: {{r: 4, alpha: 8}}, optim.lr: 1e-2}}}}
seeds: [0]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """A folder in which the sweep `made` has run, with its runs in MLflow."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "s.yaml").write_text(TEXT)
    (folder / "runs").mkdir()
    (folder / "runs" / "mlflow.db").write_bytes(database.read_bytes())
    with Grader(timeout_s=5.0) as grader:
        summary = Lab(folder, grader).run(load(folder / "s.yaml"))
    assert (summary.finished, summary.tracking_error) == (3, "")
    return folder


def plan(made: Path) -> Plan:
    return make_plan(load(made / "s.yaml"))


def trial_of(made: Path, cell: str) -> Trial:
    (trial,) = (trial for trial in plan(made).trials if trial.cell == {"model": cell})
    return trial


def export(made: Path, cell: str, to: Path, *more: str) -> Said:
    return oneshot("export", "made", "--cell", f"model={cell}", "--to", str(to), *more, cwd=made)


def written(made: Path, cell: str, to: Path, *more: str) -> Path:
    said = export(made, cell, to, "--no-mlflow", *more)
    assert said.code == 0, said.err
    return to


def checkpoint(made: Path, cell: str) -> dict[str, torch.Tensor]:
    """What the trial kept, by name."""
    folder = made / "runs" / "trials" / str(trial_of(made, cell).key) / "checkpoint"
    return {name: one for file in folder.glob("*/model*.safetensors") for name, one in load_file(file).items()}


def client(made: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{made}/runs/mlflow.db")


def models(made: Path) -> list[Any]:
    experiment = client(made).get_experiment_by_name("made")
    assert experiment is not None
    return list(client(made).search_logged_models([experiment.experiment_id]))


IDS = torch.tensor([[20, 30, 40, 50, 1, 7, 8, 9]])


@pytest.mark.parametrize(("cell", "dtype"), [("whole", torch.float32), ("half", torch.bfloat16)])
def test_the_export_computes_bit_for_bit_what_the_trial_did(
    made: Path, tmp_path: Path, cell: str, dtype: torch.dtype
) -> None:
    model = AutoModelForCausalLM.from_pretrained(written(made, cell, tmp_path / "out"))
    policy = load_policy(trial_of(made, cell).config.model).model
    kept = checkpoint(made, cell)
    for name, parameter in policy.named_parameters():
        parameter.data = kept[name].to(dtype)
    assert model.dtype == dtype
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, policy(IDS).logits)


@pytest.mark.parametrize("cell", ["whole", "lora"])
def test_greedy_completions_are_those_of_the_trials_last_evaluation(made: Path, tmp_path: Path, cell: str) -> None:
    to = written(made, cell, tmp_path / "out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(to), AutoTokenizer.from_pretrained(to)
    folder = Store(str(made / "runs")).trial(str(trial_of(made, cell).key))
    (digest,) = {digest for digest, _ in folder.evaluations()}
    table, before = folder.completions(f"eval-{digest}-2"), folder.completions(f"eval-{digest}-0")
    assert table is not None and before is not None
    recorded = [row[table["columns"].index("completion")] for row in table["data"]]
    assert recorded != [row[table["columns"].index("completion")] for row in before["data"]], "it learnt something"
    for row, expected in zip(table["data"], recorded, strict=True):
        ids = tokenizer(row[0] + "\n", return_tensors="pt").input_ids
        out = model.generate(ids, do_sample=False, max_new_tokens=MAX_TOKENS)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == expected


def test_an_adapter_is_merged_into_a_plain_model(made: Path, tmp_path: Path) -> None:
    kept = checkpoint(made, "lora")
    assert kept and all("lora_" in name for name in kept)
    to = written(made, "lora", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(to)
    start = AutoModelForCausalLM.from_pretrained(SHIPPED / "qwen2")
    name = "model.layers.0.self_attn.q_proj"
    down, up = (kept[f"{name}.lora_{letter}.default.weight"] for letter in "AB")
    expected = start.get_submodule(name).weight + 2.0 * up @ down  # alpha / r is 8 / 4
    torch.testing.assert_close(model.get_submodule(name).weight, expected)
    assert torch.equal(model.get_input_embeddings().weight, start.get_input_embeddings().weight)
    assert load_file(to / "model.safetensors").keys() == load_file(SHIPPED / "qwen2/model.safetensors").keys()
    assert json.loads((to / "oneshot.json").read_text())["merged_adapter"] is True
    half = load_file(written(made, "lora", tmp_path / "half", "--dtype", "bfloat16") / "model.safetensors")
    assert all(torch.equal(half[name], one.bfloat16()) for name, one in load_file(to / "model.safetensors").items())


def test_the_folder_has_what_a_server_needs_and_nothing_twice(made: Path, tmp_path: Path) -> None:
    to = written(made, "whole", tmp_path / "out")
    assert sorted(path.name for path in to.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "oneshot.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert "lm_head.weight" not in load_file(to / "model.safetensors")  # tied
    config = json.loads((to / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["Qwen2ForCausalLM"], "float32")
    assert "auto_map" not in config
    assert json.loads((to / "generation_config.json").read_text())["eos_token_id"] == 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (to / name).read_bytes() == (SHIPPED / "qwen2" / name).read_bytes()
    assert len({path.stat().st_mode for path in to.iterdir()}) == 1
    said = json.loads((to / "oneshot.json").read_text())
    assert said["files"] == {
        path.name: sha256(path.read_bytes()).hexdigest() for path in to.iterdir() if path.name != "oneshot.json"
    }
    assert (said["key"], said["step"], said["base_model"]) == (trial_of(made, "whole").key, 2, {"path": "tiny:qwen2"})
    assert TrialConfig.model_validate(said["config"]) == trial_of(made, "whole").config
    assert not [path for path in tmp_path.iterdir() if path.name != "out"], "nothing is left beside it"


def test_the_card_says_what_it_is_and_how_it_did(made: Path, tmp_path: Path) -> None:
    card = (written(made, "half", tmp_path / "out") / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: transformers" in card.split("---")[1]
    assert "`tiny:llama` after 2 steps of GRPO (outcome reward)" in card and "- `arithmetic:47+38`" in card
    assert f"Training `{trial_of(made, 'half').key}`, seed 0 of the sweep `made`" in card
    assert re.search(r"\| arithmetic \| 12 \| strict \| \d\.\d{3} \| \d\.\d{3} \| [+-]\d\.\d{3} \|", card)
    assert "| `optim.lr` | `0.001` |" in card and "Does one sum lift the rest?" in card
    assert "transformers 5." in card and "under its licence" in card


def test_an_example_on_the_card_is_as_a_sweep_file_writes_it() -> None:
    sampled = SampledSolutions.model_validate({"from": "policy", "samples": 4})
    example = RowExample(row="arithmetic:47+38", solution=sampled)
    written = '{"row": "arithmetic:47+38", "solution": {"from": "policy", "keep": "right", "samples": 4}}'
    assert _code(example) == f"`{written}`"


def test_another_precision_is_rounded_from_what_is_kept(made: Path, tmp_path: Path) -> None:
    to = written(made, "half", tmp_path / "out", "--dtype", "float32")
    kept, found = checkpoint(made, "half"), load_file(to / "model.safetensors")
    assert all(torch.equal(one, kept[name]) for name, one in found.items())


def test_large_weights_are_in_parts(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHARD", "500KB")
    to = written(made, "whole", tmp_path / "out")
    assert len(list(to.glob("model-0000*-of-*.safetensors"))) > 1
    assert (to / "model.safetensors.index.json").is_file()
    whole = AutoModelForCausalLM.from_pretrained(to).state_dict()
    assert all(torch.equal(whole[name], one) for name, one in checkpoint(made, "whole").items())


# --- which trial, and where to ---


def test_a_key_its_beginning_and_a_cell_name_the_same_trial(made: Path, tmp_path: Path) -> None:
    key = str(trial_of(made, "whole").key)
    assert oneshot("export", key, "--to", str(tmp_path / "out"), "--no-mlflow", cwd=made).code == 0
    for arguments in ([key[:6]], ["s.yaml", "--cell", "model=whole"], ["made", "--cell", "model=whole", "--seed", "0"]):
        said = oneshot("export", *arguments, "--to", str(tmp_path / "out"), "--no-mlflow", "--json", cwd=made)
        assert said.code == 0 and "already has this export" in said.err
        assert json.loads(said.out)["key"] == key


def test_a_trial_that_no_sweep_asks_for_is_exported_too(made: Path, tmp_path: Path, grader: Grader) -> None:
    (training,) = trainings([trial_of(made, "whole")])
    list(record(training, Store(str(tmp_path)).trial(training.key), grader=grader, origin="trial"))
    said = oneshot("export", training.key, "--storage", str(tmp_path), "--to", str(tmp_path / "out"), cwd=made)
    assert said.code == 0 and "not in MLflow: the trial belongs to no sweep of this storage" in said.err
    same = written(made, "whole", tmp_path / "same")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (same / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing: no sweep file, sweep or training with this name in runs, which has 3 trainings"),
        (["ffffffffffffffff"], "`oneshot status NAME --json` shows their keys"),
        (["made"], "--cell (none): matches 3 trials of made; choose one of\n  model=whole --seed 0"),
        (["made", "--cell", "model=hole"], "matches no trial of made"),
        (["made", "--cell", "modl=whole"], "did you mean 'model'?"),
        (["made", "--cell", "model=whole", "--seed", "7"], "--seed 7: matches no trial of made"),
        (["ab", "--seed", "0"], "no sweep of this name in runs; --cell and --seed choose a sweep's trial"),
        (["made", "--storage", "nowhere"], "which has nothing; set --storage to another store"),
        (["made", "--cell", "model=whole", "--to", "s.yaml/out"], "s.yaml/out: cannot be written"),
        (["made", "--no-mlflow", "--upload"], "leave out one of them"),
        (["made", "--public"], "nothing is published without it"),
        (["made", "--push", "name"], "write it as OWNER/NAME"),
    ],
)
def test_what_is_named_wrongly_is_one_error_with_its_mend(
    made: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    said = oneshot("export", "--to", str(tmp_path / "out"), *arguments, cwd=made)
    assert (said.code, said.out) == (2, "")
    assert message in said.err and said.err.startswith("oneshot: ")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_there_are_said_to_be_so(tmp_path: Path) -> None:
    labels = [f"tiny-qwen2/outcome seed {seed}" for seed in (0, 1, 2)]
    _, plan, store = make_store(tmp_path, SMALL, missing=labels[:1], failed=labels[1:2])
    keys = {trial.label: str(trial.key) for trial in plan.trials}

    def say(label: str) -> str:
        model, arm, seed = re.split("[/ ]seed |[/ ]", label)
        cell = f"model={model},arm={arm}"
        said = oneshot("export", "small", "--cell", cell, "--seed", seed, "--to", "out", cwd=tmp_path)
        assert (said.code, said.out) == (2, "")
        return said.err

    assert "has not finished (no checkpoint of its 12 steps); `oneshot run` the file of small" in say(labels[0])
    assert "has failed: " in say(labels[1]) and "`oneshot retry small`" in say(labels[1])
    assert "its weights are not kept (checkpoint.keep: none)" in say(labels[2])
    folder = store.trial(keys[labels[0]])
    folder.write_json("checkpoint.json", {"folder": "x"})
    for step, message in ((5, "has not finished (step 5 of 12)"), (20, "its training continued to step 20")):
        folder.write_json("checkpoint/x/state.json", {"step": step})
        assert message in say(labels[0])


def test_a_store_of_objects_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(made / "runs" / "trials"), "/export/trials", recursive=True)
    memory.put(str(made / "runs" / "sweeps"), "/export/sweeps", recursive=True)
    try:
        said = export(made, "whole", tmp_path / "far", "--storage", "memory://export")
    finally:
        memory.rm("/export", recursive=True)
    assert said.code == 1 and "set mlflow.tracking_uri to a server" in said.err
    near = written(made, "whole", tmp_path / "near")
    assert (tmp_path / "far/model.safetensors").read_bytes() == (near / "model.safetensors").read_bytes()


def test_a_checkpoint_in_parts_is_read_whole(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "runs", tmp_path / "runs")
    key = str(trial_of(made, "whole").key)
    (file,) = (tmp_path / "runs" / "trials" / key / "checkpoint").glob("*/model.safetensors")
    tensors = sorted(load_file(file).items())
    file.unlink()
    for part in (0, 1):
        save_file(dict(tensors[part::2]), file.with_name(f"model-0000{part + 1}-of-00002.safetensors"))
    to = written(made, "whole", tmp_path / "parts", "--storage", str(tmp_path / "runs"))
    same = written(made, "whole", tmp_path / "same")
    assert (to / "model.safetensors").read_bytes() == (same / "model.safetensors").read_bytes()
    file.with_name("model-00002-of-00002.safetensors").unlink()
    said = export(made, "whole", tmp_path / "torn", "--no-mlflow", "--storage", str(tmp_path / "runs"))
    assert said.code == 1 and "its checkpoint lacks" in said.err and not (tmp_path / "torn").exists()


def test_a_hubs_tokenizer_and_licence_come_from_the_commit_that_was_trained(tmp_path: Path) -> None:
    """From the hub client's cache, as it lies there after a trial."""
    commit = "1234567890" * 4
    snapshot = tmp_path / "hub" / "models--me--base" / "snapshots" / commit
    shutil.copytree(SHIPPED / "qwen2", snapshot)
    (snapshot / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n# base\n")
    (snapshot / "LICENSE").write_text("mine")
    (snapshot / "pytorch_model.bin").write_text("")
    code = f"""if True:
        from oneshot.config.model import ModelConfig
        from oneshot.export.source import source_model
        found = source_model(ModelConfig(path="me/base", revision="{commit}"))
        print(found.copied, found.licence, found.generation["eos_token_id"])"""
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == (
        "('LICENSE', 'tokenizer.json', 'tokenizer_config.json') {'license': 'other', 'license_name': 'mine'} 1\n"
    ), done.stderr


def test_what_trains_nothing_has_nothing_to_export(tmp_path: Path) -> None:
    script = "version: 1\nname: s\nquestion: q\ntrial: {script: {}, train.num_steps: 2}\nseeds: [0]\n"
    still = SMALL.replace("train.num_steps: 12", "train.num_steps: 0").replace("name: small", "name: still")
    for text, message in ((script, "a script trains no model"), (still, "its model is tiny:qwen2 itself")):
        sweep = re.search("name: (.*)", text)
        assert sweep is not None
        (tmp_path / "s.yaml").write_text(text)
        plan = make_plan(load(tmp_path / "s.yaml"))
        record = Store(str(tmp_path / "runs")).sweep(plan.name)
        record.write("sweep.yaml", text)
        record.write_json("plan.json", plan.to_json())
        cells = ",".join(f"{axis}={name}" for axis, name in plan.trials[0].cell.items())
        said = oneshot("export", plan.name, "--cell", cells, "--seed", "0", "--to", "out", cwd=tmp_path)
        assert said.code == 2 and message in said.err


def test_nothing_that_is_there_is_lost(made: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for more in ((), ("--force",)):
        said = export(made, "whole", tmp_path / "mine", "--no-mlflow", *more)
        assert said.code == 2 and "not empty and not an earlier export" in said.err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    to = written(made, "whole", tmp_path / "empty")
    said = export(made, "half", to, "--no-mlflow")
    assert said.code == 2 and "has the export of whole seed 0 after step 2 in float32" in said.err
    before = (to / "model.safetensors").stat().st_mtime_ns
    assert "already has this export" in export(made, "whole", to, "--no-mlflow").err
    assert (to / "model.safetensors").stat().st_mtime_ns == before
    written(made, "half", to, "--force")
    assert json.loads((to / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    (tmp_path / "file").write_text("")
    assert "a file, not a folder; choose a new folder" in export(made, "whole", tmp_path / "file", "--no-mlflow").err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "mine"]


# --- MLflow ---


def test_mlflow_has_the_model_with_its_run_and_accuracies_once(made: Path, tmp_path: Path) -> None:
    trial, known = trial_of(made, "whole"), client(made)
    (run,) = known.search_runs(
        [known.get_experiment_by_name("made").experiment_id], f"tags.`trial.key` = '{trial.key}'"
    )
    before = {name: known.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    for to in ("one", "two", "one"):
        said = export(made, "whole", tmp_path / to)
        assert said.code == 0, said.err
    (model,) = (model for model in models(made) if model.tags["trial.key"] == trial.key)
    assert said.out.splitlines()[1] == f"MLflow: {model.model_id}, under Models of the experiment 'made'"
    assert (model.name, str(model.status), model.source_run_id) == ("whole-seed-0", "READY", run.info.run_id)
    assert model.params["optim.lr"] == "0.001" and model.params["cell.model"] == "whole"
    assert model.tags["exported.to"] == str(tmp_path / "one") and model.tags["base_model.path"] == "tiny:qwen2"
    shown = {metric.key: metric for metric in model.metrics}
    assert len(shown) == len(model.metrics), "each once"
    accuracy = shown["eval/arithmetic/pass_at_1_lenient"]
    assert accuracy.value == run.data.metrics["eval/arithmetic/pass_at_1_lenient"]
    assert (accuracy.step, accuracy.dataset_name, accuracy.run_id) == (2, "arithmetic", run.info.run_id)
    assert accuracy.dataset_digest in {one.dataset.digest for one in run.inputs.dataset_inputs}
    after = known.get_run(run.info.run_id)
    assert [(one.model_id, one.step) for one in after.outputs.model_outputs] == [(model.model_id, 2)]
    assert {name: known.get_metric_history(run.info.run_id, name) for name in after.data.metrics} == before
    assert after.info.status == "FINISHED"


def test_another_precision_is_another_model(made: Path, tmp_path: Path) -> None:
    assert export(made, "lora", tmp_path / "one").code == 0
    assert export(made, "lora", tmp_path / "two", "--dtype", "bfloat16").code == 0
    mine = [model for model in models(made) if model.tags["trial.key"] == trial_of(made, "lora").key]
    assert sorted(model.tags["dtype"] for model in mine) == ["bfloat16", "float32"]


def test_a_registered_version_is_one_that_mlflow_loads(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        said = export(made, "half", tmp_path / "out", "--register", "sums", "--json")
        assert said.code == 0, said.err
    told = json.loads(said.out)["mlflow"]
    assert told["version"] == "1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", told["tracking_uri"])
    pipeline = mlflow.transformers.load_model("models:/sums/1")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert pipeline.model.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(pipeline.model(IDS).logits, plain(IDS).logits)
    assert (
        pipeline.tokenizer("47+38\n").input_ids == AutoTokenizer.from_pretrained(tmp_path / "out")("47+38\n").input_ids
    )


def test_a_server_that_is_down_loses_nothing(made: Path, tmp_path: Path) -> None:
    said = export(made, "whole", tmp_path / "out", "--mlflow", "http://127.0.0.1:9")
    assert said.code == 1
    assert "not in MLflow: http://127.0.0.1:9 does not answer" in said.err
    assert "run the same command again to register it" in said.err
    assert said.out.startswith(f"{tmp_path}/out: whole seed 0, step 2, float32")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again = export(made, "whole", tmp_path / "out")
    assert again.code == 0 and again.out.splitlines()[1].split()[1] in [f"{one.model_id}," for one in models(made)]


def test_where_mlflow_has_no_run_the_model_waits_for_one(made: Path, tmp_path: Path, database: Path) -> None:
    (tmp_path / "other.db").write_bytes(database.read_bytes())
    uri = f"sqlite:///{tmp_path}/other.db"
    said = export(made, "whole", tmp_path / "out", "--mlflow", uri, "--json")
    assert said.code == 0 and "MLflow has no run of whole seed 0" in said.err
    told = json.loads(said.out)["mlflow"]
    assert told["run_id"] is None
    known = MlflowClient(uri)
    assert str(known.get_logged_model(told["model_id"]).status) == "READY"
    tracker = Tracker(plan(made), Store(str(made / "runs")), located(uri, experiment="made"))
    tracker.open(question="q", sweep_yaml=TEXT)
    tracker.sync(trial_of(made, "whole"))
    again = json.loads(export(made, "whole", tmp_path / "out", "--mlflow", uri, "--json").out)["mlflow"]
    assert again["model_id"] == told["model_id"] and again["run_id"] is not None
    assert {metric.run_id for metric in known.get_logged_model(told["model_id"]).metrics} == {again["run_id"]}


@pytest.fixture(scope="module")
def server(made: Path, tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Server]:
    """An MLflow server that has the runs of the sweep."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(database.read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(folder=folder, port=port, processes=[])
    try:
        server.start()
        store = Store(str(made / "runs"))
        tracker = Tracker(plan(made), store, located(server.uri, experiment="made"))
        tracker.open(question="Does one sum lift the rest?", sweep_yaml=TEXT)
        for trial in plan(made).trials:
            tracker.sync(trial)
        tracker.close("FINISHED")
        yield server
    finally:
        server.kill()


@pytest.mark.cluster
def test_a_server_takes_the_model_and_its_pages_show_it(
    made: Path, tmp_path: Path, server: Server, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = export(made, "half", tmp_path / "out", "--mlflow", server.uri, "--register", "sums", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)["mlflow"]
    assert told["version"] == "1"
    known = MlflowClient(server.uri)
    experiment = known.get_experiment_by_name("made")
    assert experiment is not None
    lenient = known.get_run(told["run_id"]).data.metrics["eval/arithmetic/pass_at_1_lenient"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert mlflow.transformers.load_model("models:/sums/1").model.dtype == torch.bfloat16
    experiments = f"{server.uri}/#/experiments/{experiment.experiment_id}"
    browser.open(f"{experiments}/models?workflowType=machine_learning")
    browser.find("a", text="half-seed-0")
    browser.wait_for("Ready")
    browser.open(f"{experiments}/models/{told['model_id']}?workflowType=machine_learning")
    browser.wait_for("half seed 0: tiny:llama after 2 steps, in bfloat16.")
    browser.wait_for("eval/arithmetic/pass_at_1_lenient")
    browser.wait_for(f"{lenient:.3f}"[:4])
    browser.open(f"{experiments}/runs/{told['run_id']}?workflowType=machine_learning")
    browser.find("a", text="half-seed-0")


def test_suites_that_others_asked_of_the_training_are_not_taken_for_the_trials(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "runs", tmp_path / "runs")
    trial = trial_of(made, "whole")
    folder = Store(str(tmp_path / "runs")).trial(str(trial.key))
    steps = trial.config.train.num_steps
    (own,) = set(trial.config.eval.suites)
    folder.write_evaluation(own, "0" * 16, steps, {"pass_at_1": 0.123})  # another sweep's, by the same name
    folder.write_evaluation("later", "1" * 16, steps, {"pass_at_1": 0.456})  # of `oneshot eval`
    card = (written(made, "whole", tmp_path / "out", "--storage", str(tmp_path / "runs")) / "README.md").read_text()
    assert "0.123" not in card
    assert "0.456" in card


# --- a hub ---


class Hub:
    """A model hub in so far as it takes a folder: what it was asked, and what it was given."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.is_private = True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                if "/tree/" in self.path:
                    self.answer([{"type": "file", "path": path, "size": 1, "oid": "0"} for path in hub.files])
                    return
                name = "/".join(self.path.split("/")[3:5])
                self.answer({"id": name, "modelId": name, "private": hub.is_private, "siblings": [], "tags": []})

            def do_POST(self) -> None:
                hub.asked.append(self.path)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Authorization"] == "Bearer hf_planted"
                if self.path.endswith("/repos/create"):
                    hub.created.append(json.loads(body))
                    self.answer({"url": f"{hub.url}/me/sums", "name": "me/sums"})
                elif "/preupload/" in self.path:
                    files = json.loads(body)["files"]
                    modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                    self.answer({"files": modes})
                elif "/commit/" in self.path:
                    for line in body.splitlines():
                        said = json.loads(line)
                        if said["key"] == "file":
                            hub.files[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
                        if said["key"] == "deletedFile":
                            del hub.files[said["value"]["path"]]
                    self.answer({"commitUrl": f"{hub.url}/me/sums/commit/c", "commitOid": "c" * 40})
                else:
                    self.answer({})

            def answer(self, value: Any) -> None:
                text = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def push(made: Path, to: Path, hub: Hub, *more: str, token: str | None = "hf_planted") -> Said:
    """In a process of its own: the hub's client reads its environment when it is imported."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(to.parent / "hf"), "HF_HUB_DISABLE_XET": "1"}
    env |= {} if token is None else {"HF_TOKEN": token}
    key = str(trial_of(made, "whole").key)
    command = [sys.executable, "-m", "oneshot", "export", key, "--to", str(to), "--no-mlflow", *more]
    done = subprocess.run(command, cwd=made, env=env, capture_output=True, text=True)
    return Said(code=done.returncode, out=done.stdout, err=done.stderr)


def test_a_hub_gets_the_folder_when_told_and_not_before(made: Path, tmp_path: Path, hub: Hub) -> None:
    to = written(made, "whole", tmp_path / "out")
    assert push(made, to, hub).code == 0
    assert hub.asked == []
    said = push(made, to, hub, "--push", "me/sums")
    assert said.code == 0, said.err
    (created,) = hub.created
    # the hub's client says it in one of two ways, by its version
    assert created.get("private") is True or created.get("visibility") == "private"
    assert hub.files == {path.name: path.read_bytes() for path in to.iterdir()}
    hub.files["model-00001-of-00002.safetensors"] = b""  # as of an earlier, larger one
    assert push(made, to, hub, "--push", "me/sums").code == 0
    assert hub.files == {path.name: path.read_bytes() for path in to.iterdir()}
    assert said.out.splitlines()[-1] == f"hub: {hub.url}/me/sums"


def test_a_public_repository_gets_nothing_unless_told(made: Path, tmp_path: Path, hub: Hub) -> None:
    to = written(made, "whole", tmp_path / "out")
    hub.is_private = False
    said = push(made, to, hub, "--push", "me/sums")
    assert said.code == 2 and "it exists and is public; add --public" in said.err
    assert hub.files == {}
    assert push(made, to, hub, "--push", "me/sums", "--public").code == 0
    assert hub.files


def test_without_a_token_nothing_is_begun(made: Path, tmp_path: Path, hub: Hub) -> None:
    said = push(made, tmp_path / "out", hub, "--push", "me/sums", token=None)
    assert (said.code, said.out) == (2, "")
    assert "set HF_TOKEN, or run `hf auth login`" in said.err and len(said.err.splitlines()) == 1
    assert not (tmp_path / "out").exists() and hub.asked == []


def test_a_hub_that_is_down_is_one_line(made: Path, tmp_path: Path, hub: Hub) -> None:
    to = written(made, "whole", tmp_path / "out")
    hub.url = "http://127.0.0.1:9"
    said = push(made, to, hub, "--push", "me/sums")
    assert said.code == 1 and "run the same command to push again" in said.err.splitlines()[-1]
    assert "Traceback" not in said.err


def test_a_card_without_completions_on_record_counts_none(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "runs", tmp_path / "runs")
    store = Store(str(tmp_path / "runs"))
    for key in store.trainings():
        store.trial(key).remove("rollouts")  # as gc does by age
    to = written(made, "whole", tmp_path / "out", "--storage", str(tmp_path / "runs"))
    assert "| arithmetic | - | " in (to / "README.md").read_text()
    evaluations = json.loads((to / "oneshot.json").read_text())["evaluations"]
    assert {evaluation["num_completions"] for evaluation in evaluations} == {None}
