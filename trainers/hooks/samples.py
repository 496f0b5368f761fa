"""Sample grids on fixed noise."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from distill.denoiser import Condition, Denoiser
from distill.generator import Generator
from distill.random import Random
from trainers.data.batches import inputs, preview
from trainers.hooks.hook import Hook
from trainers.pictures import grid, visible
from trainers.session import Session

COLUMNS, ROWS = 10, 6


class Samples(Hook):
    """samples/IMAGES.png: the averaged network on the same noise every time, one class or prompt a column."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder / "samples", every

    def __call__(self, session: Session) -> None:
        if not session.accelerator.is_main_process:
            return
        noise, cond = preview_inputs(session)
        self.folder.mkdir(exist_ok=True)
        images = visible(session.sampler(noise, cond), cast(Generator | Denoiser, session.product))
        grid(images, COLUMNS).save(self.folder / f"{session.state.images:012d}.png")


def preview_inputs(session: Session) -> tuple[torch.Tensor, Condition]:
    """Noise [60, C, H, W] and conditions that run through the classes, or the first prompts, column by column."""
    index = torch.arange(COLUMNS * ROWS, device=session.accelerator.device)
    noise, _ = inputs(session.dataset, Random.at(session.run.seed, index).stream("preview"))
    return noise, preview(session.dataset, index % COLUMNS)
