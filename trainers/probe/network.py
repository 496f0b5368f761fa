"""The facts about a teacher's network that can be read from its modules, or seen in two forwards."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from distill.denoiser import Denoiser
from distill.discriminator import middle_tap
from distill.errors import UserError
from trainers.probe.subject import Subject
from trainers.runs.probe import train_mode_ratio, train_mode_squares

DROPOUT = nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout
TRIED = 4
"""The samples of the two forwards."""


@dataclass(frozen=True)
class Facts:
    """The facts about a teacher's network.

    Attributes:
        name: The name of its class.
        parameters: The number of its parameters.
        prediction: The quantity that it predicts.
        path: Its path.
        shape: (C, *spatial) of a sample.
        classes: The number of its classes. 0 without labels.
        null: Whether it has a null condition, as guidance needs.
        norms: The normalisation layers by the name of their class.
        dropout: The dropout layers with their probability, by the name of the module.
        train_mode: The relative difference between a forward in train mode and one in eval mode. It is infinite where
            the network fails in train mode.
        middle: The submodule in the middle of the network whose output a discriminator can read. None if none is.
    """

    name: str
    parameters: int
    prediction: str
    path: str
    shape: tuple[int, ...]
    classes: int
    null: bool
    norms: dict[str, int]
    dropout: dict[str, float]
    train_mode: float
    middle: str | None


def facts(subject: Subject) -> Facts:
    """Return the facts about the teacher's network."""
    teacher, network = subject.teacher, subject.teacher.network
    modules = dict(network.named_modules())
    norms = Counter(type(one).__name__ for one in modules.values() if "Norm" in type(one).__name__)
    dropout = {name: float(one.p) for name, one in modules.items() if isinstance(one, DROPOUT)}
    return Facts(
        network.own_class or network.display_name,
        sum(parameter.numel() for parameter in network.parameters()),
        teacher.prediction,
        str(teacher.path),
        network.shape,
        network.classes,
        network.has_null,
        dict(norms),
        {name: p for name, p in dropout.items() if p > 0},
        train_mode_difference(subject),
        _tap(teacher),
    )


@torch.no_grad()
def train_mode_difference(subject: Subject) -> float:
    """Return the relative difference between a forward in train mode and one in eval mode."""
    noise, cond, _ = subject.inputs("train mode", 0, TRIED)
    t = subject.time(1.0, TRIED)
    return train_mode_ratio(train_mode_squares(subject.teacher, noise, t, cond, subject.run.seed)[None])


def _tap(teacher: Denoiser) -> str | None:
    """Return the submodule that a discriminator reads by default, or None if there is none."""
    try:
        return middle_tap(teacher)
    except UserError:
        return None
