"""Which engine samples a trial's completions: the file's, or by `auto`; without importing vLLM."""

from pathlib import Path
from typing import Any

import pytest
from engines import headed_model

from oneshot.config.file import read
from oneshot.config.trial import TrialConfig
from oneshot.errors import SweepFileError, UserError
from oneshot.models import engines
from oneshot.plan import loader, plan
from oneshot.plan.keys import identify_trial, trial_keys
from oneshot.plan.plan import make_plan
from oneshot.plan.trial import Trial
from oneshot.rollout import vllm
from oneshot.store.store import Store
from oneshot.sweep import run
from oneshot.sweep.cluster.preflight import check_versions
from oneshot.sweep.cluster.probe import Answer
from oneshot.training.state import new_state

SWEEP = """
version: 1
name: choice
question: Which engine?
seeds: [0]
trial:
  model: {{path: "{path}"{model}}}
  examples: ["arithmetic:47+38"]
  prompt: {{template: plain}}
  rollout: {{max_tokens: 24{rollout}}}
resources: {resources}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return headed_model("qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "has_vllm", lambda: True)


def sweep(path: object, *, model: str = "", rollout: str = "", resources: str = "{}") -> Any:
    return read(SWEEP.format(path=path, model=model, rollout=rollout, resources=resources), name="choice.yaml")


def planned(path: object, **sections: str) -> Trial:
    return make_plan(sweep(path, **sections)).trials[0]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("sections", "engine"),
    [
        ({"resources": "{gpus: 1}"}, "vllm"),
        ({}, "lockstep"),  # no GPU
        ({"resources": "{gpus: 1}", "model": ", device: cpu"}, "lockstep"),
        ({"resources": "{gpus: 1}", "model": ", dtype: float64"}, "lockstep"),
        ({"resources": "{gpus: 1}", "rollout": ", engine: lockstep"}, "lockstep"),
        ({"resources": "{gpus: 0.5}"}, "lockstep"),
        ({"resources": "{gpus: 1}", "rollout": ", vllm: {quantization: fp8}"}, "lockstep"),  # of float32
        ({"resources": "{gpus: 2}", "rollout": ", vllm: {tensor_parallel: 2}"}, "vllm"),
        ({"rollout": ", engine: vllm"}, "vllm"),
        ({"rollout": ", engine: hf"}, "hf"),
    ],
)
def test_auto_is_vllm_where_there_is_a_gpu_and_it_can_be_used(
    folder: Path, sections: dict[str, str], engine: str
) -> None:
    assert planned(folder, **sections).config.rollout.engine == engine


def test_auto_is_lockstep_without_vllm_or_for_heads_that_it_cannot_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "has_vllm", lambda: False)
    assert planned(folder, resources="{gpus: 1}").config.rollout.engine == "lockstep"
    monkeypatch.setattr(plan, "has_vllm", lambda: True)
    assert planned("tiny:qwen2", resources="{gpus: 1}").config.rollout.engine == "lockstep"


def test_a_sweep_keeps_the_choice_of_its_first_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, file = Store(str(tmp_path)), sweep(folder, resources="{gpus: 1}")

    def engine(*, is_here: bool, runs: bool) -> str:
        for module in (plan, run):
            monkeypatch.setattr(module, "has_vllm", lambda: is_here)
        pinned = loader.pin_all(file, store)
        if runs:
            run._record_start(pinned)
        return pinned.plan.trials[0].config.rollout.engine

    assert engine(is_here=False, runs=False) == "lockstep"  # a plan or a check settles nothing
    assert engine(is_here=True, runs=True) == "vllm"
    assert engine(is_here=False, runs=True) == "vllm"
    assert loader.begun_sweep(store, "choice").plan.trials[0].config.rollout.engine == "vllm"


def test_a_sweep_that_began_before_there_was_a_choice_stays_with_lockstep(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, file = Store(str(tmp_path)), sweep(folder, resources="{gpus: 1}")
    store.sweep("choice").write("sweep.yaml", file.source.text)
    monkeypatch.setattr(plan, "has_vllm", lambda: True)
    assert loader.pin_all(file, store).plan.trials[0].config.rollout.engine == "lockstep"


def keys(folder: Path, rollout: dict[str, Any]) -> str:
    config = TrialConfig.model_validate(
        {"model": {"path": str(folder)}, "examples": ["arithmetic:47+38"], "rollout": {"max_tokens": 24, **rollout}}
    )
    contents = identify_trial(config).contents
    assert contents is not None
    (key,) = trial_keys(config, [0], contents)
    assert key is not None
    return key


def test_a_key_names_what_changes_the_draws_and_no_more(folder: Path) -> None:
    plain = keys(folder, {})
    assert keys(folder, {"engine": "lockstep", "vllm": {"max_num_seqs": 8}, "correction": "none"}) == plain
    by_vllm = keys(folder, {"engine": "vllm"})
    split = {"max_num_seqs": 8, "gpu_memory_utilization": 0.5, "enforce_eager": True, "tensor_parallel": 2}
    assert keys(folder, {"engine": "vllm", "vllm": split}) == by_vllm
    others = [
        keys(folder, {"engine": "vllm", "vllm": {"quantization": "fp8"}}),
        keys(folder, {"engine": "vllm", "correction": "token"}),
        keys(folder, {"correction": "token"}),
        keys(folder, {"engine": "hf"}),
    ]
    assert len({plain, by_vllm, *others}) == 6


@pytest.mark.parametrize(
    ("path", "sections", "message"),
    [
        (
            "tiny:qwen2",
            {},
            r"engine: vllm: tiny:qwen2: vLLM has no kernels for attention heads of size 24, only for 32, .*, 256;",
        ),
        ("qwen2", {"model": ", dtype: float64"}, r"engine: .*: vLLM has no float64; set model\.dtype: float32; or set"),
        ("qwen2", {"rollout": ", vllm: {quantization: fp8}"}, r"engine: .*: fp8 needs bfloat16; set model"),
        ("qwen2", {"resources": "{gpus: 0.5}"}, r"engine: .*: vLLM needs a GPU of its own; set resources\.gpus: 1; or"),
        (
            "qwen2",
            {"rollout": ", vllm: {tensor_parallel: 2}"},
            r"vllm\.tensor_parallel: 2 does not divide the trial's 1 processes; set resources\.num_processes to a",
        ),
    ],
)
def test_a_trial_that_vllm_cannot_run_is_refused_at_its_place(
    folder: Path, path: str, sections: dict[str, str], message: str
) -> None:
    sections = {**sections, "rollout": ", engine: vllm" + sections.get("rollout", "")}
    with pytest.raises(SweepFileError, match=rf"choice\.yaml:10: trial\.rollout\.{message}"):
        planned(folder if path == "qwen2" else path, **sections)


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("0.29.0", ""),
        ("0.32.7", ""),
        ("0.28.1", "vLLM 0.28.1 is not supported; install one from 0.29 to below 0.33"),
        ("0.33.0", "vLLM 0.33.0 is not supported; install one from 0.29 to below 0.33"),
        (
            "missing",
            "vLLM is not installed; install it with `pip install 'oneshot-lab[vllm]'`, or set rollout.engine: lockstep",
        ),
    ],
)
def test_versions(version: str, fault: str) -> None:
    assert engines.version_fault(version) == fault


def test_the_extra_names_the_versions_of_the_engine() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    lowest, below = (".".join(map(str, number)) for number in (engines.VLLM_FROM, engines.VLLM_BELOW))
    assert f'"vllm>={lowest},<{below}; ' in text


def test_a_node_without_vllm_or_with_another_version_is_named_before_a_trial_begins() -> None:
    same = {"python": "3.11.7", "oneshot": "abc"}
    answers = {
        host: Answer(host=host, versions=same | ({"vllm": version} if version else {}))
        for host, version in (("a", "0.32.0"), ("b", "missing"), ("c", "0.20.0"), ("d", ""), ("e", "0.31.0"))
    }
    bad = [finding.text for finding in check_versions(answers) if finding.is_bad]
    assert bad == [f"on b: {engines.version_fault('missing')}", f"on c: {engines.version_fault('0.20.0')}"]
    # their noise differs, too
    (differs,) = [f.text for f in check_versions({host: answers[host] for host in ("a", "d", "e")}) if f.is_bad]
    assert differs.startswith("vllm differs between nodes (0.32.0 on a; 0.31.0 on e); install one version")


def test_a_worker_without_vllm_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch, grader: Any) -> None:
    monkeypatch.setattr(vllm, "vllm_version", lambda: "missing")
    config = TrialConfig.model_validate(
        {
            "model": {"path": str(folder), "device": "cpu"},
            "prompt": {"template": "plain", "train_suffix": ""},
            "examples": ["arithmetic:47+38"],
            "rollout": {"engine": "vllm", "max_tokens": 24},
        }
    )
    state = new_state(config, seed=0, grader=grader)
    with pytest.raises(UserError, match=r"rollout\.engine: vllm: vLLM is not installed; install it with"):
        state.engine.wake(state.policy, state.weights)


def test_the_engines_copy_of_the_weights_is_in_the_memory(folder: Path) -> None:
    both = {
        engine: planned(folder, rollout=f", engine: {engine}", resources="{gpus: 1}").placement
        for engine in ("vllm", "lockstep")
    }
    ours, theirs = both["lockstep"], both["vllm"]
    assert ours is not None and theirs is not None
    assert theirs.memory.decoding == pytest.approx(theirs.memory.weights)
    assert ours.memory.decoding == 0
    assert theirs.memory.update_gib == ours.memory.update_gib
