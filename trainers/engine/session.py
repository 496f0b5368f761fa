"""A session: the data, networks, optimizers and state of a run at work, built once from its recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from distill.denoiser import Denoiser
from distill.generator import Generator
from distill.objectives import Denoisers
from trainers.data import Dataset
from trainers.data.batches import Batches
from trainers.engine.player import TrainState
from trainers.engine.sampler import Sampler
from trainers.recipe.run import Experiment


@dataclass
class Session:
    """A run at work.

    Attributes:
        run: The recipe.
        accelerator: Ranks, device and collectives.
        dataset: The data as the teacher takes them: latents, embeddings of prompts.
        source: The data as they were opened: pixels, prompts.
        batches: The micro-batches of this rank.
        state: Everything that training changes.
        update_players: Makes one round of updates, when `trainers.engine.step.advance` calls it.
        model: The averaged network that the run is about, a Generator or a Denoiser.
        sampler: The sampler of `model`.
        nets: The networks that the objective sees. None where a teacher trains.
        teacher: The frozen teacher. None where a teacher trains.
        teacher_hash: The hash that identifies the teacher in checkpoints. None where a teacher trains.
        is_teacher: Returns whether a hash in a checkpoint is that of the teacher, in today's form or an older one.
            Collective.
        measured: The line of metrics.jsonl of the newest evaluation, on the main process. Empty before the first one.
        hook_seconds: The time that hooks have taken so far.
        ended: The reason, in words, for which the run ends before its last image. None while it goes on.
        finish: Writes the files that a finished run leaves beside its checkpoints. The main process calls it.
    """

    run: Experiment
    accelerator: Accelerator
    dataset: Dataset
    source: Dataset
    batches: Batches
    state: TrainState
    update_players: Callable[[Session], None]
    model: Generator | Denoiser
    sampler: Sampler
    nets: Denoisers | None = None
    teacher: Denoiser | None = None
    teacher_hash: str | None = None
    is_teacher: Callable[[str | None], bool] = lambda stored: stored is None  # of a run that trains a teacher
    measured: Mapping[str, Any] = field(default_factory=dict)
    hook_seconds: float = 0.0
    ended: str | None = None
    finish: Callable[[Session, Path], None] = lambda session, folder: None  # nothing to write

    def networks(self) -> list[nn.Module]:
        """Return the networks that a round of training calls: the players, the teacher, and further frozen ones."""
        frozen = () if self.nets is None else self.nets.frozen.values()
        found = [player.bare for player in self.state.players.values()]
        return [*found, *(() if self.teacher is None else (self.teacher,)), *frozen]
