"""Sessions at the published sizes of the papers' teachers, with random weights and random conditions.

No file of weights, images or prompts is read: the networks are built from the published configs, and a batch has
embeddings of the right shapes in place of those of prompts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.objectives import Batch
from distill.random import Random
from distill.teachers import load_denoiser
from tests.published_sizes import TEACHERS
from trainers.data import Dataset
from trainers.data.batches import Batches, BatchSizes
from trainers.engine.networks import set_precision
from trainers.engine.session import Session
from trainers.engine.world import choose_kernels
from trainers.plan.trace import example
from trainers.recipe.run import Run
from trainers.runs.distillation import assemble
from trainers.runs.open import follow_teacher


class RandomBatches(Batches):
    """Batches of noise, random real samples and one condition for all.

    Attributes:
        example: The condition [1, ...].
    """

    example: Condition

    def micro(self, stream: str, first: int, micro: int) -> Batch:
        """Return a micro-batch."""
        shape, index = (self.size, *self.dataset.shape), torch.arange(first, first + self.size)
        noise = torch.randn(shape, device=self.device, dtype=self.dtype)
        cond = self.example.map(lambda value: value.expand(self.size, *value.shape[1:]).to(self.device))
        real = torch.randn_like(noise) if self.real else None
        return Batch(noise, Random.at(self.seed, index, self.device).stream(stream), cond, real)


def published_folder(run: Run, folder: Path) -> str:
    """Write the configs of a recipe's teacher into a folder, without weights, and return the teacher's folder."""
    place = folder / Path(run.teacher).name
    if not place.exists():
        TEACHERS[place.name](place)
    return str(place)


@torch.no_grad()
def fill(network: nn.Module, device: torch.device) -> None:
    """Move a network without values to a device, and give it small random ones. On the meta device it has none."""
    network.to_empty(device=device)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.normal_(0, 0.02)
        else:
            tensor.zero_()


def shape_session(run: Run, accelerator: Accelerator) -> Session:
    """Return a session of a recipe whose teacher's folder may have no weights, which are random in any case.

    Args:
        run: The recipe. Neither its data nor its start are opened.
        accelerator: The device, which may be the meta device.
    """
    if accelerator.device.type == "cuda":
        choose_kernels(run)
    teacher: Denoiser = set_precision(load_denoiser(run.teacher, weights=False), run)
    fill(teacher, accelerator.device)
    run, _ = follow_teacher(replace(run, start=None), teacher)
    dataset = Dataset("random", 1, teacher.network.shape, None, None)
    sizes, real = BatchSizes(run.batch_size, run.micro_batches), "real" in run.objective.needs
    batches = RandomBatches(dataset, sizes, run.seed, run.dtype, real, 0, 1, accelerator.device)
    batches.example = example(teacher, run)
    casts = run.precision == "bfloat16" and teacher.network.casts_weights
    low = frozenset(name for name, _ in teacher.named_parameters()) if casts else frozenset[str]()
    if teacher.network.null is not None:
        teacher.network.null = teacher.network.null.to(accelerator.device, run.dtype)
    session = assemble(run, accelerator, teacher, dataset, batches, {}, low)
    session.state.images = run.images // 2 // run.batch_size * run.batch_size  # every term of the objective has begun
    return session


def shortened_recipe(run: Run, **changes: Any) -> Run:
    """Return a recipe on one process that never comes to a log point, with the given changes."""
    alone: dict[str, Any] = {"sharding": None, "log_every": 10**12, "fake_warmup": 0, "start": None, "micro_batches": 1}
    alone |= {"compile": False}
    return replace(run, **{**alone, **changes})
