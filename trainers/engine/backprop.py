"""Back-propagation of the generator's loss through teacher and fake one after the other, to save memory.

No objective knows of it. The alternative, through both at once, is plain autograd (trainers.engine.step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from distill.denoiser import Denoiser
from distill.objectives import Denoisers


@dataclass
class _Call:
    """A call of a denoiser, whose outputs the objective gets as `leaves` of a graph of its own."""

    network: Callable[..., Any]
    x_t: Tensor  # with the graph that leads to the samples
    rest: tuple[Any, ...]
    graph: tuple[Tensor, tuple[Tensor, ...]] | None = None  # (input, outputs)
    leaves: tuple[Tensor, ...] = ()

    def run(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        x_t = self.x_t.detach().requires_grad_()
        outputs = self.network(x_t, *self.rest)
        return x_t, outputs if isinstance(outputs, tuple) else (outputs,)


class _Recorded:
    """A denoiser whose calls end in leaves; its attributes are those of the denoiser."""

    def __init__(self, network: Callable[..., Any], calls: list[_Call]) -> None:
        self._denoiser, self._calls = network, calls  # its own `network` is asked for too

    def __call__(self, x_t: Tensor, *rest: Any) -> Any:
        if not (torch.is_grad_enabled() and x_t.requires_grad):
            return self._denoiser(x_t, *rest)
        if self._calls:
            self._calls[-1].graph = None  # freed before this call builds its own
        call = _Call(self._denoiser, x_t, rest)
        call.graph = call.run()
        call.leaves = tuple(output.detach().requires_grad_() for output in call.graph[1])
        self._calls.append(call)
        return call.leaves if len(call.leaves) > 1 else call.leaves[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


class OneByOne:
    """The exact gradient of plain autograd with the activations of one frozen denoiser at a time.

    The objective's loss ends in detached outputs of the denoisers. Their cotangents are carried back through one call
    after the other: the last call still has its graph, the others run once more, which costs one forward each.
    """

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.samples = self.leaf = torch.empty(0)

    def through(self, nets: Denoisers) -> Denoisers:
        """Return the denoisers that the objective is to call."""

        def recorded(network: Callable[..., Any]) -> Any:
            return _Recorded(network, self.calls)

        frozen = {name: recorded(net) if isinstance(net, Denoiser) else net for name, net in nets.frozen.items()}
        return replace(nets, teacher=recorded(nets.teacher), fake=recorded(nets.fake), frozen=frozen)

    def cut(self, samples: Tensor) -> Tensor:
        """Return the generator's samples [B, ...] as the objective is to see them: a leaf of a graph of its own."""
        self.calls.clear()
        self.samples, self.leaf = samples, samples.detach().requires_grad_()
        return self.leaf

    def gradient(self, loss: Tensor) -> Tensor:
        """Return the gradient of a scalar in the samples [B, ...]; `loss` can be asked again."""
        leaves = [self.leaf, *(leaf for call in self.calls for leaf in call.leaves)]
        direct, *cotangents = torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
        inputs, carried = [], []
        for call in reversed(self.calls):
            mine = cotangents[len(cotangents) - len(call.leaves) :]
            del cotangents[len(cotangents) - len(call.leaves) :]
            x_t, outputs = call.graph or call.run()
            call.graph = None
            carried.append(torch.autograd.grad(outputs, x_t, mine)[0])
            inputs.append(call.x_t)
            del x_t, outputs  # freed before the next call runs again
        if inputs:
            direct = direct + torch.autograd.grad(inputs, self.leaf, carried, retain_graph=True)[0]
        return direct

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a scalar in the generator's parameters."""
        self.samples.backward(self.gradient(loss))
        self.calls.clear()
