"""Run folders for reports, written without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

RECIPE = """\
name: small
trains: generator
teacher: /home/somebody/secret/teachers/edm
objective: {name: guided, objective: {name: sid, alpha: 1.2}, teacher_cfg: 2.0}
images: 4000
batch_size: 8
evaluation: {every: 1000, best: frechet}
"""
PROTOCOL = {"protocol": "pca48(digits)", "samples": 500}
DISTANCES = (9.0, 3.0, 2.0, 2.5)


def line(images: int, **more: Any) -> dict[str, Any]:
    """A line of log.jsonl."""
    return {
        "images": images,
        "fake/denoising": 30.0 + images / 1000,
        "generator/sid": -5.0,
        "fake/grad_norm": 10.0,
        "health/gap": 0.1,
        "health/gap/nsr<0.1": 0.2,
        "health/gap/nsr 0.32-1": 0.3,
        "health/fake_vs_teacher/nsr<0.1": 1.0,
        "fake/skipped": 0,
        "time": {"seconds": 61.0, "images_per_second": 16.4, "at": 1e9, "peak_memory_gib": 0.5},
        **more,
    }


def write_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))


def write_run(folder: Path, images: int = 4000, recipe: str = RECIPE, pictures: int = 3) -> Path:
    """A run that has trained for some images, with one line of every file each thousand images."""
    for name in ("samples", "checkpoints"):
        (folder / name).mkdir(parents=True)
    (folder / "run.yaml").write_text(recipe)
    moments = range(1000, images + 1, 1000)
    write_lines(folder / "log.jsonl", [line(moment) for moment in moments])
    found = zip(moments, DISTANCES, strict=False)
    write_lines(folder / "metrics.jsonl", [{"images": at, "frechet": one, **PROTOCOL} for at, one in found])
    write_lines(folder / "health.jsonl", [{"images": at, "distance": 0.5, "diversity": 0.9} for at in (0, *moments)])
    for moment in moments:
        (folder / "checkpoints" / f"{moment:012d}").mkdir()
    for number in range(pictures):
        colour = (number % 256, 40, 200)
        Image.new("RGB", (64, 48), colour).save(folder / "samples" / f"{(number + 1) * 1000:012d}.png")
    return folder
