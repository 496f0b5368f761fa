"""One paper, one file. The names recipes use are the keys of OBJECTIVES."""

from distill.objectives.diff_instruct import DiffInstruct, diff_instruct_loss
from distill.objectives.dmd import dmd_loss
from distill.objectives.fgm import FGM, fgm_loss, velocity_weight
from distill.objectives.objective import (
    Batch,
    Denoisers,
    Objective,
    Pairs,
    Scores,
    denoising_loss,
    l1_normaliser,
    per_sample,
)
from distill.objectives.sid import SiD, sid_loss
from distill.objectives.sida import SiDA

OBJECTIVES: dict[str, type[Objective]] = {"sid": SiD, "diff_instruct": DiffInstruct, "fgm": FGM, "sida": SiDA}

__all__ = [
    "FGM",
    "OBJECTIVES",
    "Batch",
    "Denoisers",
    "DiffInstruct",
    "Objective",
    "Pairs",
    "Scores",
    "SiD",
    "SiDA",
    "denoising_loss",
    "diff_instruct_loss",
    "dmd_loss",
    "fgm_loss",
    "l1_normaliser",
    "per_sample",
    "sid_loss",
    "velocity_weight",
]
