"""Score Mismatching (arXiv:2309.11043): a game between noise and denoiser, in which the teacher is only the start."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.loss_weights import Weight, denoising_weight
from distill.objectives.objective import Batch, Denoisers, Objective, per_sample
from distill.prediction import from_x0
from distill.times import Karras, Times


def noise_loss(predicted: Tensor, noise: Tensor) -> Tensor:
    """|predicted - noise|^2 [B], both [B, ...]."""
    return per_sample((predicted - noise) ** 2)


@dataclass(frozen=True, kw_only=True)
class ScoreMismatching(Objective):
    """Real images, no teacher in the loss. The fake finds the noise in real samples and is made blind, by noise that
    is not there, in generated ones; the generator wants its noise found. The gradient passes through the fake.

    The authors' generator and fake start at random, as StyleGAN2 and a small noise predictor; here from the teacher.
    They add R1, this does not, and give the generator two noises a sample; here one.
    """

    # The authors' ten levels, sqrt(1 - alpha_bar) of beta 1e-4 to 0.02, are even from 0.01 to 0.31; here all between
    times: Times = Karras(0.01, 0.31, rho=1.0)
    fake_times: Times = Karras(0.01, 0.31, rho=1.0)
    fake_weight: Weight = "eps"

    needs = frozenset({"real"})
    differentiates_denoisers = True

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        x_t, t, noise = nets.path.draw(x, self.times, batch.random.stream("generator"))
        fake = nets.fake(x_t, t, batch.cond)
        nets.note("fake_error", ((fake - x) ** 2).flatten(1).mean(1), nets.path.nsr(t))
        return {"found": noise_loss(from_x0("eps", nets.path, fake, x_t, t), noise) / 2}

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """On real samples the noise that is in them, on generated ones another."""
        assert batch.real is not None

        def loss(x: Tensor, stream: str, noise: Tensor | None = None) -> Tensor:
            x_t, t, drawn = nets.path.draw(x, self.fake_times, batch.random.stream(stream))
            predicted = from_x0("eps", nets.path, nets.fake(x_t, t, batch.cond), x_t, t)
            # the weight is that of an error in x0; 1 for "eps"
            weight = denoising_weight(self.fake_weight, nsr := nets.path.nsr(t), nets.teacher.sigma_data) * nsr**2
            return weight.to(x.dtype) * noise_loss(predicted, drawn if noise is None else noise)

        other = batch.random.stream("other noise").normal(*x.shape[1:], dtype=x.dtype)
        return {"generated": loss(x.detach(), "fake", other), "real": loss(batch.real, "real")}
