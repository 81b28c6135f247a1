"""One behaviour suite of the trial store, over every kind of store (stores.py)."""

import errno
import gzip
import json
import logging
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
from builders import begin_attempt
from fsspec.implementations.memory import MemoryFileSystem

from oneshot.errors import UserError
from oneshot.store.folder import Folder
from oneshot.store.records import Result, Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder

pytest_plugins = ["stores"]


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


@pytest.mark.parametrize("tail", ['{"step": 2, "time_ms": 1, "metr', "\0\0\0\0", "{"])
def test_a_segment_that_lost_its_tail_counts_up_to_there(
    folder: TrialFolder, tail: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_segment(1, [row(0, 0.0), row(1, 0.1)])
    folder.write("metrics/0001-00000000.jsonl", (folder.read("metrics/0001-00000000.jsonl") or "") + tail)
    folder.write("metrics/0001-00000003.jsonl", "")
    folder.write_segment(2, [row(4, 0.4)])
    with caplog.at_level(logging.WARNING):
        assert [r.step for r in folder.rows()] == [0, 1, 4]
    assert "metrics/0001-00000000.jsonl: the last line is incomplete" in caplog.text


def test_a_segment_that_is_torn_in_its_middle_is_an_error(folder: TrialFolder) -> None:
    folder.write("metrics/0001-00000001.jsonl", '{"st\n{"step": 2, "time_ms": 1, "metrics": {}}\n')
    with pytest.raises(ValueError, match="line 1"):
        folder.rows()


def test_attempts_are_counted(folder: TrialFolder) -> None:
    assert [begin_attempt(folder, {"host": host}) for host in ("a", "b")] == [1, 2]
    assert folder.attempt(2) == {"host": "b"}


def test_a_result_comes_back_as_it_was(folder: TrialFolder) -> None:
    folder.write_result(result(outcome="failed", reason="r", traceback="t"))
    assert folder.result() == result(outcome="failed", reason="r", traceback="t")


def test_a_result_from_before_failures_were_counted_is_read(folder: TrialFolder) -> None:
    folder.write_result(result())
    fields = folder.read_json("result.json")
    assert fields is not None
    folder.write_json("result.json", {name: fields[name] for name in fields if name not in ("kind", "failures")})
    assert folder.result() == result(kind="", failures={})


@pytest.mark.parametrize("text", ["", '{"outcome": "fini', "\0\0\0"])
def test_a_torn_result_is_none_and_the_log_says_where(
    folder: TrialFolder, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write("result.json", text)
    with caplog.at_level(logging.WARNING):
        assert folder.result() is None
    assert f"{folder.path}/result.json is incomplete" in caplog.text


def test_failures_are_counted_by_kind_until_the_result_is_removed(folder: TrialFolder) -> None:
    def end(outcome: str, kind: str = "") -> dict[str, int]:
        attempt = begin_attempt(folder, {"started_ms": 1})
        folder.end_attempt(attempt, outcome, kind=kind)  # type: ignore[arg-type]
        ended = folder.result()
        assert ended is not None
        assert (ended.attempt, ended.outcome, ended.kind) == (attempt, outcome, kind)
        return ended.failures

    assert end("failed", "oom") == {"oom": 1}
    assert end("failed", "node") == {"oom": 1, "node": 1}
    assert end("failed", "oom") == {"oom": 2, "node": 1}
    assert end("failed") == {"oom": 2, "node": 1}  # of no known kind
    assert end("finished") == {"oom": 2, "node": 1}
    folder.remove("result.json")
    assert end("failed", "nan") == {"nan": 1}


def test_time_spent_is_that_of_every_attempt_up_to_its_last_sign_of_life(folder: TrialFolder) -> None:
    assert folder.spent_ms() == 0
    begin_attempt(folder, {"started_ms": 1000})
    assert folder.spent_ms() == 0
    folder.write_segment(1, [row(0, 0.0, time_ms=1200), row(1, 0.0, time_ms=1400)])
    folder.write_segment(1, [row(2, 0.0, time_ms=1500)])
    assert folder.spent_ms() == 500
    begin_attempt(folder, {"started_ms": 3000, "last_beat_ms": 1700})  # the first attempt's, taken over
    assert folder.spent_ms() == 700
    folder.write_json("lease", {"attempt": 2, "time_ms": 3010})
    assert folder.spent_ms() == 710
    folder.write_result(result(attempt=2, started_ms=3000, ended_ms=3020))
    assert folder.spent_ms() == 720
    begin_attempt(folder, {"started_ms": 9000})
    assert folder.spent_ms() == 720


def test_evaluations_are_known_by_digest_and_step(folder: TrialFolder) -> None:
    folder.write_evaluation("my-suite", "abc", 10, {"pass_at_1": 0.5})
    assert folder.evaluations() == {("abc", 10)}
    assert folder.evaluation("abc", 10) == {"suite": "my-suite", "metrics": {"pass_at_1": 0.5}}
    assert folder.evaluation("abc", 11) is None
    folder.write_completions("eval-abc-10", ["problem"], [["p"]], step=10)
    assert folder.completions("eval-abc-10") == {"step": 10, "columns": ["problem"], "data": [["p"]]}
    assert folder.completions("eval-abc-11") is None


def test_tables_are_small_equal_and_readable_without_us(folder: TrialFolder) -> None:
    table = {"step": 1, "columns": ["completion"], "data": [["x = 1, so x + 1 = 2. "]] * 64}
    folder.write_completions("step-000001", table["columns"], table["data"], step=1)
    (name,) = folder.list("rollouts")
    content = folder.read_bytes(f"rollouts/{name}")
    assert content is not None
    assert name == "step-000001.json.gz"
    assert json.loads(gzip.decompress(content)) == table
    # rows that repeat one text of 21 characters
    assert len(content) < len(json.dumps(table)) / 10
    folder.write_completions("step-000002", table["columns"], table["data"], step=1)
    assert folder.read_bytes("rollouts/step-000002.json.gz") == content


def test_a_plain_table_of_an_old_store_is_read_until_it_is_written_again(folder: TrialFolder) -> None:
    folder.write("rollouts/step-000001.json", '{"columns": ["completion"], "data": [["old"]]}')
    assert folder.completions("step-000001") == {"columns": ["completion"], "data": [["old"]]}
    folder.write_completions("step-000001", ["completion"], [["new"]])
    assert folder.completions("step-000001") == {"columns": ["completion"], "data": [["new"]]}


@pytest.mark.parametrize("damaged", [b"", b"not gzip", gzip.compress(b'{"data": []}')[:-4], gzip.compress(b"{")])
def test_a_damaged_table_names_its_file(folder: TrialFolder, damaged: bytes) -> None:
    folder.write("rollouts/step-000001.json.gz", damaged)
    with pytest.raises(ValueError, match=r"rollouts/step-000001\.json\.gz is damaged"):
        folder.completions("step-000001")


def test_a_result_is_current_until_the_next_attempt_begins(folder: TrialFolder) -> None:
    begin_attempt(folder, {})
    folder.write_result(result(attempt=1))
    assert folder.current_result() == result(attempt=1)
    begin_attempt(folder, {})
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


def test_one_file_of_a_folder_is_at_hand(folder: TrialFolder, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "part").write_bytes(b"\x00weights")
    folder.put_folder("checkpoint", tmp_path / "new")
    (kept,) = folder.list("checkpoint")
    (tmp_path / "local").mkdir()
    assert folder.at_hand(f"checkpoint/{kept}/part", tmp_path / "local").read_bytes() == b"\x00weights"


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


def test_a_folder_whose_pointer_is_torn_counts_as_none(folder: TrialFolder, tmp_path: Path) -> None:
    folder.write("checkpoint.json", '{"fol')
    assert not folder.get_folder("checkpoint", tmp_path)


def test_what_is_removed_is_gone_with_all_in_it_and_nothing_else(folder: TrialFolder) -> None:
    for name in ("a/b/c", "a/d", "ab"):
        folder.write(name, "x")
    folder.remove("a")
    folder.remove("a")
    assert (folder.list(""), folder.read("a/b/c")) == (["ab"], None)
    folder.remove("ab")
    assert folder.list("") == []


# --- exclusive creation ---


def test_a_file_is_created_once(folder: TrialFolder) -> None:
    assert folder.create("attempts/1.json", "first")
    assert not folder.create("attempts/1.json", "second")
    assert folder.read("attempts/1.json") == "first"
    assert folder.list("attempts") == ["1.json"]
    folder.write("attempts/2.json", "written")
    assert not folder.create("attempts/2.json", "created")
    assert folder.last_attempt() == 2


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns after each few instructions."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual_s)


@pytest.mark.usefixtures("hasty_threads")
def test_of_eight_who_create_a_file_at_once_one_is_told_that_it_did(folder: TrialFolder) -> None:
    for number in range(5):
        start, made = threading.Barrier(8), []

        def create(text: str, *, name: str, start: threading.Barrier, made: list[str]) -> None:
            start.wait()
            if folder.create(name, text):
                made.append(text)

        arguments = {"name": f"turn-{number}", "start": start, "made": made}
        threads = [threading.Thread(target=create, args=(str(n),), kwargs=arguments) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == [folder.read(f"turn-{number}")]


def test_a_disk_without_hard_links_creates_once_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: str) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    folder = Store(str(tmp_path)).trial("k")
    assert [folder.create("x", text) for text in "ab"] == [True, False]
    assert (folder.read("x"), os.listdir(folder.path)) == ("a", ["x"])


# --- fences ---


class LostError(Exception):
    """What a fence raises here."""


def fenced(folder: TrialFolder, *, at_call: int = 1) -> TrialFolder:
    """The same folder; its fence raises from that call on."""
    calls = 0

    def fence() -> None:
        nonlocal calls
        calls += 1
        if calls >= at_call:
            raise LostError

    made = TrialFolder(folder.fs, folder.path)
    made.fence = fence
    return made


def everything(folder: Folder) -> dict[str, bytes]:
    return {path: folder.fs.cat_file(path) for path in folder.fs.find(folder.path)}


def test_nothing_counts_that_a_fence_forbids(folder: TrialFolder, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    (local / "a").write_text("old")
    folder.put_folder("checkpoint", local)
    folder.write("trial.json", "old")
    before = everything(folder)
    (local / "a").write_text("new")
    other = fenced(folder)
    for act in (
        lambda: other.write("trial.json", "new"),
        lambda: other.write("more.json", "new"),
        lambda: other.write_segment(1, [row(0, 0.0)]),
        lambda: other.put_folder("checkpoint", local),
        lambda: other.remove("trial.json"),
        lambda: other.remove_folder("checkpoint"),
    ):
        with pytest.raises(LostError):
            act()
    assert everything(folder) == before
    assert other.create("attempts/1.json", "")  # which is how a turn is taken


def test_a_folder_that_is_put_while_the_turn_is_lost_does_not_count(folder: TrialFolder, tmp_path: Path) -> None:
    for text, target in (("old", folder), ("new", fenced(folder, at_call=2))):
        local = tmp_path / text
        local.mkdir()
        (local / "a").write_text(text)
        if text == "old":
            target.put_folder("checkpoint", local)
        else:
            with pytest.raises(LostError):
                target.put_folder("checkpoint", local)
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    assert folder.get_folder("checkpoint", fetched)
    assert (fetched / "a").read_text() == "old"


# --- what fails ---


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow past 4 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_disk_has_no_room_for_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    folder = Store(str(tmp_path / "runs")).trial("k")
    folder.write("trial.json", "old")
    local = tmp_path / "local"
    local.mkdir()
    (local / "a").write_text("x" * 10_000)
    with full_disk():
        with pytest.raises(OSError, match="File too large"):
            folder.write("trial.json", "x" * 10_000)
        with pytest.raises(OSError, match="File too large"):
            folder.create("more.json", "x" * 10_000)
        with pytest.raises(OSError, match="File too large"):
            folder.put_folder("checkpoint", local)
    assert sorted(os.listdir(folder.path)) == ["checkpoint", "trial.json"]
    assert os.listdir(Path(folder.path, "checkpoint")) == []
    assert folder.read("trial.json") == "old"


def test_a_storage_that_can_be_written_is_left_as_it_was(store: Store) -> None:
    store.trial("k").write("trial.json", "")
    store.check_writable()
    (left,) = everything(Folder(store.fs, store.path))
    assert left.endswith("/trials/k/trial.json")


def test_a_storage_that_no_one_serves_is_refused() -> None:
    with pytest.raises(UserError, match="storage: nosuch://x"):
        Store("nosuch://x")


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_storage_whose_package_is_missing_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"storage: gs://x: .*install gcsfs .*on every machine"):
        Store("gs://x")


def test_a_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; name a folder"):
        Store(str(tmp_path / "file"))
    store = Store(str(tmp_path / "later"))
    (tmp_path / "later").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: .*later.*; choose a folder that this user may write"):
        store.check_writable()


class Overwriting(MemoryFileSystem):
    """A remote store that knows no exclusive creation, and does not say so."""

    protocol = "overwriting"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        super().pipe_file(path, value)


def test_a_storage_that_creates_what_is_there_is_refused() -> None:
    fsspec.register_implementation("overwriting", Overwriting, clobber=True)
    with pytest.raises(UserError, match="it overwrites files that must be created exclusively"):
        Store("overwriting://x").check_writable()


# --- S3 alone ---


def test_a_bucket_that_is_missing_is_refused_and_not_made(s3_bucket: str) -> None:
    with pytest.raises(UserError, match=r"cannot be written: .*bucket does not exist; check its address"):
        Store(f"{s3_bucket}-typo/runs").check_writable()
    assert not fsspec.filesystem("s3").exists(f"{s3_bucket}-typo")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Unable to locate credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Could not connect to the endpoint"),
    ],
    ids=["no credentials", "unreachable"],
)
def test_an_s3_that_cannot_be_reached_is_refused_in_one_line(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    for name, value in {**changes, "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    files = type(fsspec.filesystem("s3"))
    files.clear_instance_cache()  # the environment is read once for each
    try:
        with pytest.raises(UserError, match=f"^storage: {s3_bucket}: cannot be written: .*{reason}.*credentials in"):
            Store(s3_bucket).check_writable()
    finally:
        files.clear_instance_cache()


def test_files_of_another_process_are_seen_at_once(s3_bucket: str) -> None:
    """fsspec remembers a bucket's listings for as long as a process lives, unless it is told not to."""
    folder, others = Store(f"{s3_bucket}/runs").trial("k"), fsspec.filesystem("s3", skip_instance_cache=True)
    folder.write("attempts/1.json", "{}")
    assert folder.list("attempts") == ["1.json"]
    others.pipe_file(f"{s3_bucket}/runs/trials/k/attempts/2.json", b"{}")
    assert folder.list("attempts") == ["1.json", "2.json"]
    others.rm(f"{s3_bucket}/runs/trials/k/attempts/1.json")
    assert folder.list("attempts") == ["2.json"]


def test_an_object_is_put_and_not_copied(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"{s3_bucket}/runs")
    copied: list[str] = []
    monkeypatch.setattr(type(store.fs), "_cp_file", lambda self, *paths, **_: copied.append(str(paths)))
    store.trial("k").write("trial.json", "{}")
    (tmp_path / "a").write_text("a")
    store.trial("k").put_folder("checkpoint", tmp_path)
    assert copied == []
