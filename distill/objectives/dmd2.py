"""Improved Distribution Matching Distillation, DMD2 (Yin et al., arXiv:2405.14867)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.discriminator import R1, AdaptiveNoise, ConvHead, Critic, LowerPart, adversarial_loss, feature_shape
from distill.objectives.adversarial import denoise_and_discriminate, logits_at
from distill.objectives.dmd import dmd_loss
from distill.objectives.objective import Batch, Denoisers, Objective, l1_normaliser
from distill.times import Karras, Times


@dataclass(frozen=True, kw_only=True)
class DMD2(Objective):
    """DMD without pairs, and a discriminator: a small head on the fake's features.

    The authors update the fake five times for each update of the generator (`fake_updates: 5` in a recipe), the last
    time on the generator's own images (`reuse_samples`). Their losses are means over elements, ours sums: the weights
    of the adversarial terms are theirs, and the terms count elements.
    """

    times: Times = Karras(0.0032316, 72.054, rho=7.0)  # 20 to 980 of the 1000 points of EDM's ramp
    fake_times: Times = Karras(0.002, 80.0, rho=7.0)  # all of them; fake_weight edm is their SNR + 1/sigma_data^2
    adversarial: float = 3e-3  # of the generator's term, on ImageNet 64; 1e-3 on SD 1.5, 5e-3 on SDXL
    discriminator: float = 1e-2
    tap: str = "middle"  # the features the head reads
    judge_times: Times | None = None  # of the discriminator; null: fake_times (as in the paper), in the fake's own pass
    noise: AdaptiveNoise | None = None  # Diffusion-GAN's range within that law; the authors use all of it
    r1: R1 = R1()  # off, as in the paper

    needs = frozenset({"real"})

    def build_fake(self, fake: Denoiser) -> nn.Module:
        return Critic(fake, self.tap, ConvHead(*feature_shape(fake, self.tap)))

    def new_memory(self) -> dict[str, Tensor]:
        return {} if self.noise is None else self.noise.start()

    def discriminator_law(self, nets: Denoisers) -> Times:
        """The times at which the discriminator is asked now."""
        law = self.judge_times or self.fake_times
        return law if self.noise is None else LowerPart(law, nets.memory["share"])

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        s = self.estimate(nets, x, batch, self.times)
        nets.note("weight", l1_normaliser(x, s.teacher), nets.path.nsr(s.t))
        deceive = adversarial_loss(logits_at(nets, x, batch, self.discriminator_law(nets)))
        return {"dmd": dmd_loss(x, s.teacher, s.fake), "adversarial": self.adversarial * x[0].numel() * deceive}

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        law = self.discriminator_law(nets) if self.judge_times or self.noise else None
        judged = denoise_and_discriminate(nets, x, batch, self.fake_times, self.fake_weight, self.r1, law)
        if self.noise is not None:
            certainty = nets.mean(judged.real.detach().sign().flatten(1).mean(1))
            self.noise.adapt(nets.memory["share"], nets.memory["images"], certainty, nets.images)
            nets.note("noise_share", nets.memory["share"][None])
        return {"denoising": judged.denoising, "discriminator": self.discriminator * x[0].numel() * judged.loss}
