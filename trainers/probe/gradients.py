"""The gradient that objectives send to the student's samples, and its noise, by noise level."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, autograd

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.generator import Generator
from distill.objectives import DMD, FGM, SIM, Batch, Denoisers, DiffInstruct, Objective, SiD
from distill.paths import Path
from distill.times import Times
from trainers.probe.subject import Subject

GRADIENT_LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
ASKED = 16
DRAWS = 4
"""The draws of the diffusion noise for each sample."""
WITHOUT_DATA: dict[str, Objective] = {
    "sid": SiD(),
    "sim": SIM(),
    "diff_instruct": DiffInstruct(),
    "dmd": DMD(regression=0.0),
    "fgm": FGM(),
}
"""The objectives that are compared: those without real images."""


@dataclass(frozen=True)
class At(Times):
    """The law of a single noise-to-signal ratio."""

    ratio: float

    def nsr(self, u: Tensor, path: Path) -> Tensor:
        return torch.full_like(u, self.ratio)


class Gradient(NamedTuple):
    """The gradient in the samples at one noise level.

    Attributes:
        nsr: The noise-to-signal ratio.
        norm: The root mean square of its norm.
        noise: Its standard deviation over draws of the diffusion noise, over the norm of its mean over them.
    """

    nsr: float
    norm: float
    noise: float


def gradients_by_level(subject: Subject, student: Generator, fake: Denoiser) -> dict[str, list[Gradient]]:
    """Return the gradients of WITHOUT_DATA by their names, where the teacher's path allows the objective.

    Args:
        subject: The teacher under the probe.
        student: The untrained student.
        fake: A fake that has learnt its samples. That of the start equals the teacher, which makes all gradients 0.
    """
    found = {}
    for name, objective in WITHOUT_DATA.items():
        try:
            objective.check(subject.teacher)
        except UserError:
            continue
        found[name] = [_gradient(subject, student, fake, objective, nsr) for nsr in subject.levels(GRADIENT_LEVELS)]
    return found


def _gradient(subject: Subject, student: Generator, fake: Denoiser, objective: Objective, nsr: float) -> Gradient:
    """Return the gradient of one objective at one noise level."""
    teacher, draws = subject.teacher, []
    noise, cond, _ = subject.inputs("gradients", 0, ASKED)
    with torch.no_grad():
        made = student(noise, cond)
    nets = Denoisers(teacher.path, teacher, fake)
    for draw in range(DRAWS):
        x = made.clone().requires_grad_()
        batch = Batch(noise, subject.inputs(f"draw {draw}", 0, ASKED)[2], cond)
        terms = replace(objective, times=At(nsr)).generator_loss(nets, x, batch)  # type: ignore[call-arg]
        draws.append(autograd.grad(torch.stack(list(terms.values())).sum(), x)[0].flatten(1))
    gradients = torch.stack(draws)
    variance = gradients.var(0).sum(1)
    # The mean of a few draws still holds a part of their noise, which is taken off.
    mean = (gradients.mean(0).square().sum(1) - variance / DRAWS).mean().clamp(min=0)
    return Gradient(nsr, float(gradients.square().sum(2).mean().sqrt()), float((variance.mean() / mean).sqrt()))
