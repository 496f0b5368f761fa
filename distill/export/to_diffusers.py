"""A one-step generator as the folder of a diffusers pipeline.

It is a stock pipeline if one computes the generator exactly. Otherwise our own source files lie beside the weights.
"""

import json
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from distill.conditions import Condition
from distill.errors import UserError
from distill.export.format import (
    BATCH,
    WITHOUT_CARD,
    Format,
    Inputs,
    Reader,
    Source,
    constants,
    names_by_number,
    seen_classes,
)
from distill.export.shipped import shipped_source
from distill.export.snippets import call_pipeline
from distill.export.to_family_pipeline import family_pipeline
from distill.generator import Generator
from distill.paths import EDM
from distill.quiet import quiet_libraries
from distill.saved_files import save_tensors
from distill.teachers.edm import PublishedNetwork
from distill.teachers.unet import UNet

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"  # the name that diffusers expects
ONE_STEP = "One step only: `num_inference_steps=1`."
MORE_STEPS = " The pipeline accepts a larger `num_inference_steps`, and its images are then wrong."
FUTURE = "from __future__ import annotations\n"
IMPORT = "from distill.networks.edm_unet import SongUNet as Network\n"  # a line of onestep_network.py


def diffusers_format(generator: Generator, cond: Condition, teacher: Path | None) -> Format:
    """Return the format of a folder for `DiffusionPipeline.from_pretrained`.

    Args:
        generator: The generator to export.
        cond: Conditions [8, ...] to compare samples under.
        teacher: The teacher's folder, which families of pipelines need for their other components.

    Raises:
        UserError: No pipeline takes a network of this kind.
    """
    network = generator.denoiser.network
    if network.pipeline_export is None:
        kind = type(network).__name__
        raise UserError(f"export: no diffusers pipeline takes a network of type {kind}; give another --format")
    return WRITERS[network.pipeline_export](generator, cond, teacher)


def _unet_pipeline(generator: Generator, cond: Condition, teacher: Path | None) -> Format:
    """Return the format of a UNet2DModel, in the stock pipeline if that computes the generator, otherwise in ours."""
    if _is_stock(generator):
        return _format(generator, cond, partial(_write_stock, generator), stock=True)
    return _format(generator, cond, partial(_write_custom, generator, _write_unet), stock=False)


def _code_pipeline(generator: Generator, cond: Condition, teacher: Path | None) -> Format:
    """Return the format of a network that diffusers lacks, in our pipeline and with its source."""
    return _format(generator, cond, partial(_write_custom, generator, _write_network), stock=False)


def _format(generator: Generator, cond: Condition, write: Callable[[Path], None], stock: bool) -> Format:
    """Return the format of an unconditional or class-conditional pipeline that `write` writes."""
    return Format(
        cond=cond,
        write=write,
        read=partial(_read, trust=not stock),
        snippet=partial(_snippet, generator, stock),
        loading=_loading(generator, stock),
        limits=(ONE_STEP + MORE_STEPS, WITHOUT_CARD) if stock else (ONE_STEP,),
        library="diffusers",
        shown=(lambda x: x) if generator.denoiser.latents else (lambda x: x.clamp(-1, 1)),
    )


def _is_stock(generator: Generator) -> bool:
    """Return whether ConsistencyModelPipeline computes this generator.

    It does for EDM's preconditioning on pure noise, and for square images. It would also draw a null label, and
    classes that the generator was not trained on.
    """
    denoiser = generator.denoiser
    square = isinstance(_unet(generator).config["sample_size"], int) and not denoiser.latents
    edm = type(denoiser.path) is EDM and denoiser.prediction == "edm" and generator.scale == generator.t
    return edm and square and denoiser.network.null_label is None and not denoiser.network.unseen


def _unet(generator: Generator) -> Any:
    return cast(UNet, generator.denoiser.network).unet


@quiet_libraries()
def _write_stock(generator: Generator, folder: Path) -> None:
    """Write the stock pipeline, without any code."""
    from diffusers import ConsistencyModelPipeline

    ConsistencyModelPipeline(_unet(generator), _scheduler(generator)).save_pretrained(folder)


def _scheduler(generator: Generator) -> Any:
    """Return a scheduler whose single step is EDM's denoiser at sigma_max.

    sigma_min = 0 turns the boundary condition of consistency models into EDM's preconditioning.
    """
    from diffusers import CMStochasticIterativeScheduler

    return CMStochasticIterativeScheduler(
        num_train_timesteps=40, sigma_min=0.0, sigma_max=generator.t, sigma_data=generator.denoiser.sigma_data
    )


def _write_custom(generator: Generator, write_part: Callable[[Generator, Path], list[str]], folder: Path) -> None:
    """Write our pipeline.

    Args:
        generator: The generator to export.
        write_part: Writes the network, and returns its entry in model_index.json.
        folder: The folder to write.
    """
    import diffusers

    names = names_by_number(generator)
    unet = write_part(generator, folder / "unet")
    (folder / "pipeline.py").write_text(shipped_source("onestep_pipeline"), "utf-8")
    index = {
        "_class_name": ["pipeline", "OneStepPipeline"],
        "_diffusers_version": diffusers.__version__,
        "unet": unet,
        **constants(generator),
        "makes_latents": bool(generator.denoiser.latents),
        "classes": generator.denoiser.network.classes or None,
        **({"id2label": names} if names else {}),
        **({"drawn": seen_classes(generator)} if generator.denoiser.network.unseen else {}),
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


@quiet_libraries()
def _write_unet(generator: Generator, folder: Path) -> list[str]:
    """Write a UNet2DModel, and return its entry in model_index.json."""
    _unet(generator).save_pretrained(folder)
    return ["diffusers", "UNet2DModel"]


def _write_network(generator: Generator, folder: Path) -> list[str]:
    """Write a network that diffusers lacks together with its source, and return its entry in model_index.json."""
    network = cast(PublishedNetwork, generator.denoiser.network)
    module, body = network.kind, network.body
    config = {
        "_class_name": "OneStepNetwork",
        "settings": {
            name: network.settings[name] for name in signature(type(body)).parameters if name in network.settings
        },
        "sample_size": network.shape[1],  # these networks are square
        "in_channels": network.shape[0],
        "num_class_embeds": network.classes or None,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {f"network.{name}": value.contiguous() for name, value in body.state_dict().items()}
    save_tensors(state, folder / DIFFUSERS_WEIGHTS, metadata={"format": "pt"})
    (folder / f"{module}.py").write_text(_source(network.source, type(body).__name__), "utf-8")
    return [module, "OneStepNetwork"]


def _source(module: str, name: str) -> str:
    """Return the source of the network's class `name` and of OneStepNetwork, joined into one file.

    diffusers fetches only one file of code for each component of a pipeline.
    """
    network = (files("distill.networks") / f"{module}.py").read_text("utf-8")
    part = shipped_source("onestep_network")
    lines = f"{network.replace(FUTURE, '')}\n\nNetwork = {name}\n"
    assert part.count(IMPORT) == 1
    return part.replace(IMPORT, lines)


def _snippet(generator: Generator, stock: bool, source: Source) -> str:
    """Return the Python lines that load the pipeline and make BATCH images or latents."""
    seen = seen_classes(generator)
    labels = f", class_labels={[seen[i % len(seen)] for i in range(BATCH)]}" if seen else ""
    kind = "latents" if generator.denoiser.latents else "images"
    return call_pipeline(source, stock, f"{kind} = pipe(batch_size={BATCH}{labels}, num_inference_steps=1).images")


def _loading(generator: Generator, stock: bool) -> str:
    """Return the card's paragraph on the code that comes with the weights, and on classes."""
    network = generator.denoiser.network
    classes = "\nSay which classes you want: without `class_labels` they are random." if network.classes else ""
    if network.class_names and not stock:
        classes += " They are numbers, or names as text."
    if stock:
        return "This is a stock diffusers pipeline: no code comes with the weights." + classes
    both = "`pipeline.py` and the network's own file in `unet/` come"
    code = both if network.pipeline_export == "code" else "`pipeline.py` comes"
    return (
        f"No stock diffusers pipeline computes this generator, so {code} with the weights and"
        " `trust_remote_code=True` allows diffusers to run that code. It needs only torch and diffusers: read it first."
        + classes
    )


def _read(folder: Path, trust: bool) -> Reader:
    """Return a reader of the folder.

    It gives the pipeline a seed in place of noise, because the stock pipeline takes `latents` for 3 channels only.
    """
    from diffusers import DiffusionPipeline

    with quiet_libraries():
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe.config.get("makes_latents", False)

    @quiet_libraries()
    def sample(given: Inputs) -> Tensor:
        labels = given.cond.labels
        drawn = pipe(
            len(given.noise),
            class_labels=None if labels is None else labels.tolist(),
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(given.seed),
            output_type="latent" if latents else "pt",
        ).images
        return cast(Tensor, drawn if latents else 2 * drawn - 1)

    return sample


WRITERS: dict[str, Callable[[Generator, Condition, Path | None], Format]] = {
    "unet": _unet_pipeline,
    "code": _code_pipeline,
    "family": family_pipeline,
}
"""The writers, by the `pipeline_export` of a network."""
