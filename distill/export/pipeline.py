"""A one-step generator as a diffusers folder: the stock pipeline where it is exact, our one file beside the weights
where it is not. The folder counts only after its own images were compared with the generator's.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from distill.errors import UserError
from distill.export.card import BATCH, CardFacts, cycle, render
from distill.generator import Generator
from distill.paths import EDM
from distill.prediction import coefficients
from distill.teachers import UNet

CHECK = "export_check.json"
TOLERANCE = 1e-4  # on images in [-1, 1]
SEED = 0


def export_pipeline(generator: Generator, folder: Path, card: CardFacts) -> float:
    """Write `generator` to `folder` for `DiffusionPipeline.from_pretrained`; float32, safetensors.

    Returns the largest absolute difference between the reloaded pipeline's images and the generator's, in [-1, 1],
    over 8 images in float32 on the CPU. Raises UserError, leaving `folder` as it was, when it exceeds 1e-4, when the
    network is not a UNet2DModel, and when `folder` holds something else than an export, which it would replace.
    """
    folder = Path(folder).resolve()
    refuse_foreign(folder)
    if not isinstance(generator.denoiser.network, UNet):
        kind = type(generator.denoiser.network).__name__
        raise UserError(f"export: the network must be a UNet2DModel, got {kind} (--state-dict writes others)")
    generator = float32(generator)
    network = _network(generator)
    stock = _is_stock(generator)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        staged = Path(work) / folder.name
        (_write_stock if stock else _write_custom)(generator, staged)
        (staged / "README.md").write_text(render(card, folder.name, network.shape, network.classes, stock), "utf-8")
        difference = _difference(generator, staged, stock)
        if not difference <= TOLERANCE:  # nor when it is not a number
            raise UserError(
                f"export: the pipeline's images differ from the generator's by {difference:.3g}, more than"
                f" {TOLERANCE:g}; '{folder}' was not written"
            )
        write_check(staged, difference)
        replace(folder, staged, Path(work) / "old")
    return difference


def refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / CHECK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export: '{folder}' exists and is not an export (it has no {CHECK}); name another folder")


def float32(generator: Generator) -> Generator:
    """A copy in eval mode on the CPU that computes in float32: what the folder is to reproduce."""
    generator = copy.deepcopy(generator).to("cpu", torch.float32).requires_grad_(False).eval()
    generator.denoiser.autocast_dtype = None
    return generator


def _network(generator: Generator) -> UNet:
    return cast(UNet, generator.denoiser.network)


def _is_stock(generator: Generator) -> bool:
    """Whether ConsistencyModelPipeline computes this generator: EDM preconditioning on pure noise, square images."""
    denoiser = generator.denoiser
    square = isinstance(_network(generator).unet.config["sample_size"], int)
    return type(denoiser.path) is EDM and denoiser.prediction == "edm" and generator.scale == generator.t and square


def _write_stock(generator: Generator, folder: Path) -> None:
    from diffusers import ConsistencyModelPipeline

    ConsistencyModelPipeline(_network(generator).unet, _scheduler(generator)).save_pretrained(folder)


def _scheduler(generator: Generator) -> Any:
    """One step of it is EDM's denoiser at sigma_max: sigma_min = 0 turns off the consistency model's boundary."""
    from diffusers import CMStochasticIterativeScheduler

    return CMStochasticIterativeScheduler(
        num_train_timesteps=40, sigma_min=0.0, sigma_max=generator.t, sigma_data=generator.denoiser.sigma_data
    )


def _write_custom(generator: Generator, folder: Path) -> None:
    import diffusers

    _network(generator).unet.save_pretrained(folder / "unet")
    shutil.copyfile(Path(__file__).with_name("onestep_pipeline.py"), folder / "pipeline.py")
    index = {
        "_class_name": ["pipeline", "OneStepPipeline"],
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DModel"],
        **_settings(generator),
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _settings(generator: Generator) -> dict[str, float]:
    """The five numbers of OneStepPipeline."""
    denoiser = generator.denoiser
    t = torch.tensor([generator.t], dtype=torch.float64)
    c = coefficients(denoiser.prediction, denoiser.path, t, t, denoiser.sigma_data)
    return {
        "scale": float(generator.scale),
        "timestep": float(denoiser.path.network_time(t)),
        "input_scale": 1.0 if c.input_scale is None else float(c.input_scale),
        "from_x_t": float(c.from_x_t),
        "from_output": float(c.from_output),
    }


def _difference(generator: Generator, folder: Path, stock: bool) -> float:
    """The largest absolute difference between images of the reloaded `folder` and of `generator`, from equal noise."""
    network = _network(generator)
    labels = cycle(network.classes)
    z = torch.randn(BATCH, *network.shape, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        ours = generator(z, None if labels is None else torch.tensor(labels)).clamp(-1, 1)
    noise = torch.Generator().manual_seed(SEED)
    try:
        pipe = _reload(folder, stock)
        images = pipe(BATCH, class_labels=labels, num_inference_steps=1, generator=noise, output_type="pt").images
    except Exception as error:  # the reader of the folder is diffusers, with exceptions of its own for each flaw
        raise UserError(f"export: diffusers cannot use the exported folder: {' '.join(str(error).split())}") from error
    return float((2 * images - 1 - ours).abs().max())


def _reload(folder: Path, stock: bool) -> Any:
    from diffusers import DiffusionPipeline

    with _without_bars():
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=not stock, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _without_bars() -> Iterator[None]:
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def write_check(folder: Path, difference: float) -> None:
    check = {"largest_absolute_difference": difference, "tolerance": TOLERANCE, "images": BATCH, "seed": SEED}
    (folder / CHECK).write_text(json.dumps(check, indent=2) + "\n")


def replace(folder: Path, staged: Path, old: Path) -> None:
    """Put `staged` at `folder`, moving what is there to `old`; an interruption puts it back."""
    try:
        if folder.exists():
            os.rename(folder, old)
        os.rename(staged, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
