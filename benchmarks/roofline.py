"""The floating-point operations and the bytes of a round of every paper's recipe, and the fastest that a GPU can be.

    python -m benchmarks.roofline [RECIPE ...]

The recipe's own round runs on tensors without values, with one sample, the guidance and the fake updates of the recipe,
and torch's FlopCounterMode counts matrix products, convolutions and attention, forwards and backwards (a multiplication
and an addition are two). The published teachers are those of tests/published_sizes.py. Units of the table:

- TFLOP an image: 10^12 operations in a round, divided by the samples of its batch. Recomputed activations count;
- GB a round: 10^9 bytes that optimizers and averages read and write: for a trained parameter its weight, gradient and
  two moments read, and its weight and moments written (28 bytes in float32), and for an average 12 more;
- GB sent: what a GPU of 8 sends in a round under DDP, 2 (8 - 1) / 8 of the gradients of each update;
- images/s: at the given share of PEAK, on 1 and on 8 GPUs. The bytes are not in it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple, cast

import typer
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.launches import on_meta
from benchmarks.shapes import published_folder, shape_session, shortened_recipe
from distill.errors import UserError, one_line
from trainers.engine.step import advance
from trainers.io.console import plain
from trainers.recipe.load import resolve
from trainers.recipe.run import Run
from trainers.recipe.shipped import shipped_recipes
from trainers.recipe.strict_yaml import load_yaml

PEAK = 788e12
"""Operations a second in bfloat16: the largest matrix product that was measured on one H200."""
GPUS_OF_A_MACHINE = 8


class Work(NamedTuple):
    """The work of a round.

    Attributes:
        flops: Operations for each sample of the batch.
        updated: The bytes that optimizers and averages move.
        sent: The bytes that a GPU of GPUS_OF_A_MACHINE sends.
    """

    flops: float
    updated: float
    sent: float


def paper_recipes() -> list[str]:
    """Return the names of the papers' recipes."""
    return [name for name, file in shipped_recipes().items() if "tiny" in load_yaml(file)]


def work_of(run: Run) -> Work:
    """Return the work of a round of a recipe, whose teacher's folder may have no weights."""
    updates = run.most_fake_updates
    counted = shortened_recipe(run, batch_size=1, compile=False, precision="float32")  # META has no autocast
    with on_meta():
        session = shape_session(counted, Accelerator(cpu=True))
        with FlopCounterMode(display=False) as counter:
            advance(session)
    counts = {name: sum(p.numel() for p in player.parameters) for name, player in session.state.players.items()}
    steps = {name: updates if name == "fake" else 1 for name in counts}
    averaged = 12 * counts["generator"] * bool(run.ema.half_life)
    updated = averaged + sum(28 * steps[name] * count for name, count in counts.items())
    share = 2 * (GPUS_OF_A_MACHINE - 1) / GPUS_OF_A_MACHINE
    sent = share * sum(4 * steps[name] * count for name, count in counts.items())
    return Work(float(counter.get_total_flops()), updated, sent)


def three_digits(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def row_of(name: str, run: Run, work: Work) -> str:
    """Return a row of the table."""
    rates = [three_digits(gpus * share * PEAK / work.flops) for gpus in (1, GPUS_OF_A_MACHINE) for share in (1.0, 0.5)]
    hours = run.images * work.flops / PEAK / 3600
    cells = map(three_digits, (work.flops / 1e12, work.updated / 1e9, work.sent / 1e9))
    return f"| {' | '.join([f'`{name}`', f'{run.batch_size:,}', *cells, *rates, three_digits(hours)])} |"


def main(
    recipes: Annotated[list[str] | None, typer.Argument(help="Recipes. The papers' when left out.")] = None,
) -> None:
    """Print the table."""
    console = plain()
    heads = ["recipe", "batch", "TFLOP an image", "GB a round", "GB sent", "images/s, 1 GPU, 100 %", "50 %"]
    heads += ["images/s, 8 GPUs, 100 %", "50 %", "GPU-hours of the whole run at 100 %"]
    console.print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    with tempfile.TemporaryDirectory() as folder:
        for name in recipes or paper_recipes():
            run = cast(Run, resolve(name))
            placed = shortened_recipe(run, teacher=published_folder(run, Path(folder)))
            try:
                console.print(row_of(name, run, work_of(placed)))
            except (UserError, RuntimeError) as error:  # such as a reward whose weights are not there
                console.print(f"{name} is not counted: {one_line(error):.80}")


if __name__ == "__main__":
    typer.run(main)
