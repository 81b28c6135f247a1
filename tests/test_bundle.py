"""A bundle: one small archive that is judged again elsewhere, to the same numbers; and what is no bundle."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import sweep_run
from synthetic import HOSTILE, SMALL, make_store, put_on_record
from verbs import oneshot

from oneshot.config.file import load
from oneshot.errors import UserError
from oneshot.plan.plan import make_plan
from oneshot.report import bundle
from oneshot.report.bundle import is_bundle, read_bundle, write_bundle
from oneshot.report.manifest import manifest_of
from oneshot.report.page import DATA, PAGE, make_report
from oneshot.report.runs import Gathered, gather
from oneshot.report.verdicts import verdicts
from oneshot.store.store import Store

CLAIMED = (
    SMALL.replace("num_problems: 20}", "num_problems: 5, samples: 2, temperature: 1.0}")
    + """\
claims:
  - {name: lifts, metric: eval/arithmetic/pass_at_1, a: {arm: outcome}, b: {at: start}, for_each: [model], expect: {greater_by: 0}}
  - {name: more than format, metric: eval/arithmetic/pass_at_1, of: gain, a: {arm: outcome}, b: {arm: format}, expect: {greater_by: 0.1}}
  - {name: early, metric: eval/arithmetic/pass_at_k, a: {arm: outcome, at: saturation}, b: {at: start}, expect: {within: 0.5}}
  - {name: transfers, metric: eval/arithmetic/pass_at_1, categories: untrained, a: {arm: outcome}, b: {at: start}, for_all: [model], expect: {greater_by: 0}}
  - {name: less sure, metric: rollout/entropy, a: {arm: outcome}, b: {at: start}, expect: {less_by: 0.1}}
published:
  - {by: Someone, how: one seed, columns: [arithmetic], rows: [{cell: {arm: outcome}, values: [0.5]}]}
"""
)
FAILED, MISSING = "tiny-qwen2/outcome seed 1", "tiny-llama/format seed 2"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep file, its store, and `small.oneshot.zip`."""
    folder = tmp_path_factory.mktemp("made")
    put_on_record(folder, CLAIMED)
    make_store(
        folder,
        CLAIMED,
        failed=[FAILED],
        missing=[MISSING],
        facts=lambda trial: {"host": "secret-host", "versions": {"torch": f"2.{trial.seed}"}, "platform": "Linux"},
    )
    write_bundle(from_store(folder), folder / "small.oneshot.zip")
    return folder


def from_store(folder: Path) -> Gathered:
    sweep = load(folder / "sweep.yaml")
    return gather(sweep_run(sweep, make_plan(sweep), Store(str(folder / "runs"))))


# to the same numbers


def test_verdicts_of_store_and_bundle_are_the_same_to_the_last_bit(made: Path) -> None:
    own, other = ([one.to_json() for one in verdicts(each)] for each in both(made))
    assert json.dumps(own) == json.dumps(other)
    assert len(own) == 6
    assert {one["verdict"] for one in own} >= {"supported"}


def both(made: Path) -> tuple[Gathered, Gathered]:
    return from_store(made), read_bundle(made / "small.oneshot.zip")


@pytest.mark.slow
def test_all_numbers_and_figures_of_the_report_are_the_same(made: Path) -> None:
    own, other = (make_report(each) for each in both(made))
    assert own.files[DATA] == other.files[DATA]
    assert own.files.keys() == other.files.keys()
    assert own.description == other.description


def test_a_bundle_of_a_bundle_is_the_same(made: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.zip"
    write_bundle(read_bundle(made / "small.oneshot.zip"), again)
    with zipfile.ZipFile(made / "small.oneshot.zip") as one, zipfile.ZipFile(again) as other:
        assert one.namelist() == other.namelist()
        names = [name for name in one.namelist() if name not in ("report.html", "manifest.json")]  # when it was made
        assert all(one.read(name) == other.read(name) for name in names)


def test_what_failed_and_what_is_missing_is_in_it(made: Path) -> None:
    runs = {run.label: run for run in read_bundle(made / "small.oneshot.zip").runs}
    assert len(runs) == 12
    assert (runs[FAILED].state, runs[FAILED].reason) == ("failed", "TrialError: the loss is not finite")
    assert (runs[MISSING].state, runs[MISSING].rows) == ("missing", ())
    assert [run for run in from_store(made).runs if run != runs[run.label]] == []


def test_the_claims_are_in_it_as_they_were_frozen(made: Path) -> None:
    found = read_bundle(made / "small.oneshot.zip").frozen
    assert found == from_store(made).frozen
    assert found.is_intact
    assert list(found.claims) == load(made / "sweep.yaml").config.claims
    assert found.frozen_ms is not None


@pytest.mark.slow
def test_it_is_judged_through_the_verbs_to_the_same_json(made: Path, tmp_path: Path) -> None:
    own = oneshot("report", "small", "--json", "--no-publish", cwd=made)
    other = oneshot("report", str(made / "small.oneshot.zip"), "--json", "--out", "told", cwd=tmp_path)
    assert (own.code, other.code) == (0, 0)
    assert own.out == other.out
    assert (tmp_path / "told" / PAGE).is_file()
    assert json.loads((tmp_path / "told" / DATA).read_text())["verdicts"] == json.loads(own.out)


NO_TORCH = """\
import sys
from oneshot.cli import main
sys.argv = ["oneshot", "report", sys.argv[1], "--json", "--out", sys.argv[2]]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {"torch", "transformers", "accelerate", "ray", "mlflow", "optuna"} & {name.partition(".")[0] for name in sys.modules}
assert not heavy, heavy
"""


@pytest.mark.slow
def test_a_laptop_judges_it_without_torch_or_any_orchestrator(made: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", NO_TORCH, str(made / "small.oneshot.zip"), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == json.loads(json.dumps([one.to_json() for one in verdicts(from_store(made))]))


def test_a_search_is_in_it(made: Path, tmp_path: Path) -> None:
    whole = from_store(made)
    write_bundle(replace(whole, searched=whole.runs[:2]), tmp_path / "b.zip")
    assert read_bundle(tmp_path / "b.zip").searched == whole.runs[:2]
    assert read_bundle(made / "small.oneshot.zip").searched == ()


def test_all_that_was_frozen_is_in_it(made: Path) -> None:
    found = read_bundle(made / "small.oneshot.zip").frozen
    assert (found.seeds, len(found.cells), set(found.num_steps.values())) == ((0, 1, 2), 4, {12})
    assert list(found.suites) == ["arithmetic"]
    assert found.rules.failed == "start"


def test_it_is_opened_once_and_each_file_read_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, read = [], []

    class Counted(zipfile.ZipFile):
        def __init__(self, file: Any, *more: Any, **options: Any) -> None:
            opened.append(file)
            super().__init__(file, *more, **options)

        def read(self, name: Any, pwd: bytes | None = None) -> bytes:
            read.append(name)
            return super().read(name, pwd)

    monkeypatch.setattr(bundle.zipfile, "ZipFile", Counted)
    verdicts(read_bundle(made / "small.oneshot.zip"))
    assert len(opened) == 1
    assert len([name for name in read if name.startswith("grades/")]) > 10
    assert len(set(read)) == len(read)


# what is in it


def test_it_is_small_and_has_neither_weights_nor_hosts(made: Path) -> None:
    path = made / "small.oneshot.zip"
    assert path.stat().st_size < 200_000
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        text = b"".join(archive.read(name) for name in names)
    assert {name.partition("/")[0] for name in names} == {
        "README.md",
        "report.html",
        "manifest.json",
        "bundle.json",
        "claims.json",
        "sweep.yaml",
        "runs.json",
        "searched.json",
        "grades",
        "problems",
        "shown",
    }
    assert all(name.endswith((".json", ".yaml", ".md", ".html")) for name in names)
    assert b"secret-host" not in text
    assert b"Traceback" not in text


def test_it_is_replaced_whole(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    path.write_text("what was there")
    write_bundle(read_bundle(made / "small.oneshot.zip"), path)
    assert is_bundle(path)
    assert [one.name for one in tmp_path.iterdir()] == ["b.zip"]


def test_a_hostile_completion_is_shown_as_text(made: Path) -> None:
    page = make_report(read_bundle(made / "small.oneshot.zip")).files[PAGE]
    assert HOSTILE.split()[0] == "<script>document.title"
    assert "<script>document.title" not in page
    assert "&lt;script&gt;document.title" in page


# what is no bundle


@pytest.fixture
def broken(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """The bundle with some of its files in other words; None: left out."""

    def write(**files: Any) -> Path:
        path = tmp_path / "broken.zip"
        replaced = {
            name.replace("__", "/").replace("_json", ".json").replace("_yaml", ".yaml"): text
            for name, text in files.items()
        }
        contents: dict[str, Any] = {}
        with zipfile.ZipFile(made / "small.oneshot.zip") as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                key = "grades" if name.startswith("grades/") and "grades" in replaced else name
                text = replaced.get(key, old.read(name))
                if text is not None and name != "manifest.json":
                    contents[name] = text(old.read(name).decode()) if callable(text) else text
                    new.writestr(name, contents[name])
            # whoever changes a file can make its manifest fit
            files = {name: text if isinstance(text, bytes) else text.encode() for name, text in contents.items()}
            new.writestr("manifest.json", json.dumps(manifest_of(files)))
        return path

    return write


def complaint(path: Path) -> str:
    """What is said of a bundle, by whatever reads it."""
    with pytest.raises(UserError) as caught:
        make_report(read_bundle(path))
    assert len(str(caught.value).splitlines()) == 1, caught.value
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def changed(*keys: Any, to: Any) -> Callable[[str], str]:
    """A JSON text with one value in it another; `...` in place of a key: the first."""

    def change(text: str) -> str:
        data = inner = json.loads(text)
        for key in keys[:-1]:
            inner = inner[next(iter(inner)) if key is ... else key]
        inner[next(iter(inner)) if keys[-1] is ... else keys[-1]] = to
        return json.dumps(data)

    return change


ODD = {
    "a list for the facts": {"bundle_json": "[]"},
    "no facts": {"bundle_json": None},
    "half of the facts": {"bundle_json": lambda text: text[: len(text) // 2]},
    "no text": {"runs_json": b"\xff\xfe\x00"},
    "no runs": {"runs_json": None},
    "a run that is none": {"runs_json": "[1]"},
    "runs that are none": {"runs_json": "5"},
    "a run without seed": {"runs_json": lambda text: json.dumps([{k: v for k, v in one.items() if k != "seed"} for one in json.loads(text)])},
    "a run in another state": {"runs_json": changed(0, "state", to="won")},
    "a run that is still running": {"runs_json": changed(0, "state", to="running")},
    "a list of measures": {"runs_json": changed(0, "measured", to=["arithmetic"])},
    "measures by no step": {"runs_json": changed(0, "measured", "arithmetic", to={"first": {"pass_at_1": 0.5}})},
    "a measure that is text": {"runs_json": changed(0, "measured", "arithmetic", "0", "pass_at_1", to="high")},
    "a cell that is a list": {"runs_json": changed(0, "cell", to=[])},
    "suites that are none": {"runs_json": changed(0, "suites", to=[{}])},
    "environments that are none": {"runs_json": changed(0, "environments", to=[1])},
    "an environment without versions": {"runs_json": changed(0, "environments", to=[{}])},
    "versions that are numbers": {"runs_json": changed(0, "environments", 0, "versions", to={"torch": 2.0})},
    "a config of nothing": {"runs_json": changed(0, "config", to={})},
    "a config without a reward": {"runs_json": changed(0, "config", "reward", to=None)},
    "a run with other axes": {"runs_json": changed(1, "cell", to={"model": "tiny-qwen2"})},
    "a run without axes": {"runs_json": changed(0, "cell", to={})},
    "one run twice": {"runs_json": lambda text: json.dumps([*json.loads(text), json.loads(text)[0]])},
    "a key that is a path": {"runs_json": changed(0, "key", to="../../etc")},
    "a digest that is a path": {"runs_json": changed(0, "suites", 0, "digest", to="../x")},
    "more right than there is": {"runs_json": changed(0, "measured", "arithmetic", "12", "pass_at_1", to=50)},
    "a step without end": {"runs_json": changed(0, "num_steps", to=10**30)},
    "a label that is no text": {"runs_json": changed(0, "label", to="\ud800")},
    "a name that is a path": {"bundle_json": changed("name", to="../outside")},
    "a name that is an absolute path": {"bundle_json": changed("name", to="/tmp/outside")},
    "a name of two lines": {"bundle_json": changed("name", to="small\n")},
    "a name that no folder can have": {"bundle_json": changed("name", to="a" * 5000)},
    "claims from no time": {"claims_json": changed("frozen_ms", to=10**18)},
    "a search that is none": {"searched_json": '[{"label": "x"}]'},
    "grades of nothing": {"grades": json.dumps({name: [] for name in ("ids", "categories", *bundle.ARRAYS)})},
    "half right": {"grades": lambda text: text.replace("1", "7")},
    "no claims": {"claims_json": None},
    "claims without digest": {"claims_json": '{"claims": []}'},
    "a claim that is none": {"claims_json": changed("claims", to=[{"name": "x"}])},
    "a claim of an unknown cell": {"claims_json": changed("claims", 0, "a", to={"arm": "nothing"})},
    "a question that is a number": {"bundle_json": changed("question", to=5)},
    "seeds that are text": {"bundle_json": changed("seeds", to="0, 1")},
    "published as text": {"bundle_json": changed("published", to=["x"])},
    "grades that are none": {"grades": "[]"},
    "grades without columns": {"grades": '{"ids": []}'},
    "grades of another shape": {"grades": changed("strict_PK", to=[[1, 0], [1]])},
    "fewer grades than problems": {"grades": changed("strict_PK", to=[[1, 0]])},
    "grades that are text": {"grades": changed("lenient_PK", to="abc")},
    "half of the grades": {"grades": lambda text: text[: len(text) // 2]},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_broken_bundle_gets_one_line(name: str, broken: Callable[..., Path]) -> None:
    assert complaint(broken(**ODD[name])).startswith("the bundle is damaged: ")


def test_a_zip_without_a_sweep_is_no_bundle(broken: Callable[..., Path]) -> None:
    assert complaint(broken(sweep_yaml=None)) == (
        "not a bundle: it has no sweep.yaml; make one with `oneshot report NAME --bundle`"
    )


def test_a_bundle_of_another_format_says_of_which(broken: Callable[..., Path]) -> None:
    path = broken(bundle_json='{"format": 99, "oneshot": "9.0"}')
    assert complaint(path) == "written by oneshot 9.0 in format 99; this version reads only up to 3"


def test_what_is_no_zip_is_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "x.oneshot.zip"
    path.write_bytes(b"PK, or so")
    assert not is_bundle(path)
    assert not is_bundle(tmp_path / "nothing.zip")
    assert not is_bundle(tmp_path)
    assert complaint(path).startswith("not a bundle: ")
    said = oneshot("report", "x.oneshot.zip", cwd=tmp_path)
    assert said.code == 2
    assert said.err.startswith("oneshot: x.oneshot.zip")
    assert len(said.err.splitlines()) == 1


def test_a_bundle_that_was_cut_or_damaged_is_no_bundle(made: Path, tmp_path: Path) -> None:
    whole = (made / "small.oneshot.zip").read_bytes()
    path = tmp_path / "cut.zip"
    path.write_bytes(whole[: len(whole) // 2])
    assert complaint(path).startswith("not a bundle: ")
    with zipfile.ZipFile(made / "small.oneshot.zip") as archive:
        info = archive.getinfo("runs.json")
    at = info.header_offset + 200
    path.write_bytes(whole[:at] + bytes(byte ^ 0xFF for byte in whole[at : at + 50]) + whole[at + 50 :])
    with pytest.raises(UserError, match="the bundle is damaged"):
        read_bundle(path)


def test_a_bundle_that_unpacks_to_too_much_is_not_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_BYTES", 1000)
    assert "not a bundle: it unpacks to more than" in complaint(made / "small.oneshot.zip")
    monkeypatch.undo()
    assert read_bundle(made / "small.oneshot.zip").runs


def test_no_name_within_a_bundle_names_a_file(broken: Callable[..., Path], tmp_path: Path) -> None:
    def renamed(text: str) -> str:
        runs = json.loads(text)
        for run in runs:
            run["suites"][0]["name"] = "../../outside"
            run["measured"] = {"../../outside": run["measured"].get("arithmetic", {})}
        return json.dumps(runs)

    made = make_report(
        read_bundle(broken(runs_json=renamed, claims_json=no_claims, bundle_json=changed("published", to=[])))
    )
    assert "curves.svg" in made.files
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for name in made.files)
    path = broken(bundle_json=changed("name", to="../outside"))
    folder = tmp_path / "within"
    folder.mkdir()
    for more in ([], ["--bundle"]):
        said = oneshot("report", str(path), *more, cwd=folder)
        assert (said.code, len(said.err.splitlines())) == (2, 1)
        assert "name: String should match pattern" in said.err
    assert {one.name for one in tmp_path.iterdir()} == {"broken.zip", "within"}


def no_claims(text: str) -> str:
    return json.dumps({"claims": [], "digest": "", "frozen_ms": None})


def test_what_a_bundle_names_is_no_order_to_the_terminal(broken: Callable[..., Path], tmp_path: Path) -> None:
    def hostile(text: str) -> str:
        return text.replace("tiny-qwen2", "\\u001b]0;taken\\u0007")

    path = broken(runs_json=hostile, claims_json=hostile)
    for arguments in (["report", path.name], ["compare", path.name, path.name]):
        said = oneshot(*arguments, cwd=tmp_path)
        assert said.code == 0, said.err
        assert "\x1b" not in said.out + said.err and "\x07" not in said.out + said.err
        assert "taken" in said.out


def test_a_broken_bundle_ends_the_verbs_with_one_line_and_2(broken: Callable[..., Path], tmp_path: Path) -> None:
    path = broken(grades="[]")
    for arguments in (["report", path.name], ["report", path.name, "--bundle"], ["compare", path.name, path.name]):
        said = oneshot(*arguments, cwd=tmp_path)
        assert (said.code, said.out) == (2, ""), arguments
        assert said.err.startswith("oneshot: broken.zip: the bundle is damaged: ")
        assert len(said.err.splitlines()) == 1
