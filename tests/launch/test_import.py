"""distill import: what it prints, what it writes, and that it leaves nothing behind a mistake."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from distill.denoiser import Denoiser
from distill.teachers import load_denoiser
from distill.tiny.parts import autoencoder
from tests.distill.teachers.test_ddpm import save_pipeline
from tests.distill.teachers.test_edm import EDM2, LABELS, SONG, T, build, x_t
from tests.distill.teachers.test_published import Call
from tests.distill.teachers.test_unet import CONFIG
from tests.launch.conftest import Command
from tests.published import Record, checkpoint, stability, write


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
    assert "0 classes, eps on DiscreteVP(1,000 steps, linear betas from 0.0001 to 0.02)" in result.out
    assert load_denoiser(tmp_path / "teacher").prediction == "eps"


@pytest.mark.parametrize("settings", [{"in_channels": 5}, {"sample_size": None}])
def test_a_network_that_cannot_be_called_is_one_line(
    settings: dict[str, object], distill: Command, tmp_path: Path
) -> None:
    save_pipeline(tmp_path / "pipeline", CONFIG | settings)
    result = distill("import", "diffusers", tmp_path / "pipeline", "teacher")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith(f"distill: teacher: '{tmp_path / 'pipeline'}': ")
    assert not os.listdir(tmp_path / "cwd")


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


def edm2_of_latents(tmp_path: Path, **beside: object) -> tuple[Denoiser, Path]:
    saved = build({**EDM2, "img_channels": 4})
    data = {**checkpoint(saved.network), "encoder": stability(), **beside}  # type: ignore[arg-type]
    return saved, write(data, tmp_path / "published.pkl")


def test_an_autoencoder_beside_edm2(distill: Command, tmp_path: Path) -> None:
    """It is copied from its own folder or a pipeline's, tried, and decodes under the checkpoint's numbers."""
    _, file = edm2_of_latents(tmp_path)
    vae = autoencoder(4, scaling_factor=0.18215).eval()
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "vae" / "README.md").write_text("not copied")
    for number, source in enumerate((tmp_path / "pipeline" / "vae", tmp_path / "pipeline")):
        out = tmp_path / f"teacher{number}"
        result = distill("import", "edm2", file, out, "--vae", source)
        assert (result.code, result.err) == (0, "")
        assert "samples     latents of StabilityVAEEncoder, (z - [5.81, 3.25, 0.12, -2.15]) / [8.34, 9." in result.out
        assert f"decoder     {source}, images (3, 16, 16)\n" in result.out
        names = sorted(path.name for path in (out / "vae").iterdir())
        assert names == ["config.json", "diffusion_pytorch_model.safetensors"]
        decoder = load_denoiser(out).network.autoencoder
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        z = x * torch.tensor([8.34, 9.24, 7.42, 6.56])[:, None, None]
        z += torch.tensor([5.81, 3.25, 0.12, -2.15])[:, None, None]
        with torch.no_grad():
            assert decoder is not None and torch.allclose(decoder.decode(x), vae.decode(z).sample, atol=1e-5)


def test_autoencoders_that_cannot_be_had(distill: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, file = edm2_of_latents(tmp_path)
    (tmp_path / "empty").mkdir()
    autoencoder(16).save_pretrained(tmp_path / "wide")
    for name, value in (("broken", float("nan")), ("huge", 3e38)):
        vae = autoencoder(4)
        torch.nn.init.constant_(vae.decoder.conv_in.weight, value)
        vae.save_pretrained(tmp_path / name)
    for given, message in (
        ("no/such", "import: 'no/such' is no folder, nor a model of the hub: "),
        (
            tmp_path / "empty",
            f"import: '{tmp_path / 'empty'}' holds no autoencoder: a config.json and .safetensors weig",
        ),
        (tmp_path / "wide", f"teacher: '{tmp_path / 'teacher'}': vae: is of 16 channels, the network of 4\n"),
        (
            tmp_path / "broken",
            f"'{tmp_path / 'teacher'}/vae': weights: 'decoder.conv_in.weight' holds numbers that are not",
        ),
        (tmp_path / "huge", "--vae: what the autoencoder makes is not finite; nothing was written\n"),
    ):
        result = distill("import", "edm2", file, tmp_path / "teacher", "--vae", given)
        assert result.code == 2 and result.err.startswith(f"distill: {message}"), result.err
        assert not list(tmp_path.glob("*teacher*"))
    unsaid = Record("StabilityVAEEncoder", vae_name="sd", _vae=None)
    for encoder, held in (
        (None, "pixels"),
        (unsaid, "latents of StabilityVAEEncoder, whose scale the file does not say"),
    ):
        _, file = edm2_of_latents(tmp_path, encoder=encoder)
        result = distill("import", "edm2", file, tmp_path / "teacher", "--vae", tmp_path / "empty")
        assert (result.code, result.err) == (2, f"distill: --vae: the network's samples are {held}\n")
