"""One behaviour suite of the trial store, over a local disk and an fsspec remote."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from oneshot.errors import UserError
from oneshot.store import Result, Row, Store, TrialFolder


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "disk":
        yield Store(str(tmp_path / "runs"))
    else:
        yield Store("memory://runs")
        memory = fsspec.filesystem("memory")
        memory.rm("/", recursive=True)


def row(step: int, value: float, time_ms: int = 1) -> Row:
    return Row(step=step, time_ms=time_ms, metrics={"reward/mean": value})


def result(**changes: object) -> Result:
    fields: dict[str, object] = {
        "outcome": "finished", "attempt": 1, "steps_done": 4, "evaluations": frozenset({("d", 0), ("d", 4)}),
        "reason": "", "traceback": "", "log_path": "l", "checkpoint": "weights", "started_ms": 1, "ended_ms": 2,
    }  # fmt: skip
    return Result(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def folder(store: Store) -> TrialFolder:
    return store.trial("0123456789abcdef")


def test_what_is_not_there_is_none_or_empty(folder: TrialFolder) -> None:
    assert folder.read("trial.json") is None
    assert folder.result() is None
    assert folder.rows() == []
    assert folder.evaluations() == frozenset()
    assert folder.current_result() is None
    assert folder.attempt(1) == {}


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(folder: TrialFolder) -> None:
    folder.write("trial.json", "old")
    folder.write("trial.json", "new")
    assert folder.read("trial.json") == "new"
    assert folder.list("") == ["trial.json"]


def test_a_file_that_was_not_renamed_yet_is_not_seen(folder: TrialFolder) -> None:
    folder.write_segment(1, [row(1, 0.5)])
    folder.write("metrics/0001-00000002.jsonl.abc.tmp", '{"step": 2, "torn')
    assert [r.step for r in folder.rows()] == [1]


def test_segments_are_merged_by_step_and_the_later_attempt_wins(folder: TrialFolder) -> None:
    folder.write_segment(1, [row(0, 0.0), row(1, 0.1)])
    folder.write_segment(1, [row(2, 0.2), row(3, 0.3)])
    folder.write_segment(2, [row(2, 0.25, time_ms=9), row(4, 0.4)])
    assert [(r.step, r.metrics["reward/mean"]) for r in folder.rows()] == [
        (0, 0.0),
        (1, 0.1),
        (2, 0.25),
        (3, 0.3),
        (4, 0.4),
    ]
    assert folder.rows()[2].time_ms == 9


def test_attempts_are_counted(folder: TrialFolder) -> None:
    assert [folder.begin_attempt({"host": host}) for host in ("a", "b")] == [1, 2]
    assert folder.attempt(2) == {"host": "b"}


def test_a_result_comes_back_as_it_was(folder: TrialFolder) -> None:
    folder.write_result(result(outcome="failed", reason="r", traceback="t"))
    assert folder.result() == result(outcome="failed", reason="r", traceback="t")


def test_evaluations_are_known_by_digest_and_step(folder: TrialFolder) -> None:
    folder.write_evaluation("my-suite", "abc", 10, {"pass_at_1": 0.5})
    assert folder.evaluations() == {("abc", 10)}
    assert folder.evaluation("abc", 10) == {"suite": "my-suite", "metrics": {"pass_at_1": 0.5}}
    assert folder.evaluation("abc", 11) is None
    folder.write_completions("eval-abc-10", ["problem"], [["p"]], step=10)
    assert folder.completions("eval-abc-10") == {"step": 10, "columns": ["problem"], "data": [["p"]]}


def test_a_result_is_current_until_the_next_attempt_begins(folder: TrialFolder) -> None:
    folder.begin_attempt({})
    folder.write_result(result(attempt=1))
    assert folder.current_result() == result(attempt=1)
    folder.begin_attempt({})
    assert folder.current_result() is None
    assert folder.result() == result(attempt=1)


def test_a_folder_is_replaced_and_fetched_whole(folder: TrialFolder, tmp_path: Path) -> None:
    for number, names in enumerate((["a", "b"], ["a"])):
        local = tmp_path / f"local{number}"
        local.mkdir()
        for name in names:
            (local / name).write_text(f"{name}{number}")
        folder.put_folder("checkpoint", local)
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    assert folder.get_folder("checkpoint", fetched)
    assert {path.name: path.read_text() for path in fetched.iterdir()} == {"a": "a1"}
    folder.remove_folder("checkpoint")
    assert not folder.get_folder("checkpoint", fetched)


def test_a_folder_that_was_cut_while_it_was_put_leaves_the_one_before(folder: TrialFolder, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    (local / "a").write_text("old")
    folder.put_folder("checkpoint", local)
    folder.write("checkpoint/half/a", "torn")
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    assert folder.get_folder("checkpoint", fetched)
    assert (fetched / "a").read_text() == "old"


def test_a_storage_that_no_one_serves_is_refused() -> None:
    with pytest.raises(UserError, match="storage: nosuch://x"):
        Store("nosuch://x")


def test_a_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(str(tmp_path / "file")).check_writable()
