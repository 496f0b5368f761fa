"""The measurements of a probe, one after the other, each within its share of the time."""

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from distill.errors import UserError, options
from distill.objectives import Objective
from distill.sampling import sample
from trainers.data.encode import DatasetEncoder
from trainers.engine.world import default_device
from trainers.probe import rules
from trainers.probe.entry import ENTRIES, PICTURED, Components, students_by_entry
from trainers.probe.findings import Findings
from trainers.probe.gradients import gradients_by_level
from trainers.probe.levels import LEVELS, error_by_level, in_bfloat16, spread
from trainers.probe.network import facts
from trainers.probe.precision import bfloat16_gain
from trainers.probe.rates import FAKE_RATES, GENERATOR_RATES, TRIAL_BATCH, fakes_by_rate, students_by_rate
from trainers.probe.recipe import values
from trainers.probe.subject import SAMPLED_IN, Budget, Reference, Subject, slices
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import build
from trainers.runs.open import open_run

LEAST, MOST = 8, 512
"""The samples of the reference, at least and at most."""
EVALUATIONS = (3, 5, 9, 17, 35)
"""The evaluations with which the teacher is sampled."""
LEAST_STEPS = 30
"""The steps of a trial, at least."""
TRAINED = 4
"""The evaluations that a step of the fake costs for each sample: one of the student and three of the fake, with its
backward pass.
"""


def open_subject(run: Run, minutes: float) -> Subject:
    """Open the teacher and the data of a recipe for the probe.

    Args:
        run: The recipe: its teacher, its data and its objective.
        minutes: The time that the probe may take on this machine, roughly.

    Raises:
        UserError: Something that the recipe names is missing or does not fit, or no rules are known for its objective.
    """
    if (kind := type(rules.inner(run.objective))) not in rules.OBJECTIVES.values():
        raise UserError(f"objective: rules are known for {options(rules.OBJECTIVES)}, got {kind.__name__}")
    opened, device = open_run(run, 1), default_device()
    teacher = opened.teacher
    assert teacher is not None
    teacher.to(device).requires_grad_(False).eval()
    # Latents of a whole data set would take hours, so samples of the teacher stand for them (real=False).
    dataset = DatasetEncoder.of(run, device).encode(opened.source, teacher, real=False)
    return Subject(run, teacher, run.objective.target(teacher), dataset, device, 60 * minutes)


def measure(subject: Subject, say: Callable[[str], None] = lambda step: None) -> Findings:
    """Return the findings about a teacher.

    Args:
        subject: The teacher under the probe.
        say: Is told the next step.
    """
    start, budget = time.perf_counter(), subject.budget
    say("network")
    known, gain = facts(subject), bfloat16_gain(subject)
    say("reference")
    guided = subject.target is not subject.teacher
    cost = SAMPLED_IN * (1 + guided) if guided or subject.dataset.read is None else 0
    trials = budget.samples(0.12 * (gain or 1.0) / len(FAKE_RATES), TRAINED * TRIAL_BATCH, most=100, least=LEAST_STEPS)
    share = 0.2 if trials else 0.6  # where no rate can be tried, the samples have the time
    count = budget.samples(share, cost + 2 * len(LEVELS) + len(ENTRIES), MOST, least=1)
    reference = subject.reference(max(count, LEAST))
    x = reference.samples
    say("error by noise level")
    levels = error_by_level(subject, reference)
    whole, components = spread(subject, reference, levels), Components(x)
    say("samples of the teacher")
    sampled = samples_by_steps(subject, reference, components)
    say("student by entry")
    found = Findings(
        known,
        budget.forward,
        gain,
        reference,
        float(x.mean()),
        float(x.std()),
        subject.teacher.sigma_data,
        levels,
        whole,
        sampled,
        students_by_entry(subject, reference, components),
    )
    if trials:
        objective = build(Objective, values(rules.objective_values(subject.run.objective, found)))
        computes = rules.precision(subject.run.objective, found)[0]
        left = subject.seconds - (time.perf_counter() - start)
        gained = (gain or 1.0) if computes == "bfloat16" else 1.0
        with in_bfloat16(subject.teacher) if computes == "bfloat16" else nullcontext():  # which the copies inherit
            try_rates(subject, found, components, objective, Budget(left, budget.forward / gained), say)
    found.seconds = time.perf_counter() - start
    return found


def try_rates(
    subject: Subject,
    found: Findings,
    components: Components,
    objective: Objective,
    left: Budget,
    say: Callable[[str], None],
) -> None:
    """Add to the findings what fake and student do at some learning rates, and the gradients after that.

    Args:
        subject: The teacher under the probe.
        found: The findings so far, from which laws, weight and entry follow.
        components: The components in which distances are measured.
        objective: The objective by the rules.
        left: The time that is left.
        say: Is told the next step.
    """
    steps = left.samples(0.2 / len(FAKE_RATES), TRAINED * TRIAL_BATCH, most=100, least=LEAST_STEPS)
    if not steps:
        return
    inner, entry = rules.inner(objective), rules.entry(found.entries)[0]
    student = subject.generator(entry)
    say("rates of the fake")
    found.fakes = fakes_by_rate(subject, student, inner.fake_times, inner.fake_weight, steps)
    fake = min(found.fakes, key=lambda one: one.loss).fake
    rounds = left.samples(0.75 / len(GENERATOR_RATES), rules.ROUND * TRIAL_BATCH, most=120, least=LEAST_STEPS)
    if rounds and (subject.dataset.read is not None or "real" not in objective.needs):
        say("rates of the student")
        updates = rules.fake_updates(objective)
        found.students = students_by_rate(subject, objective, fake, entry, updates, components, rounds)
    say("gradients")
    found.gradients = gradients_by_level(subject, student, fake)


@torch.no_grad()
def samples_by_steps(
    subject: Subject, reference: Reference, components: Components
) -> dict[int, tuple[Tensor, float | None]]:
    """Return samples of the target and their distance to the reference, by the number of evaluations.

    Where the time allows few samples, there are some for the picture, and no distance.
    """
    guided = subject.target is not subject.teacher
    count = subject.budget.samples(0.12, sum(EVALUATIONS) * (1 + guided), len(reference.samples), least=64)
    noise, _, _ = subject.inputs("samples", 0, max(count, PICTURED))
    found = {}
    for steps in EVALUATIONS:
        parts = [
            sample(subject.target, noise[part], reference.cond.rows(part), steps)
            for part in slices(min(len(noise), len(reference.samples)))
        ]
        samples = torch.cat(parts)
        found[steps] = samples[:PICTURED], components.distance(samples) if count else None
    return found
