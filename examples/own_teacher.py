"""A teacher of your own, distilled with `trainers.train`: a short form of docs/add_a_teacher.md.

The teacher is a plain `nn.Module` that was trained elsewhere. It knows pixels in [0, 1] and a time that runs from noise
(0) to data (1). A few lines around it turn its output into an estimate of the clean image. Run the program with

    python examples/own_teacher.py
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import trainers
from distill import EDM, Denoiser
from distill.teachers import OwnNet, save_denoiser

UPDATES = 1_500  # of the network, before it is a teacher; 4,000 in the docs
IMAGES = 24_000  # the docs' recipe trains on 96,000
SAMPLES = 1_000  # of each evaluation
RECIPE = {
    "name": "own_teacher",
    "data": "digits",
    "objective": {
        "name": "sid",
        "times": {"name": "lognormal", "mean": -0.4, "std": 1.0},
        "fake_times": {"name": "lognormal", "mean": -0.5, "std": 1.1},
    },
    "entry": {"nsr": 1.0},  # the noise level at which the generator asks its network
    "images": IMAGES,
    "batch_size": 128,
    "generator": {"lr": 2e-4, "decay": "cosine"},
    "fake": {"lr": 6e-4},
    "ema": {"half_life": 2_000},
    "evaluation": {"every": IMAGES // 3, "samples": SAMPLES},
}


class Net(nn.Module):
    """A network that predicts y - noise from y_t = t y + (1 - t) noise, t and a label, for pixels y in [0, 1]."""

    def __init__(self, width: int = 128, blocks: int = 3) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.pi * torch.arange(1, 17), persistent=False)
        self.pixels, self.time, self.label = nn.Linear(64, width), nn.Linear(16, width), nn.Embedding(10, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(blocks)
        )
        self.out = nn.Linear(width, 64)

    def forward(self, y_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Return y - noise [B, 1, 8, 8] for `y_t` [B, 1, 8, 8], its times `t` [B] and labels [B]."""
        given = self.time((t[:, None] * self.frequencies).cos()) + self.label(label)
        h = self.pixels(y_t.flatten(1))
        for block in self.blocks:
            h = h + block(h + given)
        return self.out(h).view_as(y_t)


class Teacher(Net):
    """A Net that estimates x = 2 y - 1 in [-1, 1] from x_t = x + sigma noise."""

    def forward(self, x_t: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Return the estimate of x [B, 1, 8, 8]. On the path `EDM`, `time` [B] is 250 ln sigma."""
        sigma = (time / 250).exp()[:, None, None, None]
        t = 1 / (1 + sigma / 2)  # y has half the range of x, so its noise is sigma/2 = (1 - t)/t
        y_t = t * (x_t + 1) / 2
        y = y_t + (1 - t) * super().forward(y_t, t.flatten(), label)
        return 2 * y - 1


def train_elsewhere() -> dict[str, Tensor]:
    """Return the weights of a `Net`, trained by flow matching in plain torch."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    for _ in range(UPDATES):
        index = torch.randint(len(images), (128,))
        y, noise = images[index], torch.randn(128, 1, 8, 8)
        t = torch.randn(128).add(1).sigmoid()  # more times near the data, where details are made
        y_t = torch.lerp(noise, y, t[:, None, None, None])
        loss = (net(y_t, t, labels[index]) - (y - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.state_dict()


def main(folder: Path) -> None:
    """Write the teacher to `folder`, distil it, and print the distances of student and teacher to the digits."""
    # The folder stores the name of the class, so whoever loads it must be able to import this file.
    network = OwnNet("own_teacher:Teacher", {"width": 128}, shape=(1, 8, 8), classes=10)
    network.module.load_state_dict(train_elsewhere())
    save_denoiser(Denoiser(network, EDM(), "x0"), folder / "teacher")

    # A folder may come from a stranger, so its code runs only with the caller's word.
    student = trainers.train(RECIPE, folder / "student", teacher=str(folder / "teacher"), trust_code=True)
    for line in (student.folder / "metrics.jsonl").read_text().splitlines():
        measured = json.loads(line)
        print(f"after {measured['images']:>6,} images: Frechet distance {measured['frechet']:.2f}")
    teacher = student.evaluate()["teacher"]
    print(f"the teacher, at 35 evaluations: Frechet distance {teacher['frechet']:.2f}")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:  # deleted at the end; take a folder of yours to keep the runs
        main(Path(folder))
