"""One paper, one file. The names recipes use are the keys of OBJECTIVES."""

from distill.objectives.autoguided import Autoguided
from distill.objectives.decoupled import Decoupled, guidance_loss
from distill.objectives.diff_instruct import DiffInstruct, diff_instruct_loss
from distill.objectives.dmd import DMD, dmd_loss
from distill.objectives.dmd2 import DMD2
from distill.objectives.f_distill import FDistill
from distill.objectives.fgm import FGM, fgm_loss, velocity_weight
from distill.objectives.guided import Guided
from distill.objectives.hipa import HiPA, high_frequency_loss
from distill.objectives.objective import (
    Batch,
    Denoisers,
    Estimates,
    Objective,
    Pairs,
    denoising_loss,
    l1_normaliser,
    per_sample,
)
from distill.objectives.realuid import RealUID, realuid_fake_loss, realuid_loss
from distill.objectives.rewarded import Rewarded
from distill.objectives.score_mismatching import ScoreMismatching, noise_loss
from distill.objectives.sid import SiD, sid_loss
from distill.objectives.sida import SiDA
from distill.objectives.sim import DISTANCES, SIM, Distance, sim_loss
from distill.objectives.uni_instruct import UniInstruct
from distill.objectives.wrapper import Wrapper

OBJECTIVES: dict[str, type[Objective]] = {
    "sid": SiD,
    "sida": SiDA,
    "sim": SIM,
    "diff_instruct": DiffInstruct,
    "dmd": DMD,
    "dmd2": DMD2,
    "f_distill": FDistill,
    "uni_instruct": UniInstruct,
    "fgm": FGM,
    "realuid": RealUID,
    "score_mismatching": ScoreMismatching,
    "hipa": HiPA,
    "guided": Guided,
    "decoupled": Decoupled,
    "autoguided": Autoguided,
    "rewarded": Rewarded,
}

__all__ = [
    "DISTANCES",
    "DMD",
    "DMD2",
    "FGM",
    "OBJECTIVES",
    "SIM",
    "Autoguided",
    "Batch",
    "Decoupled",
    "Denoisers",
    "DiffInstruct",
    "Distance",
    "FDistill",
    "Guided",
    "HiPA",
    "Objective",
    "Pairs",
    "RealUID",
    "Rewarded",
    "ScoreMismatching",
    "Scores",
    "SiD",
    "SiDA",
    "UniInstruct",
    "Wrapper",
    "denoising_loss",
    "diff_instruct_loss",
    "dmd_loss",
    "fgm_loss",
    "guidance_loss",
    "high_frequency_loss",
    "l1_normaliser",
    "noise_loss",
    "per_sample",
    "realuid_fake_loss",
    "realuid_loss",
    "sid_loss",
    "sim_loss",
    "velocity_weight",
]
