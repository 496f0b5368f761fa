"""EDM's and EDM2's networks behind the denoiser's interface: labels, taps, gradients of all weights, precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill import EDM, Denoiser, UserError
from distill.teachers.edm import EDM2Net, EDMNet

SMALL = {"img_resolution": 8, "img_channels": 2, "label_dim": 3, "channel_mult": [1, 2], "num_blocks": 1}
SONG = SMALL | {"model_type": "SongUNet", "model_channels": 8, "attn_resolutions": [4], "augment_dim": 9}
FOURIER = SONG | {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
ADM = SMALL | {"model_channels": 32, "attn_resolutions": []}
EDM2 = SMALL | {"model_channels": 8, "attn_resolutions": [4], "channels_per_head": 8, "logvar_channels": 8}
T = torch.tensor([0.05, 0.7, 20.0])
LABELS = torch.tensor([0, 2, 1])


def build(settings: dict[str, object]) -> Denoiser:
    torch.manual_seed(0)
    network = EDM2Net(**settings) if "logvar_channels" in settings else EDMNet(**settings)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.7)
    return Denoiser(network, EDM(), "edm").eval()


def x_t() -> Tensor:
    return torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * T[:, None, None, None]


every_network = pytest.mark.parametrize("settings", [SONG, FOURIER, ADM, EDM2], ids=["ddpm++", "ncsn++", "adm", "edm2"])


@every_network
def test_labels_and_the_null_condition(settings: dict[str, object]) -> None:
    denoiser = build(settings)
    assert (denoiser.network.shape, denoiser.network.classes) == ((2, 8, 8), 3)
    one, other, none = (denoiser(x_t(), T, cond) for cond in (LABELS, LABELS.flip(0), None))
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], other[0]) and not torch.equal(one, none)
    assert torch.equal(denoiser(x_t(), T, torch.full((3,), 3)), none)


@every_network
def test_taps(settings: dict[str, object]) -> None:
    """The encoder's features are those of its last block, before anything of the decoder runs."""
    denoiser = build(settings)
    width = 2 * int(settings["model_channels"])  # type: ignore[call-overload]
    ran = []
    middle = denoiser.network.get_submodule(denoiser.network.taps["middle"])
    middle.register_forward_hook(lambda *_: ran.append(1))
    (features,) = denoiser.features(x_t(), T, LABELS, "encoder")
    assert features.shape == (3, width, 4, 4) and not ran
    x0, same = denoiser.with_features(x_t(), T, LABELS, "encoder")
    assert torch.equal(same, features) and torch.equal(x0, denoiser(x_t(), T, LABELS))
    (middle,) = denoiser.features(x_t(), T, LABELS, "middle")
    assert middle.shape == features.shape and not torch.equal(middle, features)


@every_network
@pytest.mark.parametrize("cond", [LABELS, None])
def test_every_weight_has_a_gradient(settings: dict[str, object], cond: Tensor | None) -> None:
    """A reducer that averages gradients over processes waits for all of them."""
    denoiser = build(settings).train()
    denoiser(x_t(), T, cond).sum().backward()
    without = [name for name, parameter in denoiser.named_parameters() if parameter.grad is None]
    assert not without


@every_network
def test_autocast_runs_and_keeps_the_time_precise(settings: dict[str, object]) -> None:
    denoiser = build(settings)
    exact = denoiser(x_t(), T, LABELS).detach()
    denoiser.autocast_dtype = torch.bfloat16
    assert float((denoiser(x_t(), T, LABELS).detach() - exact).abs().max() / exact.std()) < 0.05
    denoiser.double()
    denoiser.autocast_dtype = None
    assert float((denoiser(x_t().double(), T, LABELS).detach() - exact).abs().max() / exact.std()) < 1e-5


def test_magnitudes_stay_one_in_edm2() -> None:
    """Section 2: with normalised weights all activations have the magnitude of the input, about 1, at any depth."""
    denoiser = build(EDM2)
    for tap in ("encoder", "middle"):
        (size,) = denoiser.features(torch.randn_like(x_t()) * (T**2 + 0.25).sqrt()[:, None, None, None], T, LABELS, tap)
        assert 0.7 < float(size.detach().square().mean().sqrt()) < 1.4


def test_settings_that_no_network_takes() -> None:
    for settings, message in (
        ({"model_type": "UNet"}, "model_type: must be one of SongUNet, DhariwalUNet, got 'UNet'"),
        ({"embedding_type": "learned"}, "embedding_type: must be one of positional, fourier, got 'learned'"),
        ({"encoder_type": "skip"}, "encoder_type: must be one of standard, residual, got 'skip'"),
        ({"decoder_type": "skip"}, "decoder_type: must be one of standard, got 'skip'"),
    ):
        with pytest.raises(UserError) as error:
            EDMNet(**{**SONG, **settings})
        assert str(error.value) == message


def test_sizes_of_the_published_networks() -> None:
    """Million parameters that the papers state: EDM on CIFAR-10 and ImageNet 64, EDM2 XS and XXL."""
    cifar = {"img_resolution": 32, "img_channels": 3, "channel_mult": [2, 2, 2], "model_type": "SongUNet"}
    imagenet = {"img_resolution": 64, "label_dim": 1000}
    with torch.device("meta"):
        networks = {
            56: EDMNet(**cifar),
            296: EDMNet(**imagenet, img_channels=3),
            125: EDM2Net(**imagenet, img_channels=4, model_channels=128),
            1523: EDM2Net(**imagenet, img_channels=4, model_channels=448),
        }
    for millions, network in networks.items():
        assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions
