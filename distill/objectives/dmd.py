"""Distribution Matching Distillation (Yin et al., arXiv:2311.18828)."""

from dataclasses import dataclass

from torch import Tensor, nn

from distill.compilation import fused
from distill.denoiser import Denoiser
from distill.errors import require
from distill.objectives.objective import Batch, Denoisers, Objective, l1_normaliser, per_sample
from distill.perceptual import MSE, Perceptual
from distill.random import expand
from distill.times import Karras, Times


@fused
def dmd_loss(x: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """Return |x - sg(x + gap / mean |x - teacher|)|^2 / 2 with gap = teacher - fake (eq. 7 and 8).

    sg stops the gradient. The gradient in x is -gap / mean |x - teacher|, which is Diff-Instruct's with SiD's weight.
    As in the authors' code, the factor alpha of eq. 7 is left out. It is 1 on EDM's path. The authors average over the
    elements of a sample, and this loss is a sum over them.

    Args:
        x: Generated samples [B, ...].
        teacher: The teacher's estimate of x0 [B, ...].
        fake: The fake's estimate of x0 [B, ...].

    Returns:
        The loss [B].
    """
    step = expand(l1_normaliser(x, teacher), x) * (teacher - fake)
    return per_sample((x - (x + step).detach()) ** 2) / 2


@dataclass(frozen=True, kw_only=True)
class DMD(Objective):
    """The objective of DMD: distribution matching, and a regression on ODE pairs.

    The regression keeps the generator from losing modes. At regression = 0 no pairs are needed. At matching = 0 the
    regression is alone, without samples and without a fake: the first stage of DMD2's one-step SDXL. No gradient passes
    through the denoisers.

    Attributes:
        times: The law of the times in the generator's loss.
        matching: The weight of the distribution matching. 0 for none.
        regression: The weight of the regression. 0 for none.
        perceptual: The distance of the regression.
    """

    # t ~ U(0.02, 0.98) T: the points 20 to 980 of 1000 on EDM's ramp. For Stable Diffusion: {name: uniform_steps}.
    times: Times = Karras(0.0032316, 72.054)
    fake_times: Times = Karras()  # the whole ramp
    matching: float = 1.0
    regression: float = 0.25  # 0.5 for CIFAR-10 without labels
    perceptual: Perceptual = MSE()  # the paper has LPIPS, for which it found the weight 0.25

    def __post_init__(self) -> None:
        for name in ("matching", "regression"):
            require(getattr(self, name) >= 0, f"{name}: must be at least 0, got {getattr(self, name)}")
        require(self.matching + self.regression > 0, "matching, regression: are both 0; nothing would train")
        for name in ("trains_fake", "uses_samples"):
            # A frozen dataclass sets its own attributes by object.__setattr__.
            object.__setattr__(self, name, self.matching > 0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"pairs"} if self.regression else ())

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        self.perceptual.check(teacher)

    def load_frozen(self) -> dict[str, nn.Module]:
        return {"perceptual": self.perceptual.network()} if self.regression else {}

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if self.matching:
            s = self.estimate(nets, x, batch, self.times)
            nets.note("weight", l1_normaliser(x, s.teacher), nets.path.nsr(s.t))
            terms["dmd"] = self.matching * dmd_loss(x, s.teacher, s.fake)
        if self.regression:
            assert batch.pairs is not None and batch.pairs.made is not None
            made, target = batch.pairs.made, batch.pairs.target
            decoder = nets.teacher.network.autoencoder
            distance = self.perceptual.of_samples(made, target, nets.frozen["perceptual"], decoder)
            terms["regression"] = self.regression * target[0].numel() * distance  # a sum, as dmd
        return terms
