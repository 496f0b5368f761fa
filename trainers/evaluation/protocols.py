"""The protocol of an evaluation, fitted to a data set, and the checks before anything is trained."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.metrics import METRICS, Classifier, ClassifierFeatures, Extractor, Protocol, allowed_metrics
from distill.metrics.extractor import MOST_FITTED
from distill.rewards import scores_by
from trainers.data import Dataset, Prompts
from trainers.data.buckets import Buckets
from trainers.data.cache import DEFAULT_CACHE
from trainers.engine.stopping import STOP
from trainers.evaluation.references import check_reference, compute_reference, read_reference
from trainers.recipe.measures import Evaluation

FITTED_AT_ONCE = 500  # real images
FIT_LIMIT = 60_000  # real images in a protocol: as many as MNIST has
LEAST_REAL = 4  # real images, so that they can be halved
LOOKED_AT = 4  # images for each component that a check before training reads at first


def fit_protocol(
    dataset: Dataset,
    settings: Evaluation,
    cache: str = DEFAULT_CACHE,
    device: torch.device | None = None,
    shape: tuple[int, ...] | None = None,
    quiet: bool = False,
) -> Protocol:
    """Return the protocol of a data set, with the statistics of its real images.

    Principal components and the features of a classifier are of FIT_LIMIT images at most, at random, the same ones
    every time.

    Args:
        dataset: The data set.
        settings: The features, the reference and the metrics.
        cache: The folder in which the features of real images are kept.
        device: The device of the extractor. None for the CPU.
        shape: (C, *spatial) of the samples. None if it is that of the data set.
        quiet: Whether to print no progress.

    Raises:
        UserError: The data set has no images, or they do not go with the features or the reference.
        Stopped: The process was told to stop.
    """
    scores = {name: scores_by(reward, device or "cpu") for name, reward in settings.scores.named().items()}
    if not _measures_features(dataset, settings):
        return Protocol(None, None, frozenset(), scores=scores)
    if settings.features is not None:
        protocol = _published_protocol(dataset, settings, cache, device, shape or dataset.shape, quiet)
        return replace(protocol, scores=scores)
    positions = _fitted_positions(dataset)
    parts = (_read_images(dataset, part) for part in positions.split(FITTED_AT_ONCE))
    if extractor := load_extractor(dataset, settings):
        features = torch.cat([extractor.extract(part).features for part in parts])
        protocol = Protocol.of(dataset.name, extractor, features)
    else:
        images = torch.cat(list(parts))
        labels = None if dataset.labels is None else dataset.labels[positions]
        protocol = Protocol.fit(dataset.name, images, labels, min(settings.components, images[0].numel()))
    default = ("frechet",) if dataset.labels is None else ("frechet", "label_agreement")
    metrics = _metrics(protocol, settings, default)
    return replace(protocol, metrics=metrics, scores=scores)


def _measures_features(dataset: Dataset, settings: Evaluation) -> bool:
    """Return whether features are compared with those of real images. Otherwise the samples are scored alone."""
    named = settings.features is not None or settings.classifier is not None
    return named or dataset.read is not None or not settings.scores.named()


def _published_protocol(
    dataset: Dataset, settings: Evaluation, cache: str, device: torch.device | None, shape: tuple[int, ...], quiet: bool
) -> Protocol:
    """Return the protocol of features that are not fitted to the data. The arguments are those of `fit_protocol`."""
    assert settings.features is not None
    extractor, shape = settings.features.load(), _seen_shape(shape, settings)
    if device is not None:
        extractor.to(device)
    if settings.reference is not None:
        file, width = Path(settings.reference), _width(extractor, shape)
        check_reference(stored := read_reference(file, extractor.name), file, shape, width, dataset)
    else:
        stored = compute_reference(dataset, extractor, cache, quiet)
    protocol = Protocol(extractor, stored.reference, resize=settings.resize)
    return replace(protocol, metrics=_metrics(protocol, settings, METRICS))


def _seen_shape(shape: tuple[int, ...], settings: Evaluation) -> tuple[int, ...]:
    """Return the shape of the samples of which features are taken."""
    return shape if settings.resize is None else (*shape[:-2], settings.resize, settings.resize)


def _metrics(protocol: Protocol, settings: Evaluation, default: Iterable[str]) -> frozenset[str]:
    """Return the metrics of a protocol: those of the settings, or those of the default that it allows.

    Raises:
        UserError: It cannot measure a metric of the settings.
    """
    assert protocol.extractor is not None and protocol.real is not None
    allowed = allowed_metrics(protocol.extractor, protocol.real, settings.count)
    wanted = frozenset(settings.metrics or default)
    if settings.metrics is not None and (missing := sorted(wanted - allowed)):
        kept = ", ".join(name for name in METRICS if name in allowed)
        raise UserError(f"evaluation.metrics: {protocol.name} cannot measure {missing[0]} here; allowed: {kept}")
    if settings.best not in wanted & allowed | settings.scores.named().keys():
        raise UserError(f"evaluation.best: {protocol.name} does not measure {settings.best}")
    return wanted & allowed


def check_evaluation(source: Dataset, settings: Evaluation, shape: tuple[int, ...] | None = None) -> None:
    """Raise UserError when `fit_protocol` would refuse a data set, from as few of its images as can tell.

    Args:
        source: The data set as it was opened, with images.
        settings: The features, the reference and the metrics.
        shape: (C, *spatial) of the samples. None if it is that of the data set.
    """
    _check_scores(source, settings)
    if settings.best == "label_agreement" and source.labels is None:
        raise UserError(f"evaluation.best: label_agreement needs labels, data: {source.name} has none")
    if settings.features is not None:
        _check_features(source, settings, shape or source.shape)
        return
    if not _measures_features(source, settings):
        return
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


def _check_scores(source: Dataset, settings: Evaluation) -> None:
    """Raise UserError when scores read prompts and there are none, or nothing else decides what is best."""
    if settings.prompts is not None:
        if source.prompts is None:
            raise UserError("evaluation.prompts: the teacher takes none; leave them out")
        Prompts(settings.prompts).load()
    for name, reward in settings.scores.named().items():
        if settings.prompts is None and source.prompts is None and reward.reads_texts:
            raise UserError(f"evaluation.scores: {name} reads prompts, data: {source.name} has none")
    if not _measures_features(source, settings) and settings.best not in settings.scores.named():
        raise UserError(
            f"evaluation.best: {settings.best} is not measured, {source.name} has no real images; name one of"
            f" {', '.join(settings.scores.named())}, or a protocol with a reference"
        )


def _check_features(source: Dataset, settings: Evaluation, shape: tuple[int, ...]) -> None:
    """Raise UserError when features, reference and metrics do not go together, or one of them is missing."""
    assert settings.features is not None
    extractor, shape = settings.features.load(), _seen_shape(shape, settings)
    width = _width(extractor, shape)
    if settings.resize is not None and settings.reference is None:
        raise UserError("evaluation.resize: needs a reference of this size; `distill reference` computes one")
    if settings.reference is not None:
        file = Path(settings.reference)
        check_reference(stored := read_reference(file, extractor.name), file, shape, width, source)
        _metrics(Protocol(extractor, stored.reference), settings, METRICS)


def _width(extractor: Extractor, shape: tuple[int, ...]) -> int:
    """Return the number of features that an extractor takes of a sample. Raise UserError if it takes none."""
    return extractor.extract(torch.zeros(1, *shape)).features.shape[1]


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


def check_images(source: Dataset, teacher: Denoiser, settings: Evaluation) -> None:
    """Raise UserError when the teacher's samples, decoded if they are latents, cannot be compared with real images.

    Args:
        source: The data set as it was opened. It must have images of the same shape, unless a reference replaces them.
        teacher: The teacher.
        settings: The reference.
    """
    if (shape := teacher.image_shape) is None:
        raise UserError("evaluation: judges pixels, the teacher's samples are latents and have no decoder")
    if source.read is None and settings.reference is None and _measures_features(source, settings):
        advice = "name evaluation.reference, or set evaluation.every to 0"
        raise UserError(f"evaluation: needs real images, data: {source.name} has none; {advice}")
    if isinstance(source, Buckets) and settings.reference is None and _measures_features(source, settings):
        advice = "name evaluation.reference, or set evaluation.every to 0"
        raise UserError(f"evaluation: the images of {source.name} are in buckets, of several sizes; {advice}")
    if source.read is not None and shape != source.shape:
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


def _read_images(dataset: Dataset, positions: torch.Tensor) -> torch.Tensor:
    """Read real images, and poll for a stop, since a large data set takes minutes."""
    images = dataset.images(positions)
    STOP.poll()
    return images
