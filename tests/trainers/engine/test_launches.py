"""The operators that a round launches outside its networks: their number is known, and does not grow with the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill import EDM, Denoiser, random
from distill.teachers import OwnNet, save_denoiser
from tests.tiny import build_session, recipe
from trainers.engine.step import advance

pytestmark = pytest.mark.usefixtures("trusted_code")

LONG: dict[str, Any] = {"images": 10**6, "log_every": 10**6}  # so that no round leads to a log point
META = torch.device("meta")  # stands for the GPU: what is computed on the host launches nothing there
FREE = {
    *("alias", "as_strided", "detach", "diagonal", "expand", "lift_fresh", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_reshape_alias", "_unsafe_view"),
}
"""The operators that make a view of a tensor, and launch nothing."""


class OneOperator(torch.autograd.Function):
    """One operator forward, and none backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient[0, 0, 0, 0]


class Plain(nn.Module):
    """A network that launches one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.middle = nn.Parameter(torch.zeros(())), nn.Identity()

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        found: Tensor = self.middle(OneOperator.apply(x, self.weight))
        return found


class Launches(TorchDispatchMode):
    """The number of operators on META, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self.inside = Counter[str](), False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        tensors = (one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor))
        if name not in FREE and not self.inside and any(one.device == META for one in tensors):
            self.found[name] += 1
        return result

    def as_one(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function that counts as one operator, as a compiled one does."""

        def one(*args: Any) -> Tensor:
            self.found[function.__name__] += 1
            self.inside = True
            try:
                return function(*args)
            finally:
                self.inside = False

        return one


@pytest.mark.parametrize(
    ("objective", "most", "compiled"),
    [
        ({"name": "sid"}, 254, 134),
        ({"name": "diff_instruct"}, 226, 106),
        ({"name": "dmd2", "tap": "middle"}, 396, 246),
    ],
    ids=["sid", "diff_instruct", "dmd2"],
)
def test_launches_outside_the_networks(
    objective: dict[str, Any], most: int, compiled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each network counts as one operator a call; the optimizers are left out, which launch one a player.

    `compiled` is the number where normal numbers are made by a compiled kernel.
    """
    monkeypatch.setattr(Accelerator, "device", META)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # which meta has not
    save_denoiser(Denoiser(OwnNet(f"{__name__}:Plain", {}, (1, 8, 8), 10, None), EDM(), "edm"), tmp_path / "plain")
    counts = []
    for batch_size in (8, 64):
        session = build_session(recipe(tmp_path / "plain", objective=objective, batch_size=batch_size, **LONG))
        for player in session.state.players.values():
            monkeypatch.setattr(player.optimizer, "step", lambda: None)  # meta has no fused optimizers
        advance(session)
        for fused in (False, True):
            launches = Launches()
            monkeypatch.setattr(random, "fused_normals", lambda mode=launches: mode.as_one(random._normals))
            token = random.FUSED.set(fused)
            with launches:
                advance(session)
            random.FUSED.reset(token)
            counts.append(launches.found.total())
    assert counts[:2] == counts[2:] == [most, compiled], counts
