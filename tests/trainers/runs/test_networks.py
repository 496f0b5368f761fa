"""Distillations of EDM's and EDM2's networks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill import EDM, Denoiser, UserError
from distill.teachers import EDM2Net, EDMNet, load_denoiser, save_denoiser
from tests.tiny import build_session, fit_run, recipe
from trainers.runs.distillation import teacher_hash
from trainers.runs.load import load_trained

DIGITS = {"img_resolution": 8, "img_channels": 1, "label_dim": 10, "channel_mult": [1], "num_blocks": 1}
EDM2 = DIGITS | {"model_channels": 8, "attn_resolutions": [], "channels_per_head": 8, "logvar_channels": 8}
NCSNPP = DIGITS | {"model_type": "SongUNet", "model_channels": 8, "embedding_type": "fourier", "augment_dim": 9}


@pytest.fixture
def edm2(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = EDM2Net(**EDM2)
    for name, parameter in network.named_parameters():
        if name.endswith("gain"):  # zero in a fresh network, so that nothing before them moves
            torch.nn.init.constant_(parameter, 0.5)
    save_denoiser(Denoiser(network, EDM(), "edm"), tmp_path / "teacher")
    return tmp_path / "teacher"


def lengths(network: torch.nn.Module) -> list[float]:
    """Root mean square of each row of each normalised weight."""
    names = [name for name, value in network.named_parameters() if value.ndim > 1]
    return [float(row.square().mean().sqrt()) for name in names for row in network.get_parameter(name).detach()]


def test_weights_of_edm2_are_normalised_after_each_update_of_their_player(edm2: Path) -> None:
    session = build_session(recipe(edm2, precision="bfloat16", generator={"lr": 0.1}, fake={"lr": 0.1}))
    session.update_players(session)
    stored = load_denoiser(edm2).network.state_dict()
    assert session.teacher is not None
    for name, value in session.teacher.network.named_parameters():  # frozen: rounded, nothing else
        assert torch.equal(value, stored[name].bfloat16())
    for name, buffer in session.teacher.network.named_buffers():
        assert torch.equal(buffer, stored[name])
    for player in session.state.players.values():
        assert all(math.isclose(length, 1 - 1e-4, abs_tol=3e-5) for length in lengths(player.bare))
        moved = [n for n, p in player.bare.named_parameters() if not torch.equal(p, stored[n.split("network.")[-1]])]
        assert len(moved) > 20


def test_a_player_of_edm2_without_normalisation(edm2: Path) -> None:
    """As SiDA trains EDM2-S: its weights are those that its optimizer leaves, and those of the other player are not."""
    still = {"name": "sgd", "lr": 1e-30}
    session = build_session(recipe(edm2, generator={**still, "force_normalization": False}, fake=still))
    session.update_players(session)
    stored = load_denoiser(edm2).network.state_dict()
    generator, fake = (session.state.players[name].bare for name in ("generator", "fake"))
    assert all(torch.equal(p, stored[n.split("network.")[-1]]) for n, p in generator.named_parameters())
    assert any(not torch.equal(p, stored[n.split("network.")[-1]]) for n, p in fake.named_parameters())


def test_a_run_from_start_to_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    torch.manual_seed(0)
    save_denoiser(Denoiser(EDMNet(**NCSNPP), EDM(), "edm"), tmp_path / "teacher")
    settings = recipe(tmp_path / "teacher", images=16, checkpoint_every=16, samples_every=16)
    fit_run(settings, tmp_path / "run")
    product = load_trained(tmp_path / "run")
    x = product.sampler(torch.randn(2, 1, 8, 8), torch.tensor([3, 7]))
    assert x.shape == (2, 1, 8, 8) and bool(x.isfinite().all())
    assert product.export(tmp_path / "pipeline") < 1e-4
    assert (tmp_path / "pipeline" / "unet" / "edm.py").is_file()
    assert product.export(tmp_path / "export", "safetensors") == 0
    weights, network = load_file(tmp_path / "export" / "network.safetensors"), product.model.denoiser.network  # type: ignore[union-attr]
    assert {key.split(".")[0] for key in weights} == {"model"}
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert type(load_denoiser(tmp_path / "export").network) is EDMNet


def test_a_teacher_that_does_not_fit_the_data(tmp_path: Path) -> None:
    save_denoiser(Denoiser(EDMNet(**{**NCSNPP, "label_dim": 4}), EDM(), "edm"), tmp_path / "teacher")
    with pytest.raises(UserError, match=r"has classes 10, the teacher '.*' classes 4$"):
        build_session(recipe(tmp_path / "teacher"))


def test_the_hash_sees_weights_and_settings(edm2: Path) -> None:
    whole = teacher_hash(str(edm2))
    for name in ("network.safetensors", "denoiser.json"):
        content = (edm2 / name).read_bytes()
        (edm2 / name).write_bytes(content[:-1] + b" ")
        assert teacher_hash(str(edm2)) != whole
        (edm2 / name).write_bytes(content)
    assert teacher_hash(str(edm2)) == whole
