"""One training step, on one screen. Read `distillation_round` first."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, autograd
from torch.nn.utils import get_total_norm

from distill.objectives import Batch, Denoisers
from trainers.engine.backprop import OneByOne
from trainers.engine.session import Session
from trainers.engine.sharding import clip, total_norm
from trainers.recipe.run import Run

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Made:
    """A batch and what the generator made of it: samples [B, ...], then those [P, ...] of its ODE pairs."""

    batch: Batch
    samples: Tensor


def advance(session: Session) -> None:
    """Advance a run by one round: update its players, move its averages, count its images."""
    session.update_players(session)
    session.state.average(session.run.batch_size)


def distillation_round(session: Session) -> None:
    """Update the players of a distillation: the fake catches up with the generator, then the generator moves."""
    run, state = cast(Run, session.run), session.state
    nets = replace(cast(Denoisers, session.nets), images=state.images)
    moves = run.objective.trains_generator(state.images)
    made: Made | None = None  # with a graph, where both phases use the same samples

    # 1. The fake learns E[x0 | x_t] of what the generator makes now.
    for k in range(run.fake_updates if run.objective.trains_fake else 0):
        if run.reuse_samples and moves and k == run.fake_updates - 1:
            made = make_for_both(session)
        first = state.images * run.fake_updates + k * run.batch_size
        update(session, "fake", f"fake {k}", partial(fake_terms, session, nets, first, made))

    # 2. The generator descends the objective. Teacher and fake are frozen but differentiable in x.
    if moves:
        graph = OneByOne() if run.backprop == "one_by_one" else None
        update(session, "generator", "generator", partial(generator_terms, session, nets, made, graph), graph)


def fake_terms(session: Session, nets: Denoisers, first: int, made: Made | None, micro: int) -> Terms:
    """Return the fake's loss terms on what the generator makes, without a graph into the generator.

    A phase trains through the wrapper of the one player that it updates; all other uses call the bare network, so that
    no reducer waits for gradients that never come.
    """
    run, players = cast(Run, session.run), session.state.players
    if made is not None:
        batch = made.batch
        x = made.samples[: len(batch.noise)].detach()
    else:
        batch = session.batches.micro("fake", first, micro)
        with torch.no_grad():
            x = players["generator"].bare(batch.noise, batch.cond)
    return run.objective.fake_loss(replace(nets, fake=players["fake"].module), x, batch)


def generator_terms(session: Session, nets: Denoisers, made: Made | None, graph: OneByOne | None, micro: int) -> Terms:
    """Return the generator's loss terms; their gradient comes back through `graph`, or by plain autograd."""
    run, state = cast(Run, session.run), session.state
    made = made or make(session, session.batches.micro("generator", state.images, micro))
    batch, x = made.batch, made.samples if graph is None else graph.cut(made.samples)
    if batch.pairs is not None:
        pairs = len(batch.pairs.noise)
        x, ends = x.split([len(x) - pairs, pairs])
        batch = replace(batch, pairs=replace(batch.pairs, made=ends))
    terms = run.objective.generator_loss(nets if graph is None else graph.through(nets), x, batch)
    # Which term leads is noted seldom, since it costs a backward pass for each term.
    if len(terms) > 1 and run.logs_after(state.images):
        for name, term in terms.items():
            loss = term.sum()
            at_x = autograd.grad(loss, made.samples, retain_graph=True)[0] if graph is None else graph.gradient(loss)
            state.meter.note(f"{name}_at_x", at_x.flatten(1).norm(dim=1))
    return terms


def make(session: Session, batch: Batch) -> Made:
    """Call the generator, through its wrapper, for a batch: one forward for its noise and that of its ODE pairs."""
    run, generator = cast(Run, session.run), session.state.players["generator"].module
    if batch.pairs is None:
        return Made(batch, generator(batch.noise, batch.cond))
    if not run.objective.uses_samples:
        return Made(batch, generator(batch.pairs.noise, batch.pairs.cond))
    noise = torch.cat([batch.noise, batch.pairs.noise])
    return Made(batch, generator(noise, batch.cond.cat(batch.pairs.cond)))


def make_for_both(session: Session) -> Made:
    """Return samples whose graph the generator's update uses after the fake's update has used their values."""
    seed_dropout(session, "generator")
    with session.state.players["generator"].training():
        return make(session, session.batches.micro("generator", session.state.images, 0))


def update(
    session: Session, name: str, phase: str, terms_of: Callable[[int], Terms], graph: OneByOne | None = None
) -> None:
    """Accumulate the gradient of the terms over the micro-batches and step one player; all others stay frozen.

    Args:
        session: The run at work.
        name: The player.
        phase: The name of the phase, from which the dropout masks follow.
        terms_of: (number of the micro-batch) -> its loss terms, [B] each.
        graph: How the gradient gets back to the player's weights; None for plain autograd.
    """
    run, meter, player = session.run, session.state.meter, session.state.players[name]
    seed_dropout(session, phase)
    with player.training():
        for micro in range(run.micro_batches):
            last = micro == run.micro_batches - 1
            # DDP communicates once, in the last backward: Accelerate's `accumulate` miscounts two alternating players.
            with nullcontext() if last else session.accelerator.no_sync(player.module):
                terms = terms_of(micro)
                total = torch.stack([term.mean() for term in terms.values()]).sum() / run.micro_batches
                # A non-finite loss makes every gradient non-finite, so that all ranks see it after the all-reduce.
                loss = total * (1 + 0 * total.detach())
                loss.backward() if graph is None else graph.backward(loss)
            for term, values in terms.items():
                meter.add(f"{name}/{term}", values)
        gradients = [p.grad for p in player.parameters if p.grad is not None]
        norm = total_norm(gradients) if player.sharded else get_total_norm(gradients)
        if run.max_grad_norm is not None:
            clip(gradients, run.max_grad_norm, norm)
        player.step(norm, player.learning_rate(session.state.images, run.images))
    meter.add(f"{name}/grad_norm", norm)


def seed_dropout(session: Session, phase: str) -> None:
    """Seed torch's global generator from the position in the run; dropout is its only user."""
    rank = session.accelerator.process_index
    torch.manual_seed(zlib.crc32(f"{session.run.seed} {session.state.images} {phase} {rank}".encode()))


@torch.no_grad()
def global_mean(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Return the mean over the samples [B, ...] of all ranks, by one all-reduce of the mean of this rank."""
    return cast(Tensor, accelerator.reduce(values.detach().mean(0), "mean"))
