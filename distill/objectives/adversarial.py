"""The losses that objectives with a discriminator share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from distill.discriminator import R1, accuracy, discriminator_loss
from distill.loss_weights import Weight, denoising_weight
from distill.objectives.objective import Batch, Denoisers, per_sample
from distill.times import Times


class Discriminated(NamedTuple):
    """The losses of a fake phase with a discriminator.

    Attributes:
        denoising: The denoising loss [B], weighted.
        weight: The weight [B] of the denoising loss.
        loss: The discriminator's loss [B], on both sides, with its R1 penalty.
        real: The logits [B, ...] of the real samples.
    """

    denoising: Tensor
    weight: Tensor
    loss: Tensor
    real: Tensor


def denoise_and_discriminate(
    nets: Denoisers,
    x: Tensor,
    batch: Batch,
    times: Times,
    weight: Weight,
    r1: R1,
    discriminator_times: Times | None = None,
) -> Discriminated:
    """Denoise the generated `x` [B, ...] and judge it in one pass; judge the real samples in a pass to the tap.

    With a law of its own, `discriminator_times`, the discriminator takes a third pass, as far as the tap. A real sample
    shares time, noise and label with a generated one, so that they differ in nothing else. Notes the discriminator's
    accuracy.
    """
    assert batch.real is not None
    x, random = x.detach(), batch.random.stream("fake")
    x_t, t, noise = nets.path.draw(x, times, random)
    w = denoising_weight(weight, nets.path.nsr(t), nets.teacher.sigma_data).to(x.dtype)
    if discriminator_times is None:
        denoised, fake = nets.fake(x_t, t, batch.cond, "both")
    else:
        denoised = nets.fake(x_t, t, batch.cond)
        x_t, t, noise = nets.path.draw(x, discriminator_times, random.stream("judge"))
        fake = nets.fake(x_t, t, batch.cond, "logits")

    def logits_of(sample: Tensor) -> Tensor:
        logits: Tensor = nets.fake(nets.path.diffuse(sample, t, noise), t, batch.cond, "logits")
        return logits

    real, penalty = r1.judge(logits_of, batch.real, random.stream("r1"))
    nets.note("accuracy", accuracy(fake, real), nets.path.nsr(t))
    for_fake, for_real = discriminator_loss(fake, real)
    return Discriminated(w * per_sample((denoised - x) ** 2), w, for_fake + for_real + penalty, real)


def logits_at(nets: Denoisers, x: Tensor, batch: Batch, times: Times) -> Tensor:
    """Return the discriminator's logits [B, ...] of `x` [B, ...] diffused at `times`, with a graph into x."""
    x_t, t, _ = nets.path.draw(x, times, batch.random.stream("judge"))
    logits: Tensor = nets.fake(x_t, t, batch.cond, "logits")
    return logits
