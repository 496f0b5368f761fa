"""Improved Distribution Matching Distillation, DMD2 (Yin et al., arXiv:2405.14867)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.discriminator import R1, AdaptiveNoise, LowerPart, adversarial_loss, conv_critic
from distill.objectives.adversarial import denoise_and_discriminate, logits_at
from distill.objectives.dmd import dmd_loss
from distill.objectives.objective import Batch, Denoisers, Objective, l1_normaliser
from distill.times import Karras, Times


@dataclass(frozen=True, kw_only=True)
class DMD2(Objective):
    """DMD without ODE pairs, and with a discriminator that is a small head on the fake's features.

    The authors update the fake five times for each update of the generator (`fake_updates: 5` in a recipe), the last
    time on the samples of the generator's update (`reuse_samples`). Their losses are means over the elements of a
    sample, and ours are sums. The weights of the adversarial terms are the authors', so these terms are multiplied by
    the number of elements.

    Attributes:
        times: The law of the times in the generator's loss.
        adversarial: The weight of the generator's adversarial term.
        features: The network whose features the head reads.
        noise: The adaptive range of the discriminator's times.
        r1: The penalty on the discriminator's slope.
    """

    times: Times = Karras(0.0032316, 72.054, rho=7.0)  # the points 20 to 980 of 1000 on EDM's ramp
    fake_times: Times = Karras(0.002, 80.0, rho=7.0)  # all points; the weight edm is the authors' SNR + 1/sigma_data^2
    matching: float = 1.0  # the weight of DMD's term; 0 leaves the generator to the discriminator alone
    adversarial: float = 3e-3  # that of ImageNet 64; 1e-3 on SD 1.5, 5e-3 on SDXL
    discriminator: float = 1e-2  # the weight of the discriminator's loss in the fake's update
    # The submodule whose features the head reads. A list has a head for each of its submodules, as FastGen's DMD2.
    tap: str | tuple[str, ...] = "middle"
    # The teacher's stand still, and take no backward pass in the fake's update, as FastGen's.
    features: Literal["fake", "teacher"] = "fake"
    # The law of the discriminator's times. null stands for fake_times (as in the paper), in the fake's own pass. The
    # authors draw new times for the discriminator.
    judge_times: Times | None = None
    noise: AdaptiveNoise | None = None  # Diffusion-GAN's range within that law; the authors use the whole law
    r1: R1 = R1()  # off, as in the paper

    needs = frozenset({"real"})
    generator_reads_real = False

    @property
    def taps_teacher(self) -> bool:
        return self.features == "teacher"

    def build_fake(self, fake: Denoiser) -> nn.Module:
        return conv_critic(fake, self.tap)

    def new_memory(self) -> dict[str, Tensor]:
        return {} if self.noise is None else self.noise.start()

    def discriminator_law(self, nets: Denoisers) -> Times:
        """Return the law of the discriminator's times in this update."""
        law = self.judge_times or self.fake_times
        return law if self.noise is None else LowerPart(law, nets.memory["share"])

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if self.matching:
            s = self.estimate(nets, x, batch, self.times)
            nets.note("weight", l1_normaliser(x, s.teacher), nets.path.nsr(s.t))
            terms["dmd"] = self.matching * dmd_loss(x, s.teacher, s.fake)
        source = nets.teacher if self.taps_teacher else None
        adversarial = adversarial_loss(logits_at(nets, x, batch, self.discriminator_law(nets), source))
        return terms | {"adversarial": self.adversarial * x[0].numel() * adversarial}

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        law = self.discriminator_law(nets) if self.judge_times or self.noise else None
        source = nets.teacher if self.taps_teacher else None
        losses = denoise_and_discriminate(nets, x, batch, self.fake_times, self.fake_weight, self.r1, law, source)
        if self.noise is not None:
            certainty = nets.mean(losses.real.detach().sign().flatten(1).mean(1))
            self.noise.adapt(nets.memory["share"], nets.memory["images"], certainty, nets.images)
            nets.note("noise_share", nets.memory["share"].clone())  # which the next update changes
        return {"denoising": losses.denoising, "discriminator": self.discriminator * x[0].numel() * losses.loss}
