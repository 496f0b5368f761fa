"""A teacher or an exported generator that is sampled without a run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.export import load_generator
from distill.export.export import CHECK
from distill.export.to_safetensors import GENERATOR_FILE
from distill.generator import Generator
from distill.pipeline_folder import INDEX
from distill.samplers import Guidance, Sampler
from distill.teachers import DESCRIPTION, download, load_denoiser
from trainers.data import Dataset
from trainers.data.cache import DEFAULT_CACHE
from trainers.data.encode import DatasetEncoder
from trainers.engine.networks import set_precision
from trainers.engine.sampler import WEAK_TEACHER, make_sampler, sampled_teacher
from trainers.engine.sampler import Sampler as DrawFunction
from trainers.engine.world import default_device
from trainers.io.images import denoiser_of
from trainers.recipe.changes import DRAWN, change_alone
from trainers.recipe.load import RUN_FILE
from trainers.recipe.measures import Asked
from trainers.recipe.run import DataAlone, Experiment
from trainers.recipe.strict_yaml import build, override
from trainers.recipe.words import data_settings
from trainers.runs.compare import compare
from trainers.runs.load import Trained, load_trained
from trainers.runs.model_statistics import with_statistics
from trainers.runs.open import check_fit

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Drawing(Experiment):
    """The settings of samples that no run says."""


@dataclass(eq=False)
class BareModel:
    """A teacher or a generator without a run. It has the part of a TrainedModel that samples are drawn from.

    Attributes:
        folder: The folder that it was loaded from.
        model: The model, on its device.
        device: The device.
        run: The sampler, the protocol, and the precision of the samples.
        teacher: None, as the other attributes of a TrainedModel that only runs have.
        data: The data, as a command line names them. None for none.
    """

    folder: Path
    model: Generator | Denoiser
    device: torch.device
    run: Drawing

    teacher: Denoiser | None = None
    teacher_sampler: DrawFunction | None = None
    target: None = None
    images: int = 0
    average: str = "as it was loaded"
    data: str | None = None

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser in the model."""
        return self.model.denoiser if isinstance(self.model, Generator) else self.model

    @cached_property
    def sampler(self) -> DrawFunction:
        """The sampler of the model, under the guidance of the run's."""
        if isinstance(self.model, Generator):
            return make_sampler(self.model, self.run)
        guidance, further = self.run.sampler.guidance, {}
        if guidance is not None and guidance.weak_teacher is not None:
            weak = set_precision(load_denoiser(guidance.weak_teacher), self.run).to(self.device).requires_grad_(False)
            guidance.check_weak(weak, self.model)
            further = {WEAK_TEACHER: weak}
        return make_sampler(sampled_teacher(self.run, self.model, further), self.run)

    def evaluate(
        self, samples: int | None = None, student_only: bool = False, **asked: Unpack[Asked]
    ) -> dict[str, Any]:
        """Compare the model with the real images of `data`. Arguments and result are those of `Trained.evaluate`."""
        settings = self.run.evaluation.asked(samples, **asked)
        return compare(self, settings, student_only, write=False)

    @cached_property
    def source(self) -> Dataset:
        """The data as they were opened: pixels, prompts. Raises UserError if there are none."""
        if self.data is None:
            raise UserError(f"data: '{self.folder}' is no run and has no data of its own; name some by --data")
        words = data_settings(self.data, self.denoiser.network, self.folder)
        dataset = build(DataAlone, {"data": words}, "--data").data.load()
        check_fit(self.denoiser, str(self.folder), dataset)
        return dataset

    @cached_property
    def dataset(self) -> Dataset:
        """The data as the model takes them, without images. Raises UserError if there are none."""
        if self.data is None:
            raise UserError(f"prompts: '{self.folder}' has no prompts of its own; give some")
        return DatasetEncoder.of(self.run, self.device).encode(self.source, self.denoiser, real=False)


def open_model(place: str, which: str = "last", changes: Mapping[str, Any] | None = None) -> Trained | BareModel:
    """Open what samples can be drawn of.

    Args:
        place: A run folder, a teacher's folder or that of a pipeline, an export as safetensors, or the id of a pipeline
            on the hub.
        which: The weights of a run, as for `load_trained`.
        changes: Other values of DRAWN, and where the teacher and the data of a run lie now.

    Raises:
        UserError: There is no such model, or it can only be called by other software.
    """
    folder = Path(place)
    if not folder.is_dir() and HUB_ID.fullmatch(place) and not folder.parent.is_dir():
        folder = download(place)
    if not _is_bare(folder):
        return load_trained(folder, which, changes=changes or {})
    run = change_alone(Drawing(name="samples", images=1, batch_size=1), changes or {}, DRAWN, f"'{folder}'")
    model: Generator | Denoiser
    if (folder / GENERATOR_FILE).is_file():
        model = load_generator(folder)
    elif (folder / CHECK).is_file():
        raise UserError(
            f"'{folder}': this export is for other software, and its README.md says how to call it; export it as"
            " safetensors to draw its samples here"
        )
    else:
        model = load_denoiser(folder)
    set_precision(denoiser_of(model), run)
    device = default_device()
    model.to(device).requires_grad_(False).eval()
    return BareModel(folder, model, device, run)


def _is_bare(folder: Path) -> bool:
    """Return whether a folder is that of a model without a run."""
    if (folder / RUN_FILE).is_file() or not folder.is_dir():
        return False
    return any((folder / name).is_file() for name in (DESCRIPTION, INDEX, GENERATOR_FILE, CHECK))


@dataclass(frozen=True)
class SamplerWords:
    """The words of a command line on a sampler. None stands for what is not said.

    Attributes:
        sampler: The name of a sampler, or a mapping in YAML as in a recipe.
        evaluations: The number of evaluations.
        cfg: The scale of classifier-free guidance.
        cfg_interval: The noise-to-signal ratios at which it guides.
        cfg_rescale: The share of its rescaled output.
        negative_prompt: The null condition of a teacher of prompts.
    """

    sampler: str | None = None
    evaluations: int | None = None
    cfg: float | None = None
    cfg_interval: tuple[float, float] | None = None
    cfg_rescale: float | None = None
    negative_prompt: str | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was said."""
        return self == SamplerWords()

    def apply(self, default: Sampler) -> Sampler:
        """Return the sampler that was asked for, with the settings of `default` where nothing was said.

        Raises:
            UserError: There is no such sampler, or a setting is wrong.
        """
        method = default
        if self.sampler is not None:
            words = override({}, [f"sampler={self.sampler}"])["sampler"]
            method = build(Sampler, words, "--sampler")
            method = method if method.guidance is not None else replace(method, guidance=default.guidance)
        if self.evaluations is not None:
            method = replace(method, evaluations=self.evaluations)
        guidance = method.guidance
        if self.cfg is not None:
            guidance = Guidance(cfg=self.cfg) if guidance is None else replace(guidance, cfg=self.cfg)
        elif guidance is None and (self.cfg_interval, self.cfg_rescale) != (None, None):
            raise UserError("--cfg-interval, --cfg-rescale: go with --cfg, the scale")
        if guidance is not None and self.cfg_interval is not None:
            guidance = replace(guidance, interval=self.cfg_interval)
        if guidance is not None and self.cfg_rescale is not None:
            guidance = replace(guidance, rescale=self.cfg_rescale)
        return replace(method, guidance=guidance)


def set_sampler(opened: Trained | BareModel, words: SamplerWords, teacher: bool, cache: str = DEFAULT_CACHE) -> None:
    """Let a model that was opened be sampled as a command line says, and check that it can be.

    Args:
        opened: The model.
        words: What the command line says.
        teacher: Whether the teacher of a run is sampled.
        cache: The folder where the statistics of a teacher are kept, which DPM-Solver-v3 needs.

    Raises:
        UserError: A generator would be sampled, which takes one evaluation, or the sampler cannot sample the model.
    """
    if words.empty:
        return
    sampled = opened.teacher if teacher else opened.model
    if not isinstance(sampled, Denoiser):
        raise UserError("--sampler: a generator takes one evaluation and no guidance; --teacher samples its teacher")
    method = words.apply(opened.run.sampler)
    if method.guidance is not None and sampled.network.text_encoder is None:
        method.guidance.check(sampled)
    method = with_statistics(method, sampled, cache, opened.device)
    method.check(sampled.path)
    method.check_shape(sampled.network.shape)
    changes: dict[str, Any] = {"sampler": method}
    if words.negative_prompt is not None:
        if sampled.network.text_encoder is None:
            raise UserError("--negative-prompt: the teacher takes no prompts")
        changes["negative_prompt"] = words.negative_prompt
    opened.run = replace(opened.run, **changes)
