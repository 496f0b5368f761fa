"""The launches and the milliseconds that a round of training takes outside its networks, for several batch sizes.

    python -m benchmarks.around [--objective sid] [--batch 16] [--rounds 20]

`make bench-around` prints one row for each objective and batch size:

- launches: the operators on the device, counted as in tests/trainers/engine/test_launches.py, without networks and
  optimizers. A discriminator's head, which has more layers for larger features, adds its own in a run that is not
  compiled, and in one that is, the sums of the gradients of its weights, which a round uses twice;
- ms: the wall milliseconds of a whole round with a network of one weight (3x32x32), whose own time is next to nothing.
  What remains is the time around networks: random numbers, diffusion, losses, notes, clipping, optimizers and averages.
  It is the median over rounds, with the quartiles in brackets.

Both are given for a run that is not compiled and for one that is, which needs a compiler on the machine. The first two
rounds, which compile, are not timed.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator

from benchmarks.launches import Plain, launches_of_round, on_meta
from benchmarks.sessions import Spread, seconds_of, session_of
from distill.denoiser import Denoiser
from distill.paths import EDM
from distill.teachers import OwnNet
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.io.console import plain

OUTSIDE_SHAPE, OUTSIDE_CLASSES = (3, 32, 32), 10
OUTSIDE_OBJECTIVES: dict[str, dict[str, Any]] = {
    "sid": {"objective": "sid"},
    "diff_instruct": {"objective": "diff_instruct"},
    "dmd2": {"objective": {"name": "dmd2", "tap": "middle"}},
}
BATCHES = (16, 64, 256, 1024)


def plain_session(objective: str, batch_size: int, compiled: bool, accelerator: Accelerator) -> Session:
    """Return a session whose networks have one weight each.

    Args:
        objective: A name in OUTSIDE_OBJECTIVES.
        batch_size: The number of samples.
        compiled: Whether the run is compiled.
        accelerator: The device.
    """
    network = OwnNet(f"{Plain.__module__}:{Plain.__name__}", {}, OUTSIDE_SHAPE, OUTSIDE_CLASSES)
    settings = {**OUTSIDE_OBJECTIVES[objective], "batch_size": batch_size, "compile": compiled}
    return session_of(Denoiser(network, EDM(), "edm"), accelerator, **settings)


def count_outside(objective: str, batch_size: int, compiled: bool) -> int:
    """Return the launches of a round outside its networks."""
    with on_meta():
        session = plain_session(objective, batch_size, False, Accelerator(cpu=True))
        return launches_of_round(session, compiled).total()


def milliseconds_outside(session: Session, rounds: int) -> Spread:
    """Return the milliseconds of a round, after two that are not timed."""
    device = session.accelerator.device
    for _ in range(2):
        advance(session)
    return Spread.over([1000 * seconds_of(lambda: advance(session), device) for _ in range(rounds)])


def main(
    objective: Annotated[list[str] | None, typer.Option(help="The objectives. All when left out.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="The batch sizes.")] = None,
    rounds: Annotated[int, typer.Option(help="The rounds that are timed.", min=1)] = 20,
    compiled: Annotated[bool, typer.Option(help="Whether to time compiled runs too.")] = True,
) -> None:
    """Print the table."""
    accelerator, console = Accelerator(cpu=not torch.cuda.is_available()), plain()
    console.print(
        f"one weight, {OUTSIDE_SHAPE}, float32, {accelerator.device}, {torch.get_num_threads()} threads,"
        f" torch {torch.__version__}; medians of {rounds} rounds with quartiles"
    )
    modes = {"not compiled": False, **({"compiled": True} if compiled else {})}
    console.print(f"{'':14}{'batch':>6}" + "".join(f"{f'{name}: launches':>24}{'ms':>26}" for name in modes))
    for name in objective or OUTSIDE_OBJECTIVES:
        for size in batch or BATCHES:
            cells = ""
            for fuses in modes.values():
                took = milliseconds_outside(plain_session(name, size, fuses, accelerator), rounds)
                spread = f"{took.median:.2f} [{took.low:.2f}, {took.high:.2f}]"
                cells += f"{count_outside(name, size, fuses):24d}{spread:>26}"
            console.print(f"{name:14}{size:6d}{cells}")


if __name__ == "__main__":
    typer.run(main)
