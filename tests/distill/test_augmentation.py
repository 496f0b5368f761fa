"""EDM's augmentation: the authors' numbers, exact cases, and the law of its transformations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill import Random, UserError
from distill.augmentation import LABELS, Augmentation, Transformation, transform

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "edm_augmentation.safetensors"


def still(count: int, **changes: Tensor) -> Transformation:
    """No transformation of any of `count` images, but for the changes."""
    none = dict.fromkeys(("scale", "angle", "aniso", "axis"), torch.zeros(count, dtype=torch.float64))
    pairs = dict.fromkeys(("flips", "shift"), torch.zeros(count, 2, dtype=torch.float64))
    return Transformation(**{**none, **pairs, **changes})


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_authors_numbers() -> None:
    golden = load_file(GOLDEN)
    drawn = Transformation(*(golden[name] for name in Transformation._fields))
    assert torch.allclose(drawn.labels(), golden["labels"], atol=1e-6, rtol=0)
    augmented = transform(golden["images"], drawn)
    assert torch.allclose(augmented, golden["augmented"], atol=1e-5 * float(golden["augmented"].abs().max()), rtol=0)
    assert (augmented - golden["images"]).abs().flatten(1).amax(1)[2:].min() > 1  # all but the first two are moved far


def test_no_transformation_changes_nothing() -> None:
    images = noise(3, 2, 9, 16)
    assert torch.allclose(transform(images, still(3)), images, atol=1e-6, rtol=0)
    assert still(3).labels().abs().max() == 0


def test_a_shift_by_whole_pixels_is_exact() -> None:
    """The mirror image is beyond the edge; labels say how far."""
    images = noise(2, 1, 16, 16)
    right = still(2, shift=torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64))  # 0.125 of 16 pixels: 2
    moved = transform(images, right)
    assert torch.allclose(moved[..., 2:], images[..., :-2], atol=1e-6, rtol=0)
    assert torch.allclose(moved[..., :2], images[..., 1:3].flip(3), atol=1e-6, rtol=0)
    assert right.labels()[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0]


def test_a_quarter_turn() -> None:
    """It turns a smooth image; the filter is not symmetric, so that the last digits are lost."""
    x = torch.linspace(-1, 1, 32, dtype=torch.float64)
    image = (torch.cos(2 * x)[:, None] * torch.sin(1.5 * x)[None])[None, None]
    turned = transform(image, still(1, angle=torch.tensor([math.pi / 2], dtype=torch.float64)))
    apart = [float((turned - image.rot90(turns, (2, 3))).abs().max()) for turns in (1, 2, 3)]
    assert min(apart) < 0.05 and sorted(apart)[1] > 0.5


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images, random = noise(6, 3, 8, 8).float(), Random.at(3, torch.arange(6))
    augment = Augmentation(probability=1.0)
    together, labels = augment(images, random)
    for one in range(6):
        alone, told = augment(images[one : one + 1], Random.at(3, torch.tensor([one])))
        assert torch.allclose(alone[0], together[one], atol=1e-5, rtol=0) and torch.equal(told[0], labels[one])
    assert labels.shape == (6, LABELS) and labels.dtype == torch.float32


def test_the_law() -> None:
    """Shares of the images that are transformed, and the moments of the transformations among them."""
    count = 40_000
    drawn = Augmentation(probability=0.12).draw(Random.at(0, torch.arange(count)))
    assert abs(float(drawn.flips[:, 0].mean()) - 0.5) < 0.01  # whatever the probability
    assert abs(float(drawn.flips[:, 1].mean()) - 0.06) < 0.005
    for value in (drawn.scale, drawn.angle, drawn.aniso, drawn.shift[:, 0]):
        chosen = value[value != 0]
        assert abs(len(chosen) / count - 0.12) < 0.007 and abs(float(chosen.mean())) < 0.07
    assert torch.equal(drawn.shift[:, 0] != 0, drawn.shift[:, 1] != 0)
    for value in (drawn.scale, drawn.aniso, drawn.shift[:, 1]):
        assert abs(float(value[value != 0].std()) - 1) < 0.04
    assert abs(float(drawn.angle[drawn.angle != 0].std()) - math.pi / 3**0.5) < 0.05
    assert abs(float((drawn.axis != 0).double().mean()) - 0.5) < 0.01
    together = (drawn.scale != 0) & (drawn.angle != 0)
    assert abs(float(together.double().mean()) - 0.12**2) < 0.003  # they are independent


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.5])
def test_a_probability_is_above_0(probability: float) -> None:
    with pytest.raises(UserError, match=r"probability: must be in \(0, 1\], got "):
        Augmentation(probability=probability)
