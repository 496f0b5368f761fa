"""The samplers of a teacher. A recipe names one by a key of SAMPLERS."""

from distill.samplers.ddim import DDIM, Euler
from distill.samplers.heun import Heun
from distill.samplers.multistep import DEIS, DPM2M, DPM3M, DPMSDE, SASolver, UniPC
from distill.samplers.sampler import Sampler
from distill.samplers.sampler_guidance import Guidance, SampledGuidance

__all__ = [
    "DDIM",
    "DEIS",
    "DPM2M",
    "DPM3M",
    "DPMSDE",
    "SAMPLERS",
    "Euler",
    "Guidance",
    "Heun",
    "SASolver",
    "SampledGuidance",
    "Sampler",
    "UniPC",
]

SAMPLERS: dict[str, type[Sampler]] = {
    "heun": Heun,
    "euler": Euler,
    "ddim": DDIM,
    "dpm_2m": DPM2M,
    "dpm_3m": DPM3M,
    "dpm_sde": DPMSDE,
    "unipc": UniPC,
    "deis": DEIS,
    "sa_solver": SASolver,
}
"""The samplers by their names in recipes."""
