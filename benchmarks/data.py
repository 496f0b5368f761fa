"""The images that a core decodes in a second, and the workers that feed a GPU.

`make bench-data` prints, for pictures like those of CIFAR-10 (PNG, 32x32) and of ImageNet (JPEG, 500x375, to 64x64):
the images that a core decodes in a second of its time, the workers that a GPU needs (`workers` in a recipe), the share
of the run's own process that taking the images from the workers costs, and the images a second where they are kept in
memory. The times are those of processors, so that other programs on the machine disturb them little.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from itertools import count
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from trainers.data import Images, sources
from trainers.data.batches import Batches, BatchSizes
from trainers.data.read_ahead import Request
from trainers.io.console import plain

CPU, BATCH, BATCHES = torch.device("cpu"), 128, 8
KINDS = {  # name: (width, height, ending, resolution, images that a GPU takes in a second)
    "CIFAR-10, PNG 32x32": (32, 32, "png", 32, 20_000),
    "ImageNet, JPEG 500x375 to 64x64": (500, 375, "jpg", 64, 1_500),
}


def main(pictures: int = 256) -> None:
    """Print a line for each kind of pictures."""
    torch.set_num_threads(1)
    console = plain()
    with tempfile.TemporaryDirectory(prefix="distill-") as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        for number, (name, (width, height, ending, resolution, wanted)) in enumerate(KINDS.items()):
            place = Path(folder) / str(number)
            place.mkdir()
            sizes = [_write(place / f"{index}.{ending}", width, height, index) for index in range(pictures)]
            data = Images(str(place), resolution=resolution, label_column=None)
            decoded, taken, kept = _rate(data, 0, 0), _rate(data, 0, 2), _rate(data, 2**30, 0)
            console.print(
                f"{name}, {sum(sizes) / pictures / 1024:.1f} KiB: {decoded:,.0f} images a second and core; for"
                f" {wanted:,} a second {math.ceil(wanted / decoded)} workers and {wanted / taken:.0%} of the run's own"
                f" process; in memory {kept:,.0f} a second"
            )


def _rate(data: Images, memory: int, workers: int) -> float:
    """Return the images for a second of this process's time.

    Args:
        data: The pictures.
        memory: The most bytes of decoded images that are kept in memory.
        workers: The number of processes that decode.
    """
    sources.MAX_DECODED_BYTES = memory
    batches = Batches(data.load(), BatchSizes(BATCH), 0, torch.float32, True, 0, 1, CPU, workers=workers)
    batches.upcoming = lambda: (Request("teacher", first, 0) for first in count(0, BATCH))
    for first in range(0, BATCHES * BATCH, BATCH):  # files are read, and kept images decoded
        _take(batches, first)
    begin = time.process_time()
    for first in range(BATCHES * BATCH, 3 * BATCHES * BATCH, BATCH):
        _take(batches, first)
    seconds = time.process_time() - begin
    batches.close()
    return 2 * BATCHES * BATCH / seconds


def _take(batches: Batches, first: int) -> None:
    """Take the real images of a batch, without its noise."""
    request = Request("teacher", first, 0)
    batches._samples(request, batches._positions(request))


def _write(file: Path, width: int, height: int, seed: int) -> int:
    """Write a picture of smooth colours with fine noise, and return the bytes of its file: about ImageNet's."""
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8))
    pixels = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
    noisy = (pixels + random.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(noisy).save(content, {"png": "PNG", "jpg": "JPEG"}[file.suffix[1:]], quality=90)
    file.write_bytes(content.getvalue())
    return len(content.getvalue())


if __name__ == "__main__":
    main()
