"""The families of diffusers pipelines that can be teachers.

A new family is one file in this folder and its name in this file.
"""

from distill.teachers.families.ddpm import DDPM
from distill.teachers.families.dit import DiT
from distill.teachers.families.family import Conditions, Family, LatentFamily
from distill.teachers.families.flux import Flux
from distill.teachers.families.pixart import PixArt
from distill.teachers.families.sana import Sana
from distill.teachers.families.sd3 import SD3
from distill.teachers.families.sdxl import SDXL
from distill.teachers.families.stable_diffusion import StableDiffusion

_ALL: tuple[type[Family], ...] = (DDPM, DiT, StableDiffusion, SDXL, PixArt, SD3, Flux, Sana)
FAMILIES: dict[str, type[Family]] = {pipeline: family for family in _ALL for pipeline in family.pipelines}
"""The families, by the class name of their pipeline in model_index.json."""

__all__ = ["FAMILIES", "Conditions", "Family", "LatentFamily"]
