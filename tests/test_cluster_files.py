"""The files of cluster/: what reads each of them takes it, and would not take it with a typo.

Nothing here starts Ray, Docker, Kubernetes or Slurm.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import click
import mlflow
import pytest
import typer
from botocore.session import get_session
from botocore.validate import ParamValidator
from check_jsonschema.builtin_schemas import get_builtin_schema
from conftest import PROJECT
from jsonschema import Draft7Validator, Draft202012Validator, ValidationError
from kubernetes_validate import validate as validate_object
from ray import autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.sdk import get_docker_host_mount_location
from ray.scripts import scripts as ray_scripts
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args
from ruamel.yaml import YAML
from typer.exceptions import TyperException

from oneshot.cli import app
from oneshot.contexts import find_context
from oneshot.errors import UserError

pytest_plugins = ["stores"]

CLUSTER = PROJECT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
KUBERNETES = "1.34"
README = (CLUSTER / "README.md").read_text()


def documents(path: Path) -> list[Any]:
    return [one for one in YAML(typ="safe").load_all(path.read_text()) if one is not None]


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a document."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(one)


def said(schema: dict[str, Any], value: Any) -> list[str]:
    """What a JSON schema finds: the deepest findings, where one of several shapes is asked for."""
    kind = Draft7Validator if "draft-07" in schema.get("$schema", "") else Draft202012Validator
    return [_deepest(error) for error in kind(schema).iter_errors(value)]


def _deepest(error: ValidationError) -> str:
    inner = sorted(error.context or (), key=lambda one: len(one.absolute_path), reverse=True)
    return _deepest(inner[0]) if inner else f"{error.json_path}: {error.message}"


def tool(name: str) -> str:
    """A program that came with a wheel, or the system's."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, f"{name} is not installed: pip install -e '.[dev]'"
    return found


def run(*command: str, text: str = "") -> list[str]:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines() if done.returncode else []


# --- what takes each kind of file; no line is good news

STRINGS = {"type": "array", "items": {"type": "string"}}
GCE_DISK = {
    "type": "object",
    "additionalProperties": False,
    "required": ["boot", "initializeParams"],
    "properties": {
        "boot": {"type": "boolean"},
        "autoDelete": {"type": "boolean"},
        "type": {"enum": ["PERSISTENT", "SCRATCH"]},
        "initializeParams": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "diskSizeGb": {"type": "integer"},
                "sourceImage": {"type": "string", "pattern": "^projects/.+/global/images/family/"},
            },
        },
    },
}
GCE_NODE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["machineType", "disks"],
    "properties": {
        "machineType": {"type": "string"},
        "disks": {"type": "array", "items": GCE_DISK},
        "scheduling": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "provisioningModel": {"enum": ["STANDARD", "SPOT"]},
                "instanceTerminationAction": {"enum": ["DELETE", "STOP"]},
                "onHostMaintenance": {"enum": ["MIGRATE", "TERMINATE"]},
                "automaticRestart": {"type": "boolean"},
            },
        },
    },
}


def ray_up(path: Path) -> list[str]:
    """`ray up`'s own check, and what it leaves to the provider and the shell."""
    (config,) = documents(path)
    try:
        validate_config(prepare_config(config))
    except (ValidationError, ValueError, KeyError, AssertionError, click.ClickException) as error:
        return [str(error)]
    known = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    of_provider = known["properties"]["provider"]["properties"]
    found = [f"provider: unknown key {key}" for key in config["provider"] if key not in of_provider]
    for name, node in config.get("available_node_types", {}).items():
        if config["provider"]["type"] == "aws":
            asked = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
            report = ParamValidator().validate(asked, ec2().operation_model("RunInstances").input_shape)
            found += [f"{name}: {report.generate_report()}"] if report.has_errors() else []
        else:
            found += [f"{name}: {text}" for text in said(GCE_NODE, node["node_config"])]
    commands = [text for key in config if key.endswith("_commands") for text in config[key]]
    found += run("bash", "-n", text="\n".join(commands))
    return found + [text for command in commands for text in ray_options(command)] + container(config)


@cache
def ec2() -> Any:
    return get_session().get_service_model("ec2")


def container(config: dict[str, Any]) -> list[str]:
    """The secrets are where `ray up` puts them before it starts the container."""
    if "docker" not in config:
        return []
    mounted = [get_docker_host_mount_location(config["cluster_name"]) + path for path in config["file_mounts"]]
    given = [option.split()[1] for option in config["docker"]["run_options"] if option.startswith("--env-file")]
    return [] if given == [f"{folder}/env" for folder in mounted] else [f"--env-file {given}: mounted are {mounted}"]


def ray_options(command: str) -> list[str]:
    """Options of `ray start` and `ray stop` that they do not have."""
    found = []
    for verb, rest in re.findall(r"\bray (start|stop)\b([^;&|]*)", command):
        known = {option for parameter in ray_scripts.cli.commands[verb].params for option in parameter.opts}
        options = (word.partition("=")[0] for word in shlex.split(rest) if word.startswith("--"))
        found += [f"ray {verb}: no option {option}" for option in options if option not in known]
    return found


def kuberay(path: Path) -> list[str]:
    schema = json.loads((PROJECT / "tests" / "cases" / "cluster" / "kuberay.schema.json").read_text())
    found = []
    for document in documents(path):
        found += said(schema, document)
        for group in nodes(document):
            if "rayStartParams" in group:
                found += ray_options("ray start " + " ".join(f"--{key}=x" for key in group["rayStartParams"]))
                template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": group["template"]}
                found += kubernetes_object(template)
        if "entrypoint" in document.get("spec", {}):
            found += oneshot_command(document["spec"]["entrypoint"])
    return found


def kubernetes(path: Path) -> list[str]:
    found = [text for document in documents(path) for text in kubernetes_object(document)]
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in documents(path) if one["kind"] == "Deployment"]
    for one in documents(path):
        selector = one["spec"].get("selector")
        wanted = selector if one["kind"] == "Service" else selector and selector.get("matchLabels")
        found += [f"{one['kind']}: no pod has {wanted}"] if wanted and wanted not in labels else []
    return found


def kubernetes_object(value: dict[str, Any]) -> list[str]:
    """Kubernetes' own schema, where unknown keys are refused; then what it cannot see: names that refer to others."""
    try:
        validate_object(value, KUBERNETES, strict=True)
    except ValidationError as error:
        return [f"{error.json_path}: {error.message}"]
    found = []
    for pod in (node for node in nodes(value) if "containers" in node):
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        used = {mount["name"] for one in pod["containers"] for mount in one.get("volumeMounts", ())}
        found += [f"mounted, but no volume: {sorted(used - volumes)}"] if used - volumes else []
        ports = {port["name"] for one in pod["containers"] for port in one.get("ports", ())}
        probes = {node["httpGet"]["port"] for node in nodes(pod) if "httpGet" in node}
        found += [f"probed, but no port: {sorted(probes - ports)}"] if probes - ports else []
    claims = {node["claimName"] for node in nodes(value) if "claimName" in node}
    found += [f"claimed, but made nowhere: {sorted(claims - made_claims())}"] if claims - made_claims() else []
    keys = {node["secretKeyRef"]["key"] for node in nodes(value) if "secretKeyRef" in node}
    return found + [f"not in .env.example: {key}" for key in sorted(keys - env_names())]


@cache
def made_claims() -> frozenset[str]:
    return frozenset(
        document["metadata"]["name"]
        for path in FILES
        if path.suffix == ".yaml" and path.parent.name in ("kuberay", "mlflow")
        for document in documents(path)
        if document.get("kind") == "PersistentVolumeClaim"
    )


def env_names() -> set[str]:
    return set(re.findall(r"^#? ?([A-Z_]+)=", (CLUSTER / "mlflow" / ".env.example").read_text(), flags=re.MULTILINE))


def compose(path: Path) -> list[str]:
    (value,) = documents(path)
    found = said(get_builtin_schema("vendor.compose-spec"), value)
    if found:
        return found
    variables = set(re.findall(r"\$\{([A-Z_]+)", path.read_text()))
    found += [f"not in .env.example: {name}" for name in sorted(variables - env_names())]
    for name, service in value["services"].items():
        needed = set(service.get("depends_on", {})) - set(value["services"])
        volumes = {text.partition(":")[0] for text in service.get("volumes", ())} - set(value["volumes"])
        found += [f"{name}: there is no {one}" for one in sorted(needed | volumes)]
        published = [port for port in service.get("ports", ()) if not port.startswith(LOCAL)]
        found += [f"{name}: {port} is published to everybody" for port in published]
    return found


LOCAL = ("127.0.0.1:", "${MLFLOW_BIND:-127.0.0.1}:")

SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "exclusive", "time", "requeue"} | {
    "signal", "open-mode", "output", "partition", "account", "mem", "constraint",
}  # fmt: skip


def sbatch(path: Path) -> list[str]:
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=\S+)?$", path.read_text(), flags=re.MULTILINE)
    lines = re.findall(r"^#SBATCH.*$", path.read_text(), flags=re.MULTILINE)
    found = [f"sbatch: no option --{name}" for name in options if name not in SBATCH]
    found += [] if len(lines) == len(options) else ["a #SBATCH line that is no option"]
    return found + run("bash", "-n", str(path)) + run(tool("shellcheck"), str(path))


def dockerfile(path: Path) -> list[str]:
    found = run(tool("hadolint"), str(path))
    sent = set(re.findall(r"^!(.+)$", Path(f"{CLUSTER / path.parent.name / path.name}.dockerignore").read_text(), re.M))
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(), flags=re.MULTILINE):
        for source in sources.split():
            found += [] if (PROJECT / source).exists() else [f"COPY {source}: there is none"]
            found += [] if source in sent else [f"COPY {source}: not sent to the builder"]
    return found


def dockerignore(path: Path) -> list[str]:
    first, *kept = path.read_text().splitlines()
    named = [line[1:] for line in kept if line.startswith("!")]
    return [*([] if first == "*" else ["sends everything"]), *(n for n in named if not (PROJECT / n).exists())]


def env_example(path: Path) -> list[str]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return [f"neither a name alone nor a comment: {line}" for line in lines if not re.fullmatch(r"[A-Z_]+=", line)]


def contexts(path: Path) -> list[str]:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHOT_CONTEXTS", str(path))
        for name in documents(path)[0]:
            try:
                find_context(name)
            except UserError as error:
                found.append(str(error))
    return found


def ini(path: Path) -> list[str]:
    """MLflow's own reader, without the server around it."""
    source = Path(str(mlflow.__file__)).parent / "server" / "auth" / "config.py"
    reader: dict[str, Any] = {"__file__": str(source), "__name__": "config"}
    exec(compile(source.read_text(), source, "exec"), reader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(path))
        try:
            config = reader["read_auth_config"]()
        except KeyError as error:
            return [f"MLflow misses {error}"]
    known = {*config._fields, "admin_username", "admin_password"}
    keys = re.findall(r"^(\w+) *=", path.read_text(), flags=re.MULTILINE)
    return [f"MLflow knows no {key}" for key in keys if key not in known]


def readme(path: Path) -> list[str]:
    """Commands that the programs would take, files that are there."""
    text = path.read_text()
    named = {*re.findall(r"\b(?:cluster|sweeps|tests)/[\w./-]*\w", text)} - {"cluster/mlflow/.env"}
    found = [f"there is no {name}" for name in sorted(named) if not (PROJECT / name).exists()]
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    found += [f"there is no {name}" for name in linked if not (CLUSTER / name).exists()]
    for command in shown(text, "oneshot"):
        found += oneshot_command(command)
    for command in shown(text, "ray"):
        found += click_command(ray_scripts.cli, command)
    return found


def shown(text: str, program: str) -> list[str]:
    """`program ...` in blocks and in backticks, to the end of the command."""
    code = re.findall(r"^\$ (.+)$", text, flags=re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
    found = []
    for line in code:
        words = re.split(r"&&|\||;|(?<!\S)#", line)
        found += [m[1] for word in words if (m := re.match(rf"\s*(?:\w+=\S+ )*(?:\S*/)?({program} .+)", word))]
        found += re.findall(rf"'(?:\w+=\S+ )*({program} [^']+)'", line)
    return found


def oneshot_command(command: str) -> list[str]:
    return click_command(typer.main.get_command(app), command)


def click_command(group: Any, command: str) -> list[str]:
    """Parses and runs nothing. A verb alone is its name, not a call."""
    _, verb, *arguments = shlex.split(command)
    if verb not in group.commands:
        return [f"{command}: no verb {verb}"]
    try:
        if arguments:
            group.commands[verb].make_context(verb, arguments)
    except (click.ClickException, TyperException) as error:
        return [f"{command}: {error}"]
    return []


CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "ray/*.yaml": ray_up,
    "kuberay/ray*.yaml": kuberay,
    "kuberay/storage.yaml": kubernetes,
    "mlflow/kubernetes.yaml": kubernetes,
    "mlflow/compose.yaml": compose,
    "slurm/*.sbatch": sbatch,
    "docker/Dockerfile": dockerfile,
    "mlflow/Dockerfile": dockerfile,
    "*/Dockerfile.dockerignore": dockerignore,
    "mlflow/.env.example": env_example,
    "mlflow/.gitignore": lambda path: [] if path.read_text().split() == [".env"] else [".env would be committed"],
    "mlflow/basic_auth.ini": ini,
    "mlflow/bucket.py": lambda path: [],  # it is run below
    "contexts.yaml": contexts,
    "README.md": readme,
}


def complaints(path: Path) -> list[str]:
    checks = [check for pattern, check in CHECKS.items() if path.match(pattern)]
    assert len(checks) == 1, f"{path}: no check of this test, or more than one"
    return [*checks[0](path), *literal_secrets(path), *unguarded(path)]


# --- secrets, and who may come in

SECRET = re.compile(r"(?i)password|secret|token|credential|access_key|private_key")
TELLS = re.compile(r"^(\$(?!\{\w+:-[^$~/]).*|[~/].*|)$")
"""Where a secret is, not what it is: a variable, a command, a path."""


def literal_secrets(path: Path) -> list[str]:
    text = path.read_text()
    found = [f"a private key or token: {one}" for one in re.findall(r"AKIA\w{16}|hf_\w{20,}|-----BEGIN \w+", text)]
    if path.suffix in (".yaml", ".yml"):
        for node in (node for document in documents(path) for node in nodes(document)):
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


# --- tests


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CLUSTER)) for path in FILES])
def test_what_reads_a_file_takes_it(path: Path) -> None:
    assert complaints(path) == []


TYPOS = [
    ("ray/aws.yaml", "max_workers: 8\nidle", "max_worker: 8\nidle", "max_worker"),
    ("ray/aws.yaml", "availability_zone:", "availability_zones:", "availability_zones"),
    ("ray/aws.yaml", "    min_workers: 0", "    min_worker: 0", "min_worker"),
    ("ray/aws.yaml", "InstanceMarketOptions: {MarketType", "InstanceMarketOptions: {Market", "Market"),
    ("ray/aws.yaml", "head_node_type: head", "head_node_type: haed", "head_node_type"),
    ("ray/aws.yaml", "--metrics-export-port", "--metric-export-port", "--metric-export-port"),
    ("ray/aws.yaml", "ray_tmp_mount/oneshot", "ray_tmp_mount/one-shot", "--env-file"),
    ("ray/aws.yaml", "mountpoint -q /mnt/oneshot ||", "mountpoint -q /mnt/oneshot || (", "syntax error"),
    ("ray/aws.yaml", "RAY_AUTH_MODE=token", "RAY_AUTH_MOD=token", "open to everybody"),
    ("ray/aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "open to everybody"),
    ("ray/gcp.yaml", "project_id:", "project:", "project"),
    ("ray/gcp.yaml", "provisioningModel: SPOT", "provisioningModel: SPOTS", "SPOTS"),
    ("ray/gcp.yaml", "machineType: g2", "machine_type: g2", "machine_type"),
    ("ray/gcp.yaml", "container_name:", "container-name:", "container"),
    ("ray/gcp.yaml", "worker_run_options:", "workers_run_options:", "workers_run_options"),
    ("ray/hosts.yaml", "worker_ips:", "workers_ips:", "worker_ips"),
    ("ray/hosts.yaml", "ssh_user:", "ssh_usr:", "ssh_usr"),
    ("ray/hosts.yaml", "RAY_AUTH_MODE=token; RAY_JOB", "RAY_JOB", "open to everybody"),
    ("kuberay/raycluster.yaml", "minReplicas:", "minReplica:", "minReplica"),
    ("kuberay/raycluster.yaml", "{mode: token}", "{mode: tokens}", "tokens"),
    ("kuberay/raycluster.yaml", "  authOptions: {mode: token}", "  suspend: false", "open to everybody"),
    ("kuberay/raycluster.yaml", "num-cpus:", "num-cpu:", "--num-cpu"),
    ("kuberay/raycluster.yaml", "volumeMounts: &mounts", "volumeMount: &mounts", "volumeMount"),
    ("kuberay/raycluster.yaml", "{name: oneshot, mountPath", "{name: one-shot, mountPath", "no volume"),
    ("kuberay/raycluster.yaml", "{claimName: oneshot}", "{claimName: one-shot}", "made nowhere"),
    ("kuberay/raycluster.yaml", "terminationGracePeriodSeconds", "terminationGraceSeconds", "terminationGraceSeconds"),
    ("kuberay/rayjob.yaml", "backoffLimit:", "backOffLimit:", "backOffLimit"),
    ("kuberay/rayjob.yaml", "K8sJobMode ", "K8SJobMode ", "K8SJobMode"),
    ("kuberay/rayjob.yaml", "oneshot run /etc", "oneshot rum /etc", "no verb rum"),
    ("kuberay/rayjob.yaml", "--address auto", "--adress auto", "--adress"),
    ("kuberay/rayjob.yaml", "ray.io/v1", "ray.io/v2", "ray.io/v1"),
    ("kuberay/storage.yaml", "accessModes:", "accessMode:", "accessMode"),
    ("mlflow/kubernetes.yaml", "containerPort: 5000", "containerport: 5000", "containerPort"),
    ("mlflow/kubernetes.yaml", "key: POSTGRES_PASSWORD", "key: POSTGRES_PASSWD", "POSTGRES_PASSWD"),
    ("mlflow/kubernetes.yaml", "selector: {app: mlflow}", "selector: {app: ml-flow}", "no pod has"),
    ("mlflow/kubernetes.yaml", "path: /health, port: http", "path: /health, port: htp", "no port"),
    ("mlflow/kubernetes.yaml", "--app-name=basic-auth", "--app-name=none", "without authentication"),
    ("mlflow/compose.yaml", "restart:", "restarts:", "restarts"),
    ("mlflow/compose.yaml", "${POSTGRES_PASSWORD:?}", "${POSTGRES_PASSWD:?}", "POSTGRES_PASSWD"),
    ("mlflow/compose.yaml", "bucket: {condition", "buckets: {condition", "no buckets"),
    ("mlflow/compose.yaml", "[artifacts:/data]", "[artefacts:/data]", "no artefacts"),
    ("mlflow/compose.yaml", "${MLFLOW_BIND:-127.0.0.1}:", "", "published to everybody"),
    ("mlflow/compose.yaml", "--app-name=basic-auth", "--app-name=none", "without authentication"),
    ("mlflow/compose.yaml", "${MLFLOW_AUTH_ADMIN_PASSWORD:?}", "password1234", "password1234"),
    ("mlflow/basic_auth.ini", "default_permission", "default_permissions", "default_permission"),
    ("mlflow/basic_auth.ini", "auth_cache_ttl_seconds", "auth_cache_ttl", "auth_cache_ttl"),
    ("mlflow/.env.example", "POSTGRES_PASSWORD=", "POSTGRES_PASSWORD=hunter2hunter2", "hunter2"),
    ("mlflow/Dockerfile", "RUN pip", "RUM pip", "unexpected"),
    ("mlflow/Dockerfile", "constraints.txt /opt", "constraint.txt /opt", "there is none"),
    ("docker/Dockerfile", "FROM python:${PYTHON}-slim-bookworm", "FROM python:latest", "DL3007"),
    ("docker/Dockerfile", "COPY oneshot /opt", "COPY tests /opt", "not sent"),
    ("docker/Dockerfile.dockerignore", "!constraints.txt", "!constraint.txt", "constraint.txt"),
    ("slurm/oneshot.sbatch", "--requeue", "--requeu", "--requeu"),
    ("slurm/oneshot.sbatch", "#SBATCH --exclusive", "#SBATCH -exclusive", "no option"),
    ("slurm/oneshot.sbatch", 'mkdir -p "$RAY_TMPDIR"', "mkdir -p $RAY_TMPDIR", "SC2086"),
    ("slurm/oneshot.sbatch", "signalled=yes", "signaled=yes", "SC2034"),
    ("slurm/oneshot.sbatch", "while :; do", "while :", "syntax error"),
    ("contexts.yaml", "storage: /var", "storag: /var", "storag"),
    ("contexts.yaml", "http://127.0.0.1:8271", "127.0.0.1:8271", "address"),
    ("contexts.yaml", "ONESHOT_DATA: /mnt/oneshot/data}", "HF_TOKEN: hf_x}", "HF_TOKEN"),
    ("README.md", "doctor sweeps/evening.yaml --address", "doctor sweeps/evening.yaml --adress", "--adress"),
    ("README.md", "ray up cluster/ray/aws.yaml", "ray up cluster/ray/asw.yaml", "asw.yaml"),
    ("README.md", "ray dashboard cluster/ray/gcp.yaml --port", "ray dashboard cluster/ray/gcp.yaml --prot", "--prot"),
    ("README.md", "oneshot fetch dsr_sub", "oneshot fech dsr_sub", "fech"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "word"), TYPOS, ids=[f"{t[0]}: {t[2]}"[:60] for t in TYPOS])
def test_a_typo_is_caught(name: str, right: str, wrong: str, word: str, tmp_path: Path) -> None:
    text = (CLUSTER / name).read_text()
    assert right in text, "this test's own copy of the file is old"
    copy = tmp_path / name
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(text.replace(right, wrong))
    found = complaints(copy)
    assert found
    assert any(word in line for line in found), found


def test_every_kind_of_file_has_a_typo() -> None:
    without = {path.relative_to(CLUSTER).as_posix() for path in FILES} - {typo[0] for typo in TYPOS}
    assert without <= {"mlflow/.gitignore", "mlflow/Dockerfile.dockerignore", "mlflow/bucket.py"}


def pinned(name: str) -> str:
    (version,) = re.findall(rf"^{name}==(\S+)$", (PROJECT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return str(version)


def test_versions_are_those_that_ci_tests() -> None:
    (torch,) = re.findall(r"^TORCH \?= torch==(\S+)$", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    text = {path: path.read_text() for path in FILES if path.name != ".gitignore"}
    everything = "\n".join(text.values())
    assert set(re.findall(r"(?:torch==|TORCH=)(\d[\d.]*)", everything)) == {torch}
    assert set(re.findall(r'rayVersion: "(.+)"|ray\[default\]==([\d.]+)', everything)) == {
        (pinned("ray"), ""),
        ("", pinned("ray")),
    }
    assert set(re.findall(r"oneshot-mlflow:([\d.]+)", everything)) == {pinned("mlflow")}
    assert set(re.findall(r"/oneshot:([\d.]+)-(?:cpu|cuda)", everything)) == {project["version"]}
    pythons = re.findall(r"^(?:ARG PYTHON=|FROM python:)(\d[\d.]*)", everything, flags=re.MULTILINE)
    assert set(pythons) == {"3.11"} and project["requires-python"].startswith(">=3.11")
    assert "python3.11 -m venv" in text[CLUSTER / "ray" / "hosts.yaml"]


def test_images_are_pinned_and_no_others_than_the_dockerfiles_build() -> None:
    used = set(re.findall(r"image: (\S+)", "\n".join(path.read_text() for path in FILES if path.suffix == ".yaml")))
    for image in used:
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-cpu|-cuda)?$", image), image
    assert {image.rpartition(":")[0] for image in used if "oneshot" not in image} == {"postgres", "versity/versitygw"}


def test_mlflows_bucket_is_made_once(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    make_bucket = runpy.run_path(str(CLUSTER / "mlflow" / "bucket.py"))["make_bucket"]
    for _ in range(2):
        make_bucket("mlflow")
    assert "mlflow" in [
        bucket["Name"] for bucket in boto3.client("s3", endpoint_url=s3_endpoint).list_buckets()["Buckets"]
    ]


CONTEXTS = documents(CLUSTER / "contexts.yaml")[0]


@pytest.mark.parametrize("name", ["aws", "gcp", "hosts", "kuberay"])
def test_a_context_names_paths_that_its_clusters_nodes_have(name: str) -> None:
    file = CLUSTER / ("kuberay/raycluster.yaml" if name == "kuberay" else f"ray/{name}.yaml")
    there = {"hosts": "test -w /mnt/oneshot\n", "kuberay": "mountPath: /mnt/oneshot}"}
    assert there.get(name, "--volume /mnt/oneshot:/mnt/oneshot\n") in file.read_text()
    context = CONTEXTS[name]
    for path in (context["storage"], *context["env"].values()):
        assert path.startswith("/mnt/oneshot/")


def test_each_context_has_a_port_of_its_own_and_the_readme_tunnels_to_it() -> None:
    ports = {name: context["address"].rpartition(":")[2] for name, context in CONTEXTS.items()}
    assert len(set(ports.values())) == len(ports)
    told = dict(re.findall(r"ray dashboard cluster/ray/(\w+)\.yaml --port (\d+)", README))
    (told["kuberay"],) = re.findall(r"port-forward service/oneshot-head-svc (\d+):8265", README)
    assert told == {name: port for name, port in ports.items() if name != "local"}


def test_stopping_a_job_gives_its_driver_time_everywhere() -> None:
    for path in [*CLUSTER.glob("ray/*.yaml"), *CLUSTER.glob("kuberay/ray*.yaml"), CLUSTER / "docker" / "Dockerfile"]:
        text = path.read_text()
        assert re.search(r"RAY_JOB_STOP_SIGNAL(=|, value: )SIGINT", text), path
        (seconds,) = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S(?:=|, value: \")(\d+)", text)
        assert int(seconds) >= 60, path


def test_heads_of_clouds_run_no_trial_and_gpus_come_from_none() -> None:
    for name in ("aws", "gcp"):
        (config,) = documents(CLUSTER / "ray" / f"{name}.yaml")
        types = config["available_node_types"]
        assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
        assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"] <= config["max_workers"]
    assert types["gpu"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    for name in ("raycluster", "rayjob"):
        (document,) = documents(CLUSTER / "kuberay" / f"{name}.yaml")
        spec = document["spec"].get("rayClusterSpec", document["spec"])
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        (group,) = spec["workerGroupSpecs"]
        assert group["minReplicas"] == 0 < group["maxReplicas"]


def test_mlflow_lets_in_its_own_names_and_no_others() -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    for file in ("compose.yaml", "kubernetes.yaml"):
        (text,) = re.findall(r"--allowed-hosts=(\S+)", (CLUSTER / "mlflow" / file).read_text())
        hosts = text.removeprefix("${MLFLOW_ALLOWED_HOSTS:-").removesuffix("}").split(",")
        assert is_allowed_host_header(hosts, "mlflow:5000")
        assert is_allowed_host_header(hosts, "127.0.0.1:5000")
        assert not is_allowed_host_header(hosts, "elsewhere.example:5000")


# --- the Slurm script, with stand-ins for the programs that are not here

STANDINS = {
    "srun": 'echo "srun $*" >> "$CALLS"\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "ray": 'echo "ray $*" >> "$CALLS"\n[[ -n $HANG ]] && exec sleep 30\n'
    'while [[ $1 != -- ]]; do shift; done\nshift\n"$@"\nexit $?\n',
    "oneshot": 'echo "oneshot $*" >> "$CALLS"\nenv > "$CALLS.env"\n'
    'trap "echo checkpointed >> $CALLS; exit $ON_USR1" USR1\n'
    '[[ -n $CODE ]] && exit "$CODE"\necho up >> "$CALLS"\nfor _ in {1..200}; do sleep 0.05; done\n',
    "scontrol": 'echo "scontrol $*" >> "$CALLS"\n',
    "hostname": 'echo "10.1.2.3 192.168.0.7"\n',
}


class Slurm:
    """A folder of stand-ins, and one job at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.calls = folder / "calls"
        bin = folder / "bin"
        bin.mkdir()
        for name, body in STANDINS.items():
            (bin / name).write_text(f"#!/bin/bash\n{body}")
            (bin / name).chmod(0o755)
        (folder / "secrets").write_text("MLFLOW_TRACKING_PASSWORD=hunter2\n")

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Submits; `CODE`: how the driver exits at once; `ON_USR1`: how it exits once signalled."""
        self.calls.write_text("")
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "CALLS": str(self.calls),
            "ONESHOT_VENV": str(self._folder),
            "ONESHOT_SECRETS": str(self._folder / "secrets"),
            "SLURM_JOB_ID": f"t{os.getpid()}",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "32",
            "CODE": "",
            "ON_USR1": "130",
            "HANG": "",
            **environment,
        }
        command = ["bash", str(CLUSTER / "slurm" / "oneshot.sbatch"), "sweeps/evening.yaml"]
        return subprocess.Popen(command, cwd=self._folder, env=variables, text=True, stdout=subprocess.PIPE)

    def wait_for(self, word: str) -> None:
        for _ in range(400):
            if word in self.calls.read_text():
                return
            time.sleep(0.025)
        raise AssertionError(f"{word} was not called: {self.calls.read_text()}")

    def called(self, program: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.split()[0] == program]

    def driver_environment(self) -> dict[str, str]:
        lines = Path(f"{self.calls}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    yield Slurm(tmp_path)
    shutil.rmtree(f"/tmp/rt{os.getpid()}", ignore_errors=True)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_slurm_job_ends_as_its_driver_does(slurm: Slurm, code: int) -> None:
    assert slurm.start(CODE=str(code)).wait(timeout=20) == code
    assert not slurm.called("scontrol")


def test_a_slurm_job_runs_one_driver_on_the_head_of_its_own_ray(slurm: Slurm) -> None:
    slurm.start(CODE="0").wait(timeout=20)
    (srun,), (ray,), (driver,) = slurm.called("srun"), slurm.called("ray"), slurm.called("oneshot")
    assert srun.startswith("srun --nodes=2 --ntasks=2 --cpus-per-task=32 --kill-on-bad-exit=1 ray symmetric-run")
    assert driver == "oneshot run sweeps/evening.yaml --address 10.1.2.3:6379"
    assert oneshot_command(driver) == []
    arguments = shlex.split(ray.partition(" -- ")[0])[2:]
    assert arguments[:4] == ["--address", "10.1.2.3:6379", "--min-nodes", "2"]
    left = curate_and_validate_ray_start_args(arguments)
    assert left == ["--num-cpus=32"] and not ray_options("ray start " + " ".join(left))
    told = slurm.driver_environment()
    assert told["RAY_AUTH_MODE"] == "token" and re.fullmatch(r"[0-9a-f]{64}", told["RAY_AUTH_TOKEN"])
    assert int(told["RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"]) >= 300
    assert len(told["RAY_TMPDIR"]) < 30 and told["RAY_TMPDIR"] == f"/tmp/rt{os.getpid()}"
    assert told["MLFLOW_TRACKING_PASSWORD"] == "hunter2"
    assert "hunter2" not in slurm.calls.read_text() and told["RAY_AUTH_TOKEN"] not in slurm.calls.read_text()


def test_two_slurm_jobs_have_two_tokens(slurm: Slurm) -> None:
    tokens = set()
    for _ in range(2):
        slurm.start(CODE="0").wait(timeout=20)
        tokens.add(slurm.driver_environment()["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2


def test_before_its_time_is_up_a_slurm_job_checkpoints_and_goes_back_into_the_queue(slurm: Slurm) -> None:
    job = slurm.start()
    slurm.wait_for("up\n")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=20) == 130
    assert slurm.calls.read_text().splitlines()[-2:] == ["checkpointed", f"scontrol requeue t{os.getpid()}"]


def test_a_slurm_job_that_is_done_when_the_signal_comes_is_not_queued_again(slurm: Slurm) -> None:
    job = slurm.start(ON_USR1="0")
    slurm.wait_for("up\n")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=20) == 0
    assert not slurm.called("scontrol")


def test_a_slurm_job_that_still_waits_for_its_nodes_goes_back_into_the_queue(slurm: Slurm) -> None:
    job = slurm.start(HANG="yes")
    slurm.wait_for("symmetric-run")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=20) != 0
    assert slurm.called("scontrol") == [f"scontrol requeue t{os.getpid()}"]
