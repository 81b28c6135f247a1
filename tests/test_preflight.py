"""What a preflight makes of what nodes say of themselves."""

from pathlib import Path

import pytest

from oneshot.config.file import read
from oneshot.plan.plan import make_plan
from oneshot.store.store import Store
from oneshot.sweep.cluster.nodes import SHORT_TEMP_DIR, _short_temp_dir
from oneshot.sweep.cluster.preflight import check_here, check_versions
from oneshot.sweep.cluster.probe import Answer, package_digest
from oneshot.sweep.tracking.server import why_not

SAME = {"python": "3.11.7", "ray": "2.60.0", "oneshot": "abc"}


def answers(*each: dict[str, str]) -> dict[str, Answer]:
    return {str(index): Answer(host=f"host-{index}", versions={**SAME, **one}) for index, one in enumerate(each)}


def test_equal_versions_are_good_and_a_pythons_last_number_may_differ() -> None:
    (found,) = check_versions(answers({}, {"python": "3.11.9"}))
    assert (found.is_bad, found.text) == (False, "equal")


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"python": "3.12.1"}, "python differs between nodes (3.11 on host-0, host-1; 3.12 on host-2)"),
        ({"ray": "2.59.0"}, "ray differs between nodes (2.60.0 on host-0, host-1; 2.59.0 on host-2)"),
        ({"oneshot": "def"}, "oneshot differs between nodes"),
        ({"oneshot": "missing"}, "oneshot is not installed on host-2; install it there"),
    ],
)
def test_what_must_be_equal_and_is_not_is_bad_and_says_where(other: dict[str, str], text: str) -> None:
    (found,) = check_versions(answers({}, {}, other))
    assert found.is_bad
    assert found.text.startswith(text)


def test_another_torch_is_a_warning_and_no_torch_is_bad() -> None:
    (warned,) = check_versions(answers({"torch": "2.13.0"}, {"torch": "2.12.0"}))
    assert (warned.is_bad, warned.is_warning) == (False, True)
    (bad,) = check_versions(answers({"torch": "2.13.0"}, {"torch": "missing"}))
    assert bad.is_bad


def test_a_node_that_holds_no_trial_is_not_asked_for_torch() -> None:
    (found,) = check_versions(answers({"torch": "2.13.0"}, {}))
    assert not found.is_bad
    assert not found.is_warning


def test_the_packages_digest_is_of_its_own_files() -> None:
    assert len(package_digest()) == 12
    assert package_digest() == package_digest()


SWEEP = """\
version: 1
name: s
question: Can it run here?
trial:
  model.path: {model}
  examples: [{example}]
  train.num_steps: 1
  rollout.max_tokens: 56
seeds: [0]
"""


@pytest.mark.parametrize(("example", "bad"), [("'arithmetic:47+38'", {}), ("'dsr_sub:124'", {"data": "on "})])
def test_this_machine_says_what_it_lacks(example: str, bad: dict[str, str], tmp_path: Path, no_data: Path) -> None:
    plan = make_plan(read(SWEEP.format(model="tiny:qwen2", example=example), name="s.yaml"))
    store = Store(str(tmp_path / "runs"))
    found = check_here(plan, store, reach=lambda: "")
    assert {one.check: one.text[: len(bad.get(one.check, ""))] for one in found if one.is_bad} == bad
    assert {one.check for one in found} == {"mlflow", "versions", "storage", "models", "data"}
    assert list((tmp_path / "runs").iterdir()) == [], "nothing is left behind"


def test_a_storage_that_cannot_be_written_is_a_finding(tmp_path: Path) -> None:
    plan = make_plan(read(SWEEP.format(model="tiny:qwen2", example="'arithmetic:47+38'"), name="s.yaml"))
    store = Store(str(tmp_path / "runs"))
    (tmp_path / "runs").write_text("a file")
    (found,) = check_here(plan, store, reach=lambda: "")
    assert (found.check, found.is_bad) == ("storage", True)


def test_an_mlflow_that_is_not_there_says_so_at_once(tmp_path: Path) -> None:
    assert "http://127.0.0.1:9 does not answer" in why_not("http://127.0.0.1:9")
    assert why_not(f"sqlite:///{tmp_path}/mlflow.db") == ""


@pytest.mark.parametrize(("length", "expected"), [(20, None), (80, SHORT_TEMP_DIR)])
def test_a_temporary_folder_too_long_for_sockets_is_not_used_for_them(
    monkeypatch: pytest.MonkeyPatch, length: int, expected: str | None
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + "d" * length)
    assert _short_temp_dir() == expected
