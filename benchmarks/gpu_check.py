"""The checks that need a GPU, each with a time budget, in one page: docs/results/gpu.md.

    benchmarks/gpu_check.sh                    # at most 8 minutes on one GPU
    benchmarks/gpu_check.sh --tiny             # every section at a tiny size, on any machine

Each section is a process of its own, so that a failure or the end of its budget stops no other. What it had found until
then stays in the page. Rates are images of the generator's updates in a second, medians over rounds. The share of the
peak is the operations that torch's FlopCounterMode counts in a round, over its time and the matrix peak of an H200 in
bfloat16 (benchmarks/roofline.py), whatever the precision.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks.gpu_sections import FAILED, Say, eight_bits, families, nccl, offload, prices, resume, shapes
from trainers.io.console import plain

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "gpu.md"
COMMAND = "benchmarks/gpu_check.sh"


class Section(NamedTuple):
    """A section of the page.

    Attributes:
        title: Its heading.
        check: Writes its lines. Its second argument says whether everything is tiny.
        seconds: Its budget.
    """

    title: str
    check: Callable[[Say, bool], None]
    seconds: int


SECTIONS: Mapping[str, Section] = {
    "resume": Section("Exact resume with `deterministic: true`", resume, 30),
    "nccl": Section("A process group of one", nccl, 20),
    "prices": Section("The prices of precision, TF32, determinism and compilation", prices, 90),
    "shapes": Section("Published sizes with random weights", shapes, 170),
    "eight_bits": Section("Optimizers of 8 bits", eight_bits, 25),
    "offload": Section("Weights in host memory", offload, 25),
    "families": Section("Every kind of network, compiled", families, 110),
}


def lines_of(name: str, tiny: bool, file: Path) -> None:
    """Run a section in this process, and write its lines to a file as they come."""

    def say(line: str) -> None:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    try:
        SECTIONS[name].check(say, tiny)
    except Exception as error:  # any failure is a line of the page
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        say(f"\nfailed: {type(error).__name__}: {first:.200}")


def run_section(name: str, tiny: bool, file: Path) -> None:
    """Run a section in a process of its own, and end it after its budget."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--section", name, "--out", str(file)]
    budget = SECTIONS[name].seconds
    try:
        code = subprocess.run([*command, *(["--tiny"] if tiny else [])], timeout=budget).returncode
        ended = "" if code == 0 else f"\nfailed: the process ended with code {code}\n"
    except subprocess.TimeoutExpired:
        ended = f"\nended after its budget of {budget} s\n"
    with file.open("a", encoding="utf-8") as stream:
        stream.write(ended)


def device_line() -> str:
    """Return the line about device and versions."""
    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else "CPU"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda if cuda else 'none'}"


def write_page(out: Path, tiny: bool, alone: bool) -> bool:
    """Run all sections, write the page, and return whether none failed and all holds that has to.

    Args:
        out: The page.
        tiny: Whether everything is tiny.
        alone: Whether each section has a process of its own.
    """
    size = "at a tiny size: its numbers mean nothing" if tiny else "in full"
    text = f"# On a GPU\n\nWritten by `{COMMAND}{' --tiny' if tiny else ''}`, {size}. {device_line()}.\n"
    with tempfile.TemporaryDirectory() as folder:
        for name, section in SECTIONS.items():
            file, start = Path(folder) / name, time.perf_counter()
            (run_section if alone else lines_of)(name, tiny, file)
            lines = file.read_text(encoding="utf-8").strip() if file.exists() else "nothing was found"
            text += f"\n## {section.title}\n\n{lines}\n\n({time.perf_counter() - start:.0f} s)\n"
            out.write_text(text, encoding="utf-8")
    return "\nfailed: " not in text and f"| {FAILED} |" not in text


def main(
    tiny: Annotated[bool, typer.Option("--tiny", help="Run everything at a tiny size, in this process.")] = False,
    out: Annotated[Path, typer.Option(help="The page, or the file of a section.")] = PAGE,
    section: Annotated[str | None, typer.Option(help="Run this section alone, in this process.")] = None,
) -> None:
    """Write the page. The exit code is 1 where a section failed, or where something does not hold."""
    if section is not None:
        lines_of(section, tiny, out)
        return
    if tiny and out == PAGE:
        out = Path(tempfile.mkdtemp(prefix="gpu-check-")) / PAGE.name  # the page is for real numbers
    elif not torch.cuda.is_available() and not tiny:
        raise SystemExit("there is no GPU here; --tiny runs every section at a tiny size")
    fine = write_page(out, tiny, alone=not tiny)
    plain().print(out.read_text(encoding="utf-8"), markup=False)
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    typer.run(main)
