"""The kinds of faults that hostile inputs have found, one input of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import UserError
from distill.pipeline_folder import MAX_LAYERS, check_layers, load_model
from distill.teachers import EDMNet, build_unet, load_denoiser, save_denoiser
from tests.exports import DDPMPP
from tests.hostile.references import npz_bomb
from tests.hostile.weights import weights_bomb
from tests.limited import limited
from tests.tiny import NETWORK, SHAPE, tiny_denoiser
from trainers.recipe.yaml_text import parse

LARGE = 2**31


def refusal(call: Callable[[], object]) -> str:
    """Return the line of the refusal of a call."""
    with pytest.raises(UserError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "config",
    [
        {"layers_per_block": LARGE},
        {"transformer_layers_per_block": [1, LARGE]},
        {"text_config": {"num_hidden_layers": MAX_LAYERS + 1}},
        {"num_attention_blocks": 10**400},
    ],
)
def test_a_number_of_layers_is_bounded(config: dict[str, Any]) -> None:
    """Each layer is built, so that 2^31 of them take hours before a weight is looked at."""
    assert "must be at most 1,000, got " in refusal(lambda: check_layers(config))


def test_the_layers_of_networks_pass() -> None:
    check_layers({"layers_per_block": MAX_LAYERS, "block_out_channels": [LARGE], "down_block_types": ["x"], "n": LARGE})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layers_per_block": LARGE}, "layers_per_block: must be at most 1,000, got 2147483648"),
        ({"block_out_channels": [20_000]}, "its config describes 60,802,200,001 weights, its files have 48,"),
        ({"sample_size": LARGE}, "fails when it is called with x of [2, 1, 2147483648, 2147483648], times and labels"),
    ],
)
def test_a_config_takes_no_more_than_its_weights(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    save_denoiser(tiny_denoiser(), tmp_path)
    file = tmp_path / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert why in refusal(lambda: load_denoiser(tmp_path))


def test_a_config_without_its_weights_takes_no_memory(tmp_path: Path) -> None:
    """20,000 channels would take 20 GB before their absence is noticed."""
    save_denoiser(tiny_denoiser(), tmp_path)
    file = tmp_path / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "block_out_channels": [20_000]}))
    program = f"""
from pathlib import Path
import diffusers.models.unets.unet_2d
from distill.errors import UserError
from distill.pipeline_folder import load_model
from tests.limited import limit
limit(1500)
try:
    load_model(Path({str(tmp_path / "unet")!r}), "UNet2DModel", "unet", ("UNet2DModel",))
except UserError as error:
    print(error)
"""
    assert limited(program).startswith(f"cannot read '{tmp_path / 'unet'}' (UNet2DModel): its config describes ")


def test_a_good_model_loads(tmp_path: Path) -> None:
    save_denoiser(tiny_denoiser(), tmp_path)
    assert load_model(tmp_path / "unet", "UNet2DModel", "unet", ("UNet2DModel",)).config["sample_size"] == 8


@pytest.mark.parametrize("change", [{"up_block_types": [{"name": ["x"]}]}, {"layers_per_block": LARGE}, {"act_fn": {}}])
def test_a_recipe_of_a_network_is_refused(change: dict[str, Any]) -> None:
    assert refusal(lambda: build_unet({**NETWORK, **SHAPE, **change})).startswith("unet: diffusers refuses this UNet2D")


def test_settings_that_do_not_go_together_are_refused() -> None:
    line = refusal(lambda: EDMNet.build({**DDPMPP, "model_channels": 30_000}, None))
    assert line.startswith("network: ") and line.endswith(": num_channels (30000) must be divisible by num_groups (32)")


def test_what_packs_to_a_thousandth_takes_no_memory(tmp_path: Path) -> None:
    """A header of an array, and weights, that are 600 MB of a file of 3 MB, and a call that takes 6 GB."""
    (tmp_path / "a.npz").write_bytes(npz_bomb("header", 600))
    network = {"a": torch.zeros(3)}
    torch.save(network, tmp_path / "valid.pth")
    for kind in ("pickle", "storage", "one call", "many calls"):
        (tmp_path / f"{kind}.pth").write_bytes(weights_bomb(kind, tmp_path / "valid.pth", 600))
    program = f"""
from pathlib import Path
from distill.errors import UserError
from distill.metrics.inception import _read_weights
from trainers.evaluation.references import read_reference
from tests.limited import limit
limit(300)
folder = Path({str(tmp_path)!r})
for name in ("pickle", "storage", "one call", "many calls", "a"):
    try:
        read_reference(folder / "a.npz", "fid") if name == "a" else _read_weights(folder / f"{{name}}.pth")
    except UserError as error:
        print(error)
"""
    lines = limited(program).splitlines()
    found = [line.partition("': ")[2] for line in lines]
    assert found == [
        "it unpacks to more than it holds",
        "a storage claims 3 numbers of 4 bytes and has 13 bytes",
        *["the name 'builtins.bytearray' is not allowed"] * 2,
        "mu is no array of float32 or float64 numbers with one or two dimensions",
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('"\\UFFFFFFFF"', "OverflowError: Python int too large to convert to C int"),
        ("!!timestamp x", "AttributeError: 'NoneType' object has no attribute 'groupdict'"),
        ('!!int ""', "IndexError: string index out of range"),
        ("!!bool x", "KeyError: 'x'"),
    ],
)
def test_yaml_that_pyyaml_fails_on_is_refused(text: str, why: str) -> None:
    assert refusal(lambda: parse(f"a: {text}", "x.yaml")) == f"x.yaml: a value cannot be read ({why})"
