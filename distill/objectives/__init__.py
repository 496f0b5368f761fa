"""The objectives: one paper, one file.

A recipe names an objective by a key of NAMES, which is also its module here: `distill.objectives.sid` holds SiD and its
pure loss `sid_loss`. OBJECTIVES maps the names to the classes.
"""

from __future__ import annotations

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
"""The name of an objective in a recipe, which is that of its module, and its class."""


def __getattr__(name: str) -> Any:
    """Import objectives when they are first asked for, so that one paper's file does not import all others."""
    if name == "OBJECTIVES":
        return {module: _imported(module, cls) for module, cls in NAMES.items()}
    for module, cls in NAMES.items():
        if name == cls:
            return _imported(module, cls)
    raise AttributeError(f"module 'distill.objectives' has no attribute {name!r}")


def _imported(module: str, cls: str) -> type[Objective]:
    found: type[Objective] = getattr(import_module(f"distill.objectives.{module}"), cls)
    return found
