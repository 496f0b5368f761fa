"""Back-propagation of the generator's loss through teacher and fake one after the other, to save memory.

Objectives are written as if autograd passed both denoisers at once, which is the default (trainers.engine.step). This
file gives them denoisers that record their calls, and takes the gradient through one call at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.denoiser import Denoiser
from distill.objectives import Denoisers


@dataclass
class _Call:
    """A call of a denoiser that can be repeated.

    Attributes:
        denoiser: The denoiser.
        x_t: The noisy input [B, ...], with the graph that leads back to the samples.
        arguments: The other arguments of the call.
        graph: The input of the denoiser, cut off from the samples, and its outputs. None after the graph is freed.
        leaves: The outputs as the objective gets them: detached, so that its graph begins there.
    """

    denoiser: Callable[..., Any]
    x_t: Tensor
    arguments: tuple[Any, ...]
    graph: tuple[Tensor, tuple[Tensor, ...]] | None = None
    leaves: tuple[Tensor, ...] = ()

    def run(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Call the denoiser with a graph from its input to its outputs, and return both."""
        x_t = self.x_t.detach().requires_grad_()
        outputs = self.denoiser(x_t, *self.arguments)
        return x_t, outputs if isinstance(outputs, tuple) else (outputs,)


class _RecordedDenoiser:
    """A denoiser whose outputs are leaves and whose calls are recorded. Its attributes are those of the denoiser."""

    def __init__(self, denoiser: Callable[..., Any], calls: list[_Call]) -> None:
        self._denoiser, self._calls = denoiser, calls

    def __call__(self, x_t: Tensor, *arguments: Any) -> Any:
        if not (torch.is_grad_enabled() and x_t.requires_grad):  # no gradient passes this call
            return self._denoiser(x_t, *arguments)
        # At most one graph is in memory: that of the call before is freed first, and is built again in `gradient`.
        if self._calls:
            self._calls[-1].graph = None
        call = _Call(self._denoiser, x_t, arguments)
        call.graph = call.run()
        call.leaves = tuple(output.detach().requires_grad_() for output in call.graph[1])
        self._calls.append(call)
        return call.leaves if len(call.leaves) > 1 else call.leaves[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


class OneByOne:
    """The gradient of plain autograd, with the activations of one frozen denoiser in memory at a time.

    The graph of the objective's loss begins at detached outputs of the denoisers. `gradient` takes the gradients there
    back through one call after the other. The last call still has its graph. Each other call runs its forward again.

    Attributes:
        calls: The calls of denoisers since `cut`, in order.
        samples: The generator's samples [B, ...], with their graph.
        leaf: The same samples as the objective sees them, without that graph.
    """

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.samples = self.leaf = torch.empty(0)

    def through(self, nets: Denoisers) -> Denoisers:
        """Return networks that record their calls, for the objective to call in place of `nets`."""
        recorded: Callable[..., Any] = partial(_RecordedDenoiser, calls=self.calls)
        frozen = {name: recorded(net) if isinstance(net, Denoiser) else net for name, net in nets.frozen.items()}
        return replace(nets, teacher=recorded(nets.teacher), fake=recorded(nets.fake), frozen=frozen)

    def cut(self, samples: Tensor) -> Tensor:
        """Return the generator's samples [B, ...] without their graph, for the objective, and forget earlier calls."""
        self.calls.clear()
        self.samples, self.leaf = samples, samples.detach().requires_grad_()
        return self.leaf

    def gradient(self, loss: Tensor, slope: Tensor | None = None) -> Tensor:
        """Return the gradient [B, ...] of a scalar in the samples, times `slope`. A second loss may follow."""
        leaves = [self.leaf, *(leaf for call in self.calls for leaf in call.leaves)]
        # 1. Within the objective: to the samples directly, and to the outputs of every call.
        direct, *at_outputs = torch.autograd.grad(loss, leaves, slope, retain_graph=True, materialize_grads=True)
        # 2. Through each call, from its outputs to its input. The last call comes first, since it still has its graph.
        inputs, at_inputs = [], []
        for call in reversed(self.calls):
            of_call = at_outputs[len(at_outputs) - len(call.leaves) :]
            del at_outputs[len(at_outputs) - len(call.leaves) :]
            x_t, outputs = call.graph or call.run()
            call.graph = None
            at_inputs.append(torch.autograd.grad(outputs, x_t, of_call)[0])
            inputs.append(call.x_t)
            del x_t, outputs  # the last references: the graph is freed before the next call runs again
        # 3. From the inputs of the calls to the samples.
        if inputs:
            direct = direct + torch.autograd.grad(inputs, self.leaf, at_inputs, retain_graph=True)[0]
        return direct

    def backward(self, loss: Tensor, slope: Tensor | None = None) -> None:
        """Accumulate the gradient of a scalar in the generator's parameters, times `slope`, and forget the calls."""
        self.samples.backward(self.gradient(loss, slope))
        self.calls.clear()
