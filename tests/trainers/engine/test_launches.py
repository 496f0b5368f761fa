"""The operators that a round launches outside its networks: their number is known, and does not grow with the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from distill import EDM, Denoiser, compilation, denoiser
from distill.teachers import OwnNet, save_denoiser
from tests.tiny import DISTILLATIONS, build_session, distillation, recipe
from trainers.engine.networks import compiling
from trainers.engine.step import advance
from trainers.recipe.run import Compile

pytestmark = pytest.mark.usefixtures("trusted_code")

LONG: dict[str, Any] = {"images": 10**6, "log_every": 10**6}  # so that no round leads to a log point
META = torch.device("meta")  # stands for the GPU: what is computed on the host launches nothing there
FREE = {
    *("alias", "as_strided", "detach", "diagonal", "expand", "lift_fresh", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_reshape_alias", "_unsafe_view"),
}
"""The operators that make a view of a tensor, and launch nothing."""


class Plain(nn.Module):
    """A network with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.middle = nn.Parameter(torch.zeros(())), nn.Identity()

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        found: Tensor = self.middle(x * self.weight)
        return found


class Launches(TorchDispatchMode):
    """The number of operators on META, by their names. Compiled functions count as one each, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
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
            return Compiled.apply(self, function, (leaves, tree), *weights, *tensors)

        return call


class Compiled(torch.autograd.Function):
    """A function whose forward and backward pass are one operator each."""

    @staticmethod
    def forward(ctx: Any, launches: Launches, function: Callable[..., Any], arguments: Any, *inputs: Tensor) -> Any:
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
        pairs = [(y, dy) for y, dy in zip(ctx.outputs, gradients, strict=True) if dy is not None and y.requires_grad]
        inputs = [x for x in ctx.inputs if x.requires_grad]
        if not pairs:
            return None, None, None, *(None for _ in ctx.inputs)
        with ctx.launches.one(ctx.name):
            outputs, slopes = zip(*pairs, strict=True)
            got = torch.autograd.grad(outputs, inputs, slopes, allow_unused=True)
        found = dict(zip(map(id, inputs), got, strict=True))
        return None, None, None, *(found.get(id(x)) for x in ctx.inputs)


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on META, which has no autocast, and no fused optimizers: no optimizer steps."""
    monkeypatch.setattr(Accelerator, "device", META)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(clip_grad, "_has_foreach_support", lambda *args: True)  # as on a GPU
    for optimizer in (torch.optim.Adam, torch.optim.AdamW):
        monkeypatch.setattr(optimizer, "step", lambda self: None)


NETWORKS = ("_evaluate", "_apply")
"""The compiled functions that are networks: a denoiser, and the head of a discriminator."""


@pytest.mark.parametrize(
    ("objective", "most", "compiled"),
    [
        ({"name": "sid"}, 257, 55),
        ({"name": "diff_instruct"}, 227, 46),
        ({"name": "dmd2", "tap": "middle"}, 391, 84),
    ],
    ids=["sid", "diff_instruct", "dmd2"],
)
def test_launches_outside_the_networks(
    objective: dict[str, Any], most: int, compiled: int, on_meta: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks are left out where they are compiled, and so are optimizers, which launch one a player."""
    save_denoiser(Denoiser(OwnNet(f"{__name__}:Plain", {}, (1, 8, 8), 10, None), EDM(), "edm"), tmp_path / "plain")
    counts = []
    for batch_size in (8, 64):
        session = build_session(recipe(tmp_path / "plain", objective=objective, batch_size=batch_size, **LONG))
        advance(session)
        for fuses in (False, True):
            launches = Launches()
            for module in (compilation, denoiser):
                monkeypatch.setattr(module, "compile_whole", launches.compile_whole)
            with compiling(session.networks(), Compile()) if fuses else nullcontext(), launches:
                advance(session)
            for network in NETWORKS:
                del launches.found[network], launches.found[f"{network} backward"]
            counts.append(launches.found.total())
    assert counts[:2] == counts[2:] == [most, compiled], counts


@pytest.mark.parametrize("objective", DISTILLATIONS)
def test_the_host_reads_nothing(objective: str, on_meta: None, teachers: Path) -> None:
    """META has no values: a round that reads one on the host fails."""
    session = build_session(distillation(objective, teachers, **LONG))
    for _ in range(3):
        advance(session)
    with pytest.raises(RuntimeError, match="meta"):
        session.state.meter.read(session.accelerator)
