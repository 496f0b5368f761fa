"""Every network is called once on shapes when it is loaded, with weights or without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import Condition, UserError
from distill.networks.network import Network
from distill.teachers import UNet, fresh_network, load_denoiser
from distill.teachers.trial import try_shapes
from distill.tiny.parts import text_unet
from tests.pipelines import PIPELINES

Folder = Callable[[str], Path]

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "times as classes": ({"class_embed_type": "timestep"}, "ValueError: class_labels should be provided"),
    "classes": ({"num_class_embeds": 10}, "ValueError: class_labels should be provided"),
    "sizes": (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        },
        "fails when it is called with x of [2, 4, 8, 8], times and prompt: TypeError",
    ),
    "another width of prompts": ({"encoder_hid_dim": 24}, "RuntimeError: "),
    "channels": ({"out_channels": 8}, "gives [2, 8, 8, 8] for x of [2, 4, 8, 8]"),
}


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("what", WRONG)
def test_networks_that_their_family_does_not_feed(
    what: str, weights: bool, pipelines: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, message = WRONG[what]
    shutil.copytree(pipelines("sd15"), tmp_path / "sd", ignore=shutil.ignore_patterns("unet"))
    unet = text_unet(("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=16, attention_head_dim=2, **settings)
    unet.save_pretrained(tmp_path / "sd/unet")
    caplog.clear()
    with pytest.raises(UserError) as error:
        load_denoiser(tmp_path / "sd", weights)
    assert str(error.value).startswith(f"teacher: '{tmp_path / 'sd'}': network: StableDiffusion ")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not caplog.records  # torch would log a traceback


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_trial_leaves_everything_as_it_is(name: str, weights: bool, pipelines: Folder) -> None:
    """Weights, random numbers and the mode stay, and the kinds of tensors too."""
    network = load_denoiser(pipelines(name), weights).network
    before = {key: (value, value._version) for key, value in network.state_dict().items()}
    state, training = torch.get_rng_state(), network.training
    try_shapes(network)
    assert torch.equal(torch.get_rng_state(), state) and network.training == training
    for key, value in network.state_dict().items():
        assert type(value) is Tensor and value.is_meta != weights and value._version == before[key][1]


class Fussy(Network):
    """A network that returns what a test says."""

    shape = (1, 2, 2)

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Any:
        return self.output(x)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x[:, :, :1], "network: Fussy gives [2, 1, 1, 2] for x of [2, 1, 2, 2]"),
        (lambda x: (x,), "network: Fussy gives tuple for x of [2, 1, 2, 2]"),
        (lambda x: None, "network: Fussy gives NoneType for x of [2, 1, 2, 2]"),
        (lambda x: x @ torch.ones(3, 3), "network: Fussy fails when it is called with x of [2, 1, 2, 2], times and no"),
    ],
)
def test_outputs(output: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        try_shapes(Fussy(output))
    assert str(error.value).startswith(message)


def _conv_out(settings: dict[str, Any]) -> torch.Tensor:
    network = fresh_network(settings, (3, 32, 32), 2, False)
    assert isinstance(network, UNet)
    return network.unet.conv_out.weight


def test_sides_that_a_fresh_network_cannot_halve() -> None:
    settings = {
        "block_out_channels": [8, 8, 8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D"] * 4,
        "up_block_types": ["UpBlock2D"] * 4,
    }
    for device in ("meta", "cpu"):
        with (
            torch.device(device),
            pytest.raises(UserError, match=r"^network: UNet fails when .* x of \[2, 3, 28, 28\]"),
        ):
            fresh_network(settings, (3, 28, 28), 2, False)
    torch.manual_seed(0)
    first = _conv_out(settings)
    torch.manual_seed(0)
    assert torch.equal(_conv_out(settings), first)
