"""Samples that are latents are looked at as images: pictures, evaluation, rewards in training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from distill.denoiser import Denoiser
from distill.encoders.latents import Normalisation
from distill.errors import UserError
from distill.objectives.diff_instruct import DiffInstruct
from distill.objectives.rewarded import Rewarded
from distill.objectives.sid import SiD
from distill.teachers import load_denoiser, save_denoiser
from distill.tiny.parts import autoencoder
from tests.distill.teachers.test_edm import EDM2, build
from tests.tiny import build_session, experiment, once, recipe
from tests.toys import Nearness
from trainers.data import DataFree
from trainers.engine.session import Session
from trainers.evaluation import check_images, draw_samples, fit_protocol
from trainers.hooks import Evaluate, Samples
from trainers.hooks.samples import layout, preview_inputs
from trainers.io.images import denoiser_of, grid, to_images
from trainers.io.jsonl import read
from trainers.recipe.measures import Evaluation
from trainers.recipe.run import Run

SCALE = Normalisation((0.5, -1.0, 0.25, 2.0), (1.5, 2.0, 0.75, 3.0))


def write(folder: Path) -> None:
    """Teachers of latents [4, 8, 8] in three classes, `decoded` and `blind`; images [3, 16, 16] of those classes."""
    denoiser = build({**EDM2, "img_channels": 4})
    denoiser.latents = SCALE
    for name in ("decoded", "blind"):
        save_denoiser(denoiser, folder / name)
    torch.manual_seed(3)
    autoencoder(4).save_pretrained(folder / "decoded" / "vae")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        place = folder / "images" / f"class{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:02d}.png")


@pytest.fixture
def latents(shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return once(shared, "latents", write)


def run_of(folder: Path, teacher: str, resolution: int = 16, **changes: Any) -> Run:
    data = {"name": "images", "path": str(folder / "images"), "resolution": resolution}
    settings = recipe(folder / teacher, **{"data": data, "cache": str(folder / "cache"), **changes})
    return cast(Run, experiment(settings))


def session_of(run: Run) -> Session:
    return build_session(run)


def by_hand(folder: Path, samples: Tensor) -> Tensor:
    """Samples through the autoencoder, by their definition."""
    vae = AutoencoderKL.from_pretrained(folder / "decoded" / "vae").eval()
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (SCALE.mean, SCALE.std))
    with torch.no_grad():
        return cast(Tensor, vae.decode(samples.float() * std + mean).sample)


def picture(images: Tensor) -> Any:
    return np.array(grid(images, 10)).astype(int)


def test_pictures_are_decoded(latents: Path, tmp_path: Path) -> None:
    session = session_of(run_of(latents, "decoded"))
    assert session.dataset.shape == (4, 8, 8) and session.source.shape == (3, 16, 16)
    Samples(tmp_path, 8)(session)
    noise, cond = preview_inputs(session)
    assert noise.shape == (60, 4, 8, 8)
    wanted = picture(by_hand(latents, session.sampler(noise, cond)))
    made = np.array(Image.open(tmp_path / "samples" / f"{0:012d}.png")).astype(int)
    captions = 20  # the names of the classes
    assert made.shape == (captions + 6 * 66, 10 * 66, 3)
    assert int(abs(made[captions:] - wanted).max()) <= 1  # rounding to 8 bits
    decoder = denoiser_of(session.model).network.autoencoder
    assert decoder is not None and decoder._vae is None  # type: ignore[attr-defined]
    assert session.teacher is not None and decoder is session.teacher.network.autoencoder


def test_latents_that_nothing_decodes(latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three channels stand for the image, the file's name says so, and one line for the whole run."""
    session = session_of(run_of(latents, "blind", data={"name": "data_free", "shape": [4, 8, 8], "classes": 3}))
    hook = Samples(tmp_path, 8)
    capsys.readouterr()
    for images in (8, 16):
        session.state.images = images
        hook(session)
    assert capsys.readouterr().err == (
        "samples: these pictures are of latents, their first 3 channels: a vae/ in the teacher's folder decodes them\n"
    )
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == [f"{images:012d}_latents.png" for images in (8, 16)]
    samples = session.sampler(*preview_inputs(session))
    seen = to_images(samples, session.model)
    assert seen.shape == (60, 3, 8, 8)
    assert torch.allclose(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(seen.std((0, 2, 3), correction=0), torch.full((3,), 0.5), atol=1e-5)
    assert torch.allclose(
        torch.corrcoef(torch.stack([seen[:, 1].flatten(), samples[:, 1].flatten()]))[0, 1], torch.ones(())
    )
    assert to_images(samples[:, :2], session.model).shape == (60, 1, 8, 8)


def test_evaluation_compares_images_with_images(latents: Path, tmp_path: Path) -> None:
    session = session_of(run_of(latents, "decoded", evaluation={"every": 8, "samples": 64, "components": 8}))
    Evaluate(tmp_path, session.run.evaluation)(session)
    (record,) = read(tmp_path / "metrics.jsonl")
    protocol = fit_protocol(session.source, session.run.evaluation)
    samples, labels = draw_samples(session.sampler, session.dataset, torch.arange(64), 0)
    assert record["protocol"] == protocol.name == "pca8(images, 30 real)"
    wanted = protocol.report(by_hand(latents, samples), labels)["frechet"]
    assert record["frechet"] == pytest.approx(wanted, rel=1e-5) and float(wanted) > 0
    decoder = denoiser_of(session.model).network.autoencoder
    assert decoder is not None and decoder._vae is None  # type: ignore[attr-defined]


def test_what_cannot_be_evaluated(latents: Path) -> None:
    every = {"evaluation": {"every": 8}}
    with pytest.raises(UserError) as caught:
        session_of(run_of(latents, "blind", **every))
    assert str(caught.value) == "evaluation: judges pixels, the teacher's samples are latents and have no decoder"
    blank = DataFree((4, 8, 8)).load()
    with pytest.raises(UserError, match=r"^evaluation: needs real images, data: data_free has none; name eval"):
        check_images(blank, load_denoiser(latents / "decoded"), Evaluation())
    with pytest.raises(UserError) as caught:
        session_of(run_of(latents, "decoded", 8, **every))
    assert str(caught.value) == "evaluation: images has images [3, 8, 8], the teacher makes [3, 16, 16]"
    session_of(run_of(latents, "decoded", 8))  # without evaluation images are not even looked at


def test_large_images_are_few(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(run_of(latents, "decoded"))
    for side, shape in ((256, (10, 6)), (512, (8, 6)), (1024, (4, 4)), (8192, (1, 1))):
        monkeypatch.setattr(Denoiser, "image_shape", (3, side, side))
        assert layout(session) == shape
        noise, cond = preview_inputs(session)
        assert len(noise) == shape[0] * shape[1]
        assert cond["labels"][: shape[0]].tolist() == [n % 3 for n in range(shape[0])]


@pytest.mark.parametrize("inner", [SiD(), DiffInstruct()], ids=["sid", "diff_instruct"])
def test_a_rewarded_run_on_latents(inner: Any, latents: Path) -> None:
    """The reward moves the generator, alike in both orders of the backward pass."""
    weights = {}
    for name, scale, backprop in (("without", 0.0, "joint"), ("joint", 3.0, "joint"), ("one", 3.0, "one_by_one")):
        run = run_of(latents, "decoded", precision="float64", backprop=backprop, generator={"name": "sgd", "lr": 1e-6})
        objective = Rewarded(objective=inner, reward=Nearness(), reward_scale=scale)
        session = session_of(dataclasses.replace(run, objective=objective))
        session.update_players(session)
        moved = session.state.players["generator"]
        assert moved.counters()["skipped"] == 0
        weights[name] = torch.cat([parameter.detach().flatten() for parameter in moved.parameters])
    difference = float((weights["joint"] - weights["without"]).abs().max())
    assert difference > 1e-8
    assert float((weights["joint"] - weights["one"]).abs().max()) < 1e-9 * difference


def test_a_reward_without_a_decoder_is_refused(latents: Path) -> None:
    run = run_of(latents, "blind", data={"name": "data_free", "shape": [4, 8, 8], "classes": 3})
    objective = Rewarded(objective=DiffInstruct(), reward=Nearness(), reward_scale=1.0)
    with pytest.raises(UserError) as caught:
        session_of(dataclasses.replace(run, objective=objective))
    assert str(caught.value) == (
        "reward: nearness judges pixels, the teacher's samples are latents and have no decoder"
    )
