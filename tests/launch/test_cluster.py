"""The templates for clusters: what they run is run here, by two agents on one machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import ROOT, Job, environment, recipe
from trainers import checkpoint

CLUSTER = ROOT / "launch" / "cluster"


def nodes(run: Path, file: Path, output: Path, *changes: str) -> Job:
    """node.sh on two machines, which are this one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    with output.open("ab") as stream:
        for rank in ("0", "1"):
            variables = environment(NODES="2", NODE_RANK=rank, GPUS="1", MASTER_PORT=port, MASTER_ADDR="127.0.0.1")
            variables |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
            variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            command = ["bash", str(CLUSTER / "node.sh"), str(file), str(run), *changes]
            processes.append(
                subprocess.Popen(command, env=variables, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)
            )
    return Job(processes, output)


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


def test_the_templates_are_read_and_call_the_same_script() -> None:
    for name in ("jobset.yaml", "skypilot.yaml"):
        assert isinstance(yaml.safe_load((CLUSTER / name).read_text()), dict)
    for name in ("jobset.yaml", "skypilot.yaml", "slurm.sbatch"):
        assert "cluster/node.sh" in (CLUSTER / name).read_text()
    for name in ("node.sh", "slurm.sbatch"):
        subprocess.run(["bash", "-n", str(CLUSTER / name)], check=True)
