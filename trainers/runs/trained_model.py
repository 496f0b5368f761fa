"""The trained model of a run, with its teacher and its data."""

from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from distill.denoiser import Denoiser, GuidableDenoiser
from distill.errors import UserError
from distill.generator import Generator
from distill.teachers import load_denoiser
from trainers.checkpoints.formats import Change
from trainers.data import Dataset
from trainers.data.encode import DatasetEncoder
from trainers.engine.networks import set_precision
from trainers.engine.sampler import WEAK_TEACHER, Sampler, make_sampler, sampled_teacher
from trainers.recipe.run import Run
from trainers.recipe.teacher_run import TeacherRun
from trainers.runs.open import Objects, check_fit


class Weights(NamedTuple):
    """The networks of a trained run, on their device, frozen and in eval mode.

    Attributes:
        model: The averaged network: a Generator, or the Denoiser of a run that trains a teacher.
        teacher: The teacher of a distillation. None for a run that trains a teacher.
        images: The number of images that the model was trained on.
        average: The kind of average, in words.
        frozen_names: The parameters of the model that did not train. Checkpoints lack them.
        changes: The changes that resumes made before these images.
        teacher_hash: The hash of the teacher. None for a run that trains a teacher.
    """

    model: Generator | Denoiser
    teacher: Denoiser | None
    images: int
    average: str
    frozen_names: frozenset[str]
    changes: Sequence[Change] = ()
    teacher_hash: str | None = None


@dataclass(eq=False)
class TrainedModel:
    """The averaged network of a run, with its teacher. Networks and data are read when they are first used.

    Attributes:
        folder: The run folder.
        run: The recipe.
        device: The device of the networks.
        objects: The objects that replace names in the recipe.
        read: (whether adapters are merged into the weights) -> the networks.
        merged: Whether adapters are merged into the weights.
        context: The consent to run code that the caller gave when this object was made (distill.user_code).
    """

    folder: Path
    run: Run | TeacherRun
    device: torch.device
    objects: Objects
    read: Callable[[bool], Weights]
    merged: bool = True
    context: Context = field(default_factory=copy_context)

    @cached_property
    def weights(self) -> Weights:
        """The networks. The first use reads them."""
        return self.context.copy().run(self.read, self.merged)

    @property
    def model(self) -> Generator | Denoiser:
        """The averaged network: a Generator, or the Denoiser of a run that trains a teacher."""
        return self.weights.model

    @property
    def teacher(self) -> Denoiser | None:
        """The teacher of a distillation. None for a run that trains a teacher."""
        return self.weights.teacher

    @property
    def images(self) -> int:
        """The number of images that the model was trained on."""
        return self.weights.images

    @property
    def average(self) -> str:
        """The kind of average that the model is, in words."""
        return self.weights.average

    @property
    def generator(self) -> Generator:
        """The one-step generator. Raises UserError for a run that trains a teacher."""
        if not isinstance(self.model, Generator):
            why = "its teacher/ is a diffusers folder already; export takes distillations"
            raise UserError(f"'{self.folder}' trains a teacher: {why}")
        return self.model

    @property
    def sampler(self) -> Sampler:
        """The sampler of the model: one evaluation of a generator, or the recipe's `sampler` of a teacher."""
        if isinstance(self.model, Generator):
            return make_sampler(self.model, self.run)
        return make_sampler(sampled_teacher(self.run, self.model, self.guides), self.run)

    @property
    def teacher_sampler(self) -> Sampler | None:
        """The sampler of the teacher, by the recipe's `sampler`. None for a teacher's run."""
        return None if self.target is None else make_sampler(self.target, self.run)

    @cached_property
    def target(self) -> GuidableDenoiser | None:
        """The teacher, guided by the sampler, or else by the objective. None without one."""
        return None if self.teacher is None else sampled_teacher(self.run, self.teacher, self.guides)

    @cached_property
    def guides(self) -> dict[str, Denoiser]:
        """The further networks by which the sampler, or else the objective, guides the teacher, by name.

        Raises UserError if one of them is missing, or does not go with the teacher.
        """
        guidance, folders = self.run.sampler.guidance, dict[str, str]()
        if guidance is not None and guidance.weak_teacher is not None:
            folders = {WEAK_TEACHER: guidance.weak_teacher}
        elif guidance is None and isinstance(self.run, Run):
            folders = self.run.objective.further_teachers()
        found = {name: self.context.copy().run(load_denoiser, folder) for name, folder in folders.items()}
        for name, other in found.items():
            if guidance is not None:
                guidance.check_weak(other, self.teacher or self.denoiser)
            elif isinstance(self.run, Run) and self.teacher is not None:
                self.run.objective.check_further_teacher(name, other, self.teacher)
        return {k: set_precision(v, self.run).to(self.device).requires_grad_(False) for k, v in found.items()}

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser in the model."""
        return self.model.denoiser if isinstance(self.model, Generator) else self.model

    @cached_property
    def source(self) -> Dataset:
        """The data as they were opened: pixels, prompts. Raises UserError if they are missing."""
        source = self.objects.data or self.run.data.load()
        if isinstance(self.run, Run) and self.teacher is not None:
            check_fit(self.teacher, self.run.teacher, source)
        return source

    @cached_property
    def dataset(self) -> Dataset:
        """The data as the teacher takes them, without images: labels, or embeddings of prompts."""
        reader = self.denoiser if self.teacher is None else self.teacher
        return DatasetEncoder.of(self.run, self.device).encode(self.source, reader, real=False)
