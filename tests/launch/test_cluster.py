"""The templates for clusters: what they run is run here, by two agents on one machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.launch.test_processes import processes_of
from tests.tiny import ROOT, Job, environment, recipe
from trainers.checkpoints import checkpoint

CLUSTER = ROOT / "launch" / "cluster"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def machines(commands: list[tuple[list[str], dict[str, str]]], output: Path) -> Job:
    """Each command with its variables, as on a machine without GPUs of its own."""
    processes = []
    with output.open("ab") as stream:
        for command, more in commands:
            variables = environment(ACCELERATE_USE_CPU="true", GLOO_SOCKET_IFNAME="lo", **more)
            variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            processes.append(
                subprocess.Popen(command, env=variables, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)
            )
    return Job(processes, output)


def nodes(run: Path, file: Path, output: Path, *changes: str) -> Job:
    """node.sh on two machines, which are this one."""
    where = {"NODES": "2", "GPUS": "1", "MASTER_PORT": free_port(), "MASTER_ADDR": "127.0.0.1"}
    command = ["bash", str(CLUSTER / "node.sh"), str(file), str(run), *changes]
    return machines([(command, {**where, "NODE_RANK": rank}) for rank in ("0", "1")], output)


@pytest.mark.slow
def test_two_machines_are_stopped_and_go_on(teachers: Path, tmp_path: Path) -> None:
    """SIGTERM to the script on the second machine alone: both end with 75, saved, and the same call goes on."""
    file, run, output = tmp_path / "recipe.yaml", tmp_path / "run", tmp_path / "out.txt"
    file.write_text(yaml.safe_dump(recipe(teachers / "edm", images=10**6, log_every=8, checkpoint_every=10**6)))
    job = nodes(run, file, output)
    assert job.wait_for((run / "log.jsonl").is_file, 300)
    job.processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(200) for process in job.processes] == [75, 75], job.text
    job.kill()
    reached = int(checkpoint.newest(run / "checkpoints")[0].name)
    assert reached > 0 and (run / "stopped.json").is_file()
    job = nodes(run, file, output, f"images={reached + 16}")
    assert job.finish() == 0, job.text
    assert f"resumed '{run}' at {reached:,} images" in job.text and not (run / "stopped.json").exists()
    found = checkpoint.newest(run / "checkpoints")[0]
    assert int(found.name) == reached + 16 and (found / "generator-00001-of-00002.safetensors").is_file()


ONE_MACHINE = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port"],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"],
}


def ranks_of(run: Path) -> list[int]:
    """Ids of the living processes that train, by rank."""
    found = {}
    for process in processes_of(run):
        with contextlib.suppress(OSError):  # it ended meanwhile
            variables = Path(f"/proc/{process}/environ").read_text().split("\0")
            found |= {int(v.partition("=")[2]): process for v in variables if v.startswith("RANK=")}
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "told", "number", "code"),
    [
        ("torchrun", "launcher", signal.SIGTERM, 1),
        ("torchrun", "launcher", signal.SIGKILL, -9),
        ("torchrun", "rank", signal.SIGKILL, 1),
        ("accelerate", "launcher", signal.SIGTERM, 1),
        ("accelerate", "rank", signal.SIGTERM, 1),
        ("accelerate", "rank", signal.SIGKILL, 1),
    ],
)
def test_what_other_launchers_make_of_signals(
    launcher: str, told: str, number: signal.Signals, code: int, teachers: Path, tmp_path: Path
) -> None:
    """A signal to one process, or to the launcher alone, which may be killed: the state is saved, and a note says so,
    for the exit code does not. Where a process is killed the other says so, and nothing trains on."""
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(recipe(teachers / "edm", images=10**6, log_every=8, checkpoint_every=10**6)))
    command = [*ONE_MACHINE[launcher], free_port(), "-m", "launch.main", "train", str(file), "--folder", str(run)]
    job = machines([(command, {})], tmp_path / "out.txt")
    try:
        assert job.wait_for((run / "log.jsonl").is_file, 300)
        ranks, killed = ranks_of(run), told == "rank" and number == signal.SIGKILL
        assert len(ranks) == 2
        os.kill(ranks[1] if told == "rank" else job.processes[0].pid, number)
        assert job.processes[0].wait(100) == code, job.text
        end = time.monotonic() + 60
        while ranks_of(run) and time.monotonic() < end:
            time.sleep(0.1)
        assert not ranks_of(run), job.text
        assert (run / "stopped.json").is_file() != killed
        assert (int(checkpoint.newest(run / "checkpoints")[0].name) > 0) != killed
        line = "distill: another process of the run is gone" if killed else "distill: stopped by SIGTERM at "
        assert sum(one.startswith(line) for one in job.text.splitlines()) == 1, job.text
    finally:
        for process in ranks_of(run):
            os.kill(process, signal.SIGKILL)


def test_the_templates_are_read_and_call_the_same_script() -> None:
    for name in ("jobset.yaml", "skypilot.yaml"):
        assert isinstance(yaml.safe_load((CLUSTER / name).read_text()), dict)
    for name in ("jobset.yaml", "skypilot.yaml", "slurm.sbatch"):
        assert "cluster/node.sh" in (CLUSTER / name).read_text()
    for name in ("node.sh", "slurm.sbatch"):
        subprocess.run(["bash", "-n", str(CLUSTER / name)], check=True)
