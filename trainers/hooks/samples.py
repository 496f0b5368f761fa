"""Sample grids on fixed noise."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.random import Random
from trainers.data.batches import inputs
from trainers.hooks.hook import Hook
from trainers.pictures import grid
from trainers.session import Session

COLUMNS, ROWS = 10, 6


class Samples(Hook):
    """samples/IMAGES.png: the averaged network on the same noise every time, one class a column."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder / "samples", every

    def __call__(self, session: Session) -> None:
        if not session.accelerator.is_main_process:
            return
        noise, labels = preview_inputs(session)
        self.folder.mkdir(exist_ok=True)
        images = session.sampler(noise, labels)
        grid(images, COLUMNS).save(self.folder / f"{session.state.images:012d}.png")


def preview_inputs(session: Session) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Noise [60, C, H, W] and labels that run through the classes column by column."""
    index = torch.arange(COLUMNS * ROWS, device=session.accelerator.device)
    noise, labels = inputs(session.dataset, Random.at(session.run.seed, index).stream("preview"))
    return noise, None if labels is None else index % COLUMNS % session.dataset.classes
