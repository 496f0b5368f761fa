"""The folder of a teacher with one of EDM's networks; tests/distill/teachers/test_unet.py has the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from distill import UserError
from distill.networks.network import null_label
from distill.teachers import load_denoiser, save_denoiser
from tests.distill.teachers.test_edm import EDM2, FOURIER, LABELS, T, build, x_t

Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize("settings", [FOURIER, EDM2], ids=["edm", "edm2"])
def test_round_trip_is_bit_equal(settings: dict[str, object], tmp_path: Path) -> None:
    saved = build(settings)
    saved.sigma_data = 0.37
    save_denoiser(saved, tmp_path / "teacher")
    loaded = load_denoiser(tmp_path / "teacher")
    assert (loaded.path, loaded.prediction, loaded.sigma_data, loaded.training) == (saved.path, "edm", 0.37, False)
    assert type(loaded.network) is type(saved.network)
    assert (loaded.network.shape, loaded.network.classes) == ((2, 8, 8), 3)
    assert torch.equal(loaded(x_t(), T, LABELS), saved(x_t(), T, LABELS))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    published = load((tmp_path / "teacher" / "network.safetensors").read_bytes())
    assert published.keys() == saved.network.state_dict().keys()
    file = tmp_path / "teacher" / "network.safetensors"
    file.write_bytes(bytes(file.stat().st_size))  # a teacher replaced while a run is using it
    assert torch.equal(loaded(x_t(), T, LABELS), saved(x_t(), T, LABELS))


@pytest.mark.parametrize("settings", [FOURIER, EDM2], ids=["edm", "edm2"])
def test_null_condition(settings: dict[str, object], tmp_path: Path) -> None:
    """The label after the classes, whose row is zeros."""
    saved = build(settings)
    saved.network.null = null_label(3)
    save_denoiser(saved, tmp_path / "teacher")
    loaded = load_denoiser(tmp_path / "teacher")
    assert (loaded.network.null_label, loaded.network.classes) == (3, 3)
    assert torch.equal(loaded(x_t(), T, loaded.null(LABELS)), saved(x_t(), T, None))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_denoiser(build(EDM2), tmp_path / "teacher")
    return tmp_path / "teacher"


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_denoiser(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


SETTINGS: dict[str, tuple[Change, str]] = {
    "name": (
        lambda n: n.update(name="edm3"),
        "network: name must be one of edm, edm2 or your own 'module:Class', got 'edm3'",
    ),
    "missing": (lambda n: n.pop("img_channels"), "img_channels: is missing"),
    "unknown": (
        lambda n: n.update(filter=[1]),
        "filter: is no setting of EDM2UNet, whose are img_resolution, img_channels",
    ),
    "type": (lambda n: n.update(num_blocks="2"), "num_blocks: must be something like 3, got '2'"),
    "list": (lambda n: n.update(channel_mult=2), "channel_mult: must be something like (1, 2, 3, 4), got '2'"),
    "long": (lambda n: n.update(channel_mult=[1] * 17), "channel_mult: must be something like (1, 2, 3, 4), got '[1"),
    "truth": (lambda n: n.update(model_channels=True), "model_channels: must be something like 192, got 'True'"),
    "huge": (lambda n: n.update(model_channels=1 << 40), "model_channels: must be something like 192, got '10995"),
    "wide": (
        lambda n: n.update(model_channels=65536, channel_mult=[1, 65536]),
        "channel_mult: the widest level must have 1 ",
    ),
    "no channels": (lambda n: n.update(model_channels=0), "channel_mult: the widest level must have 1 to 65,536"),
    "a negative number": (lambda n: n.update(label_dim=-1), "label_dim: must be something like "),
    "dropout": (lambda n: n.update(dropout=2), "dropout: must be from 0 to 1, got 2"),
    "deep": (lambda n: n.update(num_blocks=1000), "num_blocks: must be at most 64, got 1000"),
    "odd": (lambda n: n.update(img_resolution=7), "img_resolution: 7 cannot be halved 1 times"),
    "none": (lambda n: n.update(channel_mult=[]), "img_resolution: 8 cannot be halved -1 times"),
    "wider": (lambda n: n.update(model_channels=16), "weights: 'logvar_"),
    "labels": (
        lambda n: n.update(label_dim=4),
        "weights: 'unet.emb_label.weight' has shape (16, 3), the network (16, 4)",
    ),
    "no labels": (lambda n: n.pop("label_dim"), "weights: 'unet.emb_label.weight' is no weight of this network"),
    "blocks": (lambda n: n.update(num_blocks=2), "weights: 'unet.dec.4x4_block2"),
}


@pytest.mark.parametrize("how", SETTINGS)
def test_settings_that_do_not_fit(folder: Path, how: str) -> None:
    change, message = SETTINGS[how]
    description = json.loads((folder / "denoiser.json").read_text())
    change(description["network"])
    (folder / "denoiser.json").write_text(json.dumps(description))
    if how == "wider":
        message = "weights: 'unet."
    assert refusal(folder).startswith(f"teacher: '{folder}': {message}")


def test_weights_that_do_not_fit(folder: Path) -> None:
    file = folder / "network.safetensors"
    content, state = file.read_bytes(), load(file.read_bytes())
    for damaged in (content[: len(content) // 2], b"", b"\xff" * 100):
        file.write_bytes(damaged)
        assert refusal(folder).startswith(f"teacher: cannot read '{file}': ")
    file.unlink()
    assert refusal(folder).startswith(f"teacher: cannot read '{file}': ")
    save_file({key: value for key, value in state.items() if key != "unet.out_gain"}, file)
    assert refusal(folder) == f"teacher: '{folder}': weights: 'unet.out_gain' is missing"
    save_file({**state, "unet.bias": torch.ones(1)}, file)
    assert refusal(folder) == f"teacher: '{folder}': weights: 'unet.bias' is no weight of this network"
