"""A job reads the weights of a teacher once in each process that trains, and hashes each file of a checkpoint once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny import ROOT, distillation, environment
from tests.tiny import distill as distill_process

# Python imports this file at the start of every process of the job, the launcher included. It counts what is read in a
# file of its own for each process.
SPY = """
import hashlib, json, os
from pathlib import Path

import safetensors


def spy(module, name, what, where):
    function = getattr(module, name)

    def spied(*arguments, **options):
        line = [what, str(where(*arguments)), os.environ.get("RANK")]
        with Path(__file__).with_name(f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\\n")
        return function(*arguments, **options)

    setattr(module, name, spied)


spy(safetensors, "safe_open", "read", lambda file, *rest: file)
spy(safetensors, "deserialize", "read", lambda content: "bytes")
spy(hashlib, "file_digest", "hash", lambda stream, *rest: stream.name)
"""
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class Spied:
    """A job whose processes note the files that they read and hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SPY)

    def run(self, *arguments: object) -> None:
        """Run `distill ARGUMENTS` to its end."""
        output, path = self.folder / "output.txt", f"{self.folder}:{ROOT}"
        job = distill_process([str(argument) for argument in arguments], output, PYTHONPATH=path)
        assert job.finish() == 0, job.text

    def notes(self, what: str) -> Counter[tuple[str, str | None]]:
        """Return how often each process did it to each file: (file, rank), where a launcher has no rank."""
        files = self.folder.glob("*.jsonl")
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return Counter((name, rank) for kind, name, rank in lines if kind == what)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_reads_and_hashes_each_file_once(processes: int, teachers: Path, tmp_path: Path) -> None:
    """Autoguided SiD has two teachers. With two processes the command is a launcher, which reads no weights."""
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    evaluation = {"every": 16, "samples": 64}
    changes: dict[str, Any] = {"images": 16, "log_every": 8, "checkpoint_every": 8, "evaluation": evaluation}
    file.write_text(yaml.safe_dump(distillation("autoguided", teachers, **changes)))
    trained, resumed = Spied(tmp_path / "trained"), Spied(tmp_path / "resumed")
    ranks = [None] if processes == 1 else [str(rank) for rank in range(processes)]
    once = {(str(teachers / name / WEIGHTS), rank): 1 for name in ("edm", "dropout") for rank in ranks}

    trained.run("train", file, "--processes", processes, "--oversubscribe", "--folder", run)
    assert trained.notes("read") == once
    newest = run / f"checkpoints/{16:012d}"
    files = [str(newest / name) for name in json.loads((newest / "manifest.json").read_text())]
    assert len(files) == (8 if processes == 1 else 13)

    resumed.run("resume", run, "images=32", "--oversubscribe")
    reads = resumed.notes("read")
    assert {key: count for key, count in reads.items() if not key[0].startswith(str(run))} == once
    hashed = Counter(name for name, _ in resumed.notes("hash").elements() if "/.staging-" not in name)
    teacher = [str(teachers / "edm" / name) for name in ("denoiser.json", "unet/config.json", WEIGHTS)]
    assert hashed == dict.fromkeys([*files, *teacher], 1)
    assert json.loads((run / f"checkpoints/{32:012d}/state.json").read_text())["processes"] == processes


HELP = """
import sys
sys.argv = ["distill", "--help"]
from launch.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
heavy = {"torch", "diffusers", "transformers", "accelerate", "datasets", "safetensors", "numpy", "trainers.recipe.run"}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""


def test_help_waits_for_no_library() -> None:
    ended = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert "Distil a diffusion or flow model into a one-step generator." in ended.stdout
    assert ended.stdout.splitlines()[-1] == "HEAVY []"
