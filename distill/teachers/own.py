"""A network of the user's own file as a network of a teacher; docs/add_a_teacher.md adds one."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.errors import UserError, one_line
from distill.networks.network import Network, null_label
from distill.teachers.weights_file import check_weights, read_weights, save_weights


class OwnNet(Network):
    """An instance of the user's class `name` ("my_package.my_module:MyNet"), constructed with `settings`, in float32.

    It is called as module(x [B, C, *spatial], time [B], labels int64 [B]), without labels where there are none, and
    returns what the denoiser's prediction names, [B, C, *spatial]. Its taps are its submodules by their own names, and
    those of its mapping `taps`, if it has one. Code inside the folder `foreign` is never run.

    Raises:
        UserError: The class cannot be had, or shape and classes are none.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        shape: tuple[int, ...],
        classes: int = 0,
        null: int | None = None,
        foreign: FilePath | None = None,
    ) -> None:
        super().__init__()
        if not _positive_integers(shape):
            raise UserError(f"shape: must be positive integers [channels, *spatial], got {shape}")
        if type(classes) is not int or classes < 0:
            raise UserError(f"classes: must be an integer of at least 0, got {classes!r}")
        self.name, self.settings = name, dict(settings)
        self.shape, self.classes, self.null = tuple(shape), classes, null_label(null)
        self.module = _construct(name, self.settings, foreign).float()
        names = {part: part for part, _ in self.module.named_modules() if part} | getattr(self.module, "taps", {})
        self.taps = {short: f"module.{full}" for short, full in names.items()}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        output = cast(Tensor, self.module(x, time) if cond.labels is None else self.module(x, time, cond.labels))
        if output.shape != x.shape:  # which might broadcast to it
            raise UserError(f"network: {self.name} gives {list(output.shape)} for x of {list(x.shape)}")
        return output

    @property
    def own_class(self) -> str:
        return self.name

    def description(self) -> dict[str, Any]:
        return {"name": self.name, **self.settings}

    def save(self, folder: FilePath) -> None:
        save_weights(self.module, folder)

    @classmethod
    def load(cls, folder: FilePath, description: Mapping[str, Any], weights: bool = True) -> OwnNet:
        settings = dict(description["network"])
        shape, classes = description.get("shape", ()), description.get("classes", 0)
        arguments = (settings.pop("name"), settings, shape, classes, description.get("null"), folder)
        if not weights:
            with torch.device("meta"):
                return OwnNet(*arguments)
        state = read_weights(folder)
        network = OwnNet(*arguments)  # in memory of its own: it may keep tensors that are no weights
        check_weights(network.module, state)
        network.module.load_state_dict(state)
        return network


def _positive_integers(shape: object) -> bool:
    whole = isinstance(shape, list | tuple) and all(type(n) is int and n >= 1 for n in shape)
    return whole and len(cast(Any, shape)) >= 2


@torch.no_grad()
def try_out(denoiser: Denoiser) -> None:
    """Call a denoiser of an OwnNet once, on zeros; raises UserError when its network cannot be called like this."""
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
        raise UserError(f"network: {network.name} fails when called with {arguments}: {_words(error)}") from error


def _construct(name: str, settings: Mapping[str, Any], foreign: FilePath | None) -> nn.Module:
    source, _, attribute = name.partition(":")
    try:
        if foreign is not None:
            _refuse_code_in(foreign, source.partition(".")[0], name)
        cls = getattr(importlib.import_module(source), attribute)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"network: cannot import {name!r}: {_words(error)}") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):  # before it is called: settings may be a stranger's
        raise UserError(f"network: {name!r} must be a class of torch.nn.Module, got {cls!r:.80}")
    try:
        return cls(**settings)
    except Exception as error:
        raise UserError(f"network: {name} cannot be made of {dict(settings)}: {_words(error)}") from error


def _refuse_code_in(folder: FilePath, package: str, name: str) -> None:
    """A teacher's folder may come from elsewhere; to look where a top-level module lies runs nothing."""
    spec = importlib.util.find_spec(package)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    if any(place and FilePath(place).resolve().is_relative_to(folder.resolve()) for place in places):
        raise UserError(f"network: {name!r} lies inside the teacher's folder, whose code is never run; move it out")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
