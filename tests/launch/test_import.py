"""distill import: what it prints, what it writes, and that it leaves nothing behind a mistake."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from distill.teachers import load_denoiser
from tests.distill.teachers.test_ddpm import save_pipeline
from tests.distill.teachers.test_edm import EDM2, LABELS, SONG, T, build, x_t
from tests.distill.teachers.test_published import Call
from tests.distill.teachers.test_unet import CONFIG
from tests.launch.conftest import Command
from tests.published import checkpoint, write


@pytest.mark.parametrize(("kind", "settings"), [("edm", SONG), ("edm2", EDM2)])
def test_a_published_checkpoint(kind: str, settings: dict[str, object], distill: Command, tmp_path: Path) -> None:
    saved = build(settings)
    file = write(checkpoint(saved.network), tmp_path / "published.pkl")  # type: ignore[arg-type]
    result = distill("import", kind, file, tmp_path / "teacher")
    assert (result.code, result.err) == (0, "")
    network = {"edm": "EDMNet", "edm2": "EDM2Net"}[kind]
    count = sum(parameter.numel() for parameter in saved.parameters())
    for part in (
        f"sha256      {hashlib.sha256(file.read_bytes()).hexdigest()}\n",
        "settings    img_resolution 8, img_channels 2, label_dim 3, channel_mult [1, 2], ",
        f"network     {network}, {count:,} parameters, shape (2, 8, 8)\n",
        "3 classes, edm on EDM()\n",
        f"written to  {tmp_path / 'teacher'}\n",
    ):
        assert part in result.out
    loaded = load_denoiser(tmp_path / "teacher")
    assert torch.equal(loaded(x_t(), T, LABELS), saved(x_t(), T, LABELS))
    again = distill("import", kind, file, tmp_path / "teacher")
    assert again.code == 2
    assert again.err == f"distill: import: '{tmp_path / 'teacher'}' exists already; name another folder\n"


def test_a_diffusers_pipeline(distill: Command, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "pipeline", CONFIG)
    result = distill("import", "diffusers", tmp_path / "pipeline", tmp_path / "teacher")
    assert (result.code, result.err) == (0, "")
    assert "0 classes, eps on DiscreteVP(beta_start=0.0001, beta_end=0.02, schedule='linear', steps=1000" in result.out
    assert load_denoiser(tmp_path / "teacher").prediction == "eps"


def test_a_hostile_checkpoint(distill: Command, tmp_path: Path) -> None:
    file = write({"ema": Call(os.system, "touch ran")}, tmp_path / "hostile.pkl")
    result = distill("import", "edm", file, "teacher")
    assert result.code == 2 and result.out == ""
    assert result.err == f"distill: import: cannot read '{file}': the name 'posix.system' is not allowed\n"
    assert not os.listdir(tmp_path / "cwd")


def test_a_network_whose_output_is_not_finite(distill: Command, tmp_path: Path) -> None:
    saved = build(SONG)
    torch.nn.init.constant_(saved.network.model.map_layer1.weight, 1e38)  # type: ignore[union-attr, arg-type]
    file = write(checkpoint(saved.network), tmp_path / "published.pkl")  # type: ignore[arg-type]
    result = distill("import", "edm", file, "teacher")
    assert result.code == 2
    assert result.err == "distill: import: the network's output is not finite; nothing was written\n"
    assert not os.listdir(tmp_path / "cwd")
