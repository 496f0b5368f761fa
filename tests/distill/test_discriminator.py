"""The fake denoiser as a discriminator: one network, three kinds of answers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from distill import EDM, Denoiser, Random, UserError
from distill.discriminator import (
    R1,
    AdaptiveNoise,
    ChannelMean,
    ConvHead,
    Critic,
    Heads,
    LowerPart,
    accuracy,
    adversarial_loss,
    conv_critic,
    discriminator_loss,
    feature_shape,
    mean_logit,
)
from distill.times import Karras
from tests.tiny import tiny_denoiser
from tests.toys import Tanh

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


def test_a_tap_is_one_hook_that_holds_no_features() -> None:
    network, x_t = critic()
    for _ in range(3):
        network(x_t, T, LABELS, "both")
        network(x_t, T, LABELS, "logits")
        network(x_t, T, LABELS)
        (hook,) = (hook for module in network.modules() for hook in module._forward_hooks.values())
        assert hook.features is None and not hook.watches
    network.denoiser.remove_taps()
    assert not any(module._forward_hooks for module in network.modules())


def test_an_unknown_tap() -> None:
    line = r"^tap: UNet has no submodule 'decoder'; it has encoder, ... \(101 in all\)$"
    network, x_t = critic()
    for ask in (lambda: critic("decoder"), lambda: network.denoiser.features(x_t, T, LABELS, "encoder", "decoder")):
        with pytest.raises(UserError, match=line):
            ask()


@pytest.mark.parametrize(
    ("taps", "line"),
    [
        (["encoder", "encoder"], "tap: 'encoder' is there twice; name each submodule once"),
        (["middle", "unet.mid_block"], "tap: 'middle' and 'unet.mid_block' are one; name each submodule once"),
        ([], "tap: the list is empty; name a submodule"),
    ],
)
def test_lists_of_taps_that_are_refused(taps: list[str], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}$"):
        conv_critic(critic()[0].denoiser, taps)


@pytest.mark.parametrize("taps", [["encoder", "middle"], ["middle", "unet.down_blocks.0"]])
def test_a_head_on_each_of_several_taps(taps: list[str]) -> None:
    """One pass, or one up to the last tap; each logit is that of a discriminator on this tap alone."""
    inner, x_t = critic()
    both = conv_critic(inner.denoiser, taps)
    reached: list[str] = []
    both.denoiser.module_at("unet.up_blocks.0").register_forward_hook(lambda *_: reached.append("up"))
    inside = both.denoiser.network.register_forward_pre_hook(lambda *_: reached.append("pass"))
    logits = both(x_t, T, LABELS, "logits")
    assert reached == ["pass"] and logits.shape == (3, 2)
    x0, same = both(x_t, T, LABELS, "both")
    assert reached == ["pass", "pass", "up"] and torch.equal(same, logits)
    inside.remove()
    assert torch.equal(both(x_t, T, LABELS), x0)
    assert isinstance(both.head, Heads)
    for column, (tap, head) in enumerate(zip(taps, both.head, strict=True)):
        assert torch.equal(Critic(inner.denoiser, tap, head)(x_t, T, LABELS, "logits")[:, 0], logits[:, column])
    assert torch.equal(both(x_t, T, LABELS, "logits", both.denoiser), logits)  # as the features of a teacher


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
    ours = discriminator_loss(fake, real)
    assert torch.allclose(ours[0], mean(fake, 0.0)) and torch.allclose(ours[1], mean(real, 1.0))
    assert torch.allclose(adversarial_loss(fake), mean(fake, 1.0))
    assert mean_logit(fake).tolist() == [1.0, -0.75]
    assert accuracy(fake, real).tolist() == [0.5, 0.5]
    assert accuracy(-real.abs() - 1, fake.abs()).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("size", "kernels"),
    [
        ((8, 8), [(4, 4), (4, 4), (1, 1)]),  # DMD2's, on 8x8
        ((1, 1), [(1, 1), (1, 1)]),
        ((2, 2), [(4, 4), (1, 1), (1, 1)]),
        ((7, 5), [(4, 4), (3, 2), (1, 1)]),
        ((32, 16), [(4, 4), (4, 4), (4, 4), (4, 2), (1, 1)]),
        ((16,), [(4,), (4,), (4,), (1,)]),
        ((1,), [(1,), (1,)]),
        ((4, 8, 8), [(4, 4, 4), (2, 4, 4), (1, 1, 1)]),
        ((3, 16, 12), [(4, 4, 4), (1, 4, 4), (1, 4, 3), (1, 1, 1)]),  # one frame is left after the first
        ((1, 8, 8), [(1, 4, 4), (1, 4, 4), (1, 1, 1)]),  # a single frame is judged as an image is
    ],
)
def test_conv_head_at_any_resolution(size: tuple[int, ...], kernels: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    head = ConvHead(64, *size)
    convolutions = torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d
    assert [layer.kernel_size for layer in head.layers if isinstance(layer, convolutions)] == kernels
    features = torch.randn(3, 64, *size)
    logits = head(features)
    assert logits.shape == (3, 1) and float(logits.detach().std()) > 1e-3
    assert torch.allclose(head(features[1:2]), logits[1:2], atol=1e-5)  # a sample is judged on its own


@pytest.mark.parametrize(("size", "padding"), [((8, 8), (0, 0, 0, 0)), ((6, 8), (0, 0, 0, 1)), ((4, 2), (1, 2, 1, 1))])
def test_conv_head_on_smaller_features_than_its_own(size: tuple[int, int], padding: tuple[int, ...]) -> None:
    """What is left after the halvings has zeros around it, up to the 4x4 of the head's own features of 8x8."""
    torch.manual_seed(0)
    head = ConvHead(16, 8, 8)
    features = torch.randn(3, 16, *size)
    left, top = padding[0], padding[2]
    rest = head.layers[:3](features)
    padded = torch.zeros(3, 16, 4, 4)
    padded[:, :, top : top + rest.shape[2], left : left + rest.shape[3]] = rest
    assert torch.equal(head(features), head.layers[3:](padded).flatten(1))


def test_conv_head_on_larger_features_than_its_own() -> None:
    """The logit is the mean over the places of the last convolution: 12x8 leaves 6x4, and so three places."""
    torch.manual_seed(0)
    head = ConvHead(16, 8, 8)
    features = torch.randn(3, 16, 12, 8)
    logits = head.layers[3:](head.layers[:3](features))
    assert logits.shape == (3, 1, 3, 1)
    assert torch.equal(head(features), logits.flatten(1).mean(1, keepdim=True)) and head(features).shape == (3, 1)


@pytest.mark.parametrize(
    ("size", "kernels"),
    [((8, 8), [(4, 4), (4, 4)]), ((7, 5), [(4, 4), (3, 2)]), ((1, 3), [(1, 3)])],
)
def test_the_head_of_images_has_the_layout_of_earlier_checkpoints(
    size: tuple[int, int], kernels: list[tuple[int, int]]
) -> None:
    """Names and shapes of all parameters: a convolution, its group norm and SiLU at a time."""
    wanted: dict[str, tuple[int, ...]] = {}
    for number, kernel in enumerate(kernels):
        wanted[f"layers.{3 * number}.weight"] = (16, 16, *kernel)
        wanted |= {f"layers.{layer}.{name}": (16,) for layer, name in head_vectors(3 * number)}
    last = 3 * len(kernels)
    wanted |= {f"layers.{last}.weight": (1, 16, 1, 1), f"layers.{last}.bias": (1,)}
    parameters = {name: tuple(value.shape) for name, value in ConvHead(16, *size).named_parameters()}
    assert list(parameters) == list(wanted) and parameters == wanted


def head_vectors(first: int) -> list[tuple[int, str]]:
    """Return (layer, name) of the parameters [C] of a convolution that is layer `first`, and of its norm."""
    return [(first, "bias"), (first + 1, "weight"), (first + 1, "bias")]


@pytest.mark.parametrize("size", [(8,), (4, 8, 8), (8, 8)])
def test_conv_head_of_features_of_one_network(size: tuple[int, ...]) -> None:
    """The critic builds its head from the shape of the features, measured on the network's own samples."""
    shape = (4, *size)
    denoiser = Denoiser(Tanh(math.prod(shape), 0, shape=shape), EDM(), "v")
    assert feature_shape(denoiser, "middle") == shape
    network = Critic(denoiser, "middle", ConvHead(*feature_shape(denoiser, "middle")))
    x0, logits = network(torch.randn(3, *shape), T, LABELS % 3, "both")
    assert x0.shape == (3, *shape) and logits.shape == (3, 1) and bool(logits.isfinite().all())


@pytest.mark.parametrize("size", [(), (2, 2, 2, 2)])
def test_features_that_no_convolution_reads(size: tuple[int, ...]) -> None:
    line = f"objective: the discriminator reads features (C, *spatial), got {(4, *size)}"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        ConvHead(4, *size)


@pytest.mark.parametrize(("channels", "groups"), [(768, 32), (64, 16), (16, 4), (6, 1), (2, 1)])
def test_conv_head_norms_several_channels_together(channels: int, groups: int) -> None:
    """32 groups on the 768 channels of EDM's network for ImageNet 64; one channel at 1x1 would be normed to nothing."""
    norms = [layer for layer in ConvHead(channels, 2, 2).layers if isinstance(layer, torch.nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [groups, groups]


def test_shape_of_features() -> None:
    network, x_t = critic()
    for tap in ("encoder", "middle"):
        assert feature_shape(network.denoiser, tap) == network.denoiser.features(x_t, T, LABELS, tap)[0].shape[1:]


def test_r1_on_a_linear_discriminator() -> None:
    """l = <a, x>: the slope is a everywhere, and finite differences have its square as their mean."""
    a, real = torch.randn(1, 3, 2, dtype=torch.float64), torch.randn(4000, 3, 2, dtype=torch.float64)
    random, size = Random.at(0, torch.arange(4000)), float((a**2).sum())

    def judge(x: Tensor) -> Tensor:
        return (a * x).flatten(1).sum(1)[:, None].expand(-1, 5)

    logits, penalty = R1(weight=3.0).judge(judge, real, random)
    assert torch.equal(logits, judge(real))
    assert torch.allclose(penalty, torch.full_like(penalty, 1.5 * size), rtol=1e-12)
    logits, penalty = R1(weight=3.0, noise=0.01).judge(judge, real, random)
    assert torch.equal(logits, judge(real))
    assert float(penalty.mean()) == pytest.approx(1.5 * size, rel=0.1) and penalty.std() > 0
    assert R1().judge(judge, real, random)[1].tolist() == [0.0] * 4000


def test_r1_trains_the_network_by_its_second_derivatives() -> None:
    """Along a random direction of all weights, against a difference quotient; through attention as well."""
    denoiser = tiny_denoiser(down_block_types=["AttnDownBlock2D"], attention_head_dim=4).double()
    network, real = Critic(denoiser, "encoder", ChannelMean()), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    parameters = [p for name, p in network.named_parameters() if "down_blocks" in name]
    directions = [torch.randn_like(p) for p in parameters]

    def penalty() -> Tensor:
        random = Random.at(0, torch.arange(3))
        return R1(weight=1.0).judge(lambda x: network(x, T, LABELS, "logits"), real, random)[1].sum()

    gradients = torch.autograd.grad(penalty(), parameters, materialize_grads=True)  # a last bias shifts no slope
    ours = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    with torch.no_grad():
        values = []
        for step in (1e-5, -2e-5):
            torch._foreach_add_(parameters, directions, alpha=step)
            with torch.enable_grad():
                values.append(float(penalty().detach()))
    assert ours == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_adaptive_noise_follows_the_discriminator() -> None:
    """Its share moves by the images since the last move, up while the discriminator is sure, and ignores nan."""
    noise = AdaptiveNoise(low=0.1, high=0.9, images=1000)
    share, images = noise.start().values()
    assert (float(share), float(images)) == (0.1, 0.0)
    seen = []
    for certainty, at in ((1.0, 0), (0.7, 200), (0.7, 200), (0.5, 300), (float("nan"), 400), (1.0, 5000), (-1, 9000)):
        noise.adapt(share, images, torch.tensor(certainty), at)
        seen.append(float(share))
    assert seen == pytest.approx([0.1, 0.3, 0.3, 0.2, 0.2, 0.9, 0.1])
    law, u = Karras(), torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert torch.equal(LowerPart(law, share).nsr(u, EDM()), law.nsr(u * share, EDM()))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: R1(weight=-1.0), "weight: must be at least 0, got -1.0"),
        (lambda: R1(noise=-1.0), "noise: must be at least 0, got -1.0"),
        (lambda: AdaptiveNoise(low=0.0), "low, high: must satisfy 0 < low <= high <= 1, got 0.0 and 1.0"),
        (lambda: AdaptiveNoise(images=0), "images: must be positive, got 0"),
    ],
)
def test_settings_out_of_range(make: Callable[[], object], line: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        make()
