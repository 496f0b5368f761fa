"""A training loop of your own, with `distill` alone: no recipe, no trainer, no files.

The data are four spots on a circle. Their exact denoiser is the teacher. Two small networks start at random: the
generator turns normal noise into such points in one step, and the fake learns to denoise what the generator makes. They
train in turn, as in Score identity Distillation (SiD, Zhou et al., arXiv:2404.04057; there, both start as the teacher).
Run the program with

    python examples/own_loop.py
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from distill import EDM, Denoiser, Generator, Random
from distill.conditions import Condition
from distill.metrics import Moments, frechet_distance
from distill.objectives import denoising_loss, l1_normaliser
from distill.objectives.sid import sid_loss
from distill.teachers import GaussianMixture
from distill.times import LogNormal

ROUNDS = 1_500  # updates of the generator, each after one update of the fake
BATCH = 256  # points in an update
ALPHA = 1.0  # the hyper-parameter of SiD
TIMES = LogNormal(mean=-0.4, std=1.2)  # the noise levels of both losses


class Points(nn.Module):
    """A small network for points in the plane. The Denoiser around it turns its output into an estimate of x0."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        sizes = pairwise([3, width, width, width])
        hidden = [layer for size in sizes for layer in (nn.Linear(*size), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x: Tensor, time: Tensor, cond: None) -> Tensor:
        """Return the output [B, 2] for scaled points `x` [B, 2] and `time` [B], which is 250 ln sigma."""
        out: Tensor = self.layers(torch.cat([x, time[:, None] / 250], dim=1))
        return out


def spots() -> GaussianMixture:
    """Return the exact denoiser of the data, four spots on a circle."""
    angle = torch.arange(4) * torch.pi / 2
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixture(EDM(), means, stds=torch.full((4,), 0.15))


@torch.no_grad()
def report(when: str, generator: Generator, data: GaussianMixture, count: int = 10_000) -> None:
    """Print how far the samples of the generator are from samples of the data."""
    made, real = generator(torch.randn(count, 2)), data.data(Random.at(1, torch.arange(count)))
    distance = frechet_distance(Moments.of(made), Moments.of(real))
    # The distance compares means and covariances alone, and a ring has those of the spots. So points are counted too.
    on = torch.cdist(made, data.means) < 3 * data.stds[0]  # [count, 4]
    share, rarest = on.any(1).float().mean(), on.float().mean(0).min()
    print(f"{when:>6}: Frechet distance {distance:.4f}, {share:.0%} on a spot, {rarest:.0%} on the rarest")


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
        # The random numbers of the loop are functions of a seed and of the number of a sample.
        random = Random.at(0, torch.arange(BATCH) + step * BATCH)

        # 1. The fake learns to denoise the points that the generator makes now.
        with torch.no_grad():
            x = generator(random.stream("input of the fake's update").normal(2))
        loss = denoising_loss(fake, path, x, Condition(), TIMES, "edm", random.stream("fake"), sigma_data=1.0).mean()
        fake_optimizer.zero_grad()
        loss.backward()
        fake_optimizer.step()

        # 2. The generator descends the loss of SiD. The gradient passes through teacher and fake.
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
