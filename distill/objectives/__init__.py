"""The objectives, one file for each paper.

A recipe names an objective by a key of NAMES, which is also the name of its module: `distill.objectives.sid` holds SiD
and its pure loss `sid_loss`. OBJECTIVES maps the same names to the classes.
"""

from importlib import import_module
from typing import Any

from distill.objectives.objective import (
    Batch,
    Denoisers,
    Estimates,
    Objective,
    Pairs,
    denoising_loss,
    l1_normaliser,
    per_sample,
    usual_times,
)

__all__ = [
    "NAMES",
    "Batch",
    "Denoisers",
    "Estimates",
    "Objective",
    "Pairs",
    "denoising_loss",
    "l1_normaliser",
    "per_sample",
    "usual_times",
]

NAMES = {
    "sid": "SiD",
    "sida": "SiDA",
    "sim": "SIM",
    "diff_instruct": "DiffInstruct",
    "dmd": "DMD",
    "dmd2": "DMD2",
    "f_distill": "FDistill",
    "uni_instruct": "UniInstruct",
    "fgm": "FGM",
    "realuid": "RealUID",
    "score_mismatching": "ScoreMismatching",
    "hipa": "HiPA",
    "guided": "Guided",
    "decoupled": "Decoupled",
    "autoguided": "Autoguided",
    "rewarded": "Rewarded",
}
"""The classes of the objectives by their names in recipes, which are also the names of their modules."""


def __getattr__(name: str) -> Any:
    """Import an objective on its first use, so that the file of one paper does not import all others."""
    if name == "OBJECTIVES":
        return {module: __getattr__(cls) for module, cls in NAMES.items()}
    for module, cls in NAMES.items():
        if name == cls:
            return getattr(import_module(f"distill.objectives.{module}"), cls)
    raise AttributeError(f"module 'distill.objectives' has no attribute {name!r}")
