"""A training loop of your own, with `distill` alone: no recipe, no trainer, no files.

The data are eight spots on a circle. Their exact denoiser is the teacher. Two small networks start at random: the
generator turns normal noise into such points in one step, and the fake learns to denoise what the generator makes. They
train in turn, as in Score identity Distillation (SiD, Zhou et al., arXiv:2404.04057). Run the program with

    python examples/own_loop.py
"""

import torch
from torch import Tensor, nn

from distill import EDM, Denoiser, Generator, Random
from distill.metrics import Moments, frechet_distance
from distill.objectives import l1_normaliser, per_sample
from distill.objectives.sid import sid_loss
from distill.teachers import GaussianMixture
from distill.times import LogNormal

ROUNDS = 1_500  # updates of the generator, each after one update of the fake
BATCH = 256  # points in an update
ALPHA = 1.0  # the hyper-parameter of SiD
TIMES = LogNormal(mean=-0.4, std=1.2)  # the noise levels at which both losses compare the denoisers


class Points(nn.Module):
    """A small network for points in the plane. A Denoiser makes an estimate of the clean point of its output."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(3, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU()),
            nn.Linear(width, 2),
        )

    def forward(self, x: Tensor, time: Tensor, cond: None) -> Tensor:
        """Return the output [B, 2] for points [B, 2] and the logarithm of the noise level, times 250, [B]."""
        out: Tensor = self.layers(torch.cat([x, time[:, None] / 250], dim=1))
        return out


def spots() -> GaussianMixture:
    """Return the data: eight spots on a circle, as the exact denoiser of their mixture."""
    angle = torch.arange(8) * torch.pi / 4
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixture(EDM(), means, stds=torch.full((8,), 0.15))


@torch.no_grad()
def report(when: str, generator: Generator, data: GaussianMixture, count: int = 10_000) -> None:
    """Print how far the samples of the generator are from samples of the data."""
    made, real = generator(torch.randn(count, 2)), data.data(Random.at(1, torch.arange(count)))
    distance = frechet_distance(Moments.of(made), Moments.of(real))
    # The distance compares means and covariances alone. A second number says whether there are spots at all.
    on_a_spot = torch.cdist(made, data.means).amin(1) < 3 * data.stds[0]
    print(f"{when:>6}: Frechet distance {distance:.4f}, {on_a_spot.float().mean():.0%} of the points on a spot")


def main() -> None:
    """Train the generator, and report before and after."""
    torch.manual_seed(0)
    path, teacher = EDM(), spots()
    fake = Denoiser(Points(), path, "edm", sigma_data=1.0)
    generator = Generator(Denoiser(Points(), path, "edm", sigma_data=1.0), t=1.0)
    fake_optimizer = torch.optim.Adam(fake.parameters(), lr=1e-3, betas=(0.0, 0.99))
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-4, betas=(0.0, 0.99))
    report("before", generator, teacher)

    for step in range(ROUNDS):
        # Every random number is a function of a seed and of the number of a sample, so that a run can be repeated.
        random = Random.at(0, torch.arange(BATCH) + step * BATCH)

        # 1. The fake learns to denoise the points that the generator makes now.
        with torch.no_grad():
            x = generator(random.stream("input of the fake's update").normal(2))
        x_t, t, _ = path.draw(x, TIMES, random.stream("fake"))
        weight = 1 + 1 / path.nsr(t) ** 2  # EDM's weight of the denoising error at each noise level
        loss = (weight * per_sample((fake(x_t, t) - x) ** 2)).mean()
        fake_optimizer.zero_grad()
        loss.backward()
        fake_optimizer.step()

        # 2. The generator follows the gap between teacher and fake. The gradient passes through both of them.
        x = generator(random.stream("input of the generator's update").normal(2))
        x_t, t, _ = path.draw(x, TIMES, random.stream("generator"))
        denoised = teacher(x_t, t)
        loss = (l1_normaliser(x, denoised) * sid_loss(x, denoised, fake(x_t, t), ALPHA)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    report("after", generator, teacher)


if __name__ == "__main__":
    main()
