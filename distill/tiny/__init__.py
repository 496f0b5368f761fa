"""Tiny teachers of the real classes with random weights, for `--tiny` and for tests. They need no download."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from distill.quiet import quiet_libraries
from distill.saved_files import set_permissions

PIPELINES = ("sd15", "sd21", "sdxl", "sd3", "pixart_alpha")


@quiet_libraries()
def write_network(name: str, folder: Path) -> None:
    """Write a network of distill.tiny.networks as `distill import` does. EDM2's comes with an autoencoder."""
    from distill.teachers.folder import save_denoiser
    from distill.tiny.networks import network

    save_denoiser(network(name), folder)
    if name == "edm2":
        from distill.tiny.parts import autoencoder

        autoencoder(4).save_pretrained(folder / "vae")
        set_permissions(folder / "vae")


@quiet_libraries()
def write_pipeline(name: str, folder: Path) -> None:
    """Write a pipeline of distill.tiny.pipelines as diffusers saves it."""
    from distill.tiny.pipelines import build

    build(name).save_pretrained(folder)
    set_permissions(folder)


@quiet_libraries()
def write_aesthetic(folder: Path) -> None:
    """Write a CLIP with head.safetensors, as distill.rewards.AestheticReward reads them."""
    from distill.tiny.parts import save_aesthetic

    save_aesthetic(folder)


@quiet_libraries()
def write_image_reward(folder: Path) -> None:
    """Write the weights of an ImageReward with BERT's tokenizer, as distill.rewards.ImageReward reads them."""
    from distill.tiny.rewards import save_image_reward

    save_image_reward(folder)


TEACHERS: dict[str, Callable[[Path], None]] = {
    **{name: partial(write_network, name) for name in ("edm", "edm_cond", "adm", "edm2")},
    **{name: partial(write_pipeline, name) for name in PIPELINES},
}
"""The functions that write a teacher's folder, by the name of the teacher."""
