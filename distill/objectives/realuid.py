"""RealUID: flow matching distilled with real images and no discriminator (Kornilov et al., arXiv:2509.22459)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.loss_weights import Weight, denoising_weight
from distill.objectives.fgm import check_velocity, velocity_weight
from distill.objectives.objective import Batch, Denoisers, Objective, per_sample
from distill.prediction import from_x0
from distill.times import Times, UniformFlow


def realuid_loss(velocity: Tensor, teacher: Tensor, fake: Tensor, a: float, b: float) -> Tensor:
    """a |teacher - (b/a) velocity|^2 - a |fake - (b/a) velocity|^2 [B] of generated samples, in velocities [B, ...].

    `velocity` is the one that x and the noise give, u(x_t|x). Written without the squares, which nearly cancel.
    """
    return per_sample((teacher - fake) * (a * (teacher + fake) - 2 * b * velocity))


def realuid_fake_loss(velocity: Tensor, fake: Tensor, a: float, b: float) -> Tensor:
    """a |fake - (b/a) velocity|^2 [B]: of generated samples at (a, b), of real ones at (1 - a, 1 - b).

    At a = 0, what of it depends on the fake: -2 b <fake, velocity>.
    """
    return per_sample(a * (fake - b / a * velocity) ** 2 if a else -2 * b * fake * velocity)


@dataclass(frozen=True, kw_only=True)
class RealUID(Objective):
    """For flow teachers and with real images; the gradient passes through both denoisers. a = b = 1 is FGM (1, 1).

    The fake starts from the teacher as everywhere here; the authors' starts at random.
    """

    a: float = 0.92  # the authors' run on CIFAR-10 without labels; (0.98, 0.96) with labels
    b: float = 0.94  # "keep b/a at 1.02 or 0.98"
    times: Times = UniformFlow()  # the authors' is uniform on [0, 1], where 1/t^2 has no bound
    fake_times: Times = UniformFlow()
    fake_weight: Weight = "velocity"

    needs = frozenset({"real"})
    differentiates_denoisers = True

    def __post_init__(self) -> None:
        if not self.a > 0:
            raise UserError(f"a: must be positive, got {self.a}")

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        check_velocity("RealUID", teacher.path, self.times, self.fake_times)

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times)
        nets.note("weight", velocity_weight(nets.path, s.t), nets.path.nsr(s.t))
        teacher, fake, given = (from_x0("velocity", nets.path, x0, s.x_t, s.t) for x0 in (s.teacher, s.fake, x))
        return {"realuid": realuid_loss(given, teacher, fake, self.a, self.b)}

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Generated and real samples at the same times and under the same noise, as the authors' code has it."""
        assert batch.real is not None

        def loss(x: Tensor, a: float, b: float) -> Tensor:
            x_t, t, _ = nets.path.draw(x, self.fake_times, batch.random.stream("fake"))
            fake, given = (from_x0("velocity", nets.path, x0, x_t, t) for x0 in (nets.fake(x_t, t, batch.cond), x))
            # the weight is that of an error in x0; 1 for "velocity" on a flow
            weight = denoising_weight(self.fake_weight, nets.path.nsr(t), nets.teacher.sigma_data)
            return (weight / velocity_weight(nets.path, t)).to(x.dtype) * realuid_fake_loss(given, fake, a, b)

        return {"generated": loss(x.detach(), self.a, self.b), "real": loss(batch.real, 1 - self.a, 1 - self.b)}
