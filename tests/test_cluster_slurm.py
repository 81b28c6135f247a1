"""The Slurm script, run with stand-ins for the programs that are not here: srun, scontrol, Ray and oneshot."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusterfiles import CLUSTER, oneshot_command, ray_options
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

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
