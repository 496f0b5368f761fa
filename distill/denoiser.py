"""network + path + prediction kind -> denoiser(x_t, t, cond) = E[x0 | x_t], in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.paths import Path
from distill.prediction import KINDS, Kind, coefficients

Condition: TypeAlias = Tensor | Mapping[str, Tensor] | None
Denoise: TypeAlias = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x_t [B, ...], t [B], cond) -> x0 [B, ...]."""


@dataclass(frozen=True)
class Normalisation:
    """Latents as a network takes them: (z - mean) / std, a number a channel, for z as the autoencoder gives it.

    Raises UserError for what is no such pair.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not finite or len(self.mean) != len(self.std) or not min(self.std, default=0) > 0:
            given = f"{list(self.mean)} and {list(self.std)}"
            raise UserError(f"latents: must have as many finite means as positive stds, got {given:.120}")


class Denoiser(nn.Module):
    """An estimate of the clean sample.

    `network(x [B, ...], time [B], cond)` returns what `prediction` names, [B, ...]. It is handed the input scale of
    EDM's preconditioning where that is the prediction, and `path.network_time(t)`. Its attribute `null`, if it has one,
    is the null condition of one sample. Under `autocast_dtype` only the network runs in low precision: preconditioning
    and the conversion to x0 stay in the dtype of x_t, float32 or better. With `latents` its samples are no pixels: they
    need a decoder to be seen (distill.encoders.encoder); a Normalisation says how they are scaled. Raises UserError for an
    unknown prediction kind.
    """

    def __init__(
        self,
        network: nn.Module,
        path: Path,
        prediction: Kind,
        sigma_data: float = 0.5,
        autocast_dtype: torch.dtype | None = None,
        latents: bool | Normalisation = False,
    ) -> None:
        super().__init__()
        if prediction not in KINDS:
            raise UserError(f"prediction: must be one of {', '.join(KINDS)}, got {prediction!r}")
        self.network = network
        self.path = path
        self.prediction: Kind = prediction
        self.sigma_data = sigma_data
        self.autocast_dtype = autocast_dtype
        self.latents = latents

    @property
    def null_cond(self) -> Any:
        """The null condition of one sample, as its network states it: a label, a tensor, a mapping; None if none."""
        return getattr(self.network, "null", None)

    def null(self, cond: Condition) -> Condition:
        """The null condition in the form of `cond` [B, ...]: what stood for no condition in the network's training."""
        if isinstance(cond, Mapping):
            return {name: _like(self.null_cond[name], value) for name, value in cond.items()}
        return None if cond is None else _like(self.null_cond, cond)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """x0 [B, ...] for `x_t` [B, ...] at `t` [B] on the path; float32, or float64 when x_t is."""
        return self._run(x_t, t, cond)

    def with_features(self, x_t: Tensor, t: Tensor, cond: Condition, tap: str) -> tuple[Tensor, Tensor]:
        """(x0, features): in one pass, also what the submodule at `tap` gives, [B, C, ...] in the dtype of x0.

        `tap` is a submodule's name, or one of the short names in the network's mapping `taps`. What the
        submodule gives is made features by the network's method `tapped`, if it has one; else of a tuple its first
        entry counts. Raises UserError for a name that is neither.
        """
        seen: list[Tensor] = []
        with self._watching(tap, seen):
            x0 = self._run(x_t, t, cond)
        return x0, seen[0].to(x0.dtype)

    def features(self, x_t: Tensor, t: Tensor, cond: Condition, tap: str) -> Tensor:
        """The features alone: the network runs no further than `tap`."""
        seen: list[Tensor] = []
        with suppress(_Enough), self._watching(tap, seen, enough=True):
            self._run(x_t, t, cond)
        return seen[0].to(torch.promote_types(x_t.dtype, torch.float32))

    def module_at(self, tap: str) -> nn.Module:
        """The submodule at `tap`; raises UserError as with_features does."""
        taps = getattr(self.network, "taps", {})
        try:
            return self.network.get_submodule(taps.get(tap, tap))
        except AttributeError:
            kind = type(self.network).__name__
            raise UserError(f"tap: {kind} has no submodule '{tap}'; short names: {list(taps)}") from None

    @contextmanager
    def _watching(self, tap: str, seen: list[Tensor], enough: bool = False) -> Iterator[None]:
        tapped = getattr(self.network, "tapped", _first)

        def look(module: nn.Module, inputs: object, output: Any) -> None:
            seen.append(tapped(output))
            if enough:
                raise _Enough

        handle = self.module_at(tap).register_forward_hook(look)
        try:
            yield
        finally:
            handle.remove()

    def _run(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        c = coefficients(self.prediction, self.path, t, x_t, self.sigma_data)
        x_in = x_t if c.input_scale is None else c.input_scale * x_t
        time = self.path.network_time(t.double()).to(x_t.dtype)
        # One context a call: autocast's cache of casted weights never outlives it, so a call without graph cannot
        # hand graphless weights to a later one.
        with torch.autocast(x_t.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            output = cast(Tensor, self.network(x_in, time, cond))
        return c.from_x_t * x_t + c.from_output * output.to(x_t.dtype)


def _like(one: int | Tensor, many: Tensor) -> Tensor:
    if isinstance(one, int):
        return torch.full_like(many, one)
    return one.to(many.device, many.dtype).expand_as(many)


def _first(output: Any) -> Tensor:
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


class _Enough(Exception):
    """Ends a network's forward at the tap."""
