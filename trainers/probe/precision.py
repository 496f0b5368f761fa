"""The gain of bfloat16 on this machine."""

import copy
import time

import torch

from trainers.probe.subject import CHUNK, Subject

TURNS = 4
"""The passes in each precision. The first sets up kernels."""


def bfloat16_gain(subject: Subject) -> float | None:
    """Return the seconds of a forward with its backward pass in float32, over those in bfloat16.

    None where the network is too slow for the time of the probe.
    """
    evaluations = 2 * 3 * TURNS  # a forward with its backward pass counts as three
    count = subject.budget.samples(0.05, evaluations, CHUNK, least=4)
    if not count:
        return None
    noise, cond, _ = subject.inputs("precision", 0, count)
    noise.requires_grad_()  # a teacher in closed form has no weights
    fake, t = copy.deepcopy(subject.teacher).requires_grad_(), subject.time(1.0, count)
    took: dict[torch.dtype | None, list[float]] = {None: [], torch.bfloat16: []}
    for _ in range(TURNS):
        for dtype, seconds in took.items():  # in turns, since other work on the machine slows some
            fake.autocast_dtype = dtype
            start = time.perf_counter()
            fake(noise, t, cond).square().sum().backward()
            if subject.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return min(took[None][1:]) / min(took[torch.bfloat16][1:])
