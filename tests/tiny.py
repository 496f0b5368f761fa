"""Tiny teachers and runs that the tests of training and of the command line share."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from filelock import FileLock

from distill.denoiser import Denoiser
from distill.metrics import Classifier
from distill.paths import EDM, Flow
from distill.teachers import EDM2Net, build_unet, save_denoiser
from trainers import loop
from trainers.data import Digits
from trainers.engine.session import Session
from trainers.recipe.load import build_experiment
from trainers.recipe.run import Run
from trainers.recipe.teacher_run import TeacherRun
from trainers.runs import make_pairs
from trainers.runs.open import Opened, open_run

torch.set_num_threads(1)  # runs in pytest's process are compared bit by bit with processes of one thread

ROOT = Path(__file__).resolve().parents[1]
NETWORK = {
    "layers_per_block": 1,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
    "add_attention": False,
}
SHAPE = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "num_class_embeds": 10}


def tiny_denoiser(kind: str = "edm", null: int | None = None, **network: Any) -> Denoiser:
    """A random denoiser of the digits, all its weights moved from their initial values (some of which are zero)."""
    torch.manual_seed(0)
    unet = build_unet({**NETWORK, **SHAPE, **network}, null)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Denoiser(unet, EDM(), "edm") if kind == "edm" else Denoiser(unet, Flow(), "velocity")


def tiny_edm2() -> Denoiser:
    """A random EDM2 network: parameters that are single numbers, weights that are put back, a learned uncertainty."""
    torch.manual_seed(0)
    size = {"img_resolution": 8, "img_channels": 1, "label_dim": 10, "channel_mult": [1], "num_blocks": 1}
    network = EDM2Net(**size, model_channels=8, attn_resolutions=[], channels_per_head=8, logvar_channels=8)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return Denoiser(network, EDM(), "edm")


def write_teachers(folder: Path) -> None:
    """Teacher folders edm, null (with a null condition), dropout and edm2 (EDM as well), flow; a classifier; pairs."""
    save_denoiser(tiny_denoiser(), folder / "edm")
    save_denoiser(tiny_denoiser(null=10, num_class_embeds=11), folder / "null")
    save_denoiser(tiny_denoiser(dropout=0.3), folder / "dropout")
    save_denoiser(tiny_denoiser("flow"), folder / "flow")
    save_denoiser(tiny_edm2(), folder / "edm2")
    torch.manual_seed(1)
    Classifier((1, 8, 8), 10, width=16, data="digits").save(folder / "classifier")
    list(write_pairs(folder / "edm", folder / "pairs"))


def write_pairs(teacher: Path, folder: Path, count: int = 20, **changes: Any) -> Iterator[int]:
    """ODE pairs of 3 evaluations: write 8 more, say how many there are."""
    settings = make_pairs.PairSettings(**{"evaluations": 3, **changes})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_pairs, "PAIRS_A_SHARD", 8)
        yield from make_pairs.make_pairs(str(teacher), Digits().load(), folder, count, settings, 5, torch.device("cpu"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all of pytest's worker processes share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def teachers(shared: Path) -> Path:
    """The folder of the tiny teachers."""
    return once(shared, "teachers", write_teachers)


def once(shared: Path, name: str, make: Callable[[Path], None]) -> Path:
    """`shared`/`name`, filled by `make` for the first of pytest's worker processes that asks."""
    folder = shared / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            staging = shared / f".{name}"
            staging.mkdir()
            make(staging)
            staging.rename(folder)
    return folder


def recipe(teacher: Path | str, /, **changes: Any) -> dict[str, Any]:
    """The recipe of a short distillation: 12 updates."""
    return {
        "name": "tiny",
        "teacher": str(teacher),
        "objective": "sid",
        "images": 96,
        "batch_size": 8,
        "generator": {"lr": 1e-3},
        "fake": {"lr": 1e-3},
        "ema": {"half_life": 32},
        "evaluation": {"samples": 64},
        "log_every": 16,
        "samples_every": 96,
        "checkpoint_every": 24,
        **changes,
    }


DROPOUT = {"lr": 1e-3, "dropout": "teacher"}
ADAPTERS = {"lr": 1e-2, "lora": {"rank": 2}}
DISTILLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "sid": ("edm", {"objective": "sid"}),
    "diff_instruct": ("edm", {"objective": "diff_instruct"}),
    "fgm": ("flow", {"objective": "fgm"}),
    "realuid": ("flow", {"objective": "realuid", "fake_updates": 2}),
    "sim": ("edm", {"objective": "sim"}),
    "score_mismatching": ("edm", {"objective": "score_mismatching"}),
    "dmd2": ("edm", {"objective": "dmd2", "fake_updates": 2}),
    "dmd2, adaptive noise, r1": (
        "edm",
        {"objective": {"name": "dmd2", "tap": ["middle", "encoder"], "noise": {"images": 64}, "r1": {"weight": 1.0}}},
    ),
    "dmd2, the teacher's features": ("edm", {"objective": {"name": "dmd2", "tap": "encoder", "features": "teacher"}}),
    "f_distill": ("edm", {"objective": {"name": "f_distill", "memory": 0.5, "r1": {"weight": 1.0, "noise": 0.1}}}),
    "uni_instruct": ("edm", {"objective": {"name": "uni_instruct", "generator_from": 0, "adversarial_from": 16}}),
    "sida": ("edm", {"objective": {"name": "sida", "generator_from": 0, "adversarial_from": 16}}),
    "sida, uncertainty": (
        "edm2",
        {"objective": {"name": "sida", "generator_from": 0, "adversarial_from": 16, "uncertainty": True}},
    ),
    "guided": (
        "null",
        {"objective": {"name": "guided", "fake_cfg": 2.0, "objective": {"name": "sida", "generator_from": 0}}},
    ),
    "decoupled": ("null", {"objective": {"name": "decoupled", "objective": "diff_instruct"}}),
    "autoguided": (
        "edm",
        {"objective": {"name": "autoguided", "objective": "sid", "weak_teacher": "TEACHERS/dropout"}},
    ),
    "rewarded": (
        "null",
        {
            "objective": {
                "name": "rewarded",
                "objective": {"name": "guided", "objective": "sid"},
                "reward": {"name": "classifier", "classifier": "TEACHERS/classifier"},
                "reward_scale": 10.0,
            }
        },
    ),
    "dmd": ("edm", {"objective": "dmd", "pairs": {"folder": "TEACHERS/pairs", "fraction": 0.5}}),
    "dmd, regression alone": (
        "edm",
        {"objective": {"name": "dmd", "matching": 0.0}, "pairs": {"folder": "TEACHERS/pairs"}},
    ),
    "hipa": ("edm", {"objective": "hipa", "pairs": {"folder": "TEACHERS/pairs"}, "generator": ADAPTERS}),
    "sid_lora": (
        "edm",
        {
            "objective": "sid",
            "generator": ADAPTERS,
            "fake": {"lr": 1e-2, "lora": {"rank": 3, "targets": ["conv1", "conv2", "conv_out"]}},
        },
    ),
    "fake_lora": ("edm", {"objective": "dmd2", "fake": ADAPTERS}),
}
"""Every objective in a recipe that uses all of it, (teacher, changes): resume and data parallelism run over them.

TEACHERS stands for the folder of the teachers.
"""


def distillation(name: str, teachers: Path, **changes: Any) -> dict[str, Any]:
    """The recipe of a short distillation under one of DISTILLATIONS."""
    teacher, settings = DISTILLATIONS[name]
    return recipe(teachers / teacher, **placed({**settings, **changes}, teachers))


def placed(settings: Any, teachers: Path) -> Any:
    """`settings` with TEACHERS replaced."""
    if isinstance(settings, dict):
        return {key: placed(value, teachers) for key, value in settings.items()}
    return settings.replace("TEACHERS", str(teachers)) if isinstance(settings, str) else settings


def teacher_recipe(**changes: Any) -> dict[str, Any]:
    """The recipe of a short teacher training."""
    common = recipe(Path("unused"))
    for key in ("teacher", "objective", "generator", "fake"):
        del common[key]
    return {**common, "network": NETWORK, **changes}


def experiment(settings: dict[str, Any]) -> Run | TeacherRun:
    """The experiment of a recipe."""
    return build_experiment(settings, "test")


def opened(settings: dict[str, Any] | Run | TeacherRun, processes: int = 1, resume: bool = False) -> Opened:
    """Everything that a recipe names, opened for a run that begins, or for one that goes on."""
    run = experiment(settings) if isinstance(settings, dict) else settings
    return open_run(run, processes, fresh=not resume)


def build_session(settings: dict[str, Any] | Run | TeacherRun, accelerator: Accelerator | None = None) -> Session:
    """The session of a fresh run, on the CPU."""
    accelerator = accelerator or Accelerator(cpu=True)
    return loop.build_session(opened(settings, accelerator.num_processes), accelerator)


def fit_run(
    settings: dict[str, Any] | Run | TeacherRun,
    folder: Path,
    resume: bool = False,
    accelerator: Accelerator | None = None,
    allow: Sequence[str] = (),
) -> Session:
    """Train a run to its end, on the CPU."""
    accelerator = accelerator or Accelerator(cpu=True)
    return loop.fit(opened(settings, accelerator.num_processes, resume), folder, accelerator, allow)


def environment(**more: str) -> dict[str, str]:
    """The environment of a process of its own: one thread, no network, none of this process's world."""
    world = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    inherited = {key: value for key, value in os.environ.items() if key not in world and not key.startswith("WANDB")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return {**inherited, **offline, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


@dataclass
class Job:
    """The processes of one command, each the leader of its own group; `output` gets stdout and stderr of all."""

    processes: list[subprocess.Popen[bytes]]
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def kill(self) -> None:
        """kill -9 of everything."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # it had ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def finish(self, timeout: float = 400) -> int:
        """Wait for the end; the largest exit code."""
        end = time.monotonic() + timeout
        try:
            codes = [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {timeout} s:\n{self.text}") from None
        finally:
            self.kill()
        return max(codes, key=abs)

    def wait_for(self, happened: Callable[[], bool], timeout: float = 120) -> bool:
        """Poll until `happened`; False when the job ended before."""
        end = time.monotonic() + timeout
        while not happened():
            if not self.running():
                return False
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"waited {timeout} s:\n{self.text}")
            time.sleep(0.001)
        return True


def launch(program: list[str], output: Path, world: int = 1, cwd: Path = ROOT, **more: str) -> Job:
    """`python PROGRAM` once, or in `world` processes with the environment that torchrun would give them."""
    processes = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with output.open("ab") as stream:
        for rank in range(world):
            variables = environment(**more)
            if world > 1:
                variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
                variables |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_PORT": port}
                variables |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
            command = [sys.executable, *program]
            processes.append(
                subprocess.Popen(command, env=variables, cwd=cwd, stdout=stream, stderr=stream, start_new_session=True)
            )
    return Job(processes, output)


def distill(arguments: list[str], output: Path, world: int = 1, cwd: Path = ROOT, **more: str) -> Job:
    """The command in processes of its own."""
    return launch(["-m", "launch.main", *arguments], output, world, cwd, **more)
