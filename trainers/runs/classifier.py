"""The training of a classifier, whose features serve a protocol and whose logits serve a reward."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy

from distill.errors import UserError
from distill.metrics import Classifier
from trainers.data import Data, Dataset, Digits
from trainers.data.buckets import Buckets
from trainers.data.dataset import order
from trainers.engine.player import Player
from trainers.io.atomic import atomic_folder
from trainers.recipe.load import naming_recipe
from trainers.recipe.run import Optimizer
from trainers.recipe.shipped import find_recipe
from trainers.recipe.strict_yaml import build, load_yaml, override

IMAGES_AT_ONCE = 500  # in the measurement of the accuracy

Report = Callable[[int, float], None]
"""(images trained on so far, accuracy on the held-out images) -> None."""


@dataclass(frozen=True, kw_only=True)
class ClassifierRun:
    """The training of a classifier of labels.

    Attributes:
        trains: The kind of recipe.
        name: The name of the run.
        data: The labelled data.
        images: The length of the run in images.
        batch_size: The number of images of an update.
        width: The number of features.
        held_out: The share of the data that measures the accuracy and is never trained on.
        seed: The seed of the split, of the order of the images, and of the first weights.
        optimizer: The optimizer.
    """

    trains: Literal["classifier"] = "classifier"
    name: str
    data: Data = Digits()
    images: int
    batch_size: int = 128
    width: int = 128
    held_out: float = 0.1
    seed: int = 0
    optimizer: Optimizer = Optimizer(lr=1e-3, betas=(0.9, 0.999), decay="cosine")

    def __post_init__(self) -> None:
        for name in ("images", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: must be positive, got {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out: must be between 0 and 1, got {self.held_out}")


def split(run: ClassifierRun, dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Split a data set by a permutation of the run's seed, and return the part to train on and the part held out.

    Raises:
        UserError: The data have no images or no labels, or one part would be empty.
    """
    if dataset.labels is None or dataset.read is None:
        raise UserError(f"data: a classifier is trained on labelled images, {dataset.name} lacks images or labels")
    if isinstance(dataset, Buckets):
        raise UserError(f"data: a classifier takes images of one size, {dataset.name} is in buckets")
    positions = order(dataset.count, run.seed, torch.arange(dataset.count))
    count = round(dataset.count * run.held_out)
    if not 0 < count < dataset.count:
        raise UserError(f"held_out: {run.held_out} of {dataset.count} images leaves a part empty")
    return _part(dataset, positions[count:]), _part(dataset, positions[:count])


def train_classifier(run: ClassifierRun, dataset: Dataset, accelerator: Accelerator, report: Report) -> Classifier:
    """Train a classifier, and return it frozen and on the CPU. On one machine it is a function of `run` alone.

    Args:
        run: The recipe.
        dataset: The labelled data.
        accelerator: The device.
        report: A function that is called after each epoch and at the end.

    Raises:
        UserError: The data have no images or no labels.
    """
    train, held_out = split(run, dataset)
    torch.manual_seed(run.seed)
    classifier = Classifier(dataset.shape, dataset.classes, run.width, dataset.name)
    player = Player("classifier", classifier, run.optimizer, accelerator)
    done = 0
    while done < run.images:
        index = torch.arange(done, min(done + run.batch_size, run.images))
        x, labels = _batch(train, order(train.count, run.seed, index), accelerator.device)
        with player.training():
            cross_entropy(classifier(x), labels).backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in player.parameters if p.grad is not None])
            player.step(norm, player.learning_rate(done, run.images))
        before, done = done, done + len(index)
        if done == run.images or before // train.count < done // train.count:
            classifier.accuracy = _accuracy(classifier, held_out, accelerator.device)
            report(done, classifier.accuracy)
    return classifier.cpu()


def _accuracy(classifier: Classifier, dataset: Dataset, device: torch.device) -> float:
    """Return the share of images whose label the classifier predicts."""
    right = 0
    for positions in torch.arange(dataset.count).split(IMAGES_AT_ONCE):
        x, labels = _batch(dataset, positions, device)
        right += int((classifier(x).argmax(dim=1) == labels).sum())
    return right / dataset.count


def _batch(dataset: Dataset, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images [B, C, H, W] and labels [B] at positions [B]."""
    assert dataset.labels is not None
    return dataset.images(positions).to(device), dataset.labels[positions].to(device)


def _part(dataset: Dataset, positions: Tensor) -> Dataset:
    """Return the data set of the samples at positions [N]."""
    assert dataset.labels is not None
    labels = dataset.labels[positions]
    return dataclasses.replace(
        dataset, count=len(positions), labels=labels, read=lambda at: dataset.images(positions[at])
    )


def resolve_classifier(recipe: str, overrides: Sequence[str] = ()) -> ClassifierRun:
    """Return the training of a classifier that a recipe describes.

    Args:
        recipe: The name of a shipped recipe, or a YAML file.
        overrides: Changes as text: key=value.

    Raises:
        UserError: The recipe is missing or wrong, or it does not train a classifier.
    """
    file = find_recipe(recipe)
    written = load_yaml(file)
    settings = override(written, overrides)
    if settings.get("trains") != "classifier":
        raise UserError(f"{recipe}: this recipe is not for `distill classifier`; one that is says `trains: classifier`")
    with naming_recipe(file, written, override({}, overrides)):
        return build(ClassifierRun, settings, recipe)


def write_classifier(run: ClassifierRun, folder: Path | None, report: Report) -> tuple[Classifier, Path]:
    """Train a classifier, and write it to a folder.

    Args:
        run: The recipe.
        folder: The folder to write. None for `runs/NAME`.
        report: A function that is called after each epoch and at the end.

    Returns:
        The classifier and its folder.

    Raises:
        UserError: The folder exists already, or the data have no images or no labels.
    """
    folder = folder or Path("runs") / run.name
    if folder.exists():
        raise UserError(f"'{folder}' exists already: --folder or name= writes another")
    trained = train_classifier(run, run.data.load(), Accelerator(cpu=not torch.cuda.is_available()), report)
    with atomic_folder(folder) as staging:
        trained.save(staging)
    return trained, folder
