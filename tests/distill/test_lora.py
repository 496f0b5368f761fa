"""Adapters: the network they start from, what they train, and the network they merge into."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from distill import UserError
from distill.lora import Lora, attach, merge, share_parameters, strip, targets
from tests.tiny import tiny_denoiser

LAYERS = (nn.Linear, nn.Conv2d)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 8, 8, generator=generator).double(), torch.full((4,), 0.7).double(), torch.arange(4)


def moved(network: nn.Module) -> None:
    """Every adapter as if it had trained."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))


def test_adapters_start_as_nothing_train_alone_and_merge_away() -> None:
    denoiser = tiny_denoiser().double()
    before, names = denoiser(*inputs()).detach(), set(denoiser.state_dict())
    torch.manual_seed(1)
    attach(denoiser.network, Lora(rank=3))
    assert torch.equal(denoiser(*inputs()), before)
    trained = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    layers = [module for module in tiny_denoiser().network.modules() if isinstance(module, LAYERS)]
    assert len(trained) == 2 * len(layers) and all(".lora_" in name for name in trained)
    assert all(p.shape[0] == 3 for name, p in trained.items() if "lora_A" in name)
    assert {p.dtype for p in trained.values()} == {torch.float64}
    denoiser(*inputs()).sum().backward()
    assert {name for name, p in denoiser.named_parameters() if p.grad is not None} == set(trained)

    moved(denoiser.network)
    after, merged = denoiser(*inputs()).detach(), copy.deepcopy(denoiser)
    assert float((after - before).abs().max()) > 0.1
    merge(merged.network)
    assert set(merged.state_dict()) == names
    assert float((merged(*inputs()) - after).abs().max()) < 1e-10
    merge(merged.network)  # nothing is left to merge
    assert float((merged(*inputs()) - after).abs().max()) < 1e-10


def test_the_formula() -> None:
    """W x + alpha/rank B A x."""
    layer = nn.Sequential(nn.Linear(5, 4))
    attach(layer, Lora(rank=2, alpha=6))
    moved(layer)
    a, b = (layer.state_dict()[f"0.lora_{side}.default.weight"] for side in "AB")
    base, x = layer[0].get_base_layer(), torch.randn(3, 5)  # type: ignore[operator]
    assert torch.allclose(layer(x), base(x) + 3 * x @ a.T @ b.T, atol=1e-6)


def test_targets_by_name() -> None:
    network = tiny_denoiser().network
    every = targets(network, Lora())
    assert len(every) > 15 and "unet.conv_in" in every
    convolutions = targets(network, Lora(targets=("conv1", "unet.conv_in")))
    assert convolutions == [name for name in every if name.endswith(".conv1") or name == "unet.conv_in"]
    assert len(convolutions) > 2
    attach(network, Lora(rank=2, targets=("conv1",)))
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * (len(convolutions) - 1) and all(".conv1.lora_" in name for name in trained)


@pytest.mark.parametrize("target", ["conv9", "onv1", "unet", "norm1", ""])
def test_unknown_targets_are_refused(target: str) -> None:
    network = tiny_denoiser().network
    with pytest.raises(UserError) as caught:
        attach(network, Lora(targets=("conv1", target)))
    assert str(caught.value).startswith(
        f"lora.targets: no convolution or linear layer is called {target!r}; it has conv1,"
    )
    assert "\n" not in str(caught.value)
    assert all(p.requires_grad for p in network.parameters())


def test_convolutions_in_groups_have_no_adapters() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1))
    assert targets(network, Lora(rank=4)) == ["1"]
    attach(network, Lora(rank=3))
    assert [name for name, p in network.named_parameters() if p.requires_grad] == [
        "1.lora_A.default.weight",
        "1.lora_B.default.weight",
    ]


def test_sharing() -> None:
    """One set of weights, two trees: parameters are the same objects, whichever is moved; buffers are not."""
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    one, two = share_parameters(network), share_parameters(network)
    attach(one, Lora(rank=2, targets=("0",)))
    attach(two, Lora(rank=1, targets=("0",)))
    assert type(network[0]) is nn.Linear and all(
        a is b for a, b in zip(share_parameters(one).parameters(), one.parameters(), strict=True)
    )
    two.train()(torch.randn(4, 3))
    assert not network[1].running_mean.any() and not one[1].running_mean.any()  # type: ignore[operator]
    base = one[0].get_base_layer()  # type: ignore[operator]
    assert base is not network[0] and base.weight is network[0].weight
    network.bfloat16()
    assert base.weight is network[0].weight and base.weight.dtype == torch.bfloat16
    assert {p.dtype for name, p in two.named_parameters() if "lora_" in name} == {torch.float32}
    partly = share_parameters(network, {"0.weight"})
    assert partly[0].weight is network[0].weight and partly[0].bias is not network[0].bias
    strip(one)
    assert one[0] is base


def test_a_network_without_such_layers() -> None:
    with pytest.raises(UserError, match=r"^lora: Identity has no convolution or linear layer to put adapters on$"):
        attach(nn.Identity(), Lora())


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0}])
def test_settings_out_of_range(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"^(rank|alpha): must be positive, got 0$"):
        Lora(**settings)  # type: ignore[arg-type]


def test_a_rank_is_bounded() -> None:
    assert Lora(rank=4096).rank == 4096
    with pytest.raises(UserError, match=r"^rank: must be at most 4096, got 4097$"):
        Lora(rank=4097)
