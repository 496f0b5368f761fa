"""A teacher's network of the user's own class, as docs/add_a_teacher.md shows."""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.errors import UserError, one_line
from distill.networks.network import Network, null_label
from distill.teachers.weights_file import read_weights, save_weights
from distill.user_code import load_class
from distill.weights import check_finite, check_weights


class OwnNet(Network):
    """An instance of the user's own class, in float32.

    It is called as module(x [B, C, *spatial], time [B], labels int64 [B]), or without labels if the condition has none.
    It returns [B, C, *spatial], the quantity that the denoiser's `prediction` names. Its taps are its submodules by
    their own names, and the entries of its attribute `taps`, if it has one.

    Args:
        name: The module and the name of the class, such as "my_package.my_module:MyNet".
        settings: The keyword arguments of the class.
        shape: (C, *spatial) of a sample.
        classes: The number of class labels, without the null condition's. 0 means no labels.
        null: The label of the null condition, which follows the classes. None means no null condition.
        folder: The teacher's folder that names the class, whose code runs only with consent (distill.user_code). None
            for a name that the caller has written.

    Raises:
        UserError: The class must not run, cannot be imported or constructed, or `shape` or `classes` is not valid.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        shape: tuple[int, ...],
        classes: int = 0,
        null: int | None = None,
        folder: FilePath | None = None,
    ) -> None:
        super().__init__()
        if not _positive_integers(shape):
            raise UserError(f"shape: must be positive integers [channels, *spatial], got {shape}")
        if type(classes) is not int or classes < 0:
            raise UserError(f"classes: must be an integer of at least 0, got {classes!r}")
        self.name, self.own_class, self.settings = name, name, dict(settings)
        self.shape, self.classes, self.null = tuple(shape), classes, null_label(null)
        self.module = _construct(name, self.settings, folder).float()
        names = {part: part for part, _ in self.module.named_modules() if part} | getattr(self.module, "taps", {})
        self.taps = {short: f"module.{full}" for short, full in names.items()}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        output = cast(Tensor, self.module(x, time) if cond.labels is None else self.module(x, time, cond.labels))
        if output.shape != x.shape:  # a smaller output might broadcast silently
            raise UserError(f"network: {self.name} gives {list(output.shape)} for x of {list(x.shape)}")
        return output

    def tapped(self, output: Any, size: tuple[int, ...]) -> Tensor:
        """Return the features [B, C, ...] in the output of a tapped submodule.

        Tokens [B, N, C] of samples with two or more spatial dimensions, as a transformer has them, become [B, C, N].
        """
        features = super().tapped(output, size)
        return features.transpose(1, 2) if features.ndim == 3 and len(size) > 1 else features

    def description(self) -> dict[str, Any]:
        return {"name": self.name, **self.settings}

    def save(self, folder: FilePath) -> None:
        save_weights(self.module, folder)

    @classmethod
    def load(cls, folder: FilePath, description: Mapping[str, Any], weights: bool = True) -> Self:
        settings = dict(description["network"])
        shape, classes = description.get("shape", ()), description.get("classes", 0)
        arguments = (settings.pop("name"), settings, shape, classes, description.get("null"), folder)
        if not weights:
            with torch.device("meta"):
                return cls(*arguments)
        state = read_weights(folder)
        network = cls(*arguments)  # not on the meta device, as it may hold tensors outside its state dict
        check_weights(network.module, state)
        network.module.load_state_dict(state)
        check_finite(network.module.state_dict(), network.module)  # in float32, in which those of float64 may overflow
        return network


def _positive_integers(shape: object) -> bool:
    """Return whether `shape` is a list or tuple of at least two positive integers."""
    whole = isinstance(shape, list | tuple) and all(type(n) is int and n >= 1 for n in shape)
    return whole and len(cast(Any, shape)) >= 2


@torch.no_grad()
def try_out(denoiser: Denoiser) -> None:
    """Call a denoiser of an OwnNet once on zeros, to find mistakes of the user's class early.

    Raises:
        UserError: The network fails when it is called as OwnNet calls it.
    """
    network = cast(OwnNet, denoiser.network)
    label = network.classes - 1 if network.null_label is None else network.null_label
    cond = Condition(labels=torch.tensor([0, label])) if network.classes else Condition()
    t = denoiser.path.time(torch.ones(2, dtype=torch.float64))
    try:
        denoiser(torch.zeros(2, *network.shape), t, cond)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        arguments = "(x, time, labels)" if cond else "(x, time)"
        raise UserError(
            f"network: {network.name} fails when called with {arguments}: {_type_and_message(error)}"
        ) from error


def _construct(name: str, settings: Mapping[str, Any], folder: FilePath | None) -> nn.Module:
    """Import the class `name`, if its code may run, and construct it."""
    try:
        cls, _ = load_class(name, nn.Module, own=folder is None, places=() if folder is None else (folder,))
    except UserError as error:
        raise UserError(f"network: {error}") from error
    try:
        return cast(nn.Module, cls(**settings))
    except Exception as error:
        raise UserError(f"network: {name} cannot be made of {dict(settings)}: {_type_and_message(error)}") from error


def _type_and_message(error: Exception) -> str:
    """Return the type and the message of an exception in one line."""
    return f"{type(error).__name__}: {one_line(error)}"
