"""One-step distillation of diffusion and flow models: the mathematics, in torch alone."""

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.export import load_generator
from distill.generator import Generator
from distill.paths import EDM, VP, DiscreteVP, Draw, Flow, Path
from distill.random import Random

__all__ = [
    "EDM",
    "VP",
    "Denoiser",
    "DiscreteVP",
    "Draw",
    "Flow",
    "Generator",
    "Path",
    "Random",
    "UserError",
    "load_generator",
]
__version__ = "0.1.0"
