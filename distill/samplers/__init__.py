"""The samplers of a teacher. A recipe names one by a key of SAMPLERS."""

from distill.samplers.ddim import DDIM, Euler
from distill.samplers.dpm_v3 import DPMV3
from distill.samplers.heun import Heun
from distill.samplers.multistep import DEIS, DPM2M, DPM3M, DPMSDE, SASolver, UniPC
from distill.samplers.sampler import Sampler
from distill.samplers.sampler_guidance import Guidance, SampledGuidance
from distill.samplers.statistics import ModelStatistics, measure_statistics

__all__ = [
    "DDIM",
    "DEIS",
    "DPM2M",
    "DPM3M",
    "DPMSDE",
    "DPMV3",
    "SAMPLERS",
    "Euler",
    "Guidance",
    "Heun",
    "ModelStatistics",
    "SASolver",
    "SampledGuidance",
    "Sampler",
    "UniPC",
    "measure_statistics",
]

SAMPLERS: dict[str, type[Sampler]] = {
    "heun": Heun,
    "euler": Euler,
    "ddim": DDIM,
    "dpm_2m": DPM2M,
    "dpm_3m": DPM3M,
    "dpm_sde": DPMSDE,
    "dpm_v3": DPMV3,
    "unipc": UniPC,
    "deis": DEIS,
    "sa_solver": SASolver,
}
"""The samplers by their names in recipes."""
