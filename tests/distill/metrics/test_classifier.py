"""The classifier: what it is a function of, its folder, and the protocol of its features."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import log_softmax

from distill.errors import UserError
from distill.metrics import Classifier, ClassifierFeatures, Moments, Protocol, frechet_distance


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier((2, 9, 6), 5, width=12, data="noise", accuracy=0.625).requires_grad_(False)


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, 9, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 9, 6), (1, 1, 5)])
def test_shapes(shape: tuple[int, int, int]) -> None:
    classifier = Classifier(shape, 7, width=16)
    x = torch.zeros(3, *shape)
    assert classifier.features(x).shape == (3, 16) and classifier(x).shape == (3, 7)


def test_logits_are_linear_in_the_features(classifier: Classifier) -> None:
    x = noise(4)
    logits = classifier.features(x) @ classifier.head.weight.T + classifier.head.bias
    torch.testing.assert_close(classifier(x), logits)


def test_the_gradient_reaches_the_image(classifier: Classifier) -> None:
    """As a reward needs it: of log p(label | x), against a difference quotient in float64."""
    classifier.double()
    x, labels = noise(3).double().requires_grad_(True), torch.tensor([4, 0, 2])

    def reward(x: Tensor) -> Tensor:
        return log_softmax(classifier(x), dim=1)[torch.arange(3), labels].sum()

    (gradient,) = torch.autograd.grad(reward(x), x)
    direction = noise(3, seed=1).double()
    quotient = (reward(x + 1e-5 * direction) - reward(x - 1e-5 * direction)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(quotient.item(), rel=1e-6)
    assert bool((gradient.abs() > 0).any(dim=0).all())  # every pixel counts
    assert all(p.grad is None for p in classifier.parameters())


def test_a_folder_holds_all_of_it(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["classifier.json", "classifier.safetensors"]
    again = Classifier.load(tmp_path / "c")
    x = noise(4)
    assert torch.equal(again(x), classifier(x)) and again.hash == classifier.hash
    assert (again.shape, again.classes, again.width) == ((2, 9, 6), 5, 12)
    assert (again.data, again.accuracy) == ("noise", 0.625)
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_the_hash_is_of_every_weight(classifier: Classifier) -> None:
    hashes = {classifier.hash}
    for parameter in classifier.parameters():
        parameter.view(-1)[-1] += 1e-3
        hashes.add(classifier.hash)
    assert len(hashes) == 1 + len(list(classifier.parameters()))
    assert all(len(one) == 6 and int(one, 16) >= 0 for one in hashes)


def change(**fields: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "classifier.json"
        description = json.loads(file.read_text()) | fields
        file.write_text(json.dumps({key: value for key, value in description.items() if value is not ...}))

    return apply


def weights(of: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "classifier.safetensors"
        save_file({name: of(value) if name == "head.bias" else value for name, value in load_file(file).items()}, file)

    return apply


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "classifier.json").unlink(), "cannot read '{}': [Errno 2] No such file"),
        (lambda f: (f / "classifier.safetensors").unlink(), "cannot read '{}': [Errno 2] No such file"),
        (lambda f: (f / "classifier.json").write_text("{"), "'{}/classifier.json' is damaged: it is no JSON: EOF"),
        (lambda f: (f / "classifier.safetensors").write_bytes(b"1234"), "cannot read '{}': Error while deserializing"),
        (change(width=13), "'{}/classifier.safetensors': weights: 'neck.1.weight' has shape (12, "),
        (
            change(classes=4),
            "'{}/classifier.safetensors': weights: 'head.weight' has shape (5, 12), ",
        ),
        (change(shape=...), "'{}/classifier.json' is damaged: key 'shape': is missing"),
        (change(shape=[2, 9]), "'{}/classifier.json' is damaged: key 'shape': List should have at least 3 items"),
        (
            change(shape=[2, 9, 0]),
            "'{}/classifier.json' is damaged: key 'shape.2': must be greater than or equal to 1",
        ),
        (change(depth=3), "'{}/classifier.json' is damaged: key 'depth': is no key of this file"),
        (change(data=[]), "'{}/classifier.json' is damaged: key 'data': must be a valid string, got []"),
        (
            weights(lambda w: w * float("nan")),
            "'{}/classifier.safetensors': weights: 'head.bias' holds numbers ",
        ),
        (
            weights(Tensor.bool),
            "'{}/classifier.safetensors': weights: 'head.bias' is of torch.bool, ",
        ),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(
    damage: Callable[[Path], None], reason: str, classifier: Classifier, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    classifier.save(folder)
    damage(folder)
    with pytest.raises(UserError) as caught:
        Classifier.load(folder)
    assert str(caught.value).startswith(f"classifier: {reason.format(folder)}")
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^classifier: no folder '.*/none'; `distill classifier RECIPE` trains one$"):
        Classifier.load(tmp_path / "none")


def test_the_protocol_of_a_classifier(classifier: Classifier) -> None:
    """Every number from its definition, more images than a chunk holds."""
    real, other = noise(1200), noise(700, seed=1) * 2
    extractor = ClassifierFeatures(classifier)
    protocol = Protocol.of("noise", extractor, extractor.extract(real).features)
    assert protocol.name == f"classifier-{classifier.hash}(noise, 1200 real)"
    features = classifier.features(real).double()
    given = classifier.features(other.clamp(-1, 1)).double()
    expected = frechet_distance(Moments.of(given), Moments.of(features))
    labels = classifier(other.clamp(-1, 1)).argmax(dim=1)
    assert labels.unique().numel() > 1
    labels[:70] = (labels[:70] + 1) % 5
    report = protocol.report(other, labels)
    assert report["frechet"] == pytest.approx(expected, rel=1e-5)
    assert report["label_agreement"] == pytest.approx(0.9)
    assert (report["protocol"], report["samples"]) == (protocol.name, 700)
    assert protocol.distance(real) < 1e-9 and protocol.features(real).dtype == torch.float64
    halves = []
    for seed in range(10):
        order = torch.randperm(1200, generator=torch.Generator().manual_seed(seed))
        halves.append(frechet_distance(*(Moments.of(features[half]) for half in order.split(600))))
    assert protocol.halves == pytest.approx(sum(halves) / 10, rel=1e-5)


def test_wrong_images_and_labels_are_refused(classifier: Classifier) -> None:
    extractor = ClassifierFeatures(classifier)
    protocol = Protocol.of("noise", extractor, extractor.extract(noise(8)).features)
    with pytest.raises(UserError, match=r"\[4, 1, 9, 6\] given, expected \[N, 2, 9, 6\]"):
        protocol.distance(torch.zeros(4, 1, 9, 6))
    with pytest.raises(UserError, match="labels: 5 given, expected one of the real labels 0, 1, 2, 3, 4"):
        protocol.agreement(noise(2), torch.tensor([0, 5]))
    with pytest.raises(UserError, match="real images: 3 given, expected at least 4"):
        Protocol.of("noise", extractor, extractor.extract(noise(3)).features)
