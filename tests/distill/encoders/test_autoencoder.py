"""Autoencoders of teacher folders: exact scales, gradients, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import UserError
from distill.denoiser import Denoiser
from distill.encoders import autoencoder
from distill.encoders.autoencoder import DiffusersAutoencoder
from distill.encoders.latents import Normalisation
from distill.pipeline_folder import load_stock_pipeline
from distill.teachers import load_denoiser, save_denoiser
from distill.tiny.parts import autoencoder as tiny_autoencoder
from tests.distill.teachers.test_edm import EDM2, build
from tests.pipelines import PIPELINES
from tests.pipelines import build as build_pipeline

Folder = Callable[[str], Path]
MEAN, RAW_STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)  # EDM2's raw_mean, raw_std; final 0, 0.5
SCALE = Normalisation(MEAN, tuple(2 * std for std in RAW_STD))


def edm2(latents: bool | Normalisation = SCALE) -> Denoiser:
    """A network of EDM2 for latents of four channels."""
    denoiser = build({**EDM2, "img_channels": 4})
    denoiser.latents = latents
    return denoiser


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Such a network's folder, with a `vae/`."""
    save_denoiser(edm2(), tmp_path / "teacher")
    torch.manual_seed(3)
    tiny_autoencoder(4, scaling_factor=0.18215).save_pretrained(tmp_path / "teacher" / "vae")
    return tmp_path / "teacher"


def latents(count: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return 0.5 * torch.randn(count, 4, 8, 8, generator=generator, dtype=torch.float64).to(dtype)


def vae_of(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder / "vae").to(dtype).eval().requires_grad_(False)


def test_edm2s_scale(folder: Path) -> None:
    """As the authors state it, z 0.5/std + (0 - mean 0.5/std), and its inverse; not the autoencoder's own factor."""
    loaded, vae = load_denoiser(folder), vae_of(folder, torch.float64)
    assert loaded.latents == SCALE and loaded.image_shape == (3, 16, 16)
    scale = 0.5 / torch.tensor(RAW_STD, dtype=torch.float64)[:, None, None]
    bias = -torch.tensor(MEAN, dtype=torch.float64)[:, None, None] * scale
    x = latents(dtype=torch.float64)
    ours = DiffusersAutoencoder(folder, SCALE, 4)
    images = vae.decode((x - bias) / scale).sample
    assert float((ours.decode(x) - images).abs().max()) < 1e-12
    distribution = vae.encode(images).latent_dist
    mean, std = ours.encode(images)
    assert float((mean - (distribution.mean * scale + bias)).abs().max()) < 1e-12
    assert float((std - distribution.std * scale).abs().max()) < 1e-12
    single = loaded.network.autoencoder
    assert single is not None and single.decode(x.float()).dtype == torch.float32
    assert float((single.decode(x.float()) - images).abs().max()) < 1e-5


def test_images_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 16 x 16 when 600 pixels are the most: the same images and gradient; one part's activations at a time."""
    x = latents(5, torch.float64).requires_grad_()
    weight = torch.randn(5, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    vae = vae_of(folder, torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (SCALE.mean, SCALE.std))
    wanted = vae.decode(x * std + mean).sample
    (gradient,) = torch.autograd.grad((wanted * weight).sum(), x)
    monkeypatch.setattr(autoencoder, "PIXELS_AT_ONCE", 600)
    ours, sizes = DiffusersAutoencoder(folder, SCALE), list[int]()
    ours._load(x).decoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    plain = ours.decode(x)
    assert sizes == [2, 2, 1] and not plain.requires_grad
    assert float((plain - wanted).abs().max()) < 1e-12
    kept = list[int]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):  # type: ignore[func-returns-value]
        images = ours.decode(x, graph=True)
    assert torch.equal(images, plain) and sum(kept) <= x.nbytes
    blocks = list[int]()
    ours._load(x).decoder.up_blocks[0].register_forward_pre_hook(lambda *_: blocks.append(1))
    for _ in range(2):  # the trainer may ask for a term's gradient before it goes back for all
        sizes.clear(), blocks.clear()
        (mine,) = torch.autograd.grad((images * weight).sum(), x, retain_graph=True)
        assert sorted(sizes) == [1, 2, 2] and len(blocks) == 6  # a block for its part, then for itself
        assert float((mine - gradient).abs().max()) < 1e-12 * float(gradient.abs().max())
    with torch.no_grad():
        assert not ours.decode(x, graph=True).requires_grad


def test_copies_share_it_and_freeing_loses_nothing(folder: Path) -> None:
    teacher = load_denoiser(folder)
    first, second = teacher.network.autoencoder, copy.deepcopy(teacher).network.autoencoder
    assert first is second and isinstance(first, DiffusersAutoencoder) and first._vae is None
    images = first.decode(latents())
    assert first._vae is not None
    first.free()
    assert first._vae is None and torch.equal(first.decode(latents()), images)
    assert not [name for name in teacher.state_dict() if "vae" in name]


def test_the_identity_is_of_files_and_scale(folder: Path) -> None:
    other = Normalisation(SCALE.mean, (1.0, 1.0, 1.0, 1.0))
    identities = [DiffusersAutoencoder(folder, scale).identity for scale in (None, SCALE, other)]
    assert len(set(identities)) == 3
    assert DiffusersAutoencoder(folder, SCALE).identity == identities[1]


def test_sdxl_with_a_scale_by_channel(tmp_path: Path) -> None:
    """Some of SDXL's kin state means and deviations in the autoencoder's config: as their pipeline reads them."""
    pipe = build_pipeline("sdxl")
    pipe.vae.register_to_config(latents_mean=[0.5, -1.0, 2.0, 0.1], latents_std=[0.9, 1.5, 2.0, 0.3])
    pipe.save_pretrained(tmp_path)
    stock = load_stock_pipeline(tmp_path)
    common = {"prompt": "a cat", "num_inference_steps": 2, "height": 16, "width": 16}
    images, samples = (
        stock(**common, generator=torch.Generator().manual_seed(1), output_type=kind).images
        for kind in ("pt", "latent")
    )
    ours = load_denoiser(tmp_path).network.autoencoder
    assert ours is not None
    assert float((ours.decode(samples).clamp(-1, 1) / 2 + 0.5 - images).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["dit", "sd15", "sd3", "flux", "sana"])
def test_pipelines_say_how_large_images_are(name: str, pipelines: Folder) -> None:
    teacher = load_denoiser(pipelines(name))
    network: Any = teacher.network
    assert teacher.image_shape == (3, *network.pixels)
    assert network.autoencoder.decode(torch.zeros(2, *network.shape)).shape == (2, 3, *network.pixels)


@pytest.mark.parametrize("name", [name for name in PIPELINES if not name.startswith("ddpm")])
def test_it_is_the_pipelines(name: str, pipelines: Folder) -> None:
    """Decoding is what the pipeline does with its latents; encoding is its inverse in shape and scale."""
    folder = pipelines(name)
    network: Any = load_denoiser(folder).network
    ours, pipe = DiffusersAutoencoder(folder), load_stock_pipeline(folder)
    x = torch.randn(1, *network.shape, generator=torch.Generator().manual_seed(4))
    shift = pipe.vae.config.get("shift_factor") or 0.0
    with torch.no_grad():
        theirs = pipe.vae.decode(x / pipe.vae.config.scaling_factor + shift).sample
    images = ours.decode(x)
    assert torch.equal(images, theirs) and images.shape == (1, 3, *network.pixels)
    mean, std = ours.encode(images)
    assert mean.shape == std.shape == x.shape and bool((std >= 0).all())


def test_latents_without_an_autoencoder(tmp_path: Path) -> None:
    for number, given in enumerate((True, SCALE)):
        save_denoiser(edm2(given), tmp_path / str(number))
        loaded = load_denoiser(tmp_path / str(number))
        assert loaded.latents == given and loaded.network.autoencoder is None and loaded.image_shape is None
    pixels = edm2(False)
    assert pixels.image_shape == (4, 8, 8)


def refusal(folder: Path, **changes: Any) -> str:
    """Return the error of loading when the description has `changes`."""
    file = folder / "denoiser.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(UserError) as caught:
        load_denoiser(folder)
    return str(caught.value).replace(str(folder), "T")


def test_what_is_refused(folder: Path, pipelines: Folder) -> None:
    for unsaid in (True, False):
        line = "teacher: 'T/denoiser.json': latents: must state mean and std by channel, as there is a vae/"
        assert refusal(folder, latents=unsaid) == line
    for wrong in (
        "yes",
        {"mean": [0, 0, 0, 0]},
        {"mean": [0], "std": ["1"]},
        {"mean": 0, "std": 1},
        [1],
        {"mean": [], "std": []},
    ):
        assert refusal(folder, latents=wrong).startswith("teacher: 'T/denoiser.json' is damaged: key 'latents")
    line = "teacher: 'T/denoiser.json' is damaged: key 'latents.std.0': must be a finite number, got inf"
    assert refusal(folder, latents={"mean": [0.0], "std": [float("inf")]}) == line
    for mean, std in (([0.0], [1.0, 1.0]), ([0.0], [0.0])):
        assert refusal(folder, latents={"mean": mean, "std": std}).endswith(
            f"latents: must have as many finite means as positive stds, got {mean} and {std}"
        )
    two = {"mean": [0.0, 1.0], "std": [1.0, 1.0]}
    assert refusal(folder, latents=two) == "teacher: 'T': latents: is of 2 channels, the network of 4"
    shutil.rmtree(folder / "vae")
    shutil.copytree(pipelines("sd3") / "vae", folder / "vae")
    four = {"mean": list(SCALE.mean), "std": list(SCALE.std)}
    assert refusal(folder, latents=four) == "teacher: 'T': vae: is of 16 channels, the network of 4"
    (folder / "vae" / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    assert refusal(folder) == "teacher: 'T': vae must be AutoencoderKL or AutoencoderDC, got 'AutoencoderTiny'"
    (folder / "vae" / "config.json").unlink()
    assert refusal(folder).startswith("teacher: 'T/vae/config.json' is missing")
