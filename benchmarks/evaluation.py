"""The share of an evaluation that is spent inside networks: the generator's and Inception's.

    python -m benchmarks.evaluation [--samples 512]

The generator has EDM's DDPM++ for CIFAR-10 (55.7 million parameters), and both networks have random weights.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from torch import nn

from distill.denoiser import Denoiser
from distill.generator import Generator
from distill.metrics import Moments, Protocol, Reference
from distill.metrics.inception import Inception
from distill.paths import EDM
from distill.teachers import EDMNet
from tests.inception import write_stand_in
from trainers.data import DataFree
from trainers.evaluation import evaluate
from trainers.io.console import plain
from trainers.io.images import to_images
from trainers.recipe.measures import Evaluation

SHAPE = (3, 32, 32)
NETWORK: dict[str, Any] = {
    "model_type": "SongUNet",
    "img_resolution": 32,
    "img_channels": 3,
    "augment_dim": 9,
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
}


class Stopwatch:
    """The total time of the forwards of modules."""

    def __init__(self, *modules: nn.Module) -> None:
        self.seconds, self._started = 0.0, 0.0
        for module in modules:
            module.register_forward_pre_hook(self._start)
            module.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._started


def main(samples: Annotated[int, typer.Option(help="The number of samples.", min=2)] = 512) -> None:
    """Evaluate random samples, and print the share of the time that is spent inside networks."""
    accelerator, console = Accelerator(), plain()
    generator = Generator(Denoiser(EDMNet(**NETWORK), EDM(), "edm"), 2.5).to(accelerator.device).eval()
    with tempfile.TemporaryDirectory(prefix="distill-") as folder:
        extractor = Inception(write_stand_in(Path(folder) / "inception.pth")).to(accelerator.device)
    real = Reference("noise", Moments.of(torch.randn(10_000, 2_048)), 10_000)
    protocol = Protocol(extractor, real, frozenset({"frechet", "inception_score"}))
    settings, dataset = Evaluation(samples=samples), DataFree(SHAPE).load()

    @torch.no_grad()
    def sampler(z: torch.Tensor, cond: Any) -> torch.Tensor:
        return to_images(generator(z.float(), cond), generator)

    watch = Stopwatch(generator, extractor.trunk)
    start = time.perf_counter()
    evaluate(sampler, dataset, protocol, settings, 0, accelerator)
    whole = time.perf_counter() - start
    console.print(f"{samples:,} samples in {whole:.1f} s, {watch.seconds / whole:.0%} of it inside networks")


if __name__ == "__main__":
    typer.run(main)
