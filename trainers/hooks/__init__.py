"""Hooks: callables that the loop calls after certain numbers of images. A hook never changes what is trained."""

from trainers.hooks.checkpoint import Checkpoints
from trainers.hooks.evaluate import Evaluate
from trainers.hooks.finite import FiniteCheck, NotFinite, check_weights
from trainers.hooks.health import CompareSamples
from trainers.hooks.hook import Hook
from trainers.hooks.log import Log
from trainers.hooks.samples import Samples
from trainers.hooks.snapshots import Snapshots

__all__ = [
    "Checkpoints",
    "CompareSamples",
    "Evaluate",
    "FiniteCheck",
    "Hook",
    "Log",
    "NotFinite",
    "Samples",
    "Snapshots",
    "check_weights",
]
