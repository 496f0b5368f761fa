"""One-step distillation of diffusion and flow models: the mathematics and the models, in torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.conditions import Condition
    from distill.denoiser import Denoiser
    from distill.errors import UserError
    from distill.export import load_generator
    from distill.generator import Generator
    from distill.networks.network import Network
    from distill.paths import EDM, VP, ContinuousVP, DiscreteVP, Draw, Flow, Path
    from distill.random import Random

__version__ = "0.1.0"
__all__ = [
    "EDM",
    "VP",
    "Condition",
    "ContinuousVP",
    "Denoiser",
    "DiscreteVP",
    "Draw",
    "Flow",
    "Generator",
    "Network",
    "Path",
    "Random",
    "UserError",
    "load_generator",
]
_NAMES = {  # the public names of each module
    "conditions": ("Condition",),
    "denoiser": ("Denoiser",),
    "errors": ("UserError",),
    "export": ("load_generator",),
    "generator": ("Generator",),
    "networks.network": ("Network",),
    "paths": ("EDM", "VP", "ContinuousVP", "DiscreteVP", "Draw", "Flow", "Path"),
    "random": ("Random",),
}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use, so that `import distill.paths` loads few modules."""
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"distill.{module}"), name)
    raise AttributeError(f"module 'distill' has no attribute {name!r}")
