"""The hook that compares the generator's samples with the teacher's while a run trains (docs/health.md)."""

import math
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.generator import Generator
from distill.guidance import GuidedDenoiser
from distill.metrics.sample_statistics import compare_samples
from distill.objectives import Denoisers
from distill.random import Random
from distill.samplers import Heun
from distill.saved_files import load_tensors, tensor_bytes
from trainers.data.batches import preview_conditions, unit_noise
from trainers.data.labels import captions
from trainers.engine.collectives import on_main_process
from trainers.engine.sampler import Sampler, make_sampler, sampled_teacher
from trainers.engine.session import Session
from trainers.engine.stopping import STOP
from trainers.hooks.alarms import HEALTH_RULES, Alarms
from trainers.hooks.hook import Hook
from trainers.hooks.samples import layout
from trainers.hooks.trackers import log_numbers, log_picture
from trainers.io.atomic import atomic_file
from trainers.io.console import plain, tolerate_disk_errors
from trainers.io.images import free_decoder, grid, to_images
from trainers.io.jsonl import append, read
from trainers.recipe.run import Run

LINES, REFERENCE, BESIDE = "health.jsonl", "health.safetensors", "comparison.png"
SHOWN_PAIRS = 3  # pairs of rows of comparison.png at most
# Comparisons of a run at most, where the recipe does not say how often it compares. An alarm that needs three of them
# then comes in the first 5 % of a run of 100,000 images.
POINTS = 100
# Samples of a comparison, where the recipe does not say how many: this many, if they have fewer elements in all, and if
# the teacher makes one for that many images of the run. Its 35 evaluations of each then take 5 % of the run.
MOST_SAMPLES, ELEMENTS, IMAGES_A_SAMPLE = 256, 2**24, 64
JUDGED = 64  # samples of a comparison at least, for its numbers to raise alarms
GROUPS = 16  # conditions of a comparison at most, so that each has several samples


class CompareSamples(Hook):
    """A hook that compares samples of the student with those of the teacher, on the same noise and conditions.

    The student is the averaged generator, which does not swing as the generator itself does in healthy runs. It is the
    generator itself where the average follows too late to show a failure. The samples are compared as the networks make
    them, hence latents as latents. Each comparison writes a line of health.jsonl. The teacher's samples are made once,
    and kept in health.safetensors.

    Args:
        session: The run at work, a distillation.
        folder: The run folder.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self.run, self.folder, shape = cast(Run, session.run), folder, session.dataset.shape
        settings, classes = self.run.health, session.dataset.classes
        most = min(MOST_SAMPLES, ELEMENTS // math.prod(shape), self.run.images // IMAGES_A_SAMPLE)
        self.count = settings.samples or max(4, most)
        # A comparison costs as many forwards as it has samples. A fourth of them are trained on in between.
        self.every = max(self.run.images // POINTS, 4 * self.count) if settings.every is None else settings.every
        ema = self.run.ema
        self.averaged = ema.half_life <= self.every or ema.ramp_up > 0
        wanted = classes or (session.dataset.count if session.dataset.prompts is not None else 1)
        self.groups = min(wanted, GROUPS, self.count // 2)
        self.teacher: Tensor | None = None  # on the main process
        self.ready = False
        records = read(folder / LINES) if session.accelerator.is_main_process and self.every else []
        self.alarms = Alarms(HEALTH_RULES if self.count >= JUDGED else (), records)

    def start(self, session: Session) -> None:
        """Compare the samples before training. Collective."""
        if self.every and session.state.images == 0:
            self(session)

    def __call__(self, session: Session) -> None:
        if not self.ready:
            self._prepare(session)
        student = session.model if self.averaged else session.state.players["generator"].bare
        samples = self._draw(session, make_sampler(cast(Generator, student), self.run))
        if self.teacher is None:
            return
        at = f"the health at {session.state.images:,} images is"
        if not (samples.isfinite().all() and self.teacher.isfinite().all()):
            plain(stderr=True).print(f"{at} not measured: samples are not finite", style="yellow")
            return
        numbers = compare_samples(samples, self.teacher, torch.arange(self.count) % self.groups)
        first = self.alarms.lines[0] if self.alarms.lines else numbers
        if first["distance"] > 0:
            numbers["ratio"] = numbers["distance"] / first["distance"]
        record = self.alarms.judge({"images": session.state.images, **numbers})
        log_numbers(session.accelerator, {f"health/{key}": value for key, value in numbers.items()}, record["images"])
        with tolerate_disk_errors(at):
            append(self.folder / LINES, record)
            self._draw_beside(session, samples, self.teacher)

    def _prepare(self, session: Session) -> None:
        """Load the teacher's samples, or make and keep them. Collective."""
        file, accelerator = self.folder / REFERENCE, session.accelerator
        nets = cast(Denoisers, session.nets)
        target = sampled_teacher(self.run, nets.teacher, nets.frozen)
        scale = target.scale if isinstance(target, GuidedDenoiser) else 1
        by = "" if self.run.sampler == Heun() else f" by {self.run.sampler}"
        # A resume with another teacher, seed, guidance or sampler does not take these samples for its own.
        name = f"{session.teacher_hash} seed {self.run.seed} scale {scale:g} of {self.groups}{by}"
        shape = self.count, *session.dataset.shape

        def load() -> bool:
            """Load the samples of the file, if it holds those that are wanted."""
            try:
                found = load_tensors(file).get(name)
            except (OSError, SafetensorError):
                return False
            if found is not None and found.shape == shape:
                self.teacher = found.clone()  # from the mapped file, which may be replaced
            return self.teacher is not None

        if not on_main_process(accelerator, load):
            samples = self._draw(session, make_sampler(cast(Denoiser, target), self.run))
            if accelerator.is_main_process:
                self.teacher = samples
                with tolerate_disk_errors(f"'{file}' is"), atomic_file(file) as staging:
                    staging.write_bytes(tensor_bytes({name: samples}))
        self.ready = True

    def _draw_beside(self, session: Session, student: Tensor, teacher: Tensor) -> None:
        """Draw comparison.png: pairs of rows, the teacher's samples above those of the student. Columns are conditions.

        Latents that cannot be decoded are drawn by their first channels.
        """
        most, high = layout(session)
        columns = min(most, self.groups if self.groups > 1 else self.count)
        stride = self.groups if self.groups > 1 else columns
        pairs = max(1, min(SHOWN_PAIRS, high // 2, self.count // stride))
        rows = [torch.arange(columns) + row * stride for row in range(pairs)]
        chosen = torch.stack([samples[row] for row in rows for samples in (teacher, student)]).flatten(0, 1)
        device = session.accelerator.device
        images = to_images(chosen.to(device), session.model)
        free_decoder(session.model)
        names = captions(
            self._conditions(session, torch.arange(columns, device=device)).labels, session.source.class_names
        )
        picture = grid(images, columns, captions=names)
        with atomic_file(self.folder / BESIDE) as staging:
            picture.save(staging, "PNG")
        log_picture(session.accelerator, "teacher above student", picture, session.state.images)

    def _draw(self, session: Session, sampler: Sampler) -> Tensor:
        """Draw the samples [N, C, *spatial] of a comparison, float32 on the CPU. Collective: the ranks divide them."""
        accelerator, dataset = session.accelerator, session.dataset
        share, parts = -(-self.count // accelerator.num_processes), []
        first = accelerator.process_index * share
        # Every rank draws as many samples, so that all reach the same polls and the same forwards of sharded networks.
        # The last ranks may draw a few too many. No more at once than a micro-batch has, which memory is known to hold.
        for numbers in torch.arange(first, first + share, device=accelerator.device).split(session.batches.size):
            STOP.poll()
            noise = unit_noise(dataset.shape, Random.at(self.run.seed, numbers).stream("health"))
            parts.append(sampler(noise, self._conditions(session, numbers)).float())
        return cast(Tensor, accelerator.gather(torch.cat(parts))).cpu()[: self.count]

    def _conditions(self, session: Session, numbers: Tensor) -> Condition:
        """Return the conditions of samples: classes at equal distances or the first prompts, in turn."""
        columns = numbers % self.groups
        classes = session.dataset.classes
        return preview_conditions(session.dataset, columns * classes // self.groups if classes else columns)
