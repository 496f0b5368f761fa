"""What a checkpoint costs training: saved beside it, and while it waits, measured side by side in one run.

`make bench-save`; medians over rounds in which a blocking save, updates beside a save and updates alone take turns,
since machines are noisy. Lost are the copy to the host and what updates take longer while a save goes on beside them.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator

from distill.denoiser import Denoiser
from distill.objectives import DiffInstruct
from distill.paths import EDM
from distill.teachers import build_unet, save_denoiser
from launch.bench_step import NETWORK, seconds
from trainers.checkpoint import folders
from trainers.console import plain
from trainers.data import DataFree
from trainers.loop import build
from trainers.run import Run
from trainers.saving import Saver
from trainers.session import Session

SIZE, BATCH, CHANNELS = 4, 1, [64, 224]  # many weights for little work: many updates beside a save


def main(rounds: int = 9) -> None:
    """Print the costs and their ratio."""
    torch.set_num_threads(1)  # on a CPU the thread that saves needs one too
    accelerator, console = Accelerator(cpu=not torch.cuda.is_available()), plain()
    Path("runs").mkdir(exist_ok=True)  # on the disk that runs are on
    with tempfile.TemporaryDirectory(dir="runs", prefix=".bench-save-") as folder:
        session = _session(Path(folder), accelerator)
        saver = Saver(Path(folder) / "checkpoints", 1, accelerator)
        _blocking(saver, session)
        size = sum(file.stat().st_size for file in folders(saver.root)[0].iterdir())
        blocking, copying, counts = list[float](), list[float](), list[int]()
        alone, beside = list[float](), list[float]()
        for _ in range(rounds):
            blocking.append(seconds(lambda: _blocking(saver, session), accelerator))
            session.state.images += BATCH
            copying.append(seconds(lambda: saver.save(session), accelerator))
            before = len(beside)
            while saver.busy:
                beside.append(seconds(lambda: _update(session), accelerator))
            counts.append(len(beside) - before)
            alone += [seconds(lambda: _update(session), accelerator) for _ in range(counts[-1])]
    waits, copy, update = statistics.median(blocking), statistics.median(copying), statistics.median(alone)
    slower = statistics.median(beside) - update  # of medians: other programs disturb single updates
    lost = copy + statistics.median(counts) * max(slower, 0.0)
    console.print(
        f"checkpoint of {size / 2**20:.0f} MiB, update {1000 * update:.0f} ms, {accelerator.device},"
        f" torch {torch.__version__}; medians of {rounds} rounds, {len(beside)} updates beside a save\n"
        f"blocking save: {waits:.3f} s; beside training: copy {copy:.3f} s, {statistics.median(counts):.0f} updates of"
        f" {1000 * slower:+.1f} ms, {lost:.3f} s lost, ratio {lost / waits:.1%} (bar: 20%)"
    )


def _session(folder: Path, accelerator: Accelerator) -> Session:
    torch.manual_seed(0)
    network = {**NETWORK, "block_out_channels": CHANNELS, "sample_size": SIZE}
    save_denoiser(Denoiser(build_unet(network), EDM(), "edm"), folder / "teacher")
    data = DataFree((3, SIZE, SIZE), int(network["num_class_embeds"]))
    teacher, objective = str(folder / "teacher"), DiffInstruct()
    run = Run(name="save", data=data, images=10**9, batch_size=BATCH, teacher=teacher, objective=objective)
    return build(run, accelerator)


def _update(session: Session) -> None:
    session.step()
    session.state.average(BATCH)


def _blocking(saver: Saver, session: Session) -> None:
    session.state.images += BATCH  # or it is saved already
    saver.must(session)


if __name__ == "__main__":
    main()
