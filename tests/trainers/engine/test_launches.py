"""The operators that a round launches outside its networks: their number is known, and does not grow with the batch."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill import EDM, Denoiser
from distill.teachers import OwnNet, save_denoiser
from tests.tiny import build_session, recipe
from trainers.engine.step import advance

pytestmark = pytest.mark.usefixtures("trusted_code")

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
        self.found = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        tensors = (one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor))
        if name not in FREE and any(one.device == META for one in tensors):
            self.found[name] += 1
        return result


@pytest.mark.parametrize(
    ("objective", "most"),
    [({"name": "sid"}, 256), ({"name": "diff_instruct"}, 228), ({"name": "dmd2", "tap": "middle"}, 420)],
    ids=["sid", "diff_instruct", "dmd2"],
)
def test_launches_outside_the_networks(
    objective: dict[str, Any], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each network counts as one operator a call; the optimizers are left out, which launch one a player."""
    monkeypatch.setattr(Accelerator, "device", META)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # which meta has not
    save_denoiser(Denoiser(OwnNet(f"{__name__}:Plain", {}, (1, 8, 8), 10, None), EDM(), "edm"), tmp_path / "plain")
    counts = []
    for batch_size in (8, 64):
        session = build_session(recipe(tmp_path / "plain", objective=objective, batch_size=batch_size))
        for player in session.state.players.values():
            monkeypatch.setattr(player.optimizer, "step", lambda: None)  # meta has no fused optimizers
        advance(session)
        with Launches() as launches:
            advance(session)
        counts.append(launches.found.total())
    assert counts[0] == counts[1] <= most, counts
