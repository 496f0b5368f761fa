"""Distillations of a network of the user's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill import EDM, Denoiser, Generator
from distill.teachers import OwnNet, load_denoiser, save_denoiser
from tests.tiny import build_session, recipe
from tests.trainers.test_resume import assert_same, fit, interrupted
from trainers.runs.distillation import teacher_hash
from trainers.runs.load import load_trained

ADVERSARIAL = {"objective": {"name": "dmd2", "tap": "enter"}}
ADAPTERS = {"lr": 1e-2, "lora": {"rank": 2}}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = OwnNet("tests.distill.teachers.own_networks:Small", {"classes": 11}, (1, 8, 8), 10, 10)
    save_denoiser(Denoiser(network, EDM(), "eps"), tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize(
    "changes", [{}, ADVERSARIAL, {"generator": ADAPTERS, "fake": ADAPTERS}], ids=["whole", "tap", "lora"]
)
def test_resume_is_exact(
    changes: dict[str, Any], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(teacher, images=64, **changes)
    fit(settings, tmp_path / "whole")
    interrupted(settings, tmp_path / "cut", 40, monkeypatch)
    fit(settings, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_from_start_to_export(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in bfloat16; what is exported runs without this package, as its card says."""
    run = tmp_path / "run"
    fit(recipe(teacher, images=16, checkpoint_every=16, samples_every=16, precision="bfloat16"), run)
    product = load_trained(run)
    assert isinstance(product.model, Generator)
    product.model.denoiser.autocast_dtype = None
    difference = product.export(tmp_path / "export", "safetensors")
    assert difference == 0
    weights, network = load_file(tmp_path / "export/network.safetensors"), product.model.denoiser.network
    assert isinstance(network, OwnNet) and not torch.equal(
        weights["leave.weight"], load_file(teacher / "network.safetensors")["leave.weight"]
    )
    assert all(torch.equal(value, weights[key]) for key, value in network.module.state_dict().items())
    assert load_denoiser(tmp_path / "export").network.null_label == 10
    found = re.search(r"```python\n(.*?)```", (tmp_path / "export/README.md").read_text(), re.DOTALL)
    assert found is not None and "distill" not in found[1].replace("tests.distill", "")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(found[1], scope)
    with torch.no_grad():
        expected = product.model(scope["noise"], torch.arange(8))
    assert float((scope["samples"] - expected).abs().max()) < 1e-5


def test_the_hash_sees_weights_and_settings(teacher: Path) -> None:
    whole = teacher_hash(str(teacher))
    for name in ("network.safetensors", "denoiser.json"):
        content = (teacher / name).read_bytes()
        (teacher / name).write_bytes(content[:-1] + b" ")
        assert teacher_hash(str(teacher)) != whole
        (teacher / name).write_bytes(content)
    assert teacher_hash(str(teacher)) == whole


def test_guidance_reaches_the_null_condition(teacher: Path) -> None:
    settings = recipe(teacher, objective={"name": "guided", "objective": "diff_instruct", "fake_cfg": 2.0})
    session = build_session(settings)
    before = session.state.players["generator"].bare.state_dict()["denoiser.network.module.leave.bias"].clone()
    session.update_players(session)
    after = session.state.players["generator"].bare.state_dict()["denoiser.network.module.leave.bias"]
    assert bool(after.isfinite().all()) and not torch.equal(before, after)
