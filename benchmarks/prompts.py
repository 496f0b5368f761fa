"""The start of a run on a million prompts: seconds, memory and disk, with embeddings ahead or in the loop.

`python -m benchmarks.prompts [--count 1000000] [--ahead]` writes a tiny Stable Diffusion and synthetic prompts to a
temporary folder, and starts a run there twice, each time in a process of its own.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.tiny import write_pipeline


def start(settings: dict[str, Any]) -> None:
    """Start a run, train one round, and print the seconds of each and the peak of memory."""
    from accelerate import Accelerator

    from trainers.engine.step import advance
    from trainers.loop import build_session
    from trainers.recipe.load import build_experiment
    from trainers.runs.open import open_run

    begin = time.perf_counter()
    opened = open_run(build_experiment(settings, "benchmark"), 1)
    read = time.perf_counter()
    session = build_session(opened, Accelerator(cpu=True))
    json.dumps(session.source.digest)  # which every checkpoint has
    built = time.perf_counter()
    advance(session)
    trained = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = [read - begin, built - read, trained - built]
    print("read {:.1f} s, built {:.1f} s, first round {:.1f} s; peak {:.2f} GiB".format(*seconds, peak))


def main(
    count: Annotated[int, typer.Option(help="The number of prompts.")] = 1_000_000,
    ahead: Annotated[bool, typer.Option(help="Encode all prompts ahead, in bfloat16.")] = False,
) -> None:
    """Start a run on many prompts, twice."""
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        write_pipeline("sd15", place / "teacher")
        words = ("red", "small", "old", "wooden", "quiet", "paper", "running", "painted", "glass", "blue")
        lines = (f"a {words[n % 10]} {words[n // 10 % 10]} cat, number {n}" for n in range(count))
        (place / "prompts.txt").write_text("\n".join(lines))
        settings = {
            "name": "prompts",
            "teacher": str(place / "teacher"),
            "objective": {"name": "diff_instruct"},
            "data": {"name": "prompts", "path": str(place / "prompts.txt")},
            "cache": str(place / "cache"),
            "embeddings": {"ahead": ahead, "precision": "bfloat16" if ahead else "float32"},
            "images": 1_000,
            "batch_size": 8,
            "entry": {"t": 625},
        }
        for turn in ("first", "second"):
            print(f"{turn} start, {count:,} prompts, {'ahead in bfloat16' if ahead else 'in the loop'}:", flush=True)
            process = multiprocessing.get_context("spawn").Process(target=start, args=(settings,))
            process.start()
            process.join()
        size = sum(file.stat().st_size for file in (place / "cache").rglob("*") if file.is_file())
        print(f"cache: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    typer.run(main)
