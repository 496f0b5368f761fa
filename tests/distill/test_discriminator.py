"""The fake denoiser as a discriminator: one network, three kinds of answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from distill import UserError
from distill.discriminator import ChannelMean, Critic, accuracy, deceive_loss, judge_loss
from tests.tiny import tiny_denoiser

T = torch.tensor([0.3, 2.0, 11.0], dtype=torch.float64)
LABELS = torch.tensor([1, 4, 9])


def critic(tap: str = "encoder") -> tuple[Critic, Tensor]:
    torch.manual_seed(0)
    denoiser = tiny_denoiser(
        block_out_channels=[8, 16], down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2
    )
    return Critic(denoiser, tap, ChannelMean()), torch.randn(3, 1, 8, 8)


@pytest.mark.parametrize("tap", ["encoder", "middle", "unet.down_blocks.0"])
def test_one_pass_is_both_passes(tap: str) -> None:
    """To the bit; and the logits alone stop at the tap."""
    network, x_t = critic(tap)
    reached: list[str] = []
    for name in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "conv_out"):
        module = network.denoiser.network.get_submodule(f"unet.{name}")
        module.register_forward_hook(lambda module, inputs, output, name=name: reached.append(name))
    x0, logits = network(x_t, T, LABELS, "both")
    assert len(reached) == 5
    assert torch.equal(network(x_t, T, LABELS), x0)
    reached.clear()
    assert torch.equal(network(x_t, T, LABELS, "logits"), logits)
    last = {"encoder": "down_blocks.1", "middle": "mid_block", "unet.down_blocks.0": "down_blocks.0"}[tap]
    assert last not in reached[:-1] and "conv_out" not in reached  # its own hook comes after the one that ends it
    assert logits.shape == (3, 4, 4) and logits.dtype == torch.float32


def test_hooks_do_not_stay() -> None:
    network, x_t = critic()
    for _ in range(3):
        network(x_t, T, LABELS, "both")
        network(x_t, T, LABELS, "logits")
    assert not any(module._forward_hooks for module in network.modules())


def test_an_unknown_tap() -> None:
    network, x_t = critic("decoder")
    with pytest.raises(
        UserError, match=r"^tap: UNet has no submodule 'decoder'; short names: \['encoder', 'middle'\]$"
    ):
        network(x_t, T, LABELS, "logits")


def test_low_precision_stays_inside() -> None:
    network, x_t = critic()
    network.denoiser.autocast_dtype = torch.bfloat16
    x0, logits = network(x_t, T, LABELS, "both")
    assert x0.dtype == logits.dtype == torch.float32
    network.denoiser.autocast_dtype = None
    assert network.double()(x_t.double(), T, LABELS, "logits").dtype == torch.float64


def test_losses_by_value() -> None:
    fake, real = torch.tensor([[-1.0, 3.0], [0.5, -2.0]]), torch.tensor([[2.0, -0.5], [0.0, 1.0]])
    mean = lambda logits, target: bce(logits, torch.full_like(logits, target), reduction="none").mean(1)  # noqa: E731
    ours = judge_loss(fake, real)
    assert torch.allclose(ours[0], mean(fake, 0.0)) and torch.allclose(ours[1], mean(real, 1.0))
    assert torch.allclose(deceive_loss(fake), mean(fake, 1.0))
    assert accuracy(fake, real).tolist() == [0.5, 0.5]
    assert accuracy(-real.abs() - 1, fake.abs()).tolist() == [1.0, 1.0]
