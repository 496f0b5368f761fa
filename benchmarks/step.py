"""The time of one round of training, in units of one forward of the network, measured side by side in one run.

`make bench-step` prints medians over turns, since machines are noisy. A turn times forwards and a round, one after the
other. The table also shows the count that the mathematics needs: a forward is 1, a backward through weights and input
is 2, and a backward through the input alone is 1. With forwards G, T and F of generator, teacher and fake, the fake's
phase needs G + F + 2, and the generator's phase needs G + T + F and their backwards.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from distill.denoiser import Denoiser
from distill.objectives import OBJECTIVES
from distill.paths import EDM
from distill.teachers import build_unet, save_denoiser
from trainers.data import DataFree
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.hooks import Log
from trainers.io.console import plain
from trainers.loop import build_session
from trainers.recipe.run import Run
from trainers.runs.open import open_run

SIZE, CLASSES, BATCH, LOG_ITERATIONS = 16, 10, 64, 50
NETWORK: dict[str, Any] = {
    "sample_size": SIZE,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [64, 128],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "num_class_embeds": CLASSES,
    "add_attention": False,
}
CASES = [("sid", False, 11, 11.5), ("sid", True, 10, 10.5), ("diff_instruct", False, 9, 9.5)]


class Stopwatch:
    """The total time of the calls of wrapped functions.

    Attributes:
        seconds: The time so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and adds its time."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            return result

        return timed


def main(rounds: int = 9) -> None:
    """Print the table, each figure a median of `rounds` turns."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    console = plain()
    device = accelerator.device
    console.print(
        f"UNet2DModel 3x{SIZE}x{SIZE} {NETWORK['block_out_channels']}, batch {BATCH}, float32, {device},"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}; medians of {rounds} rounds"
    )
    console.print(f"{'':26}{'iteration / forward':>20}{'needs':>8}{'bar':>8}{'data, log, EMA':>17}{'bar':>6}")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_denoiser(Denoiser(build_unet(NETWORK), EDM(), "edm"), Path(folder) / "teacher")
        for name, reuse, needs, bar in CASES:
            ratio, extras = measure(name, reuse, needs, Path(folder), accelerator, rounds)
            title = name + (", reuse_samples" if reuse else "")
            console.print(f"{title:26}{ratio:20.2f}{needs:8d}{bar:8.1f}{extras:16.2%}{'2%':>7}")


def measure(
    name: str, reuse: bool, needs: int, folder: Path, accelerator: Accelerator, rounds: int
) -> tuple[float, float]:
    """Measure one objective.

    Args:
        name: The objective.
        reuse: Whether both phases use the same samples.
        needs: The forwards that a round needs by the mathematics.
        folder: A folder that holds the teacher.
        accelerator: The device.
        rounds: The number of turns.

    Returns:
        The median time of a round in forwards, and the median share of it that data, log and averages take.
    """
    run = Run(
        name=name,
        data=DataFree((3, SIZE, SIZE), CLASSES),
        images=10**9,
        batch_size=BATCH,
        teacher=str(folder / "teacher"),
        objective=OBJECTIVES[name](),
        reuse_samples=reuse,
    )
    session = build_session(open_run(run, 1), accelerator)
    log = Log(folder, run.log_every, Console(quiet=True))
    log.start(session)
    watch = Stopwatch()
    session.batches.micro = watch.around(session.batches.micro)  # type: ignore[method-assign]
    session.state.ema.update = watch.around(session.state.ema.update)  # type: ignore[method-assign]
    session.state.meter.add = watch.around(session.state.meter.add)  # type: ignore[method-assign]
    advance(session)
    ratios, extras = [], []
    for _ in range(rounds):
        forward = seconds(lambda: [_forward(session) for _ in range(needs)], accelerator) / needs  # as long as a round
        watch.seconds = 0.0
        iteration = seconds(lambda: advance(session), accelerator)
        inside = watch.seconds
        logging = seconds(lambda: log(session), accelerator) / LOG_ITERATIONS
        ratios.append(iteration / forward)
        extras.append((inside + logging) / (iteration + logging))
    log.stop()
    return statistics.median(ratios), statistics.median(extras)


@torch.no_grad()
def _forward(session: Session) -> None:
    assert session.teacher is not None
    x = torch.zeros(BATCH, 3, SIZE, SIZE, device=session.accelerator.device)
    t = torch.ones(BATCH, dtype=torch.float64, device=x.device)
    session.teacher(x, t, torch.zeros(BATCH, dtype=torch.int64, device=x.device))


def seconds(function: Callable[[], Any], accelerator: Accelerator) -> float:
    """Return the seconds that `function` takes, the device's work included."""
    start = time.perf_counter()
    function()
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
