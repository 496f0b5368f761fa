"""The averaged network of a run, with its teacher and its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.generator import Generator
from trainers.data import Dataset
from trainers.data.encode import DatasetEncoder
from trainers.engine.sampler import Sampler, make_sampler
from trainers.recipe.run import Run, TeacherRun
from trainers.runs.open import Objects, check_fit


class Weights(NamedTuple):
    """The networks that a run has made, on their device, frozen, in eval mode.

    Attributes:
        model: The averaged network: a Generator, or the Denoiser of a teacher run.
        teacher: The teacher of a distillation; None for a teacher run.
        images: The number of images that the model was trained on.
        average: The name of the average that its weights are, in words.
        frozen_names: The parameters of the model that did not train, which files lack.
    """

    model: Generator | Denoiser
    teacher: Denoiser | None
    images: int
    average: str
    frozen_names: frozenset[str]


@dataclass(eq=False)
class TrainedModel:
    """The averaged network of a run, with its teacher. Networks and data are read when they are first asked for.

    Attributes:
        folder: The run folder.
        run: The recipe.
        device: The device of the networks.
        objects: What the caller gave as objects in place of names in the recipe.
        read: Reads the networks; raises UserError where they cannot be had.
    """

    folder: Path
    run: Run | TeacherRun
    device: torch.device
    objects: Objects
    read: Callable[[], Weights]

    @cached_property
    def weights(self) -> Weights:
        """The networks, which the first use reads."""
        return self.read()

    @property
    def model(self) -> Generator | Denoiser:
        """The averaged network: a Generator, or the Denoiser of a teacher run."""
        return self.weights.model

    @property
    def teacher(self) -> Denoiser | None:
        """The teacher of a distillation; None for a teacher run."""
        return self.weights.teacher

    @property
    def images(self) -> int:
        """The number of images that the model was trained on."""
        return self.weights.images

    @property
    def average(self) -> str:
        """The name of the average that the weights of the model are, in words."""
        return self.weights.average

    @property
    def generator(self) -> Generator:
        """The one-step generator; raises UserError for a teacher run."""
        if not isinstance(self.model, Generator):
            why = "its teacher/ is a diffusers folder already; export takes distillations"
            raise UserError(f"'{self.folder}' trains a teacher: {why}")
        return self.model

    @property
    def sampler(self) -> Sampler:
        """How to sample the model: a generator in one evaluation, a teacher in 35."""
        return make_sampler(self.model, self.run)

    @property
    def teacher_sampler(self) -> Sampler | None:
        """How to sample the teacher, in 35 evaluations; None for a teacher run."""
        return None if self.teacher is None else make_sampler(self.teacher, self.run)

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser in the model."""
        return self.model.denoiser if isinstance(self.model, Generator) else self.model

    @cached_property
    def source(self) -> Dataset:
        """The data as they are: pixels, prompts. Raises UserError when they cannot be had."""
        source = self.objects.data or self.run.data.load()
        if isinstance(self.run, Run) and self.teacher is not None:
            check_fit(self.teacher, self.run.teacher, source)
        return source

    @cached_property
    def dataset(self) -> Dataset:
        """The data in the teacher's terms, without its images: prompts as embeddings."""
        if not isinstance(self.run, Run) or self.teacher is None:
            return self.source
        encoder = DatasetEncoder(self.run.cache, self.device, self.run.negative_prompt)
        return encoder.encode(self.source, self.teacher, real=False)
