"""The adapters alone, for diffusers' `pipe.load_lora_weights` in the teacher's own pipeline."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distill import lora
from distill.conditions import Condition
from distill.errors import UserError
from distill.export.format import Format, Reader, Source
from distill.export.to_family_pipeline import call_for_two, family_pipeline, is_stock, sampled, stock_scheduler
from distill.generator import Generator
from distill.pipeline_folder import load_stock_pipeline
from distill.quiet import quiet_libraries


def lora_format(generator: Generator, cond: Condition, teacher: Path | None) -> Format:
    """Return the format of a folder with the adapters of a generator.

    If a stock scheduler takes the generator's step, the folder holds its config too, and the images of the whole
    pipeline are compared. Otherwise the samples of the network are compared.

    Args:
        generator: The generator, whose adapters are not merged.
        cond: Conditions [8, ...] to compare samples under.
        teacher: The folder of the teacher's pipeline. None compares the network alone.

    Raises:
        UserError: The generator has no adapters, or diffusers loads no adapters into its network.
    """
    network: Any = generator.denoiser.network
    if not lora.adapted(network):
        raise UserError("export: --format lora is for generators with adapters (generator.lora), this one has none")
    if network.adapter_part is None:
        raise UserError(f"export: diffusers loads no adapters into {type(network).__name__}; give another --format")
    stock = teacher is not None and is_stock(generator)
    loading = "They are added to the weights of the teacher, which is no part of this folder."
    if not stock:
        step = f"timestep {float(generator.denoiser.path.network_time(torch.tensor([generator.t]).double())):g}"
        loading += f" Samples are one evaluation at {step} of unit normal noise times {generator.scale:g}, read as"
        loading += f" {generator.denoiser.prediction}: no stock scheduler takes this step."
    form = Format(
        cond=cond,
        write=partial(_write, generator, stock),
        read=partial(_read, generator),
        snippet=partial(_snippet, generator, stock),
        loading=loading,
        library="diffusers",
        relation="adapter",
    )
    if teacher is None or not stock:
        return form
    whole = family_pipeline(generator, cond, teacher)
    read = partial(_read_pipeline, generator, teacher)
    return replace(form, cond=whole.cond, read=read, limits=whole.limits, batches=whole.batches, shown=whole.shown)


@quiet_libraries()
def _write(generator: Generator, stock: bool, folder: Path) -> None:
    """Write the adapters with diffusers' own writer.

    B is multiplied by alpha / rank, so that no reader has to know alpha.
    """
    from diffusers.loaders import SD3LoraLoaderMixin, StableDiffusionLoraLoaderMixin
    from peft import get_peft_model_state_dict

    network: Any = generator.denoiser.network
    (config,) = network.peft_config.values()
    layers = {
        name.removeprefix("model."): value * (config.lora_alpha / config.r) if ".lora_B." in name else value.clone()
        for name, value in get_peft_model_state_dict(network).items()
    }
    if network.adapter_part == "unet":
        StableDiffusionLoraLoaderMixin.save_lora_weights(folder, unet_lora_layers=layers)
    else:  # the pipelines of all transformers write the same file
        SD3LoraLoaderMixin.save_lora_weights(folder, transformer_lora_layers=layers)
    if stock:
        stock_scheduler(generator).save_pretrained(folder / "scheduler")


@quiet_libraries()
def _read(generator: Generator, folder: Path) -> Reader:
    """Return a reader that runs the teacher's network with the adapters that diffusers loads into it."""
    loaded = lora.share_parameters(generator)
    lora.strip(loaded)
    network: Any = loaded.denoiser.network
    network.model.load_lora_adapter(folder, prefix=network.adapter_part, use_safetensors=True, local_files_only=True)
    loaded.eval()
    return lambda given: loaded(given.noise, given.cond)


@quiet_libraries()
def _read_pipeline(generator: Generator, teacher: Path, folder: Path) -> Reader:
    """Return a reader that runs the teacher's pipeline with the adapters, as the card's Python lines do."""
    network: Any = generator.denoiser.network
    pipe = load_stock_pipeline(teacher)
    pipe.load_lora_weights(folder)
    pipe.scheduler = type(stock_scheduler(generator)).from_pretrained(folder / "scheduler")
    return sampled(network, pipe)


def _snippet(generator: Generator, stock: bool, source: Source) -> str:
    """Return the Python lines that load the adapters into the teacher's pipeline."""
    network: Any = generator.denoiser.network
    scheduler = type(stock_scheduler(generator)).__name__ if stock else ""
    lines = (
        f"from diffusers import {', '.join(['DiffusionPipeline', scheduler] if stock else ['DiffusionPipeline'])}\n"
        f'{source.folder}pipe = DiffusionPipeline.from_pretrained("TEACHER")  # its folder, or its name on the hub\n'
        "pipe.load_lora_weights(folder)\n"
    )
    if not stock:
        return lines
    return lines + (
        f'pipe.scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler")\n{call_for_two(network)}\n'
    )
