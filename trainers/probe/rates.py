"""Learning rates: what the fake learns while the student stands still, and what the student does in a short trial."""

import copy
import time
from typing import Any, NamedTuple

import torch
from torch import nn, optim

from distill.denoiser import Denoiser
from distill.generator import Generator
from distill.loss_weights import Weight
from distill.objectives import Batch, Denoisers, Objective
from distill.objectives.objective import denoising_loss
from distill.times import Times
from trainers.data.batches import condition_at
from trainers.engine.meter import BINS, Meter
from trainers.probe.entry import Components
from trainers.probe.subject import Subject, slices

FAKE_RATES = (1e-4, 3e-4, 1e-3)
GENERATOR_RATES = (5e-5, 1e-4, 2e-4)
TTUR = 3
"""The fake's rate over the generator's, as in the recipes of the digits and of Fashion-MNIST."""
AVERAGED = 10
"""The half-lives of the moving average in a trial. The average is what a run is judged by."""
TRIAL_BATCH = 64
HELD_OUT = 512
"""The samples on which errors and distances are measured after the steps."""


class FakeTrial(NamedTuple):
    """The fake after some steps at one rate, while the student stood still.

    Attributes:
        rate: The learning rate.
        steps: The number of steps.
        loss: Its denoising loss on new samples, over the loss of the teacher.
        ratio: Its error over the teacher's, on new samples and over all levels of the generator's law.
        worst: The largest such ratio in a half-decade of noise.
        where: The half-decade, by its name in the log.
        fake: The fake.
    """

    rate: float
    steps: int
    loss: float
    ratio: float
    worst: float
    where: str
    fake: Denoiser


class StudentTrial(NamedTuple):
    """The averaged student after some rounds at one rate, while the fake trains at TTUR times this rate.

    Attributes:
        rate: The learning rate of the student.
        before: The distance of its samples to the reference before the rounds.
        after: The distance after them.
        seconds: The seconds of a round for each sample.
        student: The averaged student.
    """

    rate: float
    before: float
    after: float
    seconds: float
    student: Generator


def fakes_by_rate(
    subject: Subject,
    student: Generator,
    law: Times,
    weight: Weight | None,
    steps: int,
    rates: tuple[float, ...] = FAKE_RATES,
) -> list[FakeTrial]:
    """Train a copy of the teacher on the student's samples at each rate, and return what each has learnt.

    Args:
        subject: The teacher under the probe.
        student: The student, which stands still.
        law: The law of the times.
        weight: The weight of the denoising loss.
        steps: The number of steps, of TRIAL_BATCH samples each.
        rates: The learning rates.
    """
    teacher, found = subject.teacher, []
    for rate in rates:
        fake = copy.deepcopy(teacher).requires_grad_()
        optimizer = optimizer_of(fake, rate)
        for step in range(steps):
            noise, cond, random = subject.inputs("rates", step * TRIAL_BATCH, TRIAL_BATCH)
            with torch.no_grad():
                x = student(noise, cond)
            loss = denoising_loss(fake, teacher.path, x, cond, law, weight, random, teacher.sigma_data).mean()
            descend(optimizer, loss)
        found.append(_judge(subject, student, fake.requires_grad_(False), law, weight, (rate, steps)))
    return found


@torch.no_grad()
def _judge(
    subject: Subject, student: Generator, fake: Denoiser, law: Times, weight: Weight | None, trained: tuple[float, int]
) -> FakeTrial:
    """Compare the fake with the teacher on new samples of the student, at the same noise."""
    teacher, meter, losses = subject.teacher, Meter(), [0.0, 0.0]
    for part in slices(HELD_OUT):
        noise, cond, random = subject.inputs("held out", part.start, part.stop - part.start)
        x = student(noise, cond)
        x_t, t, _ = teacher.path.draw(x, law, random)
        for number, (name, denoiser) in enumerate((("fake", fake), ("teacher", teacher))):
            error = (denoiser(x_t, t, cond) - x).square().flatten(1).mean(1)
            meter.add(name, error, teacher.path.nsr(t))
            losses[number] += float(
                denoising_loss(denoiser, teacher.path, x, cond, law, weight, random, teacher.sigma_data).sum()
            )
    errors = {name: meter.totals[name][:, 0].cpu() for name in ("fake", "teacher")}
    ratios = (errors["fake"] / errors["teacher"]).nan_to_num()  # 0 for a half-decade without a sample
    worst = int(ratios.argmax())
    overall = float(errors["fake"].sum() / errors["teacher"].sum())
    return FakeTrial(*trained, losses[0] / losses[1], overall, float(ratios[worst]), BINS[worst], fake)


def students_by_rate(
    subject: Subject,
    objective: Objective,
    start: Denoiser,
    entry: float,
    fake_updates: int,
    components: Components,
    rounds: int,
    rates: tuple[float, ...] = GENERATOR_RATES,
) -> list[StudentTrial]:
    """Train the student for some rounds at each rate, and return the distance of its samples before and after.

    Args:
        subject: The teacher under the probe.
        objective: The objective, with its laws and weights.
        start: The fake at the start.
        entry: The noise-to-signal ratio at which the student enters.
        fake_updates: The updates of the fake in a round.
        components: The components in which distances are measured.
        rounds: The number of rounds, of TRIAL_BATCH samples each.
        rates: The learning rates of the student.
    """
    teacher, found = subject.teacher, []
    for rate in rates:
        student = copy.deepcopy(subject.generator(entry)).requires_grad_()
        average = copy.deepcopy(student).requires_grad_(False)
        before, clock = _distance(subject, average, components), [time.perf_counter()]
        torch.manual_seed(subject.run.seed)  # for the new weights of a discriminator
        fake = objective.build_fake(copy.deepcopy(start)).requires_grad_()
        of_fake, of_student = optimizer_of(fake, TTUR * rate), optimizer_of(student, rate)
        frozen = {name: one.requires_grad_(False).eval() for name, one in objective.load_frozen().items()}
        nets = Denoisers(teacher.path, teacher, fake, frozen, objective.new_memory())
        for number in range(rounds):
            for again in range(fake_updates):
                batch = _batch(subject, objective, f"fake {again}", number)
                with torch.no_grad():
                    x = student(batch.noise, batch.cond)
                descend(of_fake, total(objective.fake_loss(nets, x, batch)))
            fake.requires_grad_(False)
            batch = _batch(subject, objective, "student", number)
            x = student(batch.noise, batch.cond)
            descend(of_student, total(objective.generator_loss(nets, x, batch)))
            fake.requires_grad_()
            for mean, value in zip(average.parameters(), student.parameters(), strict=True):
                mean.lerp_(value.detach(), 1 - 0.5 ** (AVERAGED / rounds))
            if subject.device.type == "cuda":
                torch.cuda.synchronize()
            clock.append(time.perf_counter())
        # The faster rounds, since other work on the machine slows some.
        seconds = float(torch.tensor(clock, dtype=torch.float64).diff().quantile(0.25)) / TRIAL_BATCH
        found.append(StudentTrial(rate, before, _distance(subject, average, components), seconds, average))
    return found


def _batch(subject: Subject, objective: Objective, purpose: str, number: int) -> Batch:
    """Return the batch of one update of a trial."""
    noise, cond, random = subject.inputs(f"trial {purpose}", number * TRIAL_BATCH, TRIAL_BATCH)
    if "real" not in objective.needs:
        return Batch(noise, random, cond)
    data = subject.dataset
    positions = data.order(subject.run.seed, torch.arange(number * TRIAL_BATCH, (number + 1) * TRIAL_BATCH))
    cond = condition_at(data, positions).to(subject.device, torch.float32)
    return Batch(noise, random, cond, data.images(positions).to(subject.device))


@torch.no_grad()
def _distance(subject: Subject, student: Generator, components: Components) -> float:
    """Return the distance between new samples of the student and the reference."""
    parts = [subject.inputs("distance", part.start, part.stop - part.start)[:2] for part in slices(HELD_OUT)]
    return components.distance(torch.cat([student(noise, cond) for noise, cond in parts]))


def optimizer_of(network: nn.Module, rate: float) -> optim.Optimizer:
    """Return the optimizer of the players of a distillation, at a rate of its own."""
    return optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.999), fused=True)


def total(terms: dict[str, Any]) -> Any:
    """Return the sum of loss terms [B], each averaged over the batch."""
    return torch.stack([term.mean() for term in terms.values()]).sum()


def descend(optimizer: optim.Optimizer, loss: Any) -> None:
    """Take one step of an optimizer."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
