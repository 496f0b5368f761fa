"""distill plan: the memory and the communication of a recipe, before any weight loads."""

import shlex
from typing import Annotated, Literal

import typer

from distill.errors import UserError
from launch.options import Overrides, Recipe, resolve_recipe

# The share of the memory for all that no trace sees: CUDA's context, cuBLAS, NCCL, fragmentation (unverified).
HEADROOM = 0.1
EXIT_TOO_LARGE = 1
GPU = Literal["h200", "h100", "a100"]  # SPEEDS of trainers.plan.report, which is imported when the command runs


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="The number of GPUs in all.", min=1)] = 1,
    memory: Annotated[str, typer.Option(help="The memory of each GPU, such as 80GB or 80GiB.")] = "80GB",
    nodes: Annotated[
        int | None, typer.Option(help="The number of machines. Default: one for every 8 GPUs.", min=1)
    ] = None,
    kind: Annotated[GPU, typer.Option(help="The kind of the GPUs, by which the time of messages is judged.")] = "h200",
) -> None:
    """Show the memory and the communication of a recipe on each GPU, and the cheapest changes that make it fit.

    The exit code is 1 if it does not fit. The trainer's own code is traced on tensors without values, for which the
    configs of the teacher are enough.
    """
    from trainers.io.console import plain, progress
    from trainers.plan.remedies import cheapest
    from trainers.plan.report import gigabytes, parse_bytes, plan_lines
    from trainers.plan.trace import plan as trace

    run, console, size = resolve_recipe(recipe, overrides), plain(), parse_bytes(memory)
    nodes = nodes or -(-gpus // 8)
    if gpus % nodes:
        raise UserError(f"--nodes: {nodes} must divide --gpus {gpus}")
    with progress() as say:
        found = trace(run, gpus, say)
    for line in plan_lines(run, found, nodes, kind):
        console.print(line)
    room = (1 - HEADROOM) * size
    limit = f"{gigabytes(room)} of {gigabytes(size)} ({HEADROOM:.0%} is left for CUDA, NCCL and fragmentation)"
    if found.peak.bytes <= room:
        console.print(f"fits: {gigabytes(found.peak.bytes)} in {limit}")
        return
    console.print(f"does not fit: {gigabytes(found.peak.bytes)} in {limit}")
    with progress() as say:
        changes, better = cheapest(run, gpus, lambda one: one.peak.bytes <= room, found, say)
    if better is None:
        tried = shlex.join(changes) or "any change known here"
        console.print(f"it does not fit with {tried} either: it needs more memory, or a smaller teacher")
    else:
        console.print(f"cheapest changes that make it fit: {shlex.join(changes)}, {gigabytes(better.peak.bytes)}")
    raise typer.Exit(EXIT_TOO_LARGE)
