"""The checks of `distill doctor`: the machine, its disk and clock, its processes, and two steps of training."""

import os
import platform
import shutil
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from netrc import NetrcParseError, netrc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch.multiprocessing.spawn import spawn

from distill.errors import one_line
from distill.public_text import public_text, without_names
from distill.teachers import load_denoiser
from launch.processes import join_world
from trainers.engine.step import advance
from trainers.io.console import plain
from trainers.loop import build_session
from trainers.recipe.load import build_experiment
from trainers.recipe.run import Run
from trainers.recipe.tiny import materialise
from trainers.runs.open import open_run

PACKAGES = ("distill-onestep", "torch", "accelerate", "diffusers", "transformers", "peft", "safetensors", "datasets")
PRECISIONS = ("float32", "bfloat16", "float64")
TEST_BYTES = 2**26  # bytes that the check of the disk writes and reads
MIN_FREE_BYTES = 10 * 2**30  # with less than this, the checkpoints of a small model may fill the disk
WANDB_MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")
MAX_SKEW = 5.0  # seconds between this clock and the disk's
MESSAGE_LENGTH = 2**20  # float32 numbers in an all-reduce
# A learning rate that separates fake and teacher at once. While their gap is near 0, bfloat16 leaves nothing of it but
# rounding errors.
LARGE_LR = 1e-2


class CheckFailed(Exception):
    """The exception of a check that fails. Its text says what to do."""


def run_checks(folder: Path) -> int:
    """Run every check, print its result, and return the number of checks that failed.

    Args:
        folder: The folder in which runs are to be written.
    """
    console, failed = plain(), 0
    checks: dict[str, Callable[[], str]] = {
        "versions": versions,
        "devices": devices,
        "disk": lambda: disk(folder),
        "clock": lambda: clock(folder),
        "processes": round_trip,
        "wandb": wandb_login,
        **{f"two steps, {precision}": partial(two_steps, precision) for precision in PRECISIONS},
    }
    for name, check in checks.items():
        try:
            state, found = "ok", check()
        except CheckFailed as wrong:
            state, found = "WRONG", str(wrong)
        except Exception as error:  # a check must not hide the others
            state, found = "WRONG", without_names(f"{type(error).__name__}: {one_line(error)}")
        failed += state != "ok"
        console.print(f"{state:7}{name:20}{public_text(found)}")
    return failed


def versions() -> str:
    """Return the versions of Python, the system, and the packages that count."""
    found = [f"Python {platform.python_version()}", platform.platform()]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} missing")
    return ", ".join(found)


def devices() -> str:
    """Return the cores, the memory and the GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = [f"{os.cpu_count()} cores, {memory:.0f} GiB"]
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        found.append(f"GPU {number}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}")
    if not torch.cuda.is_available():
        if torch.version.cuda is not None:
            raise CheckFailed(
                f"{found[0]}; torch is built for CUDA {torch.version.cuda} but sees no GPU: check the driver"
            )
        return f"{found[0]}, no GPU"
    return "; ".join([*found, f"CUDA {torch.version.cuda}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"])


def disk(folder: Path) -> str:
    """Check the permission to write and the free space, and measure the speed of writing (with fsync) and reading."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".doctor-", dir=folder) as place:
            file, content = Path(place) / "bytes", os.urandom(TEST_BYTES)
            start = time.perf_counter()
            with file.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            wrote, start = time.perf_counter() - start, time.perf_counter()
            if file.read_bytes() != content:
                raise CheckFailed(f"'{folder}' gives back other bytes than were written: use another disk")
            read = time.perf_counter() - start
    except OSError as error:
        raise CheckFailed(f"cannot write to '{folder}' ({error.strerror}): name another with --folder") from error
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise CheckFailed(f"'{folder}' has {free / 2**30:.1f} GiB left: make room, or name another with --folder")
    megabytes = TEST_BYTES / 1e6
    return f"'{folder}': writes {megabytes / wrote:.0f} MB/s, reads {megabytes / read:.0f}, {free / 2**30:.0f} GiB free"


def clock(folder: Path) -> str:
    """Compare the clock of this machine with that of the disk, which may be on another machine."""
    with TemporaryDirectory(prefix=".doctor-", dir=folder) as place:
        before = time.time()
        skew = Path(place).stat().st_mtime - before
    if abs(skew) > MAX_SKEW:
        raise CheckFailed(f"this clock and that of '{folder}' are {skew:.0f} s apart: synchronise them (NTP)")
    return f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, the disk's {skew:+.2f} s"


def round_trip() -> str:
    """Time an all-reduce between two processes, by NCCL if there are two GPUs, and otherwise by gloo."""
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    with TemporaryDirectory(prefix="distill-") as folder:
        spawn(_reduce, (backend, folder), nprocs=2)
        seconds = float((Path(folder) / "seconds").read_text())
    return f"{backend}, two processes: {MESSAGE_LENGTH * 4 / 1e6:.0f} MB all-reduced in {1000 * seconds:.1f} ms"


def _reduce(rank: int, backend: str, folder: str) -> None:
    """Take part in the all-reduce as one of the two processes. Collective."""
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=2)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    numbers = torch.full((MESSAGE_LENGTH,), float(rank + 1), device=device)
    dist.all_reduce(numbers)  # the first one connects the processes, and is not timed
    assert bool((numbers == 3).all()), "the sum of 1 and 2 over two processes is not 3"
    start = time.perf_counter()
    dist.all_reduce(numbers)
    assert float(numbers[-1]) == 6  # reading the number waits for the device
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(time.perf_counter() - start))
    dist.destroy_process_group()


def wandb_login() -> str:
    """Return whether `tracking: [wandb]` would find a key. Nothing is sent, and the key is not read."""
    try:
        release = version("wandb")
    except PackageNotFoundError:
        return "not installed; only `tracking: [wandb]` needs it"
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2]
    try:
        logged = "WANDB_API_KEY" in os.environ or (file.is_file() and host in netrc(file).hosts)
    except (OSError, NetrcParseError) as error:  # its text may hold a password
        raise CheckFailed("the netrc file cannot be read or is not one: repair it, or `wandb login`") from error
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in WANDB_MODES:
        raise CheckFailed(f"WANDB_MODE: must be one of {', '.join(WANDB_MODES)}")
    said = "ready" if logged or mode != "online" else "not logged in: `wandb login` before tracking"
    return f"wandb {release}, {mode}, {said}"


def two_steps(precision: str) -> str:
    """Train two updates of a tiny SiD, and return the time of a step and the losses."""
    with TemporaryDirectory(prefix="distill-") as folder:
        teacher = materialise("tiny:edm", Path(folder))
        network = load_denoiser(teacher, weights=False).network
        data = {"name": "data_free", "shape": network.shape, "classes": network.classes}
        recipe: dict[str, Any] = {"name": "doctor", "teacher": teacher, "objective": "sid", "data": data}
        recipe["fake"] = {"lr": LARGE_LR}
        run = cast(Run, build_experiment({**recipe, "images": 8, "batch_size": 4, "precision": precision}, "doctor"))
        session = build_session(open_run(run, 1), join_world(None, run, Path(folder)))
        start = time.perf_counter()
        for _ in range(2):
            advance(session)
        means = session.state.meter.read(session.accelerator)
        seconds = (time.perf_counter() - start) / 2
    skipped = sum(player.counters()["skipped"] for player in session.state.players.values())
    if skipped:
        raise CheckFailed(f"{skipped} of 4 updates were not finite on {session.accelerator.device}")
    losses = ", ".join(
        f"{name} {means[name]:.4g}" for name in sorted(means) if name.count("/") == 1 and "h/" not in name
    )
    return f"{session.accelerator.device}, {1000 * seconds:.0f} ms a step, {losses}"
