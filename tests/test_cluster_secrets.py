"""The files of cluster/: no secret is written in one, and nobody comes in without one."""

import re
from pathlib import Path

import pytest
from clusterfiles import CLUSTER, FILES, documents, mappings, with_typo

SECRET = re.compile(r"(?i)password|secret|token|credential|access_key|private_key")
TELLS = re.compile(r"^(\$(?!\{\w+:-[^$~/]).*|[~/].*|)$")
"""Where a secret is, not what it is: a variable, a command, a path."""


def literal_secrets(path: Path) -> list[str]:
    text = path.read_text()
    found = [f"a private key or token: {one}" for one in re.findall(r"AKIA\w{16}|hf_\w{20,}|-----BEGIN \w+", text)]
    if path.suffix in (".yaml", ".yml"):
        for node in (node for document in documents(path) for node in mappings(document)):
            found += ["a Secret belongs into no file"] if node.get("kind") == "Secret" else []
            named = {node["name"]: node["value"]} if {"name", "value"} <= set(node) else node
            given = ((str(key), value) for key, value in named.items() if isinstance(value, str))
            found += [f"{key}: {value}" for key, value in given if is_secret(key, value)]
    else:
        assigned = re.findall(r"^\s*(?:export |ENV |ARG )?(\w+) ?= ?(\S+)", text, flags=re.MULTILINE)
        found += [f"{key}={value}" for key, value in assigned if is_secret(key, value)]
    return found


def is_secret(key: str, value: str) -> bool:
    refers = key in ("secretName", "RAY_AUTH_MODE") or key.endswith(("_path", "_PATH", "_files"))
    return bool(SECRET.search(key)) and not refers and not TELLS.match(value.strip("\"'"))


def unguarded(path: Path) -> list[str]:
    """Files in which something listens beyond loopback, or Ray is started, without authentication."""
    text = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
    if path.suffix in (".md", ".py", ".example"):
        return []
    if "kind: Ray" in text:
        return [] if re.search(r"authOptions: \{mode: token\}", text) else ["Ray's ports are open to everybody"]
    if re.search(r"\bray (start|symmetric-run)", text):
        starts = 1 if "docker:" in text else len(re.findall(r"\bray (?:start|symmetric-run)", text))
        guarded = text.count("RAY_AUTH_MODE=token") >= starts
        return [] if guarded and "--dashboard-host=0.0.0.0" not in text else ["Ray's ports are open to everybody"]
    if "0.0.0.0" in text and "basic-auth" not in text:
        return ["listens on all addresses, without authentication"]
    return []


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CLUSTER)) for path in FILES])
def test_a_file_has_no_secret_and_lets_in_nobody_without_one(path: Path) -> None:
    assert literal_secrets(path) + unguarded(path) == []


TYPOS = [
    ("ray/aws.yaml", "RAY_AUTH_MODE=token", "RAY_AUTH_MOD=token", "open to everybody"),
    ("ray/aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "open to everybody"),
    ("ray/hosts.yaml", "RAY_AUTH_MODE=token; RAY_JOB", "RAY_JOB", "open to everybody"),
    ("kuberay/raycluster.yaml", "  authOptions: {mode: token}", "  suspend: false", "open to everybody"),
    ("mlflow/kubernetes.yaml", "--app-name=basic-auth", "--app-name=none", "without authentication"),
    ("mlflow/compose.yaml", "--app-name=basic-auth", "--app-name=none", "without authentication"),
    ("mlflow/compose.yaml", "${MLFLOW_AUTH_ADMIN_PASSWORD:?}", "password1234", "password1234"),
    ("slurm/oneshot.sbatch", "RAY_AUTH_MODE=token", "RAY_AUTH_MOD=token", "open to everybody"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "word"), TYPOS, ids=[f"{t[0]}: {t[2]}"[:60] for t in TYPOS])
def test_a_typo_that_opens_a_door_is_caught(name: str, right: str, wrong: str, word: str, tmp_path: Path) -> None:
    copy = with_typo(name, right, wrong, folder=tmp_path)
    found = literal_secrets(copy) + unguarded(copy)
    assert any(word in line for line in found), found
