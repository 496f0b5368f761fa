"""The one-step generator G(z, cond) = D(scale z, t, cond): one evaluation of a denoiser at a fixed time."""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from distill.conditions import ConditionLike
from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.paths import EDM, DiscreteVP, Flow, Path


class Preset(NamedTuple):
    """A published entry: the time `t` on a path of the class `path`, and the `scale` of the noise (None: sigma(t))."""

    path: type[Path]
    t: float
    scale: float | None = None


PRESETS = {
    "sid_edm": Preset(EDM, 2.5),  # SiD, SiDA (arXiv:2404.04057, 2410.14919); SIM's, as far as known
    "diff_instruct_edm": Preset(EDM, 1.0),  # the authors' code (arXiv:2305.18455)
    "dmd2_edm": Preset(EDM, 80.0),  # pure noise (arXiv:2405.14867), as DMD
    "sid_lsg_sd": Preset(DiscreteVP, 625.0),  # sigma(625) = 0.928, nsr 2.5 (arXiv:2406.01561)
    "dmd2_sd": Preset(DiscreteVP, 999.0, 1.0),
    "dmd2_sdxl": Preset(DiscreteVP, 399.0, 1.0),  # unit noise, at a time where sigma is 0.758; DI* starts from it
    "noise_flow": Preset(Flow, 1.0),  # SiD-DiT's first step (arXiv:2509.25127); FGM's t* of SD3 is close (unverified)
}
"""The published entries by their names in recipes."""


class Generator(nn.Module):
    """A network that turns unit normal noise into samples by one evaluation of a denoiser.

    The time and the scale are separate settings, because published generators differ in both (see PRESETS).

    Args:
        denoiser: The denoiser that is evaluated.
        t: The time on the denoiser's path that the network is conditioned on.
        scale: The factor on the unit normal noise. None stands for sigma(t), which makes pure noise of that time.

    Raises:
        UserError: The path has no noise at `t`, or `t` is not on it, such as between the steps of a grid.
    """

    def __init__(self, denoiser: Denoiser, t: float, scale: float | None = None) -> None:
        super().__init__()
        at = torch.tensor([t], dtype=torch.float64)
        path, sigma = denoiser.path, float(denoiser.path.sigma(at))
        noisy = sigma > 0 and float(path.alpha(at)) >= 0
        if not (noisy and math.isclose(float(path.time(path.nsr(at))), t, rel_tol=1e-6)):
            raise UserError(f"generator: t = {t:g} is not a noisy time of the path {path!s:.120}")
        self.denoiser = denoiser
        self.t = t
        self.scale = sigma if scale is None else scale

    def forward(self, z: Tensor, cond: ConditionLike = None) -> Tensor:
        """Return samples [B, ...], at least float32, for unit normal noise `z` [B, ...] and the condition `cond`."""
        t = torch.full((len(z),), self.t, dtype=torch.float64)
        return cast(Tensor, self.denoiser(self.scale * z, t, cond))
