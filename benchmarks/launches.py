"""The operators that a round launches on the device outside its networks, counted on tensors without values.

The meta device stands for the GPU: what is computed on the host launches nothing there. A compiled function counts as
one operator, and its backward pass as another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from distill import compilation, denoiser
from trainers.engine.networks import compiling
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.recipe.run import Compile

META = torch.device("meta")
FREE = {
    *("alias", "as_strided", "detach", "diagonal", "expand", "lift_fresh", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_reshape_alias", "_unsafe_view"),
}
"""The operators that make a view of a tensor, and launch nothing."""
COMPILED_NETWORKS = ("_evaluate", "_apply")
"""The compiled functions that are networks: a denoiser, and the head of a discriminator."""


class Plain(nn.Module):
    """A network with one weight, whose own time is next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.middle = nn.Parameter(torch.zeros(())), nn.Identity()

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return x times the weight."""
        found: Tensor = self.middle(x * self.weight)
        return found


class Launches(TorchDispatchMode):
    """The number of operators on META, by their names. Compiled functions count as one each, forward and backward.

    Attributes:
        found: The numbers so far.
        compiled: Whether a compiled function is at work, whose own operators do not count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self.compiled = Counter[str](), False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        tensors = (one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor))
        if name not in FREE and not self.compiled and any(one.device == META for one in tensors):
            self.found[name] += 1
        return result

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """Count all operators as one while the context is open, and as none in a context that is open already."""
        outer, self.compiled = self.compiled, True
        self.found[name] += not outer
        try:
            yield
        finally:
            self.compiled = outer

    def compile_whole(self, function: Callable[..., Any], mode: str = "default") -> Callable[..., Any]:
        """Return a function that counts as one operator, and as one more in a backward pass."""

        def call(*args: Any) -> Any:
            leaves, tree = tree_flatten(args)
            weights = [p for one in leaves if isinstance(one, nn.Module) for p in one.parameters()]
            tensors = [one for one in leaves if isinstance(one, Tensor)]
            return CountedFunction.apply(self, function, (leaves, tree), *weights, *tensors)  # type: ignore[no-untyped-call]

        return call


class CountedFunction(torch.autograd.Function):
    """A function whose forward and backward pass are one operator each."""

    @staticmethod
    def forward(ctx: Any, launches: Launches, function: Callable[..., Any], arguments: Any, *inputs: Tensor) -> Any:
        """Return the function's outputs, and keep its own graph."""
        leaves, tree = arguments
        ctx.set_materialize_grads(False)
        wanted = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in leaves]
        with launches.one(function.__name__), torch.set_grad_enabled(any(ctx.needs_input_grad)):
            outputs = function(*tree_unflatten(wanted, tree))
        weights = inputs[: len(inputs) - sum(isinstance(x, Tensor) for x in leaves)]
        ctx.inputs = [*weights, *(x for x in wanted if isinstance(x, Tensor))]
        ctx.outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        ctx.launches, ctx.name = launches, f"{function.__name__} backward"
        return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradients of the inputs, by the function's own graph."""
        pairs = [(y, dy) for y, dy in zip(ctx.outputs, gradients, strict=True) if dy is not None and y.requires_grad]
        inputs = [x for x in ctx.inputs if x.requires_grad]
        if not pairs:
            return None, None, None, *(None for _ in ctx.inputs)
        with ctx.launches.one(ctx.name):
            outputs, slopes = zip(*pairs, strict=True)
            got = torch.autograd.grad(outputs, inputs, slopes, allow_unused=True)
        found = dict(zip(map(id, inputs), got, strict=True))
        return None, None, None, *(found.get(id(x)) for x in ctx.inputs)


@contextmanager
def on_meta() -> Iterator[None]:
    """Let runs train on META while the context is open. It has no autocast and no fused optimizers: none steps."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Accelerator, "device", META))
        stack.enter_context(mock.patch.object(torch, "autocast", lambda *args, **kwargs: nullcontext()))
        stack.enter_context(mock.patch.object(clip_grad, "_has_foreach_support", lambda *args: True))  # as on a GPU
        for optimizer in (torch.optim.Adam, torch.optim.AdamW):
            stack.enter_context(mock.patch.object(optimizer, "step", lambda self: None))
        yield


def launches_of_round(session: Session, compiled: bool) -> Counter[str]:
    """Return the operators that a round launches outside its networks, by name, for a session that is on META.

    The networks are left out where they are compiled, and must be next to nothing otherwise (Plain). Optimizers are
    left out, which launch one operator a player.
    """
    advance(session)  # what only the first round does
    launches = Launches()
    with ExitStack() as stack:
        for module in (compilation, denoiser):
            stack.enter_context(mock.patch.object(module, "compile_whole", launches.compile_whole))
        stack.enter_context(compiling(session.networks(), Compile()) if compiled else nullcontext())
        stack.enter_context(launches)
        advance(session)
    for network in COMPILED_NETWORKS:
        del launches.found[network], launches.found[f"{network} backward"]
    return launches.found
