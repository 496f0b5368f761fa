"""A one-step generator as a diffusers folder: the stock pipeline where it is exact, our files beside the weights where
it is not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.denoiser import Condition
from distill.errors import UserError
from distill.export.format import BATCH, Format, Inputs, Reader, Source, constants, network_of
from distill.export.to_family_pipeline import family
from distill.generator import Generator
from distill.paths import EDM
from distill.teachers import EDM2Net, EDMNet, UNet
from distill.teachers.families import Family

WEIGHTS = "diffusion_pytorch_model.safetensors"  # the name that diffusers looks for
MORE_STEPS = " The pipeline accepts a larger `num_inference_steps`, and its images are then wrong."
HERE = Path(__file__).parent
FUTURE = "from __future__ import annotations\n"
IMPORT = "from distill.networks.edm_unet import SongUNet as Network\n"  # in onestep_network.py


def pipeline(generator: Generator, cond: Condition, teacher: Path | None) -> Format:
    """The folder for `DiffusionPipeline.from_pretrained`; raises UserError for networks that have none."""
    network = generator.denoiser.network
    if isinstance(network, Family):
        return family(generator, teacher)
    if isinstance(network, UNet) and _is_stock(generator):
        return _format(generator, cond, partial(_write_stock, generator), stock=True)
    if isinstance(network, UNet | EDMNet | EDM2Net):
        return _format(generator, cond, partial(_write_custom, generator), stock=False)
    kind = type(network).__name__
    raise UserError(f"export: no diffusers pipeline takes a network of type {kind}; give another --format")


def _format(generator: Generator, cond: Condition, write: Callable[[Path], None], stock: bool) -> Format:
    return Format(
        cond=cond,
        write=write,
        read=partial(_read, trust=not stock),
        snippet=partial(_snippet, generator, stock),
        loading=_loading(generator, stock),
        limits=("One step only: `num_inference_steps=1`." + (MORE_STEPS if stock else ""),),
        library="diffusers",
        shown=(lambda x: x) if generator.denoiser.latents else (lambda x: x.clamp(-1, 1)),
    )


def _is_stock(generator: Generator) -> bool:
    """Whether ConsistencyModelPipeline computes this generator: EDM preconditioning on pure noise, square images."""
    denoiser = generator.denoiser
    square = isinstance(_unet(generator).config["sample_size"], int) and not denoiser.latents
    return type(denoiser.path) is EDM and denoiser.prediction == "edm" and generator.scale == generator.t and square


def _unet(generator: Generator) -> Any:
    return cast(UNet, generator.denoiser.network).unet


def _write_stock(generator: Generator, folder: Path) -> None:
    from diffusers import ConsistencyModelPipeline

    ConsistencyModelPipeline(_unet(generator), _scheduler(generator)).save_pretrained(folder)


def _scheduler(generator: Generator) -> Any:
    """One step of it is EDM's denoiser at sigma_max: sigma_min = 0 turns off the consistency model's boundary."""
    from diffusers import CMStochasticIterativeScheduler

    return CMStochasticIterativeScheduler(
        num_train_timesteps=40, sigma_min=0.0, sigma_max=generator.t, sigma_data=generator.denoiser.sigma_data
    )


def _write_custom(generator: Generator, folder: Path) -> None:
    import diffusers

    if isinstance(generator.denoiser.network, UNet):
        _unet(generator).save_pretrained(folder / "unet")
        unet = ["diffusers", "UNet2DModel"]
    else:
        unet = _write_network(generator, folder / "unet")
    shutil.copyfile(HERE / "onestep_pipeline.py", folder / "pipeline.py")
    index = {
        "_class_name": ["pipeline", "OneStepPipeline"],
        "_diffusers_version": diffusers.__version__,
        "unet": unet,
        **constants(generator),
        "makes_latents": bool(generator.denoiser.latents),
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_network(generator: Generator, folder: Path) -> list[str]:
    """EDM's or EDM2's network, code included; returns its entry in model_index.json."""
    network = cast("EDMNet | EDM2Net", generator.denoiser.network)
    module, body = ("edm", network.model) if isinstance(network, EDMNet) else ("edm2", network.unet)
    config = {
        "_class_name": "OneStepNetwork",
        "settings": {
            name: network.settings[name] for name in signature(type(body)).parameters if name in network.settings
        },
        "sample_size": network.shape[1],
        "in_channels": network.shape[0],
        "num_class_embeds": network.classes or None,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {f"network.{name}": value.contiguous() for name, value in body.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / f"{module}.py").write_text(_source(module, type(body).__name__), "utf-8")
    return [module, "OneStepNetwork"]


def _source(module: str, name: str) -> str:
    """One file, as diffusers fetches no more for a part of a pipeline: the network's, then what makes a part of it."""
    network = (files("distill.networks") / f"{module}.py").read_text("utf-8")
    part = (HERE / "onestep_network.py").read_text("utf-8")
    lines = f"{network.replace(FUTURE, '')}\n\nNetwork = {name}\n"
    assert part.count(IMPORT) == 1
    return part.replace(IMPORT, lines)


def _snippet(generator: Generator, stock: bool, source: Source) -> str:
    classes = network_of(generator).classes
    trust = "" if stock else ", trust_remote_code=True"
    labels = f", class_labels={[i % classes for i in range(BATCH)]}" if classes else ""
    kind = "latents" if generator.denoiser.latents else "images"
    return (
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({source.quoted}{trust})\n"
        f"{kind} = pipe(batch_size={BATCH}{labels}, num_inference_steps=1).images\n"
    )


def _loading(generator: Generator, stock: bool) -> str:
    classes = (
        "\nSay which classes you want: without `class_labels` they are random." if network_of(generator).classes else ""
    )
    if stock:
        return "This is a stock diffusers pipeline: no code comes with the weights." + classes
    code = (
        "`pipeline.py` comes"
        if isinstance(generator.denoiser.network, UNet)
        else "`pipeline.py` and the network's own file in `unet/` come"
    )
    return (
        f"No stock diffusers pipeline computes this generator, so {code} with the weights and"
        " `trust_remote_code=True` allows diffusers to run that code. It needs only torch and diffusers: read it first."
        + classes
    )


def _read(folder: Path, trust: bool) -> Reader:
    """Noise comes from the seed, because the stock pipeline takes `latents` for 3 channels only."""
    from diffusers import DiffusionPipeline

    with _without_bars():
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe.config.get("makes_latents", False)

    def sample(given: Inputs) -> Tensor:
        labels = cast("Tensor | None", given.cond)
        drawn = pipe(
            len(given.noise),
            class_labels=None if labels is None else labels.tolist(),
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(given.seed),
            output_type="latent" if latents else "pt",
        ).images
        x: Tensor = drawn if latents else 2 * drawn - 1
        return x

    return sample


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
