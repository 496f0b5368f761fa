"""Distillations of a network of the user's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from distill import EDM, Denoiser, Generator
from distill.teachers import OwnNet, load_denoiser, save_denoiser
from tests.tiny import build_session, experiment, recipe
from tests.trainers.interrupted import assert_same, fit, interrupted
from trainers.plan.trace import plan
from trainers.recipe.run import Run
from trainers.runs.distillation import teacher_hash
from trainers.runs.load import load_trained

pytestmark = pytest.mark.usefixtures("trusted_code")

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


class AnyShape(nn.Module):
    """A plain network for samples [C, *spatial] of one to three spatial dimensions."""

    def __init__(self, channels: int, dimensions: int, width: int = 4) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        self.enter = convolution(channels, width, 3, padding=1)
        self.leave = convolution(width, channels, 3, padding=1)
        self.classes, self.time = nn.Embedding(3, width), nn.Linear(1, width)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        shift = self.classes(labels) + self.time(time[:, None] / 1000)
        hidden = self.enter(x) + shift.view(*shift.shape, *[1] * (x.ndim - 2))
        out: Tensor = self.leave(hidden.tanh())
        return out


SHAPES = {  # height and width of a picture, whose sides are enlarged to at least 64 pixels
    (2, 3, 4, 4): (64, 192),  # three frames side by side
    (1, 4, 8): (64, 128),
    (5, 8): (64, 512),  # of a single spatial dimension, one row
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_samples_of_any_shape(shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SiD trains them, draws a picture of them, and resumes to the same bits."""
    torch.manual_seed(0)
    network = OwnNet(f"{__name__}:AnyShape", {"channels": shape[0], "dimensions": len(shape) - 1}, shape, 3)
    save_denoiser(Denoiser(network, EDM(), "eps"), tmp_path / "own")
    data = {"name": "data_free", "shape": list(shape), "classes": 3}
    settings = recipe(tmp_path / "own", data=data, images=64, samples_every=32)
    session = fit(settings, tmp_path / "whole")
    player, start = session.state.players["generator"], network.state_dict()
    assert player.counters()["skipped"] == 0
    moved = {name.removeprefix("denoiser.network.") for name, p in player.bare.named_parameters()}
    assert moved == {name for name, _ in network.named_parameters()}
    for name, parameter in player.bare.named_parameters():
        before = start[name.removeprefix("denoiser.network.")]
        assert bool(parameter.isfinite().all()) and not torch.equal(parameter, before), name
    height, width = SHAPES[shape]
    for images in (32, 64):
        picture = Image.open(tmp_path / "whole/samples" / f"{images:012d}.png")
        assert picture.size == (10 * (width + 2), 6 * (height + 2))
        assert picture.mode == ("RGB" if shape[0] >= 3 else "L")
    interrupted(settings, tmp_path / "cut", 40, monkeypatch)
    fit(settings, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    samples = load_trained(tmp_path / "cut").sample(4, label=2)
    assert samples.shape == (4, *shape) and bool(samples.isfinite().all())


def test_a_plan_knows_the_null_condition(tmp_path: Path) -> None:
    """Its value is known where weights are shapes alone."""
    network = OwnNet(f"{__name__}:AnyShape", {"channels": 1, "dimensions": 2}, (1, 4, 8), 2, 2)
    save_denoiser(Denoiser(network, EDM(), "eps"), tmp_path / "own")
    shapes = load_denoiser(tmp_path / "own", weights=False)
    assert shapes.network.null_label == 2 and all(p.is_meta for p in shapes.parameters())
    data = {"name": "data_free", "shape": [1, 4, 8], "classes": 2}
    guided = {"name": "guided", "objective": "diff_instruct", "fake_cfg": 2.0}
    planned = plan(cast(Run, experiment(recipe(tmp_path / "own", data=data, objective=guided))), 1)
    assert planned.rest["teacher: weights"] == sum(p.nbytes for p in shapes.parameters())
