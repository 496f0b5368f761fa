"""An objective of your own, trained with `trainers.train`: a short form of docs/add_an_objective.md.

The objective descends the Fisher divergence between the diffused laws of generator and teacher. It is SiD at alpha =
0.5, up to a factor of 2, so you can compare. The program trains a teacher of small handwritten digits, and distils it
into one step with this objective. Run it with

    python examples/own_objective.py
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

import trainers
from distill.objectives import Batch, Denoisers, Objective, l1_normaliser, per_sample
from distill.times import LogNormal, Times

TEACHER_IMAGES = 12_800  # the shipped recipe trains on 140,000
IMAGES = 9_600  # the shipped recipe of SiD trains on 96,000
SAMPLES = 1_000  # of each evaluation


def fisher_loss(x: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """Return |teacher - x|^2 - |fake - x|^2 [B], for tensors [B, ...]."""
    return per_sample((teacher - x) ** 2 - (fake - x) ** 2)


@dataclass(frozen=True, kw_only=True)
class Fisher(Objective):
    """The Fisher divergence E|s_F - s_T|^2. Its fields are its hyper-parameters, and the keys of a recipe."""

    scale: float = 1.0
    times: Times = LogNormal(-0.4, 1.0)  # where the generator's loss compares the denoisers
    fake_times: Times = LogNormal(-0.5, 1.1)  # where the fake learns to denoise the generator's samples

    differentiates_denoisers = True  # the gradient passes through both denoisers

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the loss [B] of the generator's samples x [B, ...]."""
        s = self.estimate(nets, x, batch, self.times)  # diffuses x, and asks teacher and fake for the clean sample
        return {"fisher": self.scale * l1_normaliser(x, s.teacher) * fisher_loss(x, s.teacher, s.fake)}


def main(runs: Path) -> None:
    """Train a teacher and a student in the folder `runs`, and print the distances of the student to the digits."""
    teacher = trainers.train("digits_teacher", runs / "teacher", images=TEACHER_IMAGES, optimizer={"warmup": 1_280})
    student = trainers.train(
        "digits_sid",  # its data, entry and learning rates, under another objective
        runs / "student",
        teacher=str(teacher.folder / "teacher"),
        objective=Fisher(),
        images=IMAGES,
        evaluation={"every": IMAGES // 3, "samples": SAMPLES},
    )
    for line in (student.folder / "metrics.jsonl").read_text().splitlines():
        measured = json.loads(line)
        print(f"after {measured['images']:>6,} images: Frechet distance {measured['frechet']:.2f}")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:  # deleted at the end; take a folder of yours to keep the runs
        main(Path(folder))
