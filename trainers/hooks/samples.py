"""Sample grids on fixed noise."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.conditions import Condition
from distill.random import Random
from trainers.data.batches import inputs, preview_conditions
from trainers.engine.session import Session
from trainers.engine.sharding import is_sharded
from trainers.hooks.hook import Hook
from trainers.io.console import plain, tolerate_disk_errors
from trainers.io.images import LATENTS, denoiser_of, free_decoder, grid, has_no_decoder, picture_size, to_images

COLUMNS, ROWS = 10, 6
SIDE = 4096  # pixels of a picture at most: of large images there are fewer


class Samples(Hook):
    """samples/IMAGES.png: the averaged network on the same noise every time, one class or prompt a column.

    Latents are decoded; where nothing decodes them, IMAGES_latents.png shows some of their channels.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder / "samples", every
        self.told = False

    def __call__(self, session: Session) -> None:
        main = session.accelerator.is_main_process
        if not (main or is_sharded(session.model)):
            return
        samples = session.sampler(*preview_inputs(session))
        if not main:  # it has lent its weights
            return
        images = to_images(samples, session.model)
        free_decoder(session.model)
        mark = "_latents" if has_no_decoder(session.model) else ""
        if mark and not self.told:
            plain(stderr=True).print(f"samples: {LATENTS}", style="yellow")
            self.told = True
        with tolerate_disk_errors(f"the samples at {session.state.images:,} images are"):
            self.folder.mkdir(exist_ok=True)
            grid(images, layout(session)[0]).save(self.folder / f"{session.state.images:012d}{mark}.png")


def layout(session: Session) -> tuple[int, int]:
    """Columns and rows of the picture."""
    height, width = picture_size(denoiser_of(session.model).image_shape or session.dataset.shape)
    return max(1, min(COLUMNS, SIDE // width)), max(1, min(ROWS, SIDE // height))


def preview_inputs(session: Session) -> tuple[torch.Tensor, Condition]:
    """Noise [60, C, H, W] and conditions that run through the classes, or the first prompts, column by column."""
    columns, rows = layout(session)
    index = torch.arange(columns * rows, device=session.accelerator.device)
    noise, _ = inputs(session.dataset, Random.at(session.run.seed, index).stream("preview"))
    return noise, preview_conditions(session.dataset, index % columns)
