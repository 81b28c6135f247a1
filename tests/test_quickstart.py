"""The quickstart as a person gets it: every trial finishes, and one example lifts what was never trained on."""

from statistics import fmean

import pytest
from conftest import PROJECT
from test_run import make_place

from oneshot.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_the_quickstart_lifts_held_out_accuracy_on_both_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = make_place(tmp_path_factory.mktemp("quick"), (PROJECT / "sweeps" / "quickstart.yaml").read_text())
    done = made.run("run", "s.yaml", timeout_s=1500)
    assert done.returncode == 0, done.stderr
    assert "18 finished, 0 failed, 0 missing" in done.stdout
    store = Store(str(made.folder / "runs"))
    gains: dict[tuple[str, str], list[float]] = {}
    for trial in made.plan().trials:
        assert trial.key is not None
        last = store.trial(trial.key).rows()[-1]
        assert last.step == trial.config.train.num_steps
        gains.setdefault((trial.cell["model"], trial.cell["arm"]), []).append(last.metrics["eval/arithmetic/gain"])
    for model in ("tiny-qwen2", "tiny-llama"):
        outcome, control = fmean(gains[model, "outcome"]), fmean(gains[model, "format"])
        assert outcome >= 0.35, (model, outcome)
        assert outcome > control + 0.15, (model, outcome, control)
    statuses = [run.info.status for run in made.runs("quickstart")]
    assert statuses == ["FINISHED"] * 19
