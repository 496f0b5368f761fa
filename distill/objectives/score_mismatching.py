"""Score Mismatching (arXiv:2309.11043): a game between generator and fake, in which the teacher is only the start."""

from dataclasses import dataclass

from torch import Tensor

from distill.compilation import fused
from distill.conditions import Condition
from distill.loss_weights import Weight, denoising_weight
from distill.objectives.objective import Batch, Denoisers, Objective, per_sample
from distill.paths import match
from distill.prediction import from_x0
from distill.times import Karras, Times


@fused
def noise_loss(predicted: Tensor, noise: Tensor) -> Tensor:
    """Return |predicted - noise|^2 [B] for `predicted` and `noise` [B, ...]."""
    return per_sample((predicted - noise) ** 2)


@dataclass(frozen=True, kw_only=True)
class ScoreMismatching(Objective):
    """The objective of Score Mismatching, with real images and without the teacher in its loss.

    In real samples the fake is trained to predict the noise, and in generated samples to predict another, independent
    noise. The generator is trained so that the fake predicts the noise in its samples. The gradient passes through the
    fake.

    Deviations from the authors:

    - Generator and fake start from the teacher. Theirs start at random, as StyleGAN2 and a small noise predictor.
    - There is no R1 penalty.
    - The generator has one noise for each sample, and theirs has two.

    Attributes:
        times: The law of the times in the generator's loss.
    """

    # The authors have ten noise levels, sqrt(1 - alpha_bar) for beta from 1e-4 to 0.02, which are evenly spaced from
    # 0.01 to 0.31. Here the levels are uniform on this interval.
    times: Times = Karras(0.01, 0.31, rho=1.0)
    fake_times: Times = Karras(0.01, 0.31, rho=1.0)
    fake_weight: Weight = "eps"

    needs = frozenset({"real"})
    generator_reads_real = False
    differentiates_denoisers = True

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        x_t, t, noise = nets.path.draw(x, self.times, batch.random.stream("generator"))
        fake = nets.fake(x_t, t, batch.cond)
        nets.note("fake_error", ((fake - x) ** 2).flatten(1).mean(1), nets.path.nsr(t))
        return {"found": noise_loss(from_x0("eps", nets.path, fake, x_t, t), noise) / 2}

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of the predicted noise, on real samples and on generated samples with another noise."""
        assert batch.real is not None

        def loss(x: Tensor, cond: Condition, stream: str, noise: Tensor | None = None) -> Tensor:
            x_t, t, drawn = nets.path.draw(x, self.fake_times, batch.random.stream(stream))
            predicted = from_x0("eps", nets.path, nets.fake(x_t, t, cond), x_t, t)
            # A denoising weight is for errors in x0. Times nsr^2 it is for errors in the noise: 1 for "eps".
            weight = denoising_weight(self.fake_weight, nsr := nets.path.nsr(t), nets.teacher.sigma_data) * nsr**2
            return match(weight, x) * noise_loss(predicted, drawn if noise is None else noise)

        other = batch.random.stream("other noise").normal(*x.shape[1:], dtype=x.dtype)
        generated = loss(x.detach(), batch.cond, "fake", other)
        return {"generated": generated, "real": loss(batch.real, batch.cond_of_real, "real")}
