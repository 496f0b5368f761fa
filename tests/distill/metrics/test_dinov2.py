"""DINOv2 as an extractor, on a tiny random model of the real class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.errors import UserError
from distill.metrics.dinov2 import DINOv2

WIDTH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    out = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(config).save_pretrained(out)
    return out


def test_features_are_the_class_token_of_the_library(folder: Path) -> None:
    """By the library's own processor, which resizes Pillow images, and its own forward."""
    from PIL import Image
    from transformers import BitImageProcessorPil, Dinov2Model

    pixels = torch.randint(0, 256, (3, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    process = BitImageProcessorPil(do_resize=False, do_center_crop=False, image_mean=mean, image_std=std)
    pictures = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]
    inputs = process(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = Dinov2Model.from_pretrained(folder).eval()(inputs).last_hidden_state[:, 0]
    found = DINOv2(str(folder)).extract(pixels.float() / 127.5 - 1)
    torch.testing.assert_close(found.features, wanted, rtol=1e-4, atol=1e-5)
    assert found.logits is None and found.features.shape == (3, WIDTH)


def test_grey_images_of_any_size(folder: Path) -> None:
    network = DINOv2(str(folder))
    grey = torch.rand(2, 1, 20, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(network.extract(grey).features, network.extract(grey.expand(-1, 3, -1, -1)).features)
    assert network.name.startswith("fd_dinov2-") and len(network.name) == 16


def test_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^DINOv2: cannot read"):
        DINOv2(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match=r"is a vit$"):
        DINOv2(str(tmp_path))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")  # a pickle, which is not read
    with pytest.raises(UserError, match=r"^DINOv2: cannot read") as caught:
        DINOv2(str(tmp_path))
    assert "\n" not in str(caught.value)
