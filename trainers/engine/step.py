"""One training step, on one screen."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.denoiser import Condition
from distill.objectives import Batch, Denoisers
from trainers.data.batches import Batches
from trainers.engine.backprop import BACKPROP, Joint
from trainers.engine.player import Player, TrainState
from trainers.engine.sharding import average_replicated, clip, total_norm
from trainers.recipe.run import Experiment, Run

Terms = dict[str, Tensor]


def distillation_step(run: Run, state: TrainState, nets: Denoisers, batches: Batches, acc: Accelerator) -> None:
    """One round: the fake denoiser catches up with the generator, then the generator moves.

    `nets` holds the bare networks; a phase trains through the wrapper of the one player it updates.
    """
    generator, graph = state.players["generator"], BACKPROP[run.backprop]()
    moves = run.objective.trains_generator(state.images)
    reused: list[tuple[Batch, Tensor]] = []

    def draw(player: str, first: int, micro: int) -> Batch:
        batch = batches.micro(player, first, micro)
        return replace(batch, images=state.images, mean=partial(global_mean, acc), note=state.meter.note)

    # 1. fake: learn E[x0 | x_t] of what the generator makes now
    def fake_loss(first: int, micro: int) -> Terms:
        if reused:
            batch, x = reused[0][0], reused[0][1][: len(reused[0][0].noise)]
        else:
            batch = draw("fake", first, micro)
            with torch.no_grad():
                x = generator.bare(batch.noise, batch.cond)
        training = replace(nets, fake=state.players["fake"].module)
        return run.objective.fake_loss(training, x.detach(), batch)

    for k in range(run.fake_updates if run.objective.trains_fake else 0):
        if run.reuse_samples and moves and k == run.fake_updates - 1:
            batch = draw("generator", state.images, 0)
            seed_dropout("generator", run, state, acc)
            with generator.training():
                reused = [(batch, generate(generator.module, batch, run))]
        first = state.images * run.fake_updates + k * run.batch_size
        update(state.players["fake"], partial(fake_loss, first), f"fake {k}", run, state, acc)

    # 2. generator: descend the objective; teacher and fake are frozen but differentiable in x
    def generator_loss(micro: int) -> Terms:
        if reused:
            batch, made = reused[0]
        else:
            batch = draw("generator", state.images, micro)
            made = generate(generator.module, batch, run)
        x = graph.cut(made)
        if batch.pairs is not None:
            pairs = len(batch.pairs.noise)
            x, ends = x.split([len(x) - pairs, pairs])
            batch = replace(batch, pairs=replace(batch.pairs, made=ends))
        terms = run.objective.generator_loss(graph.through(nets), x, batch)
        if len(terms) > 1 and run.logs_after(state.images):  # which term leads, seldom: it costs a backward for each
            for name, term in terms.items():
                state.meter.note(f"{name}_at_x", graph.gradient(term.sum()).flatten(1).norm(dim=1))
        return terms

    if moves:
        update(generator, generator_loss, "generator", run, state, acc, graph)


def generate(generator: nn.Module, batch: Batch, run: Run) -> Tensor:
    """Samples [B, ...] for the batch, unless the objective looks at none, then those for the noise of its ODE pairs
    [P, ...]: one forward for both."""
    if batch.pairs is None:
        return cast(Tensor, generator(batch.noise, batch.cond))
    if not run.objective.uses_samples:
        return cast(Tensor, generator(batch.pairs.noise, batch.pairs.cond))
    noise = torch.cat([batch.noise, batch.pairs.noise])
    return cast(Tensor, generator(noise, joined(batch.cond, batch.pairs.cond)))


def joined(one: Condition, other: Condition) -> Condition:
    """Two conditions of one kind, [A, ...] and [B, ...], as one [A + B, ...]."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return {name: torch.cat([one[name], other[name]]) for name in one}
    return torch.cat([one, other]) if isinstance(one, Tensor) and isinstance(other, Tensor) else None


@torch.no_grad()
def global_mean(acc: Accelerator, values: Tensor) -> Tensor:
    """The mean over the samples [B, ...] of all ranks."""
    return cast(Tensor, acc.reduce(values.detach().mean(0), "mean"))


def update(
    player: Player,
    loss: Callable[[int], Terms],
    phase: str,
    run: Experiment,
    state: TrainState,
    acc: Accelerator,
    graph: Joint | None = None,
) -> None:
    """Accumulate the gradient of `loss` over the micro-batches and step `player`; all others stay frozen."""
    seed_dropout(phase, run, state, acc)
    with player.training():
        for micro in range(run.micro_batches):
            last = micro == run.micro_batches - 1
            with nullcontext() if last else acc.no_sync(player.module):  # DDP talks once, in the last backward
                terms = loss(micro)
                total = torch.stack([term.mean() for term in terms.values()]).sum() / run.micro_batches
                # A non-finite loss makes every gradient non-finite, so that all ranks see it after the all-reduce.
                (graph or Joint()).backward(total * (1 + 0 * total.detach()))
            for name, term in terms.items():
                state.meter.add(f"{player.name}/{name}", term)
        gradients = [p.grad for p in player.parameters if p.grad is not None]
        average_replicated(gradients)
        norm = total_norm(gradients)
        if run.max_grad_norm is not None:
            clip(gradients, run.max_grad_norm, norm)
        player.step(norm, player.learning_rate(state.images, run.images))
    state.meter.add(f"{player.name}/grad_norm", norm)


def seed_dropout(phase: str, run: Experiment, state: TrainState, acc: Accelerator) -> None:
    """Dropout is the only user of torch's global generator: its masks follow from the position in the run."""
    torch.manual_seed(zlib.crc32(f"{run.seed} {state.images} {phase} {acc.process_index}".encode()))
