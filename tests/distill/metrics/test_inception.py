"""The Inception network and the metrics of its features, against what torch-fidelity makes of the same numbers."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import UserError
from distill.metrics import Moments, frechet_distance, kernel_distance, precision_recall, read_protocol
from distill.metrics import inception as inception_module
from distill.metrics.images import as_bytes
from distill.metrics.inception import Inception
from distill.metrics.inception_score import PredictionSums
from tests.inception import write_stand_in

FILE = Path(__file__).parents[2] / "golden/inception_fid.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("inception") / "stand-in.pth", 11)


def golden(name: str) -> Tensor:
    with safe_open(FILE, "pt") as opened:
        found: Tensor = opened.get_tensor(name)
    return found


def as_images(pixels: Tensor) -> Tensor:
    """Images in [-1, 1] of pixels of 8 bits, as the framework reads them."""
    return pixels.float() / 127.5 - 1


@pytest.mark.parametrize("size", ["small", "wide", "exact", "large"])
def test_features_and_logits_are_those_of_torch_fidelity(weights: Path, size: str) -> None:
    network = Inception(weights)
    seen = dict[str, Tensor]()
    children = dict(network.trunk.named_children())
    middle = children["14"]  # Mixed_6e, whose mean over space is the features of 768 channels
    middle.register_forward_hook(lambda _, __, output: seen.update(middle=output.mean(dim=(2, 3))))
    found = network.extract(as_images(golden(f"{size}.images")))
    assert found.logits is not None
    ours = {"2048": found.features, "768": seen["middle"], "logits_unbiased": found.logits}
    ours["logits"] = found.logits + network.head.bias
    for name, value in ours.items():
        wanted = golden(f"{size}.{name}")
        assert float((value - wanted).abs().max() / wanted.abs().max()) < 1e-5, name


def test_the_metrics_are_those_of_torch_fidelity() -> None:
    with safe_open(FILE, "pt") as opened:
        wanted = json.loads(opened.metadata()["metrics"])
    generated, real, logits = (golden(f"metrics.{name}") for name in ("generated", "real", "logits"))
    distance = frechet_distance(Moments.of(generated), Moments.of(real))
    assert distance == pytest.approx(wanted["frechet_inception_distance"], rel=1e-5)
    mean, std = kernel_distance(generated, real, subsets=50, size=100)
    assert mean == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-5)
    assert std == pytest.approx(wanted["kernel_inception_distance_std"], rel=1e-5)
    score, spread = PredictionSums.of(logits, torch.arange(1000), 1000).score()
    assert score == pytest.approx(wanted["inception_score_mean"], rel=1e-5)
    assert spread == pytest.approx(wanted["inception_score_std"], rel=1e-5)
    precision, recall = precision_recall(generated, real)
    assert (precision, recall) == (pytest.approx(wanted["precision"]), pytest.approx(wanted["recall"]))


def test_the_score_does_not_depend_on_the_parts() -> None:
    logits, numbers = golden("metrics.logits"), torch.arange(1000)
    whole = PredictionSums.of(logits, numbers, 1000)
    parts = [PredictionSums.of(logits[part], part, 1000) for part in torch.arange(1000).split(333)]
    merged = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    assert merged.score() == pytest.approx(whole.score(), rel=1e-12)
    assert merged.sizes.tolist() == [100.0] * 10


def test_the_precision_of_points_that_are_known() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    assert precision_recall(torch.tensor([[0.5], [50.0]]).repeat(2, 1), real, neighbours=1) == (0.5, 0.0)


def test_fid_of_gaussians_in_closed_form() -> None:
    """10,000 samples of two Gaussians, whose distance is known: |m|^2 + sum (s - 1)^2."""
    draw = torch.Generator().manual_seed(0)
    shift, scale = torch.linspace(-1, 1, 16).double(), torch.linspace(0.5, 1.5, 16).double()
    a, b = (torch.randn(10_000, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    wanted = float(shift.square().sum() + (scale - 1).square().sum())
    assert frechet_distance(Moments.of(a), Moments.of(b * scale + shift)) == pytest.approx(wanted, rel=0.02)


def test_pixels_are_rounded_half_up() -> None:
    levels = torch.arange(256).float()
    assert torch.equal(as_bytes(as_images(levels)[:, None, None, None], "x")[:, 0, 0, 0], levels.to(torch.uint8))
    between = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(5, 1, 1, 1)
    assert as_bytes(between, "x")[:, 2, 0, 0].tolist() == [0, 0, 128, 255, 255]  # 127.5 becomes 128


def test_clean_resizing_is_that_of_pillow(weights: Path) -> None:
    pixels = golden("wide.images")
    planes = [Image.fromarray(plane.numpy().astype(np.float32), "F") for plane in pixels[0]]
    wanted = np.stack([np.asarray(plane.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for plane in planes])
    ours = Inception(weights, "clean")._resized(pixels)[0] * 128 + 128
    assert float((ours - torch.from_numpy(wanted)).abs().max()) < 0.01  # of 255
    assert Inception(weights, "clean", "clean_fid").name.startswith("clean_fid-")


def test_the_library_stays_importable(weights: Path) -> None:
    Inception(weights)
    assert "torch_fidelity" not in sys.modules  # its package would need torchvision


def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    file = inception_module.default_weights()
    with pytest.raises(UserError) as caught:
        Inception()
    assert f"`curl -L --create-dirs -o {file} https://github.com/toshas/torch-fidelity/" in str(caught.value)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"cut short")
    with pytest.raises(UserError, match="is damaged: its SHA-256 is not 6726825d"):
        Inception()
    with pytest.raises(UserError, match="cannot read"):
        Inception(file)
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds other weights"):
        Inception(tmp_path / "other.pth")
    torch.save([math.pi], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        Inception(tmp_path / "list.pth")


def changed(weights: Path, file: Path, change: Callable[[dict[str, Any]], object], **how: Any) -> Path:
    """Write the weights after a change of them."""
    state = torch.load(weights, weights_only=True)
    torch.save(change(state) or state, file, **how)
    return file


def with_attributes(state: dict[str, Any]) -> dict[str, Any]:
    """The state as torch makes it, with something else than the versions of modules."""
    made = OrderedDict(state)
    made._metadata = {"": 1}  # type: ignore[attr-defined]
    return made


WEIGHT = "Mixed_5b.branch1x1.conv.weight"


def test_the_form_of_a_file_does_not_matter(weights: Path, tmp_path: Path) -> None:
    """Torch's old form, parameters, and weights of double precision are the same network of the same name."""
    wanted = Inception(weights)
    forms: list[tuple[Callable[[dict[str, Any]], object], dict[str, Any]]] = [
        (lambda state: state, {"_use_new_zipfile_serialization": False}),
        (lambda state: {WEIGHT: torch.nn.Parameter(state.pop(WEIGHT)), **state}, {}),
        (lambda state: state.update({WEIGHT: state[WEIGHT].double()}), {}),
        (with_attributes, {}),
    ]
    for change, how in forms:
        found = Inception(changed(weights, tmp_path / "a.pth", change, **how))
        assert found.name == wanted.name and torch.equal(found.head.weight, wanted.head.weight)
    state = torch.load(weights, weights_only=True)
    halves = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}
    save_file(halves, tmp_path / "a.safetensors")
    same = {name: value.float() if value.is_floating_point() else value for name, value in halves.items()}
    torch.save(same, tmp_path / "a.pth")
    assert Inception(tmp_path / "a.safetensors").name == Inception(tmp_path / "a.pth").name != wanted.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update({WEIGHT: state[WEIGHT] / 0}), f"holds numbers that are not finite, in {WEIGHT}$"),
        (lambda state: state.update({WEIGHT: state[WEIGHT].double() + 1e300}), "holds numbers that are not finite, in"),
        (
            lambda state: state.update({WEIGHT: state[WEIGHT].long()}),
            f"holds torch.int64 in {WEIGHT}, expected torch.fl",
        ),
        (lambda state: state.update({1: state.pop(WEIGHT)}), "holds no tensors by name$"),
        (lambda state: {"state_dict": state}, "holds no tensors by name$"),
        (lambda state: state.update({WEIGHT: state[WEIGHT][:1]}), "holds other weights: "),
    ],
)
def test_weights_of_another_form_are_refused(
    weights: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Inception(changed(weights, tmp_path / "a.pth", change))
    assert str(caught.value).startswith("Inception: '") and "\n" not in str(caught.value)


class Bomb:
    """A pickle that would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


def test_weights_run_no_code(tmp_path: Path) -> None:
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="cannot read"):
        Inception(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


def test_the_published_weights_have_the_plain_name(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Inception(weights).name.startswith("fid-")
    monkeypatch.setattr(inception_module, "SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    assert Inception(weights).name == "fid"


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("fid50k", "fid", 50_000), ("clean_fid2500", "clean_fid", 2_500), ("fd_dinov2_50k", "fd_dinov2", 50_000)],
)
def test_published_protocols_by_name(name: str, kind: str, count: int) -> None:
    from distill.metrics import FEATURES

    features, samples = read_protocol(name)
    assert type(features) is FEATURES[kind] and samples == count


@pytest.mark.parametrize("name", ["fid", "fid0", "fid50kk", "inception50k", "fd_dinov2"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^protocol: must be fid50k"):
        read_protocol(name)


def test_the_stand_in_is_made_as_the_golden_file_says(weights: Path) -> None:
    with safe_open(FILE, "pt") as opened:
        names = json.loads(opened.metadata()["names"])
    state = torch.load(weights, weights_only=True)
    assert set(names) == {name for name in state if not name.endswith("num_batches_tracked")}
    name = "Conv2d_1a_3x3.bn.bias"
    drawn = np.random.RandomState(zlib.crc32(f"11 {name}".encode())).standard_normal(32).astype(np.float32)
    np.testing.assert_allclose(state[name].numpy(), 0.1 * drawn, rtol=1e-6)
