"""A teacher of every kind is fine-tuned, resumed to the bit, distilled and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.denoiser import Denoiser
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.errors import UserError
from distill.generator import Generator
from distill.teachers import EDMNet, fresh_network, load_denoiser
from tests.families import FLOWS, SAMPLED, TEACHERS, fine_tuning
from tests.families import recipe as distillation_recipe
from tests.tiny import experiment, once, opened, teacher_recipe
from tests.trainers.interrupted import assert_same, fit, interrupted
from trainers.data.batches import condition_at
from trainers.engine.session import Session
from trainers.recipe.strict_yaml import dump
from trainers.runs.load import load_trained

pytestmark = pytest.mark.usefixtures("trusted_code")
FAMILIES = ["unet", "edm_cond", "edm2", "ddpm", "dit", "sd15", "sd3", "own"]
"""One of each kind of folder, of network and of condition."""


@pytest.fixture(scope="session")
def teacher(shared: Path) -> Callable[[str], Path]:
    """The folder of the tiny teacher of a name, written when a test first asks for it."""
    return lambda name: once(shared, f"teacher_{name}", TEACHERS[name])


def outputs(denoiser: Denoiser, session: Session) -> torch.Tensor:
    """The estimates of x0 for two samples of the run's data."""
    x = torch.randn(2, *denoiser.network.shape, generator=torch.Generator().manual_seed(0))
    cond = condition_at(session.dataset, torch.tensor([0, 1])).to(x.device, x.dtype)
    t = denoiser.path.time(torch.ones(2, dtype=torch.float64))
    with torch.no_grad():
        return denoiser(x, t, cond)


CASES = [(name, lora) for name in FAMILIES for lora in (False, True) if not (lora and name == "edm2")]  # has no layer


@pytest.mark.parametrize(("name", "adapted"), CASES)
def test_a_teacher_is_fine_tuned(
    name: str, adapted: bool, teacher: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"rank": 2, "alpha": 2} if adapted else None
    settings, before = fine_tuning(name, teacher(name), tmp_path, lora=lora), load_denoiser(teacher(name))
    straight = fit(settings, tmp_path / "straight")
    interrupted(settings, tmp_path / "resumed", 4, monkeypatch)
    fit(settings, tmp_path / "resumed", resume=True)
    assert_same(tmp_path / "straight", tmp_path / "resumed")
    after, loaded = load_denoiser(tmp_path / "straight" / "teacher"), load_trained(tmp_path / "straight")
    assert isinstance(loaded.model, Denoiser) and isinstance(straight.model, Denoiser)
    theirs = outputs(straight.model.eval(), straight)
    for ours in (after, loaded.model):
        assert (ours.path, ours.prediction) == (before.path, before.prediction)
        torch.testing.assert_close(outputs(ours.cpu(), straight), theirs, rtol=1e-4, atol=1e-5)
    assert not torch.equal(outputs(after, straight), outputs(before, straight))


@pytest.mark.parametrize("name", ["sd15", "edm_cond"])
def test_a_fine_tuned_teacher_is_distilled(name: str, teacher: Callable[[str], Path], tmp_path: Path) -> None:
    fit(fine_tuning(name, teacher(name), tmp_path, label_dropout=0.1 * (name == "sd15")), tmp_path / "tuned")
    objective = "fgm" if name.startswith(FLOWS) else "sid"
    tuned = tmp_path / "tuned" / "teacher"
    fit(distillation_recipe(name, objective, tuned, tmp_path, images=4), tmp_path / "student")
    trained = load_trained(tmp_path / "student")
    assert isinstance(trained.model, Generator) and trained.export(tmp_path / "export") < 1e-4


def test_adapters_are_those_of_their_teacher(teacher: Callable[[str], Path], tmp_path: Path) -> None:
    settings = fine_tuning("unet", teacher("unet"), tmp_path, lora={"rank": 2}, images=4)
    fit(settings, tmp_path / "run")
    other = once(tmp_path, "other", TEACHERS["edm_cond"])
    with pytest.raises(UserError, match=f"^'{tmp_path / 'run'}' fine-tunes another teacher than is now in '{other}'"):
        _ = load_trained(tmp_path / "run", changes={"start": str(other)}).model


def test_adapters_begin_alike_whether_or_not_prompts_are_encoded_first(
    teacher: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run asks an encoder that draws random numbers, and the second reads the cache."""
    encode = PipelineTextEncoder.encode

    def drawing(encoder: PipelineTextEncoder, prompts: list[str]) -> dict[str, torch.Tensor]:
        torch.rand(1)
        return encode(encoder, prompts)

    monkeypatch.setattr(PipelineTextEncoder, "encode", drawing)
    settings = fine_tuning("sd15", teacher("sd15"), tmp_path, lora={"rank": 2}, images=4)
    first, second = (fit(settings, tmp_path / name) for name in ("first", "second"))
    drawn = [
        [value for name, value in session.model.state_dict().items() if "lora" in name and value.any()]
        for session in (first, second)
    ]
    assert drawn[0] and all(map(torch.equal, *drawn))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to train": ({"network": None}, "network: is missing, and so is start, the folder of a teacher to fine"),
    "a path of its own": ({"network": None, "start": "x", "path": "edm"}, "path: follows from start, which is fine-t"),
    "a network of its own": ({"start": "x"}, "network: follows from start, which is fine-tuned; leave it out"),
    "adapters on nothing": (
        {"lora": {"rank": 2}},
        "lora: adapters train on the weights of a teacher; name it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_recipes_that_are_refused(case: str) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        experiment(teacher_recipe(**changes))


def test_data_that_do_not_fit_are_refused(teacher: Callable[[str], Path], tmp_path: Path) -> None:
    labelled = fine_tuning("edm_cond", teacher("edm_cond"), tmp_path)
    with pytest.raises(UserError, match=r"^label_dropout: the network of start has no null condition; set it to 0$"):
        opened({**labelled, "label_dropout": 0.1})
    with pytest.raises(UserError, match=r"has no prompts, the teacher '.*' takes them$"):
        opened({**labelled, "start": str(teacher("sd15"))})
    with pytest.raises(UserError, match=r"^augmentation: the teacher's network takes no labels of it"):
        opened({**fine_tuning("unet", teacher("unet"), tmp_path), "augmentation": {"probability": 0.1}})
    with pytest.raises(UserError, match=r"^uncertainty: UNet predicts none, as EDM2's networks do; leave it out$"):
        opened({**fine_tuning("unet", teacher("unet"), tmp_path), "uncertainty": True})
    prompted = fine_tuning("sd15", teacher("sd15"), tmp_path)
    del prompted["start"]
    with pytest.raises(UserError, match=r"has prompts, and a fresh network takes labels or none; start names one"):
        opened({**prompted, "network": teacher_recipe()["network"]})


def test_the_laws_follow_from_the_teacher(teacher: Callable[[str], Path], tmp_path: Path) -> None:
    """Those of the papers for its path: uniform steps for Stable Diffusion, logit-normal for a flow."""
    found = {}
    for name in ("sd15", "sd3", "edm_cond"):
        run = opened(fine_tuning(name, teacher(name), tmp_path)).run
        settings = dump(run)
        found[name] = settings["times"]["name"], settings["weight"]
    assert found == {
        "sd15": ("uniform_steps", "eps"),
        "sd3": ("lognormal", "velocity"),
        "edm_cond": ("lognormal", "edm"),
    }


SONG = {"name": "edm", "model_type": "SongUNet", "model_channels": 8, "attn_resolutions": [4], "augment_dim": 9}


@pytest.mark.parametrize(
    "network",
    [SONG, {"name": "edm", "model_channels": 8, "num_blocks": 1}, {"name": "edm2", "model_channels": 8}],
    ids=["ddpm++", "adm", "edm2"],
)
def test_networks_of_the_papers_are_trained_afresh(network: dict[str, Any], tmp_path: Path) -> None:
    if network is SONG:
        extra: dict[str, Any] = {"augmentation": {"probability": 0.12}, "label_dropout": 0.0}
    else:
        extra = {"label_dropout": 0.1, "uncertainty": network["name"] == "edm2"}
    settings = teacher_recipe(network=network, images=8, batch_size=4, log_every=4, **SAMPLED, **extra)
    session = fit(settings, tmp_path / "run")
    after = load_denoiser(tmp_path / "run" / "teacher")
    assert after.network.shape == (1, 8, 8) and after.network.classes == 10
    assert after.network.has_null == ("label_dropout" in extra and extra["label_dropout"] > 0)
    assert isinstance(session.model, Denoiser)
    assert torch.equal(outputs(after, session), outputs(session.model.eval(), session))


def test_an_own_class_is_trained_afresh(tmp_path: Path) -> None:
    settings = teacher_recipe(
        network={"name": "tests.families:Own", "classes": 11}, label_dropout=0.1, prediction="eps", images=4
    )
    fit(settings, tmp_path / "run")
    assert load_denoiser(tmp_path / "run" / "teacher").network.own_class == "tests.families:Own"


@torch.no_grad()
def test_the_initial_weights_are_those_of_the_paper() -> None:
    """Their bounds in the authors' code: sqrt(6 / (in + out)) in DDPM++, 1 / sqrt(in) in ADM, and ends of branches."""
    torch.manual_seed(0)
    song = fresh_network({**SONG, "model_channels": 32}, (3, 16, 16), 0, null=False)
    adm = fresh_network({"name": "edm", "model_channels": 32}, (3, 32, 32), 10, null=False)
    assert isinstance(song, EDMNet) and isinstance(adm, EDMNet)
    block = song.body.enc["16x16_block0"]  # type: ignore[index]
    bound = (6 / (2 * 9 * 32)) ** 0.5  # 32 to 32 channels of 3x3 pixels
    assert float(block.conv0.weight.abs().max()) == pytest.approx(bound, rel=1e-3)
    assert 0 < float(block.conv1.weight.abs().max()) < 1e-5 and not block.conv0.bias.any()
    block = adm.body.enc["32x32_block0"]  # type: ignore[index]
    assert float(block.conv0.weight.abs().max()) == pytest.approx((9 * 32) ** -0.5, rel=1e-3)
    assert float(block.conv0.bias.abs().max()) == pytest.approx((9 * 32) ** -0.5, rel=0.1)
    assert not block.conv1.weight.any() and not adm.body.out_conv.weight.any()  # type: ignore[union-attr,operator]
    assert float(adm.body.map_label.weight.std()) == pytest.approx(1, rel=0.05)  # type: ignore[union-attr,arg-type]
