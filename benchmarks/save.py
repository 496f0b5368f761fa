"""The time that a checkpoint costs training: a save beside training, and a save that training waits for.

`make bench-save` prints both. The cost is the time by which the same updates take longer if a save starts before the
first of them, until updates and save are done. Each round times updates alone, updates with a save beside them, and
updates after a save, in another order every time, since machines are noisy. A cost is the median of the differences
within a round.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.step import NETWORK
from distill.denoiser import Denoiser
from distill.objectives.diff_instruct import DiffInstruct
from distill.paths import EDM
from distill.teachers import build_unet, save_denoiser
from trainers.checkpoints.checkpoint import folders
from trainers.checkpoints.saver import Saver
from trainers.data import DataFree
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.io.console import plain
from trainers.loop import build_session
from trainers.recipe.run import Run
from trainers.runs.open import open_run

# Many weights for little work, so that a save takes seconds and noise matters less.
SIZE, BATCH, CHANNELS = 4, 1, [64, 448]


def main(rounds: int = 15) -> None:
    """Print the costs and their ratio, medians over `rounds`."""
    torch.set_num_threads(1)  # on a CPU the thread that saves needs a core too
    accelerator, console = Accelerator(cpu=not torch.cuda.is_available()), plain()
    Path("runs").mkdir(exist_ok=True)  # on the disk of the runs, and not that of temporary files
    with tempfile.TemporaryDirectory(dir="runs", prefix=".bench-save-") as folder:
        session = _session(Path(folder), accelerator)
        saver = Saver(Path(folder) / "checkpoints", 1, accelerator)
        _blocking(saver, session)
        size = sum(file.stat().st_size for file in folders(saver.root)[0].iterdir())
        updates = _outlast(saver, session)
        saves: dict[str, Callable[[], None]] = {
            "alone": lambda: None,
            "beside": lambda: _beside(saver, session),
            "blocking": lambda: _blocking(saver, session),
        }
        took: dict[str, list[float]] = {name: [] for name in saves}
        copying, late = list[float](), 0
        for turn in range(rounds):
            for name in [*saves, *saves][turn % 3 :][:3]:
                begin = time.perf_counter()
                saves[name]()
                copying += [time.perf_counter() - begin] if name == "beside" else []
                for _ in range(updates):
                    advance(session)
                late += saver.busy
                saver.wait()
                took[name].append(time.perf_counter() - begin)
    costs = {
        name: statistics.median(slower - alone for slower, alone in zip(took[name], took["alone"], strict=True))
        for name in ("beside", "blocking")
    }
    update = statistics.median(took["alone"]) / updates
    console.print(
        f"checkpoint of {size / 2**20:.0f} MiB, {updates} updates of {1000 * update:.0f} ms, {accelerator.device},"
        f" torch {torch.__version__}; medians of {rounds} rounds, {late} saves outlasted the updates beside them\n"
        f"lost to a save that is waited for: {costs['blocking']:.3f} s; to one beside training: {costs['beside']:.3f} s"
        f" (the copy {statistics.median(copying):.3f} s), ratio {costs['beside'] / costs['blocking']:.1%} (bar: 20%)"
    )


def _outlast(saver: Saver, session: Session) -> int:
    """Return a number of updates that takes 1.5 times as long as a save beside them."""
    counts = []
    for _ in range(3):
        _beside(saver, session)
        counts.append(0)
        while saver.busy:
            advance(session)
            counts[-1] += 1
    return max(4, round(1.5 * max(counts)))


def _session(folder: Path, accelerator: Accelerator) -> Session:
    """Return a session with many weights, whose teacher is written to `folder`."""
    torch.manual_seed(0)
    network = {**NETWORK, "block_out_channels": CHANNELS, "sample_size": SIZE}
    save_denoiser(Denoiser(build_unet(network), EDM(), "edm"), folder / "teacher")
    data = DataFree((3, SIZE, SIZE), int(network["num_class_embeds"]))
    teacher, objective = str(folder / "teacher"), DiffInstruct()
    run = Run(name="save", data=data, images=10**9, batch_size=BATCH, teacher=teacher, objective=objective)
    return build_session(open_run(run, 1), accelerator)


def _beside(saver: Saver, session: Session) -> None:
    session.state.images += BATCH  # since a state of the same image count is not saved twice
    saver.save(session)


def _blocking(saver: Saver, session: Session) -> None:
    session.state.images += BATCH
    saver.save_now(session)


if __name__ == "__main__":
    main()
