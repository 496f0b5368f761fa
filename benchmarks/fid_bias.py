"""The Frechet distance of N real images to all the others: the part of a distance that the number of samples makes.

python -m benchmarks.fid_bias PICTURES --classifier FOLDER
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from distill.metrics import Classifier, ClassifierFeatures, Moments, frechet_distance
from trainers.io.console import plain
from trainers.recipe.words import open_given

COUNTS = (250, 500, 1_000, 2_000, 5_000, 10_000, 25_000)
REPEATS = 4


def main(
    data: Annotated[str, typer.Argument(help="Pictures by their path.")],
    classifier: Annotated[Path, typer.Option(help="The classifier whose features are measured.")],
) -> None:
    """Print a table of the distance by the number of samples, as means over random subsets."""
    extractor = ClassifierFeatures(Classifier.load(classifier))
    shape = extractor.shape
    source = open_given(data, shape[1], "L" if shape[0] == 1 else "RGB")
    parts = torch.arange(source.count).split(1_000)
    features = torch.cat([extractor.extract(source.images(part)).features for part in parts])
    console = plain()
    console.print("| samples | distance | times the samples |\n| --- | --- | --- |")
    for count in (count for count in COUNTS if 2 * count <= len(features)):
        distances = []
        for seed in range(REPEATS):
            order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
            few, others = features[order[:count]], features[order[count:]]
            distances.append(frechet_distance(Moments.of(few), Moments.of(others)))
        mean = sum(distances) / REPEATS
        console.print(f"| {count:,} | {mean:.3f} | {mean * count:,.0f} |")


if __name__ == "__main__":
    typer.run(main)
