"""A store and a bundle that version 0.1.0 wrote, read by the code of today.

golden/store-of-0.1.0.tar.gz is the store of the sweep `old` (a LoRA on tiny:llama, two arms, three seeds, four steps).
golden/store-of-0.1.0.json has its verdicts, and steps 5 and 6 as the same version went on to compute them.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from verbs import oneshot

from oneshot.config.file import read
from oneshot.plan.plan import make_plan
from oneshot.plan.trainings import trainings
from oneshot.store.store import Store
from oneshot.tasks.grading import Grader
from oneshot.trial.recorder import record

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((GOLDEN / "store-of-0.1.0.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the old store in `runs`."""
    with tarfile.open(GOLDEN / "store-of-0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path / "runs", filter="data")
    return tmp_path


@pytest.fixture(autouse=True)
def version_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are those of that version: it graded otherwise, so its trials are not those of today."""
    monkeypatch.setattr("oneshot.plan.keys.TRIAL_VERSION", 3)


def numbers(output: str, expected: dict[str, Any]) -> list[dict[str, Any]]:
    """The verdicts of `report --json`, without the notes, whose words may change, and without rounding errors."""
    return [{name: rounded(claim[name]) for name in expected["verdicts"][0]} for claim in json.loads(output)]


def as_expected(expected: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: rounded(value) for name, value in claim.items()} for claim in expected["verdicts"]]


def rounded(value: Any) -> Any:
    return float(f"{value:.12g}") if isinstance(value, float) else value


def test_every_trial_of_an_old_store_counts_as_finished(folder: Path) -> None:
    status = json.loads(oneshot("status", "old", "--storage", "runs", "--json", cwd=folder).out)
    assert (status["finished"], status["num_trials"]) == (6, 6)


def test_an_old_store_is_judged_to_the_same_numbers(folder: Path, expected: dict[str, Any]) -> None:
    said = oneshot("report", "old", "--storage", "runs", "--json", "--no-publish", cwd=folder)
    assert numbers(said.out, expected) == as_expected(expected), said.err


def test_an_old_bundle_is_judged_to_the_same_numbers(tmp_path: Path, expected: dict[str, Any]) -> None:
    said = oneshot("report", str(GOLDEN / "bundle-of-0.1.0.oneshot.zip"), "--json", cwd=tmp_path)
    assert numbers(said.out, expected) == as_expected(expected), said.err


@pytest.mark.parametrize("arm", ["outcome", "format"])
def test_an_old_training_resumes_from_its_checkpoint(
    arm: str, folder: Path, expected: dict[str, Any], grader: Grader
) -> None:
    store = Store(str(folder / "runs"))
    text = store.sweep("old").read("sweep.yaml")
    assert text is not None
    plan = make_plan(read(text.replace("num_steps: 4", "num_steps: 6"), name="old.yaml"))
    (training,) = trainings([trial for trial in plan.trials if trial.cell["arm"] == arm and trial.seed == 0])
    trial_folder = store.trial(training.key)
    steps = [step.step for step in record(training, trial_folder, grader=grader, origin="old")]
    assert steps == [5, 6], trial_folder.result()
    for row in trial_folder.rows()[5:]:
        for name, value in expected["steps"][training.key][str(row.step)].items():
            assert row.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), f"step {row.step}: {name}"
