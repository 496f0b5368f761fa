"""The sampling of a trained model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.generator import Generator
from distill.networks.network import Network
from distill.random import Random
from trainers.data import Dataset
from trainers.data.batches import labels_in_turn, preview_conditions, unit_noise
from trainers.data.labels import class_number
from trainers.engine.sampler import Sampler
from trainers.io.images import denoiser_of, to_images
from trainers.recipe.run import Experiment

SAMPLES_AT_ONCE = 20


class Drawable(Protocol):
    """The part of a TrainedModel that samples are drawn from."""

    folder: Path
    device: torch.device

    @property
    def images(self) -> int:
        """The number of images that the model was trained on."""

    @property
    def average(self) -> str:
        """The kind of average that the model is."""

    @property
    def run(self) -> Experiment:
        """The recipe."""

    @property
    def model(self) -> Generator | Denoiser:
        """The model."""

    @property
    def teacher(self) -> Denoiser | None:
        """The teacher beside the model, if there is one."""

    @property
    def sampler(self) -> Sampler:
        """The sampler of the model."""

    @property
    def teacher_sampler(self) -> Sampler | None:
        """The sampler of the teacher beside it. None without one."""

    @property
    def dataset(self) -> Dataset:
        """The data, for their prompts. Raises UserError if there are none."""


def draw(
    trained: Drawable,
    count: int,
    label: int | str | None = None,
    seed: int = 0,
    teacher: bool = False,
    prompts: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Draw samples of a trained model. Arguments and result are those of `Trained.sample`."""
    network = denoiser_of(trained.model).network
    shape, labels = _shape(network, size), drawn_labels(trained, count, label)
    if teacher and trained.teacher is None:
        raise UserError("teacher: this run is itself a teacher's")
    if teacher and prompts:
        assert trained.teacher is not None
        embed_null(trained, trained.teacher.network)
    elif prompts and isinstance(trained.model, Denoiser):
        embed_null(trained, network)
    sampler = trained.teacher_sampler if teacher else trained.sampler
    assert sampler is not None
    embedded = embed(trained, prompts) if prompts else None
    samples = []
    for index in torch.arange(count, device=trained.device).split(SAMPLES_AT_ONCE):
        noise = unit_noise(shape, Random.at(seed, index).stream("sample"))
        if embedded is not None:
            cond = embedded.rows(index.cpu() % len(prompts))
        elif network.text_encoder is not None:
            cond = preview_conditions(trained.dataset, index)
        else:
            cond = labels.rows(index)
        samples.append(sampler(noise, cond))
    return to_images(torch.cat(samples), trained.model)


def _shape(network: Network, size: tuple[int, int] | None) -> tuple[int, ...]:
    """Return the shape of samples whose images have this height and width. None means the network's own."""
    try:
        return network.shape if size is None else network.shape_at(*size)
    except UserError as error:
        raise UserError(f"size: {error}") from error


def drawn_labels(trained: Drawable, count: int, label: int | str | None = None) -> Condition:
    """Return the labels of samples: one class for all of them, or the classes in turn. Empty without classes.

    Args:
        trained: The trained model.
        count: The number of samples.
        label: The number or the name of a class. None for the classes in turn.

    Raises:
        UserError: There is no such class.
    """
    network, index = denoiser_of(trained.model).network, torch.arange(count, device=trained.device)
    if label is not None:
        index = torch.full_like(index, class_number(label, network.classes, network.class_names))
    return labels_in_turn(network.classes, index)


def embed(trained: Drawable, prompts: Sequence[str]) -> Condition:
    """Return the conditions [N, ...] of N prompts. The encoder's memory is freed before anything is sampled."""
    encoder = denoiser_of(trained.model).network.text_encoder
    if encoder is None:
        raise UserError("prompts: the teacher takes no prompts")
    encoder.device = trained.device
    cond = Condition(encoder.encode(list(prompts)))
    encoder.free()
    return cond


def embed_null(trained: Drawable, network: Network) -> None:
    """Give a network of prompts the null condition that guidance needs: that of the run's negative prompt, if any."""
    if (encoder := network.text_encoder) is None:
        return
    negative = trained.run.negative_prompt
    encoder.device = trained.device
    null = Condition(encoder.encode_null() if negative is None else encoder.encode([negative]))
    encoder.free()
    network.null = null.map(lambda value: value[0].to(trained.device))
