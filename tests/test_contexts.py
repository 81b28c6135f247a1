"""`--address` names a cluster: a URL, or a context that says more about it."""

from pathlib import Path

import pytest
from verbs import oneshot

from oneshot.config.contexts import find_context, token_of
from oneshot.config.urls import has_password
from oneshot.errors import UserError

LAB = """\
lab:
  address: http://127.0.0.1:8265
  storage: /mnt/oneshot
  env: {HF_HOME: /mnt/hf}
"""


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONESHOT_CONTEXTS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "ONESHOT_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def write(text: str) -> None:
    Path("cluster").mkdir(exist_ok=True)
    Path("cluster/contexts.yaml").write_text(text)


def test_a_url_is_a_cluster_of_which_nothing_else_is_known() -> None:
    found = find_context("http://head:8265/")
    assert (found.address, found.storage, found.mlflow, found.env) == ("http://head:8265", None, None, {})


def test_a_context_is_found_in_the_working_directory_or_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(LAB)
    assert find_context("lab").storage == "/mnt/oneshot"
    other = tmp_path / "other.yaml"
    other.write_text(LAB.replace("/mnt/oneshot", "s3://bucket/x"))
    monkeypatch.setenv("ONESHOT_CONTEXTS", str(other))
    assert find_context("lab").storage == "s3://bucket/x"


@pytest.mark.parametrize(
    ("text", "address", "said"),
    [
        (LAB, "lap", "did you mean 'lab'?"),
        ("", "lab", "cluster/contexts.yaml"),
        (LAB.replace("storage", "storag"), "lab", "contexts.yaml:3: lab.storag: unknown key; did you mean 'storage'?"),
        (LAB.replace("HF_HOME", "HF_TOKEN"), "lab", "lab.env: HF_TOKEN looks like a secret"),
        (LAB.replace("/mnt/hf", "db://me:pw@host"), "lab", "lab.env: HF_HOME looks like a secret"),
        (LAB.replace("/mnt/oneshot", "s3://AKIA:ab/cd@bucket"), "lab", "lab.storage: the URL contains a password"),
        (LAB.replace("http://", "http://me:pw@"), "lab", "lab.address"),
        ("- lab\n", "lab", "cluster/contexts.yaml:1: the file: must be a mapping"),
        (LAB + "lab: {address: http://x:1}\n", "lab", "duplicate key"),
        (LAB, "http://me:pw@head:8265", "without user or password"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place_and_mend(text: str, address: str, said: str) -> None:
    if text:
        write(text)
    with pytest.raises(UserError) as raised:
        find_context(address)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_token_is_the_contexts_own_then_the_environments_then_rays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = find_context("http://head:8265")
    assert token_of(plain) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("rays\n")
    assert token_of(plain) == "rays"
    (tmp_path / "named").write_text("named")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert token_of(plain) == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert token_of(plain) == "given"
    write(LAB + "  token_path: ~/own\n")
    with pytest.raises(UserError, match="own: the cluster's token cannot be read"):
        token_of(find_context("lab"))
    (tmp_path / "own").write_text("own")
    assert token_of(find_context("lab")) == "own"


# --- verbs that need no cluster to refuse ---

SWEEP = """\
version: 1
name: s
question: Is it refused?
trial: {script: {}, train.num_steps: 1}
seeds: [0]
"""


def test_submit_refuses_a_storage_that_means_another_folder_on_every_machine(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    said = oneshot("submit", "s.yaml", "--address", "http://127.0.0.1:9", cwd=tmp_path)
    assert said.code == 2
    assert "s.yaml:1: storage: runs is a different folder on every machine; use a folder" in said.err
    said = oneshot("submit", "s.yaml", "--address", "http://127.0.0.1:9", "--storage", "memory://x", cwd=tmp_path)
    assert "the memory of one process" in said.err


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    write(LAB.replace("8265", "9"))
    for arguments in (["submit", "s.yaml"], ["logs", "s"], ["status", "s"], ["stop", "s"], ["doctor", "s.yaml"]):
        said = oneshot(*arguments, "--address", "lab", cwd=tmp_path)
        assert said.code == 2, arguments
        assert "--address lab: Ray's dashboard does not answer at http://127.0.0.1:9" in said.err
        assert said.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_verb_that_joins_ray_says_what_to_call_from_elsewhere(verb: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    said = oneshot(verb, "s.yaml", "--address", "http://head:8265", cwd=tmp_path)
    assert said.code == 2
    assert f"`oneshot {'submit' if verb == 'run' else 'doctor'} s.yaml --address http://head:8265`" in said.err


def test_an_address_where_nothing_listens_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    said = oneshot("plan", "s.yaml", "--address", "127.0.0.1:9", cwd=tmp_path)
    assert said.code == 2
    assert "--address 127.0.0.1:9: no Ray cluster answers (Connection refused)" in said.err


# --- secrets and names ---


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("storage: s3://key:pw@bucket/x", "s.yaml:6: storage: the URL contains a password"),
        (
            "mlflow: {tracking_uri: 'http://me:pw@mlflow:5000'}",
            "s.yaml:6: mlflow.tracking_uri: the URL contains a password",
        ),
    ],
)
def test_a_password_in_a_sweep_file_is_refused(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"{SWEEP}{line}\n")
    found = oneshot("plan", "s.yaml", cwd=tmp_path)
    assert found.code == 2
    assert said in found.err


def test_a_password_on_the_command_line_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    for verb in (["run", "s.yaml"], ["submit", "s.yaml", "--address", "http://127.0.0.1:9"]):
        for option, url in (("--storage", "s3://key:hunter2@bucket"), ("--mlflow", "http://me:hunter2@mlflow:5000")):
            said = oneshot(*verb, "--storage", "/shared", option, url, cwd=tmp_path)
            assert said.code == 2
            assert "the URL contains a password" in said.err
            assert "hunter2" not in said.err + said.out


@pytest.mark.parametrize(
    "url", ["http://h:8265/a@b", "abfs://container@account.dfs.core.windows.net/x", "s3://bucket/x"]
)
def test_a_url_without_a_password_is_one(url: str) -> None:
    assert not has_password(url)


@pytest.mark.parametrize("name", ["../up", "a/b", ".", "", "a\nb"])
def test_a_name_that_would_lead_out_of_the_storage_is_refused(name: str, tmp_path: Path) -> None:
    for verb in ("status", "stop", "retry"):
        said = oneshot(verb, name, "--storage", str(tmp_path / "runs"), cwd=tmp_path)
        assert said.code == 2, verb
        assert "not a sweep's name" in said.err
    assert not (tmp_path / "up").exists()
