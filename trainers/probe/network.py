"""The facts about a teacher's network that can be read from its modules, or seen in two forwards."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from trainers.probe.subject import Subject

TRIED = 4
"""The samples of the two forwards."""


@dataclass(frozen=True)
class Facts:
    """What a teacher's network is.

    Attributes:
        name: The name of its class.
        parameters: The number of its parameters.
        prediction: The quantity that it predicts.
        path: Its path.
        shape: (C, *spatial) of a sample.
        classes: The number of its classes. 0 without labels.
        null: Whether it has a null condition, as guidance needs.
        norms: The normalisation layers by the name of their class.
        dropout: The dropout layers with their probability, by the name of the module.
        train_mode: The relative difference between a forward in train mode and one in eval mode. 0 without any.
        middle: The submodule in the middle of the network whose output a discriminator can read. None if none is.
    """

    name: str
    parameters: int
    prediction: str
    path: str
    shape: tuple[int, ...]
    classes: int
    null: bool
    norms: dict[str, int]
    dropout: dict[str, float]
    train_mode: float
    middle: str | None


def facts(subject: Subject) -> Facts:
    """Return the facts about the teacher's network."""
    teacher, network = subject.teacher, subject.teacher.network
    modules = dict(network.named_modules())
    norms = Counter(type(one).__name__ for one in modules.values() if "Norm" in type(one).__name__)
    dropout = {name: float(one.p) for name, one in modules.items() if isinstance(one, nn.modules.dropout._DropoutNd)}
    return Facts(
        network.own_class or network.display_name,
        sum(parameter.numel() for parameter in network.parameters()),
        teacher.prediction,
        str(teacher.path),
        network.shape,
        network.classes,
        network.has_null,
        dict(norms),
        {name: p for name, p in dropout.items() if p > 0},
        train_mode_difference(subject),
        middle_tap(subject),
    )


@torch.no_grad()
def train_mode_difference(subject: Subject) -> float:
    """Return the relative difference between a forward in train mode and one in eval mode."""
    teacher = subject.teacher
    noise, cond, _ = subject.inputs("train mode", 0, TRIED)
    t = subject.time(1.0, TRIED)
    buffers = {name: value.clone() for name, value in teacher.named_buffers()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain, training = teacher(noise, t, cond), teacher.train()(noise, t, cond)
    teacher.eval()
    for name, value in teacher.named_buffers():  # a forward in train mode moves the statistics of a BatchNorm
        value.copy_(buffers[name])
    return float((training - plain).norm() / plain.norm().clamp(min=1e-12))


@torch.no_grad()
def middle_tap(subject: Subject) -> str | None:
    """Return the part of the network with features or tokens at whose end half of the parameters have been used.

    Parts are the children of the network, and those of its lists and sequences of modules.

    The name is that of the network's short tap, if it has one called `middle`.
    """
    network = subject.teacher.network
    if "middle" in network.taps:
        return "middle"
    shorts = {full: short for short, full in network.taps.items()}
    seen: list[tuple[float, int, str]] = []
    used, hooks = 0, []
    total = sum(parameter.numel() for parameter in network.parameters())

    def note(name: str, module: nn.Module) -> None:
        def after(_: nn.Module, inputs: object, output: object) -> None:
            nonlocal used
            used += sum(parameter.numel() for parameter in module.parameters(recurse=False))
            features = output[0] if isinstance(output, tuple) else output
            if name in shorts and isinstance(features, torch.Tensor) and 3 <= features.ndim <= 1 + len(network.shape):
                seen.append((abs(used / total - 0.5), -len(seen), shorts[name]))

        hooks.append(module.register_forward_hook(after))

    for holder, module in network.named_modules():
        if module is network or isinstance(module, nn.ModuleList | nn.Sequential) or not holder.strip("module"):
            for name, part in module.named_children():
                note(f"{holder}.{name}".lstrip("."), part)
    noise, cond, _ = subject.inputs("taps", 0, 2)
    subject.teacher(noise, subject.time(1.0, 2), cond)
    for hook in hooks:
        hook.remove()
    return min(seen)[2] if seen else None
