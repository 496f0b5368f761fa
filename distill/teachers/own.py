"""A network of the user's own file as what Denoiser calls; docs/add_a_teacher.md adds one."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.denoiser import Condition, Denoiser
from distill.errors import UserError, one_line


class OwnNet(nn.Module):
    """An instance of the user's class `name` ("my_package.my_module:MyNet"), constructed with `settings`, in float32.

    It is called as module(x [B, C, H, W], time [B], labels int64 [B]), without labels where there are none, and gives
    what the denoiser's prediction says, [B, C, H, W]. `shape`, `classes` and `null` are Network's. The taps are its
    submodules by their own names, and those of its mapping `taps`, if it has one. Code inside the folder `foreign` is
    never run. Raises UserError for a class that cannot be had, and for a form that is none.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        shape: tuple[int, int, int],
        classes: int = 0,
        null: int | None = None,
        foreign: FilePath | None = None,
    ) -> None:
        super().__init__()
        for what, numbers, least, count in (("shape", shape, 1, 3), ("classes", [classes], 0, 1)):
            whole = isinstance(numbers, list | tuple) and all(type(n) is int and n >= least for n in numbers)
            if not whole or len(numbers) != count:
                wanted = "three positive integers" if count == 3 else "an integer of at least 0"
                raise UserError(f"{what}: must be {wanted}, got {shape if count == 3 else classes!r}")
        self.name, self.settings = name, dict(settings)
        self.shape, self.classes, self.null = (shape[0], shape[1], shape[2]), classes, null
        self.module = _construct(name, self.settings, foreign).float()
        names = {part: part for part, _ in self.module.named_modules() if part} | getattr(self.module, "taps", {})
        self.taps = {short: f"module.{full}" for short, full in names.items()}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        output = cast(Tensor, self.module(x, time) if cond is None else self.module(x, time, cond))
        if output.shape != x.shape:  # which might broadcast to it
            raise UserError(f"network: {self.name} gives {list(output.shape)} for x of {list(x.shape)}")
        return output


@torch.no_grad()
def try_out(denoiser: Denoiser) -> None:
    """Call a denoiser of an OwnNet once, on zeros; raises UserError when its network cannot be called like this."""
    network = cast(OwnNet, denoiser.network)
    labels = [0, network.classes - 1 if network.null is None else network.null] if network.classes else None
    cond = None if labels is None else torch.tensor(labels)
    t = denoiser.path.time(torch.ones(2, dtype=torch.float64))
    try:
        denoiser(torch.zeros(2, *network.shape), t, cond)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        arguments = "(x, time)" if cond is None else "(x, time, labels)"
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
