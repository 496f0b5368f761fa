"""The hook that draws samples on fixed noise."""

from pathlib import Path

import torch

from distill.conditions import Condition
from distill.random import Random
from trainers.data.batches import inputs, preview_conditions
from trainers.data.labels import captions
from trainers.engine.session import Session
from trainers.engine.sharding import is_sharded
from trainers.hooks.hook import Hook
from trainers.hooks.trackers import log_picture
from trainers.io.console import plain, tolerate_disk_errors
from trainers.io.images import LATENTS, denoiser_of, free_decoder, grid, has_no_decoder, picture_size, to_images

COLUMNS, ROWS = 10, 6
MAX_SIDE = 4096  # pixels of a picture at most: it has fewer images if they are large


class Samples(Hook):
    """A hook that draws samples of the averaged network to samples/IMAGES.png, on the same noise every time.

    Each column has one class or prompt, with the name of the class above it if it has one. Latents are decoded. Latents
    that cannot be decoded are drawn to IMAGES_latents.png, by their first channels.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder / "samples", every
        self._noted = False  # the note on latents is printed once

    def __call__(self, session: Session) -> None:
        main = session.accelerator.is_main_process
        # A forward of sharded weights is collective: all ranks compute the samples, and the main process draws them.
        if not (main or is_sharded(session.model)):
            return
        noise, cond = preview_inputs(session)
        samples = session.sampler(noise, cond)
        if not main:
            return
        images = to_images(samples, session.model)
        free_decoder(session.model)
        mark = "_latents" if has_no_decoder(session.model) else ""
        if mark and not self._noted:
            plain(stderr=True).print(f"samples: {LATENTS}", style="yellow")
            self._noted = True
        with tolerate_disk_errors(f"the samples at {session.state.images:,} images are"):
            self.folder.mkdir(exist_ok=True)
            names = captions(cond.labels, session.source.class_names)
            picture = grid(images, layout(session)[0], captions=names)
            picture.save(self.folder / f"{session.state.images:012d}{mark}.png")
            log_picture(session.accelerator, "samples", picture, session.state.images)


def layout(session: Session) -> tuple[int, int]:
    """Return the numbers of columns and rows of the picture."""
    height, width = picture_size(denoiser_of(session.model).image_shape or session.dataset.shape)
    return max(1, min(COLUMNS, MAX_SIDE // width)), max(1, min(ROWS, MAX_SIDE // height))


def preview_inputs(session: Session) -> tuple[torch.Tensor, Condition]:
    """Return noise [N, C, *spatial] and conditions for the picture, one class or prompt for each column."""
    columns, rows = layout(session)
    index, device = torch.arange(columns * rows), session.accelerator.device
    noise, _ = inputs(session.dataset, Random.at(session.run.seed, index, device).stream("preview"))
    return noise, preview_conditions(session.dataset, (index % columns).to(device))
