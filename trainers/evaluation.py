"""The evaluation of samples under a named protocol, divided over the ranks."""

import math

import torch
from accelerate import Accelerator

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.metrics import Classifier, ClassifierFeatures, Extractor, Protocol
from distill.metrics.extractor import MOST_FITTED
from distill.random import Random
from trainers.data import Dataset
from trainers.data.batches import inputs
from trainers.engine.sampler import Sampler
from trainers.engine.stopping import STOP
from trainers.recipe.run import Evaluation

EVALUATED_AT_ONCE = 500  # samples, or fewer if they are large
PIXELS_AT_ONCE = 2**22
FIT_LIMIT = 60_000  # real images in a protocol: as many as MNIST has
LEAST_REAL = 4  # real images, so that they can be halved
LOOKED_AT = 4  # images for each component that a check before training reads at first


def fit_protocol(dataset: Dataset, settings: Evaluation) -> Protocol:
    """Return the protocol of a data set, with the statistics of its real images.

    Of more than FIT_LIMIT images it takes that many at random, the same ones every time.

    Args:
        dataset: The data set.
        settings: The classifier or the number of components, which determine the features.

    Raises:
        UserError: The data set has no images, or they do not go with the classifier.
        Stopped: The process was told to stop.
    """
    positions = _fitted_positions(dataset)
    parts = (_read_images(dataset, part) for part in positions.split(EVALUATED_AT_ONCE))
    if extractor := load_extractor(dataset, settings):
        features = torch.cat([extractor.features(part.double()) for part in parts])
        return Protocol.of(dataset.name, extractor, features)
    images = torch.cat(list(parts))
    labels = None if dataset.labels is None else dataset.labels[positions]
    return Protocol.fit(dataset.name, images, labels, min(settings.components, images[0].numel()))


def check_evaluation(source: Dataset, settings: Evaluation) -> None:
    """Raise UserError when `fit_protocol` would refuse a data set, from as few of its images as can tell.

    Args:
        source: The data set as it was opened, with images.
        settings: The classifier or the number of components.
    """
    advice = "set evaluation.every to 0, or take more data"
    if source.count < LEAST_REAL:
        raise UserError(f"evaluation: {source.name} has {source.count} images, it needs {LEAST_REAL}; {advice}")
    if settings.classifier is not None:
        return
    if source.labels is not None and len(source.labels.unique()) < 2:
        raise UserError("evaluation: labels: 1 class given, expected at least 2; set data.label_column to null")
    positions, wanted = _fitted_positions(source), min(settings.components, math.prod(source.shape))
    spanned, read = 0, LOOKED_AT * wanted
    while spanned < wanted:  # a few images span enough directions, unless most are the same
        spanned = _spanned(torch.cat([source.images(part) for part in positions[:read].split(100)]))
        if read >= len(positions):
            break
        read *= 8
    if spanned < wanted:
        raise UserError(
            f"evaluation.components: {settings.components} given, expected 1 to {spanned}, the directions that the"
            f" {len(positions):,} real images of {source.name} span; {advice}"
        )


def _spanned(images: torch.Tensor) -> int:
    """Return the number of directions that images [N, C, *spatial] span around their mean."""
    rows = images.double().flatten(1)
    # The square of a singular value is a variance, whose tolerance is that of Components.fit.
    tolerance = (rows.shape[1] * torch.finfo(rows.dtype).eps) ** 0.5
    return int(torch.linalg.matrix_rank(rows - rows.mean(0), rtol=tolerance))


def _fitted_positions(dataset: Dataset) -> torch.Tensor:
    """Return the positions of the real images of a protocol."""
    positions = torch.arange(min(dataset.count, FIT_LIMIT))
    labels = dataset.labels
    # At random where the first ones lack classes, since folders of images are sorted by class.
    if dataset.count > FIT_LIMIT or (
        labels is not None and len(labels[:MOST_FITTED].unique()) < len(labels.unique())  # those of the classifier
    ):
        positions = dataset.order(0, positions)
    return positions


def check_images(source: Dataset, teacher: Denoiser) -> None:
    """Raise UserError when the teacher's samples, decoded if they are latents, cannot be compared with real images.

    Args:
        source: The data set as it was opened. It must have images of the same shape.
        teacher: The teacher.
    """
    if (shape := teacher.image_shape) is None:
        raise UserError("evaluation: judges pixels, the teacher's samples are latents and have no decoder")
    if source.read is None:
        raise UserError(f"evaluation: needs real images, data: {source.name} has none")
    if shape != source.shape:
        raise UserError(f"evaluation: {source.name} has images {list(source.shape)}, the teacher makes {list(shape)}")


def load_extractor(dataset: Dataset, settings: Evaluation) -> Extractor | None:
    """Return the classifier that `settings` names as an extractor of features, or None if it names none.

    Raises:
        UserError: The classifier cannot be read, or it is for images of another shape or number of classes.
    """
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
    """Draw samples, with the same noise and conditions for every model.

    Args:
        sampler: The sampler of the model.
        dataset: The data as the teacher takes them, for the shape of the noise and for the conditions.
        first: The number of the first sample.
        last: The number after that of the last sample.
        seed: The seed of noise and conditions.
        device: The device of the model.
        shape: (C, *spatial) of a sample. None if it is that of the noise.

    Returns:
        Samples [N, C, *spatial] and their labels [N], both on the CPU. The labels are None without classes.
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


class NotMeasured(UserError):
    """A refusal of the samples by the protocol. All ranks hold the same samples, so all raise it or none."""


def evaluate(
    sampler: Sampler,
    dataset: Dataset,
    protocol: Protocol,
    samples: int,
    seed: int,
    accelerator: Accelerator,
    shape: tuple[int, ...] | None = None,
) -> dict[str, float | int | str]:
    """Evaluate a model, and return the report of the protocol. Collective.

    Args:
        sampler: The sampler of the model, which returns images.
        dataset: The data as the teacher takes them.
        protocol: The protocol of the real images.
        samples: The number of samples.
        seed: The seed of noise and conditions.
        accelerator: Ranks, device and collectives.
        shape: (C, *spatial) of an image. None if it is that of the noise.

    Raises:
        Stopped: The process was told to stop.
        NotMeasured: The protocol refuses the samples, such as those that are not finite.
    """
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    share, chunk, parts = -(-samples // world), _chunk(shape or dataset.shape), []
    # Every rank draws as many samples, so that all reach the same polls and the same forwards of sharded networks. The
    # last ranks may draw a few too many, which are cut off below.
    for start in range(rank * share, (rank + 1) * share, chunk):
        STOP.poll()
        parts.append(draw_samples(sampler, dataset, start, min(start + chunk, (rank + 1) * share), seed, device, shape))
    images = torch.cat([part for part, _ in parts])
    label_parts = [part for _, part in parts if part is not None]
    labels = torch.cat(label_parts) if label_parts else None
    if world > 1:  # every rank gets all samples, and computes the same report
        images = accelerator.gather(images.to(device)).cpu()[:samples]
        labels = None if labels is None else accelerator.gather(labels.to(device)).cpu()[:samples]
    try:
        return protocol.report(images, labels)
    except UserError as error:
        raise NotMeasured(str(error)) from error


def _chunk(shape: tuple[int, ...]) -> int:
    """Return the number of samples of this shape to draw at once."""
    return max(1, min(EVALUATED_AT_ONCE, PIXELS_AT_ONCE // math.prod(shape[1:])))


def _read_images(dataset: Dataset, positions: torch.Tensor) -> torch.Tensor:
    """Read real images, and poll for a stop, since a large data set takes minutes."""
    images = dataset.images(positions)
    STOP.poll()
    return images
