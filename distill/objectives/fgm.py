"""Flow Generator Matching (Huang et al., arXiv:2410.19310)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.compilation import fused
from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.loss_weights import Weight
from distill.objectives.objective import Batch, Denoisers, Objective, per_sample
from distill.paths import Path, match
from distill.random import expand
from distill.times import LogNormal, Times


def velocity_weight(path: Path, t: Tensor) -> Tensor:
    """Return (J/sigma)^2 with J = alpha' sigma - alpha sigma'.

    This is the weight of a velocity error: for two velocities u and their estimates D of x0, |u_1 - u_2|^2 is the
    weight times |D_1 - D_2|^2. On a rectified flow it is 1/t^2.

    Args:
        path: The path.
        t: Times [B] on the path.

    Returns:
        The weights [B].
    """
    alpha_dot, sigma_dot = path.derivatives(t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    return (alpha_dot - alpha * sigma_dot / sigma) ** 2


def check_velocity(name: str, path: Path, *laws: Times) -> None:
    """Raise UserError when the path has no velocities, or none of finite positive weight at some time of the laws.

    Args:
        name: The name of the objective, for the message.
        path: The path of the teacher.
        laws: The laws of the times at which the objective uses velocities.
    """
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    for law in laws:
        nsr = law.nsr(u, path)
        try:
            weight = velocity_weight(path, path.time(nsr))
        except NotImplementedError:
            raise UserError(f"objective: {name} needs velocities, the path {path} has no derivatives()") from None
        bad = ~(weight.isfinite() & (weight > 0))
        if bad.any():
            raise UserError(
                f"objective: {name} needs velocities, whose weight on {path} is {float(weight[bad][0]):g}"
                f" at the noise-to-signal ratio {float(nsr[bad][0]):g}"
            )


@fused
def fgm_loss(x: Tensor, teacher: Tensor, fake: Tensor, velocity_weight: Tensor, first: float, second: float) -> Tensor:
    """Return velocity_weight (first |gap|^2 + 2 second <gap, fake - x>) with gap = teacher - fake.

    In velocities these are the paper's two terms, L1 = |u_T - u_F|^2 and L2 = 2 <u_T - u_F, u_F - u(x_t|x)>. At
    (first, second) = (1, 1) the gradient is that of the flow-matching divergence.

    Args:
        x: Generated samples [B, ...].
        teacher: The teacher's estimate of x0 [B, ...].
        fake: The fake's estimate of x0 [B, ...].
        velocity_weight: The weights [B] of the function velocity_weight.
        first: The factor on L1.
        second: The factor on L2.

    Returns:
        The loss [B].
    """
    gap = teacher - fake
    return per_sample(expand(velocity_weight, x) * gap * (first * gap + 2 * second * (fake - x)))


@dataclass(frozen=True, kw_only=True)
class FGM(Objective):
    """The objective of FGM, which needs no data, for flow teachers. Its gradient passes through both denoisers.

    Attributes:
        first: The factor on the paper's L1.
        second: The factor on the paper's L2.
        times: The law of the times in the generator's loss.
    """

    first: float = 0.0  # the authors leave L1 out, as reviewers and RealUID report; (1, 1) is the theorem's gradient
    second: float = 1.0
    times: Times = LogNormal(0.0, 1.0)  # logit-normal flow time; unverified: the authors' training code is not public
    fake_times: Times = LogNormal(0.0, 1.0)  # unverified, as `times`
    fake_weight: Weight = "velocity"  # plain conditional flow matching on the generator's samples

    differentiates_denoisers = True

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        check_velocity("FGM", teacher.path, self.times)

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times)
        weight = match(velocity_weight(nets.path, s.t), x)
        nets.note("weight", weight, nets.path.nsr(s.t))
        return {"fgm": fgm_loss(x, s.teacher, s.fake, weight, self.first, self.second)}
