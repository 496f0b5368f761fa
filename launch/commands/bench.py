"""distill bench: the speed and the memory of a student beside its teacher's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import Moved, Which

if TYPE_CHECKING:
    from trainers.runs.bench import Speed


def bench(
    folder: Annotated[Path, typer.Argument(help="The folder of a distillation.")],
    moved: Moved = None,
    batch: Annotated[int, typer.Option(help="The batch at which throughput and memory are measured.", min=1)] = 64,
    seconds: Annotated[float, typer.Option(help="The seconds of each of the four measurements, at least.")] = 3.0,
    which: Which = "last",
) -> None:
    """Measure latency, throughput and peak memory of a student and of its teacher, with the ratio of the two."""
    import trainers
    from trainers.io.console import plain
    from trainers.recipe.strict_yaml import override
    from trainers.runs.bench import bench_run

    trained = trainers.load(folder, which, **override({}, moved or []))
    student, teacher = bench_run(trained, batch, seconds)
    for line in speed_lines(student, teacher, batch, str(trained.device)):
        plain().print(line)


def speed_lines(student: Speed, teacher: Speed, batch: int, device: str) -> list[str]:
    """Return a table of two speeds. A ratio above 1 is in favour of the student.

    Args:
        student: The speed of the student.
        teacher: The speed of the teacher.
        batch: The batch of throughput and memory.
        device: The device, in words.
    """
    head = ["", "evaluations", "ms at batch 1", f"images/s at {batch}", "peak GiB"]
    rows = [
        [name, f"{one.evaluations}", f"{1000 * one.latency:.2f}", f"{one.throughput:.1f}", _gib(one.memory)]
        for name, one in (("student", student), ("teacher", teacher))
    ]
    gains = [
        teacher.evaluations / student.evaluations,
        teacher.latency / student.latency,
        student.throughput / teacher.throughput,
    ]
    memory = "-" if student.memory is None or teacher.memory is None else f"{teacher.memory / student.memory:.2f}"
    rows.append(["ratio", *(f"{gain:.1f}" for gain in gains), memory])
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    note = "" if student.memory is not None else "; the memory of a model is measured on GPUs alone"
    return [*lines, f"on {device}, without the decoder of latents{note}"]


def _gib(memory: float | None) -> str:
    """Return a memory in GiB, or a dash where it was not measured."""
    return "-" if memory is None else f"{memory:.2f}"
