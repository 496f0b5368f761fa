"""The library that trains, resumes and loads runs. No other package knows Accelerate and ranks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.api import load, resume, train
    from trainers.hooks.hook import Hook
    from trainers.io.images import grid
    from trainers.runs.load import Trained
    from trainers.runs.open import Objects

__all__ = ["Hook", "Objects", "Trained", "grid", "load", "resume", "train"]
_HOMES = {
    "api": ("load", "resume", "train"),
    "hooks.hook": ("Hook",),
    "io.images": ("grid",),
    "runs.load": ("Trained",),
    "runs.open": ("Objects",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import trainers` is quick."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"trainers.{module}"), name)
    raise AttributeError(f"module 'trainers' has no attribute {name!r}")
