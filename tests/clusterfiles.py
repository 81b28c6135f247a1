"""A file of cluster/ -> what the program that reads it would not take, a line each; no line is good news.

Nothing here starts Ray, Docker, Kubernetes or Slurm.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

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
from ruamel.yaml import YAML
from typer.exceptions import TyperException

from oneshot.cli import app
from oneshot.config.contexts import find_context
from oneshot.errors import UserError

CLUSTER = PROJECT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
SCHEMAS = PROJECT / "tests" / "cases" / "cluster"
KUBERNETES = "1.34"
LOCAL = ("127.0.0.1:", "${MLFLOW_BIND:-127.0.0.1}:")
SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "exclusive", "time", "requeue"} | {
    "signal", "open-mode", "output", "partition", "account", "mem", "constraint",
}  # fmt: skip


def documents(path: Path) -> list[Any]:
    return [one for one in YAML(typ="safe").load_all(path.read_text()) if one is not None]


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a document."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(one)


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


def ray_up(path: Path) -> list[str]:
    """`ray up`'s own check, and what it leaves to the provider and the shell."""
    (config,) = documents(path)
    try:
        validate_config(prepare_config(config))
    except (ValidationError, ValueError, KeyError, AssertionError, click.ClickException) as error:
        return [str(error)]
    gce = json.loads((SCHEMAS / "gce.schema.json").read_text())
    known = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    of_provider = known["properties"]["provider"]["properties"]
    found = [f"provider: unknown key {key}" for key in config["provider"] if key not in of_provider]
    for name, node in config.get("available_node_types", {}).items():
        if config["provider"]["type"] == "aws":
            asked = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
            report = ParamValidator().validate(asked, ec2().operation_model("RunInstances").input_shape)
            found += [f"{name}: {report.generate_report()}"] if report.has_errors() else []
        else:
            found += [f"{name}: {text}" for text in said(gce, node["node_config"])]
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
    schema = json.loads((SCHEMAS / "kuberay.schema.json").read_text())
    found = []
    for document in documents(path):
        found += said(schema, document)
        for group in mappings(document):
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
    for pod in (node for node in mappings(value) if "containers" in node):
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        used = {mount["name"] for one in pod["containers"] for mount in one.get("volumeMounts", ())}
        found += [f"mounted, but no volume: {sorted(used - volumes)}"] if used - volumes else []
        ports = {port["name"] for one in pod["containers"] for port in one.get("ports", ())}
        probes = {node["httpGet"]["port"] for node in mappings(pod) if "httpGet" in node}
        found += [f"probed, but no port: {sorted(probes - ports)}"] if probes - ports else []
    claims = {node["claimName"] for node in mappings(value) if "claimName" in node}
    found += [f"claimed, but made nowhere: {sorted(claims - made_claims())}"] if claims - made_claims() else []
    keys = {node["secretKeyRef"]["key"] for node in mappings(value) if "secretKeyRef" in node}
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
    "mlflow/bucket.py": lambda path: [],  # a test runs it
    "contexts.yaml": contexts,
    "README.md": readme,
}


def complaints(path: Path) -> list[str]:
    checks = [check for pattern, check in CHECKS.items() if path.match(pattern)]
    assert len(checks) == 1, f"{path}: no check in CHECKS, or more than one"
    return checks[0](path)


def with_typo(name: str, right: str, wrong: str, *, folder: Path) -> Path:
    """A copy of the file in `folder`, under the same name, with `wrong` for `right`."""
    text = (CLUSTER / name).read_text()
    assert right in text, "this test's own copy of the file is old"
    copy = folder / name
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(text.replace(right, wrong))
    return copy
