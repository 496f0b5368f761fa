"""The rules by which the values of a recipe follow from the measurements of its teacher.

docs/probe.md has the measurement behind each rule. A value has its reason beside it, in words.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from distill.loss_weights import WeightTable
from distill.objectives import DMD2, FGM, SIM, DiffInstruct, Guided, Objective, SiD
from distill.times import LogNormal
from trainers.probe.entry import Entry
from trainers.probe.findings import Findings
from trainers.probe.levels import MIDDLE, Level, middle_level, middle_share
from trainers.probe.rates import TTUR, StudentTrial
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import dump

STD = 1.2
"""The standard deviation of the laws of times: that of EDM's law, about four octaves to each side."""
LEAST_IMAGES, MOST_IMAGES = 20_000, 200_000
BATCH_SIZE = 128
ROUND = 16
"""The evaluations that a round costs for each sample, where gradients pass through teacher and fake."""
RATE = 1e-4
"""The generator's rate where none could be tried."""
TIE = 0.25
"""The difference of distances after a trial, below which the higher rate is better. It gets further in a longer run."""
KNOWN = 1.0
"""The error of the fake over the teacher's, at any level, up to which no warm-up is needed."""
ADVERSARIAL = 0.5
"""The weight of an adversarial term times the root of the number of elements of a sample."""
COARSE = 0.01
"""The change by bfloat16, over the error, above which a recipe computes in float32."""
FASTER = 1.2
"""The gain of bfloat16 from which a recipe computes in it."""
REACH = 2.5
"""The standard deviations of the law of times within which its levels count: 99 % of the draws."""


OBJECTIVES: dict[str, type[Objective]] = {
    "sid": SiD,
    "sim": SIM,
    "fgm": FGM,
    "diff_instruct": DiffInstruct,
    "dmd2": DMD2,
}
"""The objectives for which a recipe is written."""
FAKE_UPDATES: dict[type[Objective], int] = {DMD2: 2}
"""The updates of the fake in a round, where they are not one."""


class Choice(NamedTuple):
    """A value of a recipe, with the reason for it in words."""

    value: Any
    reason: str


def times(levels: Sequence[Level], whole: float, scale: float = 1.0) -> tuple[LogNormal, str]:
    """Return the law of the times of generator and fake, with its reason.

    Its median is where the teacher's error is `middle_share` of what it is in pure noise. Around it lie the levels at
    which a denoiser decides what a sample becomes: below, the sample is all but known, and above, nothing of it is. A
    guided teacher decides earlier: the condition counts most where the noise hides it.

    Args:
        levels: The teacher's error by noise level.
        whole: Its error in pure noise.
        scale: The scale of the guidance. 1 is no guidance.
    """
    share = middle_share(scale)
    if share > MIDDLE:
        whole = min(whole, max(one.error for one in levels))  # the error of a good teacher only approaches it
    middle = middle_level(levels, whole, share)
    if middle is None:
        return LogNormal(-1.2, STD), f"EDM's law: unknown where the teacher's error is {share:.2g} of its largest"
    law = LogNormal(round(math.log(middle), 2), STD)
    why = f"the median is {middle:.2g}, where the teacher's error is {share:.2g} of what it is in pure noise"
    return law, why if share == MIDDLE else f"{why}: guidance decides early"


def times_of(objective: Objective, found: Findings) -> tuple[LogNormal, str]:
    """Return the law of the times of an objective, with its reason."""
    scale = objective.teacher_cfg if isinstance(objective, Guided) else 1.0
    return times(found.levels, found.whole, scale)


def precision(objective: Objective, found: Findings) -> tuple[str, str]:
    """Return the precision in which the networks compute, with its reason."""
    law, gain = times_of(objective, found)[0], found.bfloat16_gain
    visited = [one for one in found.levels if abs(math.log(one.nsr) - law.mean) <= REACH * law.std]
    worst = max(visited or found.levels, key=lambda one: one.bfloat16)
    changes = f"{worst.bfloat16:.1%} of its squared error, at the ratio {worst.nsr:.3g}"
    if worst.bfloat16 > COARSE:
        return "float32", f"bfloat16 changes the teacher's estimates by {changes}"
    if gain is None:
        return "float32", "unknown: the network is too slow to try bfloat16 here"
    takes = f"bfloat16 takes {1 / gain:.2f} of float32's time on the machine of the probe"
    if gain < FASTER:
        return "float32", takes
    return "bfloat16", f"{takes}, and changes the teacher's estimates by at most {changes}"


def weight(levels: Sequence[Level]) -> tuple[WeightTable, str]:
    """Return the weight of the fake's loss, with its reason. It is the same for every form of a network."""
    table = WeightTable(tuple(_digits(one.nsr) for one in levels), tuple(_digits(1 / one.error) for one in levels))
    return table, "1 / (the teacher's mean squared error at that level), so that every level counts the same"


def entry(entries: Sequence[Entry]) -> tuple[float, str]:
    """Return the noise-to-signal ratio at which the student enters, with its reason."""
    best = min(entries, key=lambda one: one.distance)
    return _digits(best.nsr), f"the untrained student is nearest to its target here: distance {best.distance:.3g}"


def rates(students: Sequence[StudentTrial]) -> tuple[float, str]:
    """Return the generator's learning rate, with its reason. The fake has TTUR times this rate."""
    if not students:
        return RATE, "unknown: the network is too large to try rates here"
    least = min(one.after for one in students)
    best = [one for one in students if one.after <= (1 + TIE) * least][-1]
    tried = ", ".join(f"{one.after:.3g} at {one.rate:g}" for one in students)
    return best.rate, f"distance after a short trial from {best.before:.3g}: {tried}"


def inner(objective: Objective) -> Objective:
    """Return the objective inside guidance, or the objective itself."""
    return objective.objective if isinstance(objective, Guided) else objective


def objective_values(objective: Objective, found: Findings) -> dict[str, Any]:
    """Return the values of an objective by the rules, as Choices."""
    (law, law_reason), (table, table_reason) = times_of(objective, found), weight(found.levels)
    name = next(name for name, kind in OBJECTIVES.items() if type(inner(objective)) is kind)
    values: dict[str, Any] = {
        "name": Choice(name, ""),
        "times": Choice(_law(law), law_reason),
        "fake_times": Choice(_law(law), "the fake learns the levels at which the generator asks it"),
        "fake_weight": Choice({"nsr": table.nsr, "weight": table.weight}, table_reason),
    }
    if name == "dmd2":
        elements = found.reference.samples[0].numel()
        values["adversarial"] = Choice(
            _digits(ADVERSARIAL / elements**0.5), f"{ADVERSARIAL} / the root of the {elements:,} elements of a sample"
        )
        if found.facts.middle is not None:
            values["tap"] = Choice(found.facts.middle, "where half of the network's parameters have been used")
    if not isinstance(objective, Guided):
        return values
    reason = "with an exact fake the generator comes to the law of the teacher at this scale"
    return {
        "name": Choice("guided", ""),
        "teacher_cfg": Choice(objective.teacher_cfg, reason),
        "fake_cfg": Choice(1.0, "the fake has the generator's samples as they are"),
        "fake_training_cfg": Choice(1.0, ""),
        "condition_dropout": Choice(0.0, "the fake's null condition is not used"),
        "objective": values,
    }


def _law(law: LogNormal) -> dict[str, Any]:
    """Return a law as plain values."""
    return {"name": "lognormal", "mean": law.mean, "std": law.std}


def recipe(run: Run, found: Findings, minutes: float, images_known: bool) -> dict[str, Any]:
    """Return the values of a recipe by the rules, as Choices.

    Args:
        run: The recipe so far, for teacher, data and objective.
        found: The findings about the teacher.
        minutes: The minutes that the run should take on this machine.
        images_known: Whether there are real images to evaluate against.
    """
    (enter, enter_reason), (rate, rate_reason) = entry(found.entries), rates(found.students)
    computes, precision_reason = precision(run.objective, found)
    images, images_reason = length(found, minutes, computes)
    values: dict[str, Any] = {
        "name": Choice(run.name, ""),
        "teacher": Choice(run.teacher, ""),
        "data": Choice(dump(run)["data"], ""),
        "objective": objective_values(run.objective, found),
        "entry": {"nsr": Choice(enter, enter_reason)},
        "images": Choice(images, images_reason),
        "batch_size": Choice(BATCH_SIZE, ""),
        "precision": Choice(computes, precision_reason),
    }
    if (updates := fake_updates(run.objective)) > 1:
        values["fake_updates"] = Choice(updates, "the authors have 5, for networks that train for weeks")
        values["reuse_samples"] = Choice(True, "as the authors do")
    if found.fakes and (worst := min(found.fakes, key=lambda one: one.loss)).worst > KNOWN:
        reason = (
            f"the fake's error at {worst.where} was {worst.worst:.2f} of the teacher's after the steps of the trial"
        )
        values["fake_warmup"] = {"until": Choice(1.1, reason), "most": Choice(images // 10, "a tenth of the run")}
    values |= {
        "generator": {
            "lr": Choice(rate, rate_reason),
            "decay": Choice("cosine", "the run is short, and ends with small steps"),
        },
        "fake": {"lr": Choice(_digits(TTUR * rate), f"{TTUR} times the generator's, which it follows")},
        "ema": {"half_life": Choice(max(2_000, images // 40), "a fortieth of the run, and at least 2,000 images")},
    }
    if images_known:
        judged = {"every": Choice(images // 10, ""), "samples": Choice(5_000, "")}
        if run.evaluation.classifier is not None:
            judged["classifier"] = Choice(run.evaluation.classifier, "")
        values["evaluation"] = judged
    every = {"log_every": images // 100, "samples_every": images // 10}
    return values | {key: Choice(max(BATCH_SIZE, value), "") for key, value in every.items()}


def length(found: Findings, minutes: float, computes: str) -> tuple[int, str]:
    """Return the images of a run that takes `minutes` on this machine, within bounds, with the reason."""
    gain = (found.bfloat16_gain or 1.0) if computes == "bfloat16" else 1.0
    second = min(one.seconds for one in found.students) if found.students else found.second * ROUND / gain
    fitting = 60 * minutes / second
    images = int(_digits(min(max(fitting, LEAST_IMAGES), MOST_IMAGES), 2))
    took = images * second / 60
    bound = "" if LEAST_IMAGES < fitting < MOST_IMAGES else f", of {LEAST_IMAGES:,} to {MOST_IMAGES:,}"
    return images, f"about {took:,.0f} minutes on the machine of the probe{bound}"


def fake_updates(objective: Objective) -> int:
    """Return the updates of the fake in a round."""
    return FAKE_UPDATES.get(type(inner(objective)), 1)


def _digits(value: float, digits: int = 3) -> float:
    """Return a number with so many significant digits."""
    return float(f"{value:.{digits}g}")
