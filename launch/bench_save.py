"""What a checkpoint costs training: saved beside it, and while it waits, measured side by side in one run.

`make bench-save`; medians over rounds in which plain updates, a blocking save, and updates during a save take turns,
since machines are noisy. Lost is what updates take longer while a save goes on beside them, its copy to the host
included.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from distill.denoiser import Denoiser
from distill.objectives import DiffInstruct
from distill.paths import EDM
from distill.teachers import build_unet, save_denoiser
from launch.bench_step import NETWORK, SIZE
from trainers.checkpoint import folders
from trainers.console import plain
from trainers.data import DataFree
from trainers.loop import build
from trainers.run import Run
from trainers.saving import Saver
from trainers.session import Session

BATCH, CHANNELS = 8, [64, 256]


def main(rounds: int = 7) -> None:
    """Print the costs and their ratio."""
    accelerator, console = Accelerator(cpu=not torch.cuda.is_available()), plain()
    with tempfile.TemporaryDirectory(dir=".", prefix=".bench-save-") as folder:
        session = _session(Path(folder), accelerator)
        saver = Saver(Path(folder) / "checkpoints", 1, accelerator)
        _updates(session, 2)
        saver.must(session)
        size = sum(file.stat().st_size for file in folders(saver.root)[0].iterdir())
        update = _seconds(lambda: _updates(session, 3), accelerator) / 3
        blocking, beside, undisturbed = [], [], []
        for _ in range(rounds):
            _updates(session, 1)
            blocking.append(_seconds(lambda: saver.must(session), accelerator))
            count = math.ceil(1.5 * statistics.median(blocking) / update)  # the save ends among them
            undisturbed.append(_seconds(lambda n=count: _updates(session, n), accelerator) / count)  # type: ignore[misc]
            update = statistics.median(undisturbed)
            beside.append(_seconds(lambda n=count: _beside(saver, session, n), accelerator) - count * undisturbed[-1])  # type: ignore[misc]
            undisturbed.append(_seconds(lambda n=count: _updates(session, n), accelerator) / count)  # type: ignore[misc]
            beside[-1] -= count * (undisturbed[-1] - undisturbed[-2]) / 2  # between the plain ones before and after
    waits, lost = statistics.median(blocking), statistics.median(beside)
    console.print(
        f"checkpoint of {size / 2**20:.0f} MiB, update {1000 * update:.0f} ms, {accelerator.device},"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}; medians of {rounds} rounds\n"
        f"blocking save: {waits:.3f} s, beside training: {lost:.3f} s lost, ratio {lost / waits:.1%} (bar: 20%)"
    )


def _session(folder: Path, accelerator: Accelerator) -> Session:
    torch.manual_seed(0)
    network = {**NETWORK, "block_out_channels": CHANNELS}
    save_denoiser(Denoiser(build_unet(network), EDM(), "edm"), folder / "teacher")
    data = DataFree((3, SIZE, SIZE), int(network["num_class_embeds"]))
    teacher, objective = str(folder / "teacher"), DiffInstruct()
    run = Run(name="save", data=data, images=10**9, batch_size=BATCH, teacher=teacher, objective=objective)
    return build(run, accelerator)


def _updates(session: Session, count: int) -> None:
    for _ in range(count):
        session.step()
        session.state.average(BATCH)


def _beside(saver: Saver, session: Session, count: int) -> None:
    saver.save(session)
    _updates(session, count)


def _seconds(function: Callable[[], None], accelerator: Accelerator) -> float:
    start = time.perf_counter()
    function()
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
