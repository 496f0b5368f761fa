"""What the objectives with a discriminator share."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor

from distill.discriminator import accuracy
from distill.objectives.objective import Batch, Denoisers, per_sample
from distill.times import Times
from distill.weights import Weight, denoising_weight


class Judged(NamedTuple):
    """The fake phase with a discriminator: the `denoising` loss [B] with its `weight` [B], and the logits [B, ...] of
    the generated (`fake`) and the `real` samples."""

    denoising: Tensor
    weight: Tensor
    fake: Tensor
    real: Tensor


def denoise_and_judge(nets: Denoisers, x: Tensor, batch: Batch, times: Times, weight: Weight) -> Judged:
    """One pass denoises and judges the generated `x` [B, ...], another, as far as the tap, judges the real.

    A real sample shares time, noise and label with a generated one, so that they differ in nothing else. Notes the
    discriminator's accuracy.
    """
    x_t, t, noise = nets.path.draw(x.detach(), times, batch.random.stream("fake"))
    denoised, fake = nets.fake(x_t, t, batch.cond, "both")
    real = nets.fake(nets.path.diffuse(cast(Tensor, batch.real), t, noise), t, batch.cond, "logits")
    nsr = nets.path.nsr(t)
    batch.note("accuracy", accuracy(fake, real), nsr)
    w = denoising_weight(weight, nsr, nets.teacher.sigma_data).to(x.dtype)
    return Judged(w * per_sample((denoised - x.detach()) ** 2), w, fake, real)
