"""What the objectives with a discriminator share."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor

from distill.discriminator import R1, accuracy, discriminator_loss
from distill.loss_weights import Weight, denoising_weight
from distill.objectives.objective import Batch, Denoisers, per_sample
from distill.times import Times


class Discriminated(NamedTuple):
    """The fake phase with a discriminator: the `denoising` loss [B] with its `weight` [B], the discriminator's `loss`
    [B] on both sides, and its logits of the real samples [B, ...]."""

    denoising: Tensor
    weight: Tensor
    loss: Tensor
    real: Tensor


def denoise_and_discriminate(
    nets: Denoisers, x: Tensor, batch: Batch, times: Times, weight: Weight, r1: R1, judge: Times | None = None
) -> Discriminated:
    """Denoise the generated `x` [B, ...] at `times` in one pass that judges it as well; judge the real samples in
    another that ends at the tap. With a law of its own, `judge`, the discriminator needs a third, as far as the tap.

    A real sample shares time, noise and label with a generated one, so that they differ in nothing else. Notes the
    discriminator's accuracy.
    """
    x, random = x.detach(), batch.random.stream("fake")
    x_t, t, noise = nets.path.draw(x, times, random)
    w = denoising_weight(weight, nets.path.nsr(t), nets.teacher.sigma_data).to(x.dtype)
    if judge is None:
        denoised, fake = nets.fake(x_t, t, batch.cond, "both")
    else:
        denoised = nets.fake(x_t, t, batch.cond)
        x_t, t, noise = nets.path.draw(x, judge, random.stream("judge"))
        fake = nets.fake(x_t, t, batch.cond, "logits")

    def logits_of(sample: Tensor) -> Tensor:
        return cast(Tensor, nets.fake(nets.path.diffuse(sample, t, noise), t, batch.cond, "logits"))

    real, penalty = r1.judge(logits_of, cast(Tensor, batch.real), random.stream("r1"))
    batch.note("accuracy", accuracy(fake, real), nets.path.nsr(t))
    for_fake, for_real = discriminator_loss(fake, real)
    return Discriminated(w * per_sample((denoised - x) ** 2), w, for_fake + for_real + penalty, real)


def logits_at(nets: Denoisers, x: Tensor, batch: Batch, times: Times) -> Tensor:
    """The discriminator's logits [B, ...] of `x` [B, ...] diffused at `times`, with a graph into x."""
    x_t, t, _ = nets.path.draw(x, times, batch.random.stream("judge"))
    return cast(Tensor, nets.fake(x_t, t, batch.cond, "logits"))
