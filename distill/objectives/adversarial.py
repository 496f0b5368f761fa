"""The losses that objectives with a discriminator share."""

from typing import NamedTuple, cast

from torch import Tensor

from distill.denoiser import GuidableDenoiser
from distill.discriminator import R1, accuracy, discriminator_loss
from distill.loss_weights import Weight, denoising_weight
from distill.objectives.objective import Batch, Denoisers, squared_error
from distill.paths import match
from distill.times import Times


class Discriminated(NamedTuple):
    """The losses of the fake's update with a discriminator.

    Attributes:
        denoising: The denoising loss [B], weighted.
        weight: The weight [B] of the denoising loss, divided by e^u where the loss has the uncertainty u in it.
        loss: The discriminator's loss [B]: its losses on generated and real samples, and the R1 penalty.
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
    weight: Weight | None,
    r1: R1,
    discriminator_times: Times | None = None,
    features_of: GuidableDenoiser | None = None,
    uncertainty: bool = False,
) -> Discriminated:
    """Return the denoising loss of the fake and the loss of its discriminator.

    One pass of the fake estimates x0 and gives the logits of the generated samples. A second pass, up to the tap, gives
    the logits of the real samples. A real and a generated sample have the same time, noise and label, so that they
    differ in nothing else. The discriminator's accuracy is noted for the log.

    Args:
        nets: The networks and the services of the trainer. The fake is a Critic.
        x: The generator's samples [B, ...] of `batch`.
        batch: The micro-batch, with real samples.
        times: The law of the times of the denoising loss.
        weight: The weight of the denoising loss.
        r1: The penalty on the discriminator's slope.
        discriminator_times: The law of the discriminator's times. The logits of the generated samples then take a pass
            of their own, up to the tap. None for the times of the denoising loss.
        features_of: The denoiser whose features the discriminator reads. None for the fake.
        uncertainty: Whether the fake's learned uncertainty is in the denoising loss (see denoising_loss).
    """
    assert batch.real is not None
    source = () if features_of is None else (features_of,)
    x, random = x.detach(), batch.random.stream("fake")
    x_t, t, noise = nets.path.draw(x, times, random)
    w = match(denoising_weight(weight, nets.path.nsr(t), nets.teacher.sigma_data), x)
    u = cast(Tensor, nets.fake(x_t, t, batch.cond, "uncertainty")) if uncertainty else None
    w = w if u is None else w * (-u).exp()
    if discriminator_times is None:
        denoised, fake = nets.fake(x_t, t, batch.cond, "both", *source)
    else:
        denoised = nets.fake(x_t, t, batch.cond)
        x_t, t, noise = nets.path.draw(x, discriminator_times, random.stream("judge"))
        fake = nets.fake(x_t, t, batch.cond, "logits", *source)

    def logits_of(sample: Tensor) -> Tensor:
        x_t = nets.path.diffuse(sample, t, noise)
        return cast(Tensor, nets.fake(x_t, t, batch.cond_of_real, "logits", *source))

    real, penalty = r1.judge(logits_of, batch.real, random.stream("r1"))
    nets.note("accuracy", accuracy(fake, real), nets.path.nsr(t))
    on_fake, on_real = discriminator_loss(fake, real)
    denoising = squared_error(w, denoised, x)
    denoising = denoising if u is None else denoising + x[0].numel() * u
    return Discriminated(denoising, w, on_fake + on_real + penalty, real)


def logits_at(
    nets: Denoisers, x: Tensor, batch: Batch, times: Times, features_of: GuidableDenoiser | None = None
) -> Tensor:
    """Return the discriminator's logits [B, ...] at a diffusion of `x` [B, ...], with a graph into x.

    `features_of` is as for denoise_and_discriminate.
    """
    source = () if features_of is None else (features_of,)
    x_t, t, _ = nets.path.draw(x, times, batch.random.stream("judge"))
    return cast(Tensor, nets.fake(x_t, t, batch.cond, "logits", *source))
