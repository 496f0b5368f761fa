"""8-bit Adam takes Adam's steps within the error of a byte, in a quarter of its memory, on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.errors import UserError
from tests.tiny import build_session, recipe
from trainers.checkpoints import checkpoint, saver
from trainers.engine import adam8bit
from trainers.engine.adam8bit import Adam8bit, byte_values, dequantise, quantise

SHAPES = {"matrix": (64, 100), "kernels": (16, 33, 3, 3), "vector": (5000,), "small": (10, 10)}


def parameters() -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    return [(name, nn.Parameter(torch.randn(shape))) for name, shape in SHAPES.items()]


def descend(optimizer: torch.optim.Optimizer, named: list[tuple[str, nn.Parameter]], steps: int) -> None:
    """Towards zero, by gradients that are noisy and differ in scale by rows."""
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for _, parameter in named:
            scale = torch.logspace(-4, 0, len(parameter)).view(-1, *[1] * (parameter.ndim - 1))
            parameter.grad = scale * (parameter.detach() + torch.randn(parameter.shape, generator=random))
        optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
        optimizer.step()


def test_a_byte_is_one_of_256_values() -> None:
    """Those of bitsandbytes 0.50.2: create_dynamic_map."""
    signed, unsigned = byte_values(signed=True), byte_values(signed=False)
    for values in (signed, unsigned):
        assert len(values) == 256 and values.diff().min() > 0 and values[-1] == 1
    torch.testing.assert_close(
        signed[[0, 1, 127, 128, 254]], torch.tensor([-0.99296875, -0.97890625, 0, 5.5e-7, 0.99296875])
    )
    torch.testing.assert_close(unsigned[[0, 1, 2, 3, 254]], torch.tensor([0, 3.25e-7, 7.75e-7, 2.125e-6, 0.996484375]))


@pytest.mark.parametrize("width", [1, 255, 256, 257, 600])
def test_blocks_end_where_rows_do(width: int) -> None:
    """A row's bytes do not depend on the other rows, nor those of zeros on anything."""
    rows, values = torch.logspace(-20, 20, 7)[:, None] * torch.randn(7, width), byte_values(signed=True)
    rows[3] = 0
    codes, scales = quantise(rows, values)
    assert codes.shape == rows.shape and codes.dtype == torch.uint8 and scales.shape == (7, -(-width // 256))
    for row in range(7):
        assert all(
            map(torch.equal, quantise(rows[row : row + 1], values), (codes[row : row + 1], scales[row : row + 1]))
        )
    found = dequantise(codes, scales, values)
    assert found[3].eq(0).all()
    error = (found - rows).abs() / rows.abs().amax(1, keepdim=True).clamp(min=1e-30)
    assert error.max() < 0.0071  # half the widest gap


@pytest.mark.parametrize("decoupled", [False, True])
def test_steps_are_adams_within_the_error_of_a_byte(decoupled: bool) -> None:
    common: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1, "fused": True}
    moved = []
    for kind in (torch.optim.Adam, Adam8bit):
        named = parameters()
        descend(kind(named, decoupled_weight_decay=decoupled, **common), named, 50)  # type: ignore[arg-type]
        moved.append({name: parameter.detach() for name, parameter in named})
    start = dict(parameters())
    for name in SHAPES:
        step, error = (
            (one - other[name]).norm() for one, other in ((moved[0][name], start), (moved[0][name], moved[1]))
        )
        assert error == 0 if name in ("vector", "small") else 0 < error < 0.04 * step, (name, error / step)


def test_a_parameter_takes_two_bytes_and_scales() -> None:
    named = parameters()
    optimizer = Adam8bit(named, lr=1e-2, fused=True)
    descend(optimizer, named, 1)
    held = {name: [v for v in optimizer.state[p].values() if isinstance(v, Tensor)] for name, p in named}
    sizes = {name: sum(tensor.nbytes for tensor in tensors) for name, tensors in held.items()}
    # 1 block of 100 in each of 64 rows, 2 of 149 in each of 16, and 4 bytes that count steps
    assert sizes["matrix"] == 2 * (6400 + 4 * 64) + 4 and sizes["kernels"] == 2 * (4752 + 4 * 32) + 4
    assert sizes["vector"] == 8 * 5000 + 4 and sizes["small"] == 8 * 100 + 4


def test_large_matrices_are_moved_in_pieces_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for at_once in (adam8bit.ELEMENTS_AT_ONCE, 1000):
        monkeypatch.setattr(adam8bit, "ELEMENTS_AT_ONCE", at_once)
        named = parameters()
        descend(Adam8bit(named, lr=1e-2, fused=True), named, 3)
        moved.append(dict(named))
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in SHAPES)


@pytest.mark.parametrize(("before", "after"), [("adam", "adam8bit"), ("adam8bit", "adamw"), ("sgd", "adam8bit")])
def test_another_optimizers_state_is_refused(
    before: str, after: str, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adam8bit, "SMALLEST", 64)
    sessions = [
        build_session(recipe(teachers / "edm", fake={"name": name, "betas": [0.9, 0.9]})) for name in (before, after)
    ]
    sessions[0].update_players(sessions[0])
    saver.Saver(tmp_path, 1, sessions[0].accelerator).save_now(sessions[0])
    with pytest.raises(UserError, match=f"^fake.name: {after} cannot go on where another optimizer has saved$"):
        checkpoint.restore(sessions[1], checkpoint.newest(tmp_path)[0])
