"""The predicted peak of `distill plan` against the peak of a real update, for recipes.

    python -m benchmarks.memory [RECIPE ...] [--batch 2] [--compile]

Each recipe is built at its published size with random weights, for one process. On a GPU the measured peak is
torch.cuda.max_memory_allocated over an update after the first. On a CPU it is what lives before an update, and what
torch's allocator then adds. Both are in MiB (2^20 bytes), and the ratio is the measured one divided by the predicted.
`make bench-memory` measures one of EDM's recipes.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from accelerate import Accelerator
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.shapes import published_folder, shape_session, shortened_recipe
from trainers.engine.step import advance
from trainers.io.console import plain
from trainers.plan.trace import plan
from trainers.recipe.load import resolve
from trainers.recipe.run import Run


def living_bytes() -> int:
    """Return the bytes of the storages of all real tensors on the host that Python knows."""
    gc.collect()
    found: dict[int, int] = {}
    for each in gc.get_objects():
        if type(each) in (Tensor, torch.nn.Parameter) and each.device.type == "cpu":
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def allocated_by(update: Callable[[], None]) -> int:
    """Return the bytes that the allocator of the CPU adds at the peak of an update."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as allocations:
        update()
    results = allocations.profiler.kineto_results
    now = most = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measured_peak(run: Run, accelerator: Accelerator) -> int:
    """Return the bytes at the peak of an update of a recipe, after one that makes the optimizers' state."""
    device = accelerator.device
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else living_bytes()
    session = shape_session(run, accelerator)
    advance(session)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        advance(session)
        return int(torch.cuda.max_memory_allocated(device)) - before
    return living_bytes() - before + allocated_by(partial(advance, session))


def main(
    recipes: Annotated[list[str] | None, typer.Argument(help="Recipes.")] = None,
    batch: Annotated[int, typer.Option(help="The samples of an update.", min=1)] = 2,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Measure compiled networks, which needs a compiler.")
    ] = False,
) -> None:
    """Print the table."""
    accelerator, console = Accelerator(cpu=not torch.cuda.is_available()), plain()
    console.print(
        f"batch {batch}, {'compiled' if compiled else 'not compiled'}, {accelerator.device}, torch {torch.__version__}"
    )
    console.print(f"{'':20}{'predicted MiB':>16}{'measured MiB':>16}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in recipes or ["cifar10_sid"]:
            run = cast(Run, resolve(name))
            run = shortened_recipe(run, teacher=published_folder(run, Path(folder)), batch_size=batch)
            predicted = plan(run, 1).peak.bytes
            measured = measured_peak(replace(run, compile=compiled), accelerator)
            cells = f"{predicted / 2**20:16,.0f}{measured / 2**20:16,.0f}{measured / predicted:8.3f}"
            console.print(f"{name:20}{cells}")


if __name__ == "__main__":
    typer.run(main)
