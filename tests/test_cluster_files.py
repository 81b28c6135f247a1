"""The files of cluster/: what reads one takes it, and would not with a typo in it; and they agree with each other."""

import re
import runpy
import tomllib
from pathlib import Path

import boto3
import pytest
from clusterfiles import CLUSTER, FILES, complaints, documents, with_typo
from conftest import PROJECT

from oneshot.sweep.cluster.fit import NODE_TYPES, read_node_types
from oneshot.version import __version__

pytest_plugins = ["stores"]

README = (CLUSTER / "README.md").read_text()
CONTEXTS = documents(CLUSTER / "contexts.yaml")[0]


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
    ("ray/gcp.yaml", "project_id:", "project:", "project"),
    ("ray/gcp.yaml", "provisioningModel: SPOT", "provisioningModel: SPOTS", "SPOTS"),
    ("ray/gcp.yaml", "machineType: g2", "machine_type: g2", "machine_type"),
    ("ray/gcp.yaml", "container_name:", "container-name:", "container"),
    ("ray/gcp.yaml", "worker_run_options:", "workers_run_options:", "workers_run_options"),
    ("ray/hosts.yaml", "worker_ips:", "workers_ips:", "worker_ips"),
    ("ray/hosts.yaml", "ssh_user:", "ssh_usr:", "ssh_usr"),
    ("kuberay/raycluster.yaml", "minReplicas:", "minReplica:", "minReplica"),
    ("kuberay/raycluster.yaml", "{mode: token}", "{mode: tokens}", "tokens"),
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
    ("mlflow/compose.yaml", "restart:", "restarts:", "restarts"),
    ("mlflow/compose.yaml", "${POSTGRES_PASSWORD:?}", "${POSTGRES_PASSWD:?}", "POSTGRES_PASSWD"),
    ("mlflow/compose.yaml", "bucket: {condition", "buckets: {condition", "no buckets"),
    ("mlflow/compose.yaml", "[artifacts:/data]", "[artefacts:/data]", "no artefacts"),
    ("mlflow/compose.yaml", "${MLFLOW_BIND:-127.0.0.1}:", "", "published to everybody"),
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
    found = complaints(with_typo(name, right, wrong, folder=tmp_path))
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
    assert set(re.findall(r'rayVersion: "(.+)"', everything)) == {pinned("ray")}
    assert set(re.findall(r"oneshot-mlflow:([\d.]+)", everything)) == {pinned("mlflow")}
    assert set(re.findall(r"/oneshot:([\d.]+)-(?:cpu|cuda)", everything)) == {__version__}
    pythons = re.findall(r"^(?:ARG PYTHON=|FROM python:)(\d[\d.]*)", everything, flags=re.MULTILINE)
    assert set(pythons) == {"3.11"} and project["requires-python"].startswith(">=3.11")
    assert "python3.11 -m venv" in text[CLUSTER / "ray" / "hosts.yaml"]


def test_ray_comes_with_oneshot_in_the_version_that_ci_tests() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    (ray,) = [one for one in project["dependencies"] if one.startswith("ray")]
    assert "default" in ray.partition("]")[0]  # the dashboard and its Jobs API
    for path in FILES:
        assert not re.search(r"\bray(\[|==)", path.read_text()), path
    for name in ("docker/Dockerfile", "ray/hosts.yaml"):
        assert re.search(r"pip install [^&]*--constraint \S+/constraints\.txt", (CLUSTER / name).read_text()), name


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


@pytest.mark.parametrize("name", ["aws", "gcp", "hosts", "kuberay"])
def test_a_context_names_paths_that_its_clusters_nodes_have(name: str) -> None:
    file = CLUSTER / ("kuberay/raycluster.yaml" if name == "kuberay" else f"ray/{name}.yaml")
    there = {"hosts": "test -w /mnt/oneshot\n", "kuberay": "mountPath: /mnt/oneshot}"}
    assert there.get(name, "--volume /mnt/oneshot:/mnt/oneshot\n") in file.read_text()
    context = CONTEXTS[name]
    paths = [value for variable, value in context["env"].items() if variable != NODE_TYPES]
    for path in (context["storage"], *paths):
        assert path.startswith("/mnt/oneshot/")


@pytest.mark.parametrize("name", ["aws", "gcp", "kuberay"])
def test_a_context_says_what_its_clusters_autoscaler_may_add(name: str) -> None:
    (told,) = read_node_types(CONTEXTS[name]["env"][NODE_TYPES])
    if name == "kuberay":
        for file in ("raycluster.yaml", "rayjob.yaml"):
            (whole,) = documents(CLUSTER / "kuberay" / file)
            spec = whole["spec"].get("rayClusterSpec", whole["spec"])
            (group,) = spec["workerGroupSpecs"]
            (container,) = group["template"]["spec"]["containers"]
            limits, count = container["resources"]["limits"], group["maxReplicas"]
            added = {"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}
            assert (added, count) == ({"CPU": told.resources["CPU"], "GPU": told.resources["GPU"]}, told.count), file
        assert CONTEXTS[name]["env"][NODE_TYPES] in (CLUSTER / "kuberay" / "rayjob.yaml").read_text()
        return
    (config,) = documents(CLUSTER / "ray" / f"{name}.yaml")
    (worker,) = (kind for key, kind in config["available_node_types"].items() if key != config["head_node_type"])
    assert worker["resources"] == {"CPU": told.resources["CPU"], "GPU": told.resources["GPU"]}
    assert worker["max_workers"] == told.count


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
