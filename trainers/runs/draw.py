"""The sampling of a trained model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.conditions import Condition
from distill.errors import UserError
from distill.random import Random
from trainers.data.batches import labels_in_turn, preview_conditions, unit_noise
from trainers.data.labels import class_number
from trainers.io.images import to_images
from trainers.runs.trained_model import TrainedModel

SAMPLES_AT_ONCE = 20


def draw(
    trained: TrainedModel,
    count: int,
    label: int | str | None = None,
    seed: int = 0,
    teacher: bool = False,
    prompts: Sequence[str] = (),
) -> Tensor:
    """Draw samples of a trained model. Arguments and result are those of `Trained.sample`."""
    network = trained.denoiser.network
    labels = drawn_labels(trained, count, label)
    sampler = trained.teacher_sampler if teacher else trained.sampler
    if sampler is None:
        raise UserError("teacher: this run is itself a teacher's")
    embedded = embed(trained, prompts) if prompts else None
    samples = []
    for index in torch.arange(count, device=trained.device).split(SAMPLES_AT_ONCE):
        noise = unit_noise(network.shape, Random.at(seed, index).stream("sample"))
        if embedded is not None:
            cond = embedded.rows(index.cpu() % len(prompts))
        elif network.text_encoder is not None:
            cond = preview_conditions(trained.dataset, index)
        else:
            cond = labels.rows(index)
        samples.append(sampler(noise, cond))
    return to_images(torch.cat(samples), trained.model)


def drawn_labels(trained: TrainedModel, count: int, label: int | str | None = None) -> Condition:
    """Return the labels of samples: one class for all of them, or the classes in turn. Empty without classes.

    Args:
        trained: The trained model.
        count: The number of samples.
        label: The number or the name of a class. None for the classes in turn.

    Raises:
        UserError: There is no such class.
    """
    network, index = trained.denoiser.network, torch.arange(count, device=trained.device)
    if label is not None:
        index = torch.full_like(index, class_number(label, network.classes, network.class_names))
    return labels_in_turn(network.classes, index)


def embed(trained: TrainedModel, prompts: Sequence[str]) -> Condition:
    """Return the conditions [N, ...] of N prompts. The encoder's memory is freed before anything is sampled."""
    encoder = trained.denoiser.network.text_encoder
    if encoder is None:
        raise UserError("prompts: the teacher takes no prompts")
    encoder.device = trained.device
    cond = Condition(encoder.encode(list(prompts)))
    encoder.free()
    return cond
