"""Nothing private leaves: a mark in every path, in the names of the user and the machine, and in every token."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launch import checks
from tests.launch.conftest import Command
from tests.tiny import distill as distill_process
from tests.tiny import environment, fit_run, recipe

MARK = "zaphod"
SECRETS = {
    "HF_TOKEN": f"hf_{MARK}0123456789abcdef",
    "WANDB_API_KEY": f"{MARK}0123456789abcdef0123456789abcdef",
    "USER": MARK,
    "LOGNAME": MARK,
    "WANDB_MODE": "offline",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of the user `zaphod`, with tokens in the environment."""
    folder = tmp_path / "home" / MARK
    folder.mkdir(parents=True)
    for name, value in {**SECRETS, "HOME": str(folder)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("socket.gethostname", lambda: f"{MARK}-desk")
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def marked(folder: Path) -> list[str]:
    """Return the files below a folder whose name or content holds the mark."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [str(f.relative_to(folder)) for f in files if MARK in f.name or MARK.encode() in f.read_bytes()]


@pytest.fixture
def network_run(home: Path, teachers: Path) -> Path:
    """A run of the user's, all of whose files lie in the home folder."""
    for name in ("edm", "dropout", "classifier"):
        shutil.copytree(teachers / name, home / name)
    common = {"images": 8, "cache": str(home / "cache"), "samples_every": 8, "checkpoint_every": 8}
    fit_run(recipe(home / "edm", **common), home / "first")
    own = {"name": "autoguided", "objective": "sid", "weak_teacher": f"{home}/dropout"}
    evaluation = {"classifier": f"{home}/classifier", "samples": 64}
    fit_run(recipe(home / "edm", objective=own, start=f"{home}/first", evaluation=evaluation, **common), home / "run")
    return home / "run"


def test_exports_carry_no_mark(network_run: Path, home: Path, distill: Command) -> None:
    assert distill("evaluate", network_run, "--samples", "8").code == 0
    assert marked(network_run) != []  # its own run.yaml names the folders
    assert MARK not in (network_run / "evaluation.json").read_text()
    for format in ("diffusers", "safetensors", "torch-export", "onnx"):
        result = distill("export", network_run, home / format, "--format", format)
        assert result.code == 0, result.err
        assert marked(home / format) == [], format
    card = (home / "diffusers" / "README.md").read_text()
    assert "Teacher: `edm`" in card and "classifier: classifier\n" in card and "start: first\n" in card
    assert "weak_teacher: dropout" in card and "cache: cache\n" in card


def test_pipelines_carry_no_mark(home: Path, pipelines: Callable[[str], Path], distill: Command) -> None:
    teacher = home / "sd15"
    shutil.copytree(pipelines("sd15"), teacher)
    (home / "prompts.txt").write_text("a red cat\n")
    data = {"name": "prompts", "path": f"{home}/prompts.txt"}
    settings = recipe(teacher, data=data, entry={"preset": "sid_lsg_sd"}, cache=f"{home}/cache", images=8)
    fit_run(settings, home / "run")
    umask = os.umask(0o027)
    try:
        for format in ("diffusers", "safetensors"):
            result = distill("export", home / "run", home / format, "--format", format)
            assert result.code == 0, result.err
            assert marked(home / format) == [], format
            files = [file for file in (home / format).rglob("*") if file.is_file()]
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}
    finally:
        os.umask(umask)
    assert "path: prompts.txt" in (home / "diffusers" / "README.md").read_text()
    assert (home / "cache").is_dir() and (home / "run" / "checkpoints").is_dir()
    made = [*(home / "cache").rglob("*.safetensors"), *(home / "run").rglob("*.safetensors")]
    assert {stat.S_IMODE(file.stat().st_mode) for file in made} == {0o666 & ~umask}


def test_trackers_are_sent_no_mark(home: Path, teachers: Path, tmp_path: Path) -> None:
    """In a process of its own, whose program and arguments lie in the home folder."""
    shutil.copytree(teachers / "edm", home / "edm")
    file = home / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(home / "edm", images=8, tracking=["wandb", "tensorboard"])))
    job = distill_process(
        ["train", str(file), "--folder", str(home / "run")], tmp_path / "out.txt", cwd=home, **SECRETS
    )
    assert job.finish() == 0, job.text
    assert marked(home / "run" / "tensorboard") == []
    sent = [file for file in marked(home / "run" / "wandb") if file.endswith(".wandb") or "/files/" in file]
    assert sent == []


def test_the_doctor_tells_no_mark(
    home: Path, distill: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object) -> str:
        raise RuntimeError(f"connection of [{MARK}-desk]:1234 refused, see '{home}/my log/x'")

    for check in ("round_trip", "two_steps"):
        monkeypatch.setattr(checks, check, fails)
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 0)
    (home / "netrc").write_text(f"machine api.wandb.ai logn {MARK} password {MARK}\n")
    monkeypatch.delenv("WANDB_API_KEY")
    for mode, netrc in (("online", "netrc"), (f"mode of {MARK}", "none")):
        monkeypatch.setenv("WANDB_MODE", mode)
        monkeypatch.setenv("NETRC", str(home / netrc))
        for folder in (home / "runs", home, "~/runs"):
            result = distill("doctor", "--folder", folder)
            assert (result.code == 1 and "'runs': writes" in result.out) or folder == home
            assert MARK not in result.out + result.err
            assert "RuntimeError: connection of [(removed)]:1234 refused, see 'x'" in " ".join(result.out.split())
            assert ("the netrc file" if mode == "online" else "WANDB_MODE: must be one of online") in result.out


COMMAND = """
import sys
from launch.main import main
sys.argv = ["distill", "recipes"]
try:
    main()
finally:
    import onnxruntime
"""


def test_onnxruntime_reports_nothing(tmp_path: Path) -> None:
    """Otherwise its import writes the id of this machine into the home, except in processes of CI."""
    variables = {name: value for name, value in environment(HOME=str(tmp_path)).items() if name != "CI"}
    variables = {name: value for name, value in variables.items() if not name.startswith(("XDG_", "ORT_", "GITHUB_"))}
    subprocess.run([sys.executable, "-c", COMMAND], check=True, env=variables, capture_output=True)
    assert list(tmp_path.iterdir()) == []
