"""The findings of a probe about a teacher."""

from dataclasses import dataclass, field

from torch import Tensor

from trainers.probe.entry import Entry
from trainers.probe.gradients import Gradient
from trainers.probe.levels import Level
from trainers.probe.network import Facts
from trainers.probe.rates import FakeTrial, StudentTrial
from trainers.probe.subject import Reference


@dataclass
class Findings:
    """The measurements of a probe. What could not be measured is None or empty.

    Attributes:
        facts: The facts about the network.
        second: The seconds of an evaluation of one sample on this machine.
        bfloat16_gain: The time of a forward and backward pass in float32 over that in bfloat16, on this machine.
        reference: The samples that the student should come to: data, or samples of the teacher.
        mean: The mean of the reference over all elements.
        std: Its standard deviation over all elements, which is what EDM calls sigma_data.
        sigma_data: The standard deviation that the teacher states.
        levels: The teacher's error by noise level.
        whole: Its error in pure noise, as `levels.spread` has it.
        sampled: The teacher's samples [N, ...] and their distance to the reference, by the number of evaluations.
        entries: The untrained student by its entry.
        fakes: The fake after some steps, by its rate.
        students: The student after a short trial, by its rate.
        gradients: The gradients in the samples, by objective.
        memory: The bytes that the recipe takes on one GPU at its peak, as `distill plan` has it.
        seconds: The seconds that the probe took.
    """

    facts: Facts
    second: float
    bfloat16_gain: float | None
    reference: Reference
    mean: float
    std: float
    sigma_data: float
    levels: list[Level]
    whole: float
    sampled: dict[int, tuple[Tensor, float | None]]
    entries: list[Entry]
    fakes: list[FakeTrial] = field(default_factory=list)
    students: list[StudentTrial] = field(default_factory=list)
    gradients: dict[str, list[Gradient]] = field(default_factory=dict)
    memory: float | None = None
    seconds: float = 0.0
