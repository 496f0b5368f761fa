"""One training step, on one screen."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.objectives import Batch, Denoisers
from trainers.data.batches import Batches
from trainers.run import Experiment, Run
from trainers.state import Player, TrainState

Terms = dict[str, Tensor]


def distillation_step(run: Run, state: TrainState, nets: Denoisers, batches: Batches, acc: Accelerator) -> None:
    """One round: the fake denoiser catches up with the generator, then the generator moves.

    `nets` holds the bare networks; a phase trains through the wrapper of the one player it updates.
    """
    generator, fake = state.players["generator"], state.players["fake"]
    training_fake = Denoisers(nets.path, nets.teacher, fake.module)
    reused: list[tuple[Batch, Tensor]] = []

    # 1. fake: learn E[x0 | x_t] of what the generator makes now
    def fake_loss(first: int, micro: int) -> Terms:
        if reused:
            batch, x = reused[0]
        else:
            batch = batches.micro("fake", first, micro)
            with torch.no_grad():
                x = generator.bare(batch.noise, batch.cond)
        return run.objective.fake_loss(training_fake, x.detach(), batch)

    for k in range(run.fake_updates):
        if run.reuse_samples and k == run.fake_updates - 1:
            batch = batches.micro("generator", state.images, 0)
            seed_dropout("generator", run, state, acc)
            with generator.training():
                reused = [(batch, generator.module(batch.noise, batch.cond))]
        first = state.images * run.fake_updates + k * run.batch_size
        update(fake, partial(fake_loss, first), f"fake {k}", run, state, acc)

    # 2. generator: descend the objective; teacher and fake are frozen but differentiable in x
    def generator_loss(micro: int) -> Terms:
        if reused:
            batch, x = reused[0]
        else:
            batch = batches.micro("generator", state.images, micro)
            x = generator.module(batch.noise, batch.cond)
        return run.objective.generator_loss(nets, x, batch)

    update(generator, generator_loss, "generator", run, state, acc)


def update(
    player: Player, loss: Callable[[int], Terms], phase: str, run: Experiment, state: TrainState, acc: Accelerator
) -> None:
    """Accumulate the gradient of `loss` over the micro-batches and step `player`; all others stay frozen."""
    seed_dropout(phase, run, state, acc)
    with player.training():
        for micro in range(run.micro_batches):
            last = micro == run.micro_batches - 1
            with nullcontext() if last else acc.no_sync(player.module):  # ranks talk once, in the last backward
                terms = loss(micro)
                total = torch.stack([term.mean() for term in terms.values()]).sum() / run.micro_batches
                # A non-finite loss makes every gradient non-finite, so that all ranks see it after the all-reduce.
                (total * (1 + 0 * total.detach())).backward()
            for name, term in terms.items():
                state.meter.add(f"{player.name}/{name}", term)
        norm = torch.nn.utils.get_total_norm([p.grad for p in player.parameters if p.grad is not None])
        if run.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(player.parameters, run.max_grad_norm, norm)
        player.step(norm, player.learning_rate(state.images, run.images))
    state.meter.add(f"{player.name}/grad_norm", norm)


def seed_dropout(phase: str, run: Experiment, state: TrainState, acc: Accelerator) -> None:
    """Dropout is the only user of torch's global generator: its masks follow from the position in the run."""
    torch.manual_seed(zlib.crc32(f"{run.seed} {state.images} {phase} {acc.process_index}".encode()))
