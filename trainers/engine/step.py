"""One training step, on one screen. Read `distillation_round` first."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial, reduce
from itertools import count
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor, autograd
from torch.nn.utils import get_total_norm

from distill.augmentation import Augmentation
from distill.compilation import fused
from distill.conditions import AUGMENT, Condition
from distill.objectives import Batch, Denoisers
from trainers.data.read_ahead import Request
from trainers.engine.backprop import OneByOne
from trainers.engine.player import TrainState
from trainers.engine.session import Session
from trainers.engine.sharding import clip, total_norm
from trainers.recipe.run import Run

Terms = dict[str, Tensor]


class Made(NamedTuple):
    """A batch, and the generator's samples for it.

    Attributes:
        batch: The batch.
        samples: [B + P, *shape] with their graph: the samples for the noise of the batch, then those for its ODE pairs.
    """

    batch: Batch
    samples: Tensor

    def again(self, k: int) -> "Made":
        """Return the same samples with the random numbers of fake update `k`, for times and noise of its own."""
        return self._replace(batch=replace(self.batch, random=self.batch.random.stream(f"fake {k}")))


def advance(session: Session) -> None:
    """Advance a run by one round: update its players, move its averages, count its images. Collective."""
    session.update_players(session)
    session.state.meter.flush()
    session.state.average(session.run.batch_size)


def distillation_round(session: Session) -> None:
    """Update the players of a distillation: the fake follows the generator, then the generator moves. Collective."""
    run, state, pace = cast(Run, session.run), session.state, session.state.pace
    nets = replace(cast(Denoisers, session.nets), images=state.images)
    moves = run.objective.trains_generator(state.images)
    updates = most = cast(int, run.fake_updates)
    if pace is not None:  # the fake may warm up, or follow its errors
        moves, updates, most = moves and not pace.waits, pace.updates, run.most_fake_updates
    made: Made | None = None  # samples with their graph, where fake updates and the generator's share them

    # 1. The fake learns E[x0 | x_t] of the samples that the generator makes now.
    for k in range(updates if run.objective.trains_fake else 0):
        last = k == updates - 1
        if moves and shares_samples(run, last):
            made = made or make_for_both(session)
        # Each fake update has noise of its own, whatever their number in other rounds.
        first = state.images * most + k * run.batch_size
        taken = made if made is None or last else made.again(k)
        update(session, "fake", f"fake {k}", partial(fake_terms, session, nets, first, taken))

    # 2. The generator descends the objective. Teacher and fake are frozen but differentiable in x.
    if moves:
        graph = OneByOne() if run.backprop == "one_by_one" else None
        update(session, "generator", "generator", partial(generator_terms, session, nets, made, graph), graph)
    elif pace is not None and pace.compares:
        note_errors(session, nets)
    if pace is not None:
        pace.end_round(state.images + run.batch_size, moves or pace.compares, session.accelerator)


def upcoming(run: Run, state: TrainState) -> Iterator[Request]:
    """Yield the micro-batches that this round and the following ones ask for, without end.

    Workers read them ahead. A pace that changes later makes some of them wrong, which costs time alone.
    """
    pace = state.pace
    for images in count(state.images, run.batch_size):
        moves = run.objective.trains_generator(images) and not (pace is not None and pace.waits)
        updates = cast(int, run.fake_updates) if pace is None else pace.updates
        makes = moves or (pace is not None and pace.compares)
        for k in range(updates if run.objective.trains_fake else 0):
            if moves and shares_samples(run, k == updates - 1):
                if makes:
                    yield Request("generator", images, 0)
                makes = False  # the samples serve all further updates of the round
            else:
                first = images * run.most_fake_updates + k * run.batch_size
                yield from (Request("fake", first, micro) for micro in range(run.micro_batches))
        if makes:
            yield from (Request("generator", images, micro) for micro in range(run.micro_batches))


def shares_samples(run: Run, last: bool) -> bool:
    """Return whether a fake update, the last of its round or not, takes the samples of the generator's update."""
    return run.reuse_samples == "all" or (run.reuse_samples and last)


def fake_terms(session: Session, nets: Denoisers, first: int, made: Made | None, micro: int) -> Terms:
    """Return the fake's loss terms on samples of the generator, without a graph into the generator.

    Args:
        session: The run at work.
        nets: The networks that the objective sees.
        first: The first sample of the batch in the stream "fake".
        made: Samples to use in place of new ones.
        micro: The number of the micro-batch.
    """
    run, players = cast(Run, session.run), session.state.players
    if made is not None:
        batch = made.batch
        x = made.samples[: len(batch.noise)].detach()
    else:
        batch = session.batches.micro("fake", first, micro)
        with torch.no_grad():
            x = players["generator"].bare(batch.noise, batch.cond)
    if run.augmentation is not None:
        x, batch = augmented(run.augmentation, x, batch)
    # Each phase calls the player that it updates through its DDP wrapper, and all other networks bare. A wrapper that
    # is called but not updated would wait for gradients that never come.
    return run.objective.fake_loss(replace(nets, fake=players["fake"].module), x, batch)


def augmented(augmentation: Augmentation, x: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """Return the generator's samples [B, ...] and their batch as the fake sees them: both kinds of images transformed.

    Generated and real images have transformations of their own, of which the conditions tell the network.
    """
    random = batch.random.stream("augmentation")
    x, labels = augmentation(x, random.stream("generated"))
    changes: dict[str, Any] = {"cond": Condition({**batch.cond, AUGMENT: labels})}
    if batch.real is not None:
        real, labels = augmentation(batch.real, random.stream("real"))
        changes |= {"real": real, "real_cond": Condition({**batch.cond, AUGMENT: labels})}
    return x, replace(batch, **changes)


def generator_terms(session: Session, nets: Denoisers, made: Made | None, graph: OneByOne | None, micro: int) -> Terms:
    """Return the generator's loss terms.

    Args:
        session: The run at work.
        nets: The networks that the objective sees.
        made: Samples to use in place of new ones.
        graph: Takes the gradient through the denoisers one by one. None for plain autograd.
        micro: The number of the micro-batch.
    """
    run, state = cast(Run, session.run), session.state
    made = made or make(session, session.batches.micro("generator", state.images, micro))
    batch, x = made.batch, made.samples if graph is None else graph.cut(made.samples)
    if batch.pairs is not None:
        pairs = len(batch.pairs.noise)
        x, ends = x.split([len(x) - pairs, pairs])
        batch = replace(batch, pairs=replace(batch.pairs, made=ends))
    terms = run.objective.generator_loss(nets if graph is None else graph.through(nets), x, batch)
    # How hard each term pulls at the samples. It costs a backward pass for each term, hence at log points alone.
    if len(terms) > 1 and run.logs_after(state.images) and torch.is_grad_enabled():
        for name, term in terms.items():
            loss = term.sum()
            at_x = autograd.grad(loss, made.samples, retain_graph=True)[0] if graph is None else graph.gradient(loss)
            state.meter.note(f"{name}_at_x", at_x.flatten(1).norm(dim=1))
    return terms


@torch.no_grad()
def note_errors(session: Session, nets: Denoisers) -> None:
    """Let the objective note the errors of fake and teacher on the generator's samples. Nothing trains. Collective."""
    # The losses change the objective's memory in place, which belongs to the updates alone.
    nets = replace(nets, memory={name: value.clone() for name, value in nets.memory.items()})
    for micro in range(session.run.micro_batches):
        generator_terms(session, nets, None, None, micro)


def make(session: Session, batch: Batch) -> Made:
    """Call the generator, through its DDP wrapper, on a batch.

    The noise of the batch and that of its ODE pairs share one forward: DDP takes one forward for each backward.
    """
    run, generator = cast(Run, session.run), session.state.players["generator"].module
    if batch.pairs is None:
        return Made(batch, generator(batch.noise, batch.cond))
    if not run.objective.uses_samples:
        return Made(batch, generator(batch.pairs.noise, batch.pairs.cond))
    noise = torch.cat([batch.noise, batch.pairs.noise])
    return Made(batch, generator(noise, batch.cond.cat(batch.pairs.cond)))


def make_for_both(session: Session) -> Made:
    """Return samples that updates share: those of the fake use their values, the generator's then uses their graph."""
    seed_dropout(session, "generator")
    with session.state.players["generator"].training():
        return make(session, session.batches.micro("generator", session.state.images, 0))


def update(
    session: Session, name: str, phase: str, terms_of: Callable[[int], Terms], graph: OneByOne | None = None
) -> None:
    """Update one player: accumulate the gradient of its loss over the micro-batches, and step. Collective.

    All other players stay frozen.

    Args:
        session: The run at work.
        name: The player.
        phase: The name of the phase, which seeds the masks of dropout.
        terms_of: (number of the micro-batch) -> its loss terms by name, [B] each.
        graph: Takes the gradient through the denoisers one by one. None for plain autograd.
    """
    run, meter, player = session.run, session.state.meter, session.state.players[name]
    seed_dropout(session, phase)
    with player.training():
        for micro in range(run.micro_batches):
            last = micro == run.micro_batches - 1
            # DDP all-reduces once, in the last backward. Accelerate's `accumulate` would do so at the wrong time, since
            # it counts the micro-batches of both players together.
            with nullcontext() if last else session.accelerator.no_sync(player.module):
                terms = terms_of(micro)
                loss, slope = sum_of_means(list(terms.values()), 1 / run.micro_batches)
                loss.backward(slope) if graph is None else graph.backward(loss, slope)
            for term, values in terms.items():
                meter.add(f"{name}/{term}", values)
        gradients = [p.grad for p in player.parameters if p.grad is not None]
        norm = total_norm(gradients) if player.sharded else get_total_norm(gradients)
        # The norm stays on the device, where `step` decides whether to skip.
        if run.max_grad_norm is not None:
            clip(gradients, run.max_grad_norm, norm)
        player.step(norm, player.learning_rate(session.state.images, run.images))
    meter.add(f"{name}/grad_norm", norm)


@fused
def sum_of_means(terms: list[Tensor], slope: float) -> tuple[Tensor, Tensor]:
    """Return the sum of the means of `terms` [B] each, and the slope at which its gradient is taken: scalars.

    The slope is NaN where the sum is not finite. The loss of one rank thereby makes all its gradients NaN, and after
    the all-reduce those of every rank: all ranks then skip the same step.
    """
    loss = reduce(torch.add, (term.mean() for term in terms))
    return loss, 0 * loss.detach() + slope  # 0 * inf and 0 * nan are nan


def seed_dropout(session: Session, phase: str) -> None:
    """Seed torch's global generator from the position in the run, so that a resume draws the same masks of dropout.

    Dropout alone uses the global generator. Each rank has masks of its own.
    """
    rank = session.accelerator.process_index
    torch.manual_seed(zlib.crc32(f"{session.run.seed} {session.state.images} {phase} {rank}".encode()))


@torch.no_grad()
def global_mean(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Return the mean [...] of values [B, ...] over the samples of all ranks. Collective: every rank has B samples."""
    return cast(Tensor, accelerator.reduce(values.detach().mean(0), "mean"))
