"""Samples of a model under a named protocol, shared out over the ranks."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.metrics import Classifier, ClassifierFeatures, Extractor, Protocol
from distill.random import Random
from trainers.data import Dataset
from trainers.data.batches import inputs
from trainers.engine.sampler import Sampler
from trainers.engine.stopping import STOP
from trainers.recipe.run import Evaluation

EVALUATED_AT_ONCE = 500  # samples at once, fewer of large images
PIXELS = 2**22
FIT_LIMIT = 60_000  # all of MNIST


def fit_protocol(dataset: Dataset, settings: Evaluation) -> Protocol:
    """The protocol of the data set's real images (60,000 at random of more); raises UserError where there are none."""
    positions = torch.arange(min(dataset.count, FIT_LIMIT))
    if dataset.count > FIT_LIMIT:  # folders of images come sorted by class
        positions = dataset.order(0, positions)
    parts = (_polled(dataset.images(part)) for part in positions.split(EVALUATED_AT_ONCE))
    if extractor := load_extractor(dataset, settings):
        features = torch.cat([extractor.features(part.double()) for part in parts])
        return Protocol.of(dataset.name, extractor, features)
    images = torch.cat(list(parts))
    labels = None if dataset.labels is None else dataset.labels[positions]
    return Protocol.fit(dataset.name, images, labels, min(settings.components, images[0].numel()))


def check_images(source: Dataset, teacher: Denoiser) -> None:
    """Raise UserError when the teacher's samples as they are seen are no match for the images of `source`, or it has
    none."""
    if (shape := teacher.image_shape) is None:
        raise UserError("evaluation: judges pixels, the teacher's samples are latents and have no decoder")
    if source.read is None:
        raise UserError(f"evaluation: needs real images, data: {source.name} has none")
    if shape != source.shape:
        raise UserError(f"evaluation: {source.name} has images {list(source.shape)}, the teacher makes {list(shape)}")


def load_extractor(dataset: Dataset, settings: Evaluation) -> Extractor | None:
    """The classifier that `settings` names, if any; raises UserError when it is not one of the data set's images."""
    if settings.classifier is None:
        return None
    classifier = Classifier.load(settings.classifier)
    if classifier.shape != dataset.shape or dataset.classes not in (0, classifier.classes):
        raise UserError(
            f"evaluation.classifier: '{settings.classifier}' is for {list(classifier.shape)} in {classifier.classes}"
            f" classes, {dataset.name} has {list(dataset.shape)} in {dataset.classes}"
        )
    return ClassifierFeatures(classifier)


def draw_samples(
    sampler: Sampler,
    dataset: Dataset,
    first: int,
    last: int,
    seed: int,
    device: torch.device,
    shape: tuple[int, ...] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Samples first ... last-1 [N, C, H, W] and their labels [N] on the CPU: the same inputs for every model.

    `shape` is that of a sample, where it is not the noise's.
    """
    shape = shape or dataset.shape
    images, labels, chunk = [], [], _chunk(shape)
    for start in range(first, last, chunk):
        index = torch.arange(start, min(start + chunk, last), device=device)
        noise, cond = inputs(dataset, Random.at(seed, index).stream("evaluation"))
        images.append(sampler(noise, cond).float().cpu())
        if cond.labels is not None:
            labels.append(cond.labels.cpu())
    return torch.cat(images), torch.cat(labels) if labels else None


def evaluate(
    sampler: Sampler,
    dataset: Dataset,
    protocol: Protocol,
    samples: int,
    seed: int,
    accelerator: Accelerator,
    shape: tuple[int, ...] | None = None,
) -> dict[str, float | int | str]:
    """The protocol's report on `samples` samples of `shape`; collective, each rank draws as many, the last perhaps more
    than are asked for.

    Raises Stopped when the process is told to stop.
    """
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    share, chunk, parts = -(-samples // world), _chunk(shape or dataset.shape), []
    for start in range(rank * share, (rank + 1) * share, chunk):  # as many on every rank, as polls and shards need
        STOP.poll()
        parts.append(draw_samples(sampler, dataset, start, min(start + chunk, (rank + 1) * share), seed, device, shape))
    images = torch.cat([part for part, _ in parts])
    found = [part for _, part in parts if part is not None]
    labels = torch.cat(found) if found else None
    if world > 1:
        images = accelerator.gather(images.to(device)).cpu()[:samples]
        labels = None if labels is None else accelerator.gather(labels.to(device)).cpu()[:samples]
    return protocol.report(images, labels)


def _chunk(shape: tuple[int, ...]) -> int:
    return max(1, min(EVALUATED_AT_ONCE, PIXELS // math.prod(shape[1:])))


def _polled(images: torch.Tensor) -> torch.Tensor:
    STOP.poll()
    return images
