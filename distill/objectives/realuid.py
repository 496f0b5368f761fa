"""RealUID: distillation of flow models with real images and no discriminator (Kornilov et al., arXiv:2509.22459)."""

from dataclasses import dataclass

from torch import Tensor

from distill.compilation import fused
from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.errors import require
from distill.loss_weights import Weight, denoising_weight
from distill.objectives.fgm import check_velocity, velocity_weight
from distill.objectives.objective import Batch, Denoisers, Objective, per_sample
from distill.paths import match
from distill.prediction import from_x0
from distill.times import Times, UniformFlow


@fused
def realuid_loss(velocity: Tensor, teacher: Tensor, fake: Tensor, a: float, b: float) -> Tensor:
    """Return a |teacher - (b/a) velocity|^2 - a |fake - (b/a) velocity|^2 for generated samples.

    Args:
        velocity: The velocity u(x_t|x) [B, ...] of the generated sample and its noise.
        teacher: The teacher's velocity [B, ...].
        fake: The fake's velocity [B, ...].
        a: The coefficient of the squares of the teacher's and the fake's velocity.
        b: The coefficient of their products with `velocity`.

    Returns:
        The loss [B].
    """
    # The two squares nearly cancel. Their difference is a product that does not lose the digits.
    return per_sample((teacher - fake) * (a * (teacher + fake) - 2 * b * velocity))


@fused
def realuid_fake_loss(velocity: Tensor, fake: Tensor, a: float, b: float) -> Tensor:
    """Return a |fake - (b/a) velocity|^2, or -2 b <fake, velocity> at a = 0.

    The second form is the limit of the part of the first that depends on the fake.

    Args:
        velocity: The velocity u(x_t|x) [B, ...] of the sample and its noise.
        fake: The fake's velocity [B, ...].
        a: The coefficient of the square of the fake's velocity. Where it is a on generated samples, it is 1 - a on
            real samples.
        b: The coefficient of the product with `velocity`. Where it is b on generated samples, it is 1 - b on real
            samples.

    Returns:
        The loss [B].
    """
    return per_sample(a * (fake - b / a * velocity) ** 2 if a else -2 * b * fake * velocity)


@dataclass(frozen=True, kw_only=True)
class RealUID(Objective):
    """The objective of RealUID, for flow teachers and with real images. a = b = 1 is FGM (1, 1).

    The gradient passes through both denoisers. The fake starts from the teacher, as in every objective here. The
    authors' fake starts at random.

    Attributes:
        a: The coefficient of the squares of the teacher's and the fake's velocity on generated samples.
        b: The coefficient of their products with the samples' velocity.
        times: The law of the times in the generator's loss.
    """

    a: float = 0.92  # the authors' run on CIFAR-10 without labels; (0.98, 0.96) with labels
    b: float = 0.94  # "keep b/a at 1.02 or 0.98"
    times: Times = UniformFlow()  # the authors' law is uniform on [0, 1], where 1/t^2 has no bound
    fake_times: Times = UniformFlow()
    fake_weight: Weight = "velocity"

    needs = frozenset({"real"})
    generator_reads_real = False
    differentiates_denoisers = True

    def __post_init__(self) -> None:
        require(self.a > 0, f"a: must be positive, got {self.a}")

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        check_velocity("RealUID", teacher.path, self.times, self.fake_times)

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times)
        nets.note("weight", match(velocity_weight(nets.path, s.t), x), nets.path.nsr(s.t))
        teacher, fake, given = (from_x0("velocity", nets.path, x0, s.x_t, s.t) for x0 in (s.teacher, s.fake, x))
        return {"realuid": realuid_loss(given, teacher, fake, self.a, self.b)}

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the losses on generated and real samples, at the same times and with the same noise.

        The authors' code shares times and noise in this way.
        """
        assert batch.real is not None

        def loss(x: Tensor, cond: Condition, a: float, b: float) -> Tensor:
            x_t, t, _ = nets.path.draw(x, self.fake_times, batch.random.stream("fake"))
            fake, given = (from_x0("velocity", nets.path, x0, x_t, t) for x0 in (nets.fake(x_t, t, cond), x))
            # A denoising weight is for errors in x0. The quotient is for errors in the velocity: 1 for "velocity".
            weight = denoising_weight(self.fake_weight, nets.path.nsr(t), nets.teacher.sigma_data)
            return match(weight / velocity_weight(nets.path, t), x) * realuid_fake_loss(given, fake, a, b)

        generated = loss(x.detach(), batch.cond, self.a, self.b)
        return {"generated": generated, "real": loss(batch.real, batch.cond_of_real, 1 - self.a, 1 - self.b)}
