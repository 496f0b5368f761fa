"""The denoiser: a network with its path and its prediction kind, which estimates the clean sample in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distill.compilation import compile_whole, fused
from distill.conditions import Condition, ConditionLike
from distill.errors import UserError, one_line, options, require
from distill.networks.network import Network, PlainNetwork
from distill.paths import Path, match
from distill.prediction import KINDS, Kind, coefficients
from distill.random import expand

if TYPE_CHECKING:
    from distill.encoders.latents import Normalisation

Denoise: TypeAlias = Callable[[Tensor, Tensor, ConditionLike], Tensor]
"""A function (x_t [B, ...], t [B], cond) -> x0 [B, ...]."""


class GuidableDenoiser(Protocol):
    """The part of a Denoiser that objectives and samplers use. A guided denoiser has it too."""

    @property
    def path(self) -> Path:
        """The Gaussian path of its samples."""

    @property
    def network(self) -> Network:
        """Its network."""

    @property
    def sigma_data(self) -> float:
        """The standard deviation of the data."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: ConditionLike = None) -> Any:
        """Return x0 [B, ...] for (x_t [B, ...], t [B], cond)."""

    def null(self, cond: ConditionLike) -> Condition:
        """Return the null condition in the form of `cond` [B, ...]."""


class Denoiser(nn.Module):
    """The estimate of the clean sample, denoiser(x_t, t, cond) = E[x0 | x_t].

    The network is called as network(x [B, ...], time [B], cond) and returns the quantity [B, ...] that `prediction`
    names. Its time is `path.network_time(t)`. Its x is x_t, which EDM's prediction multiplies by EDM's input scale.
    Under `autocast_dtype` the network alone runs in low precision. The scaling and the conversion to x0 stay in the
    dtype of x_t, at least float32.

    Args:
        network: A Network, or any module that is called as module(x, time, labels or mapping or None).
        path: The Gaussian path of its samples.
        prediction: The quantity that the network outputs (distill.prediction).
        sigma_data: The standard deviation of the data, which EDM's preconditioning uses.
        autocast_dtype: The dtype in which the network computes. None stands for the dtype of its weights.
        latents: Whether the samples are latents of an autoencoder. A Normalisation states their scale too.

    Attributes:
        compiled: The mode of torch.compile in which the network is called. None for none. Each new shape of a batch is
            compiled anew, so that it is for a round of training alone.

    Raises:
        UserError: The prediction kind is unknown.
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
        require(prediction in KINDS, f"prediction: must be one of {', '.join(KINDS)}, got {prediction!r}")
        self.network = network if isinstance(network, Network) else PlainNetwork(network)
        self.path = path
        self.prediction: Kind = prediction
        self.sigma_data = sigma_data
        self.autocast_dtype = autocast_dtype
        self.latents = latents
        self.compiled: str | None = None
        self._taps: dict[str, _Tap] = {}

    def null(self, cond: ConditionLike) -> Condition:
        """Return the network's null condition for every sample of `cond` [B, ...].

        The null condition stood for no condition when the network was trained. A network without one returns `cond`.
        """
        cond = Condition.of(cond)
        return cond if self.network.null is None else self.network.null.repeat_as(cond)

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """The shape (C, *spatial) of its samples as images, or None for latents without a decoder."""
        if not self.latents:
            return self.network.shape
        decoder = self.network.autoencoder
        return None if decoder is None else decoder.image_shape(self.network.shape)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: ConditionLike = None, want: Literal["x0", "uncertainty"] = "x0"
    ) -> Tensor:
        """Return the estimate of x0, or the uncertainty of the estimate.

        Args:
            x_t: Noisy samples [B, ...].
            t: Times [B] on the path.
            cond: The condition [B, ...], or None for an unconditional network.
            want: "x0" returns the estimate. "uncertainty" returns the log u of the expected loss at `t`, where the
                network predicts it (Network.logvar). This is a call of its own, and not a method of its own, because
                the wrappers of training around a denoiser see its calls alone.

        Returns:
            The estimate [B, ...] or the uncertainty [B], in the dtype of `x_t`, at least float32.
        """
        if want == "uncertainty":
            x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
            return _logvar(self.network, match(self.path.network_time(t.double()), x_t))
        x0, _ = self._estimate(x_t, t, cond)
        assert x0 is not None
        return x0

    def with_features(self, x_t: Tensor, t: Tensor, cond: ConditionLike, *taps: str) -> tuple[Tensor, ...]:
        """Return the estimate of x0, and the features of submodules from the same pass.

        Args:
            x_t: Noisy samples [B, ...].
            t: Times [B] on the path.
            cond: The condition [B, ...].
            taps: The names of submodules, or short names in the network's `taps`. The network's `tapped` turns the
                output of a submodule into features.

        Returns:
            The estimate [B, ...], and the features [B, C, ...] at each tap, all in the dtype of `x_t`, at least
            float32.

        Raises:
            UserError: There is no submodule of a name.
        """
        x0, features = self._estimate(x_t, t, cond, taps)
        assert x0 is not None
        return x0, *(one.to(x0.dtype) for one in features)

    def features(self, x_t: Tensor, t: Tensor, cond: ConditionLike, *taps: str) -> tuple[Tensor, ...]:
        """Return the features at each tap, as with_features does. The network runs no further than the last of them."""
        _, features = self._estimate(x_t, t, cond, taps, stop=True)
        return tuple(one.to(torch.promote_types(x_t.dtype, torch.float32)) for one in features)

    def _estimate(
        self, x_t: Tensor, t: Tensor, cond: ConditionLike, taps: tuple[str, ...] = (), stop: bool = False
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Return the estimate of x0 [B, ...], which is None with `stop`, and the features at each tap."""
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        c = coefficients(self.prediction, self.path, t, self.sigma_data)
        numbers = match(torch.stack([*c, self.path.network_time(t.double())]), x_t)  # one message to the device
        evaluate = _evaluate if self.compiled is None else compile_whole(_evaluate, self.compiled)
        # Each call has its own autocast context, because the context caches the weights that it casts. A cache that
        # outlives a call without a graph would give weights without a graph to a later call that needs one.
        with torch.autocast(x_t.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            watchers, scales = self._taps_at(taps), self.prediction == "edm"
            try:
                return evaluate(self.network, scales, x_t, numbers, Condition.of(cond), watchers, stop)
            except torch._dynamo.exc.TorchDynamoException as error:
                name, why = self.network.own_class or self.network.display_name, one_line(error)
                raise UserError(f"compile: {name} cannot be compiled: {why:.200}; set compile: false") from error

    def _taps_at(self, names: tuple[str, ...]) -> tuple[_Tap, ...]:
        """Return the taps at submodules, which stay there."""
        for name in names:
            if name not in self._taps:
                module = self.module_at(name)
                self._taps[name] = tap = _Tap(self.network)
                tap.handle = module.register_forward_hook(tap)
        return tuple(self._taps[name] for name in names)

    def check_taps(self, names: Sequence[str]) -> None:
        """Raise UserError when a name is of no submodule, or two are of the same."""
        seen = dict[nn.Module, str]()
        require(bool(names), "tap: the list is empty; name a submodule")
        for name in names:
            if (module := self.module_at(name)) in seen:
                both = f"'{name}' is there twice" if seen[module] == name else f"'{seen[module]}' and '{name}' are one"
                raise UserError(f"tap: {both}; name each submodule once")
            seen[module] = name

    def remove_taps(self) -> None:
        """Remove the hooks of taps. They come again with the next features, after hooks that were added until then."""
        for tap in self._taps.values():
            assert tap.handle is not None
            tap.handle.remove()
        self._taps.clear()

    def module_at(self, tap: str) -> nn.Module:
        """Return the submodule at `tap`, or raise UserError when there is none."""
        taps = self.network.taps
        try:
            return self.network.get_submodule(taps.get(tap, tap))
        except AttributeError:
            near = options([*taps, *(name for name, _ in self.network.named_modules() if name)], tap)
            raise UserError(f"tap: {self.network.display_name} has no submodule '{tap}'; it has {near}") from None


class _Tap:
    """A hook that keeps the features of a submodule in a pass that watches it.

    It belongs to the submodule for good, since a hook that comes and goes would be compiled anew each time.

    Attributes:
        network: The network, which turns the output of the submodule into features.
        watches: Whether the pass watches the submodule.
        until: All taps of a pass that ends where the last of them has its features. Empty for any other pass.
        size: The spatial dimensions of the samples of the pass.
        features: The features [B, C, ...].
        handle: The handle that removes the hook.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.watches = network, False
        self.until: tuple[_Tap, ...] = ()
        self.size: tuple[int, ...] = ()
        self.features: Tensor | None = None
        self.handle: RemovableHandle | None = None

    def __call__(self, module: nn.Module, inputs: object, output: Any) -> None:
        if self.watches:
            self.features = self.network.tapped(output, self.size)
            # A compiled pass leaves out what its result does not need, and so ends at the tap by itself.
            ends = bool(self.until) and all(tap.features is not None for tap in self.until)
            if ends and not torch.compiler.is_compiling():
                raise _ReachedTaps


class _ReachedTaps(Exception):
    """The signal that ends the forward pass of a network at the last of its taps."""


def _call(
    network: Network, x: Tensor, time: Tensor, cond: Condition, taps: tuple[_Tap, ...], stop: bool
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Call a network, and return its output, which is None with `stop`, and the features at each tap."""
    if not taps:
        return network(x, time, cond), ()
    for tap in taps:
        tap.watches, tap.until, tap.size = True, taps if stop else (), tuple(x.shape[2:])
    try:
        output = network(x, time, cond)
    except _ReachedTaps:
        output = None
    finally:
        features = tuple(cast(Tensor, tap.features) for tap in taps)
        for tap in taps:
            tap.watches, tap.until, tap.features = False, (), None
    return None if stop else output, features


@fused
def _logvar(network: Network, time: Tensor) -> Tensor:
    """Return the uncertainty [B] that a network predicts at its time [B]."""
    return network.logvar(time)


def _evaluate(
    network: Network,
    scales: bool,
    x_t: Tensor,
    numbers: Tensor,
    cond: Condition,
    taps: tuple[_Tap, ...],
    stop: bool,
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Return the estimate of x0 [B, ...], which is None with `stop`, and the features at each tap.

    All networks share this function, which is what is compiled. Its graphs are those of each kind of network, for each
    of its uses: no graph, a gradient to the input, a gradient to the weights.

    Args:
        network: The network.
        scales: Whether x_t is scaled before it enters the network.
        x_t: Noisy samples [B, ...].
        numbers: The coefficients and the network's time, [4, B].
        cond: The condition [B, ...].
        taps: The taps to watch.
        stop: Whether the pass ends at the last tap.
    """
    from_x_t, from_output, scale = (expand(row, x_t) for row in numbers[:3])
    output, features = _call(network, scale * x_t if scales else x_t, numbers[3], cond, taps, stop)
    return (None if output is None else from_x_t * x_t + from_output * output.to(x_t.dtype)), features
